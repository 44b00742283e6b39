"""The weights of the loss terms, and what is measured: the accuracy on mixed labels, and the totals of an epoch.

Totals are kept on the device until somebody asks.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from cutnmix_jax.engine import optim
from cutnmix_jax.settings import Settings
from cutnmix_jax.types import NEVER, Clock, Outputs, Totals


def weight(name: str, settings: Settings, clock: Clock) -> jax.Array | float:
    """The weight of a term in a step."""
    rising, full = settings.ramp_up, settings.weights[name]
    return full * optim.ramp_up(clock.epoch, rising.epochs) if full and name in rising.terms else full


def mixed_accuracy(outputs: tuple[Outputs, ...], targets: jax.Array) -> jax.Array:
    """Mean over peers and images of how often the likeliest class is the larger share of the mixed label; a scalar."""
    hits = [(out.logits.argmax(-1) == targets[j].argmax(-1)).mean() for j, out in enumerate(outputs)]
    return jnp.stack(hits).mean()


def zero_totals(names: Sequence[str]) -> Totals:
    """At the start of an epoch."""
    return Totals({name: jnp.zeros(()) for name in names}, {name: jnp.int32(NEVER) for name in names})


def added(totals: Totals, values: Mapping[str, jax.Array], step: jax.Array) -> Totals:
    """The totals after step number `step`, counted from 1, in which `values` were measured."""
    sums = {name: total + values[name] for name, total in totals.sums.items()}
    broken = {
        name: jnp.minimum(first, jnp.where(jnp.isfinite(values[name]), NEVER, step))
        for name, first in totals.broken.items()
    }
    return Totals(sums, broken)
