"""What training goes on from: all that a checkpoint holds, and what the steps of an epoch are made of."""

from typing import NamedTuple

import jax

from cutnmix_jax.engine.batches import Data
from cutnmix_jax.types import Totals, TrainState, Tree


class Saved(NamedTuple):
    """What a checkpoint holds: all that is needed to go on as if nothing had happened."""

    state: TrainState
    totals: Totals
    seconds: jax.Array  # that the unfinished epoch has taken so far
    wall_seconds: jax.Array  # that all starts together have taken up to this save, whatever they did


class Feed(NamedTuple):
    """What the steps of an epoch, or of a call, are made of.

    Arguments, so that nothing is compiled for another seed or learning rate.

    Attributes:
      data: the training set; of a call the images that it shows.
      rates: the learning rate of each of the steps, [steps] float32.
      rows: of the training set, in each step, [steps, n] int32.
      draws: what is random in the batch of each step, drawn at once: within a step it would be some 30 of the kernels
        that a GPU launches, and more than a third of what is compiled. Leaves [steps, ...].
      keys: of the forward passes of each step, [steps].
      first: the number of its first step, or of one that is whole epochs before it; int32.
    """

    data: Data
    rates: jax.Array
    rows: jax.Array
    draws: Tree
    keys: jax.Array
    first: jax.Array
