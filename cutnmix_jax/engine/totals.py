"""What training has measured in the steps of an epoch, kept on the device until somebody asks."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cutnmix_jax.types import NEVER, Totals


def zero(names: Sequence[str]) -> Totals:
    """At the start of an epoch."""
    return Totals({name: jnp.zeros(()) for name in names}, {name: jnp.int32(NEVER) for name in names})


def add(totals: Totals, values: Mapping[str, jax.Array], step: jax.Array) -> Totals:
    """The totals after step number `step`, counted from 1, in which `values` were measured."""
    sums = {name: total + values[name] for name, total in totals.sums.items()}
    broken = {
        name: jnp.minimum(first, jnp.where(jnp.isfinite(values[name]), NEVER, step))
        for name, first in totals.broken.items()
    }
    return Totals(sums, broken)


def finite(totals: Totals) -> jax.Array:
    """Whether all that was measured so far is finite: a bool."""
    return jnp.stack(list(totals.broken.values())).min() == NEVER
