"""What the steps of a run are made of, a call at a time: all of an epoch where the images are on the device.

Else the images of each call are read while the one before is computed. Which ones they are is drawn for the epoch, as
ever, so a run goes on bit for bit wherever it was stopped; and with as many steps in a call it is the same run wherever
its images lie.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax.compiler import compiled
from cutnmix_jax.engine.batches import BatchMaker, Data, distinct, epoch_draws
from cutnmix_jax.engine.devices import Devices
from cutnmix_jax.engine.optim import Schedule
from cutnmix_jax.engine.placement import OnHost, Placed, ahead, on_device_of
from cutnmix_jax.engine.state import Feed
from cutnmix_jax.method import View
from cutnmix_jax.types import Tree

MOST_BYTES = 64 * 2**20  # of the images of a call


@dataclasses.dataclass(frozen=True, eq=False)
class Epochs:
    """Draws the epochs of a run.

    Attributes:
      key: of the run.
      images: the training set.
      make_batch: of which one half draws.
      steps: in an epoch.
      batch_size: n.
      schedule: the learning rates of steps.
      devices: of the run.
    """

    key: jax.Array
    images: Placed
    make_batch: BatchMaker
    steps: int
    batch_size: int
    schedule: Schedule
    devices: Devices

    def feed(self, epoch: int) -> Feed:
        """What the steps of an epoch, 0-based, are made of; without images where they are on the host."""
        return self._of(self._draw, epoch)

    def shapes(self) -> Feed:
        """What it looks like, with nothing drawn."""
        return self._of(functools.partial(jax.eval_shape, self._draws), 0)

    def rates(self, epoch: int) -> jax.Array:
        """The learning rate of each step of an epoch, [steps] float32."""
        return jnp.asarray(self.schedule(epoch * self.steps + np.arange(self.steps)))

    def _of(self, draw: Callable[..., tuple[jax.Array, Tree, jax.Array]], epoch: int) -> Feed:
        data = on_device_of(self.images)
        rows, draws, keys = draw(self.key, data, epoch)
        return Feed(data, self.rates(epoch), rows, draws, keys, jnp.int32(0))

    def _draws(self, key: jax.Array, data: Data, epoch: jax.Array | int) -> tuple[jax.Array, Tree, jax.Array]:
        return epoch_draws(self.make_batch, self.steps, self.batch_size, key, data, epoch)

    @functools.cached_property
    def _draw(self) -> jax.stages.Wrapped:
        return compiled(self._draws, once=True, **self.devices.whole_results)


class Feeds(Protocol):
    """What gives the loop the feed of each call."""

    def at(self, step: int) -> Feed:
        """The feed of a call that begins with a step, counted from 0."""

    def shapes(self) -> Feed:
        """What a feed looks like, with nothing drawn or read."""


class Whole:
    """The feeds of a run whose images are on the device: those of its epochs."""

    def __init__(self, epochs: Epochs):
        """Draws nothing yet; arguments as of `make`."""
        self._epochs = epochs
        self._of = functools.lru_cache(maxsize=1)(epochs.feed)  # an epoch is drawn once, however many calls it has

    def at(self, step: int) -> Feed:
        """See `Feeds`."""
        return self._of(step // self._epochs.steps)

    def shapes(self) -> Feed:
        """See `Feeds`."""
        return self._epochs.shapes()


def steps_per_call(image_bytes: int, batch_size: int, views: Sequence[View], wanted: int) -> int:
    """How many steps a call does whose images are on the host: as wanted, or as their images take `MOST_BYTES`."""
    return max(1, min(wanted, MOST_BYTES // (image_bytes * batch_size * len(distinct(views)))))


class Streamed:
    """The feeds of a run whose images are on the host."""

    def __init__(self, images: OnHost, epochs: Epochs, per_call: int, views: Sequence[View]):
        """Reads nothing yet; the images are those of the epochs, and other arguments as of `make`."""
        self._images, self._epochs, self._per_call, self._distinct = images, epochs, per_call, distinct(views)
        self._epoch, self._next = -1, -1
        self._read: Iterator[jax.Array] = iter(())
        self._part = compiled(self._of_call)

    def shapes(self) -> Feed:
        """See `Feeds`."""
        feed = jax.eval_shape(self._of_call, self._epochs.shapes(), 0, 0)
        return _with_images(feed, jax.ShapeDtypeStruct(self._shape, jnp.uint8))

    @property
    def _shape(self) -> tuple[int, ...]:
        return self._per_call, len(self._distinct), self._epochs.batch_size, *self._images.images.shape[1:]

    def at(self, step: int) -> Feed:
        """See `Feeds`."""
        epoch, within = divmod(step, self._epochs.steps)
        if epoch != self._epoch:
            self._epoch, self._feed = epoch, self._epochs.feed(epoch)
            self._rows = np.asarray(self._feed.draws.rows)
            self._next = -1
        if within != self._next:
            self._read = self._from(within)
        self._next = within + self._per_call
        return _with_images(self._part(self._feed, within, step), next(self._read))

    def _from(self, first: int) -> Iterator[jax.Array]:
        """The images of the calls from a step of the epoch on."""
        starts = range(first, self._epochs.steps, self._per_call)
        rows, shape = self._rows, self._shape

        def read(number: int) -> jax.Array:
            of_call = rows[starts[number] : starts[number] + self._per_call, self._distinct]

            def part(columns: slice) -> np.ndarray:
                wanted = of_call[..., columns]
                found = self._images.read(wanted.ravel(), math.prod(shape[:2]) * wanted.shape[-1])
                return found.reshape(*shape[:2], -1, *shape[3:])

            return self._epochs.devices.images(shape, 2, part)

        return ahead(read, len(starts))

    def _of_call(self, epoch: Feed, within: jax.Array, step: jax.Array) -> Feed:
        steps = jnp.minimum(within + jnp.arange(self._per_call), self._epochs.steps - 1)
        of_epoch = epoch.rates, epoch.rows, epoch.draws, epoch.keys
        rates, rows, draws, keys = jax.tree.map(lambda leaf: leaf[steps], of_epoch)
        return Feed(Data(None, epoch.data.labels), rates, rows, draws, keys, jnp.asarray(step, jnp.int32))


def _with_images(feed: Feed, images: Any) -> Feed:
    return feed._replace(draws=feed.draws._replace(images=images))


def make(epochs: Epochs, per_call: int, views: Sequence[View]) -> Feeds:
    """The feeds of a run.

    Args:
      epochs: draws them.
      per_call: steps of a call.
      views: of the method.
    """
    if isinstance(epochs.images, Data):
        return Whole(epochs)
    return Streamed(epochs.images, epochs, per_call, views)
