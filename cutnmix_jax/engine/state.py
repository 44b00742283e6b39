"""What training goes on from: all that a checkpoint holds, and what the steps of an epoch are made of."""

from typing import NamedTuple

import jax

from cutnmix_jax.engine.batches import Data
from cutnmix_jax.types import Totals, TrainState


class Saved(NamedTuple):
    """What a checkpoint holds: all that is needed to go on as if nothing had happened."""

    state: TrainState
    totals: Totals
    seconds: jax.Array  # that the unfinished epoch has taken so far
    wall_seconds: jax.Array  # that all starts together have taken up to this save, whatever they did


class Feed(NamedTuple):
    """What all steps of an epoch are made of; arguments, so that nothing is compiled for another seed or learning rate.

    Attributes:
      data: the training set.
      order: in which the epoch sees it, [N] int32.
      rates: the learning rate of each step of the epoch, float32.
      key: of the run.
    """

    data: Data
    order: jax.Array
    rates: jax.Array
    key: jax.Array
