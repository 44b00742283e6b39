"""Many steps of training in one compiled call."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax.types import NEVER, Totals, TrainState

Step = Callable[[TrainState, Totals], tuple[TrainState, Totals]]


class _Vectors(NamedTuple):
    """Totals as two vectors [M], which a GPU adds to with a kernel or two; as scalars they take two for each metric."""

    sums: jax.Array
    broken: jax.Array


def until(end: jax.Array, step: Step, state: TrainState, totals: Totals) -> tuple[TrainState, Totals]:
    """Does steps up to number `end`, or to the first one in which something is no longer finite.

    Args:
      end: scalar int32; data, so that the shorter call at the end of an epoch runs the same program.
      step: does one.
      state: before them.
      totals: of the epoch so far.
    """
    names = list(totals.sums)

    def joined(totals: Totals) -> _Vectors:
        return _Vectors(*(jnp.stack([numbers[name] for name in names]) for numbers in totals))

    def split(totals: _Vectors) -> Totals:
        return Totals(*(dict(zip(names, numbers, strict=True)) for numbers in totals))

    def goes_on(carry: tuple[TrainState, _Vectors]) -> jax.Array:
        return jnp.any((carry[0].step < end) & (carry[1].broken.min(axis=0) == NEVER))

    def goes(carry: tuple[TrainState, _Vectors]) -> tuple[TrainState, _Vectors]:
        after, sums = step(carry[0], split(carry[1]))
        return after, joined(sums)

    after, sums = jax.lax.while_loop(goes_on, goes, (state, joined(totals)))
    return after, split(sums)
