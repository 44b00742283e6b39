"""What the steps of a run are made of, a call at a time: all of an epoch where the images are on the device.

Else the images of each call are read while the one before is computed. Which ones they are is drawn for the epoch, as
ever, so a run goes on bit for bit wherever it was stopped; and with as many steps in a call it is the same run wherever
its images lie.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax.compiler import compiled
from cutnmix_jax.engine.batches import Data, distinct
from cutnmix_jax.engine.devices import Devices
from cutnmix_jax.engine.placement import OnHost, Placed, ahead
from cutnmix_jax.engine.state import Feed
from cutnmix_jax.method import View

MOST_BYTES = 64 * 2**20  # of the images of a call

Drawn = Callable[[int], Feed]  # draws an epoch; without images where they are on the host


class Feeds(Protocol):
    """Where the loop gets them."""

    def at(self, step: int) -> Feed:
        """That of a call that begins with a step, counted from 0."""

    def shapes(self) -> Feed:
        """What they look like, with nothing drawn or read."""


class Whole:
    """The feeds of a run whose images are on the device: those of its epochs."""

    def __init__(self, drawn: Drawn, shapes: Feed):
        """Draws nothing yet; arguments as of `make`."""
        self._shapes, self._steps = shapes, len(shapes.rows)
        self._of = functools.lru_cache(maxsize=1)(drawn)  # an epoch is drawn once, however many calls it has

    def at(self, step: int) -> Feed:
        """See `Feeds`."""
        return self._of(step // self._steps)

    def shapes(self) -> Feed:
        """See `Feeds`."""
        return self._shapes


def steps_per_call(image_bytes: int, batch_size: int, views: Sequence[View], wanted: int) -> int:
    """How many steps a call does whose images are on the host: as wanted, or as their images take `MOST_BYTES`."""
    return max(1, min(wanted, MOST_BYTES // (image_bytes * batch_size * len(distinct(views)))))


class Streamed:
    """The feeds of a run whose images are on the host."""

    def __init__(
        self,
        images: OnHost,
        drawn: Drawn,
        shapes: Feed,
        per_call: int,
        views: Sequence[View],
        devices: Devices,
    ):
        """Reads nothing yet; arguments as of `make`."""
        self._images, self._drawn, self._shapes = images, drawn, shapes
        self._steps, self._per_call = len(shapes.rows), per_call
        self._distinct, self._devices = distinct(views), devices
        self._epoch, self._next = -1, -1
        self._read: Iterator[jax.Array] = iter(())
        self._part = compiled(self._of_call)

    def shapes(self) -> Feed:
        """See `Feeds`."""
        epoch = self._shapes
        feed = jax.eval_shape(self._of_call, epoch, 0, 0)
        return _with_images(feed, jax.ShapeDtypeStruct(self._shape(epoch.rows.shape[1]), jnp.uint8))

    def _shape(self, n: int) -> tuple[int, ...]:
        return self._per_call, len(self._distinct), n, *self._images.images.shape[1:]

    def at(self, step: int) -> Feed:
        """See `Feeds`."""
        epoch, within = divmod(step, self._steps)
        if epoch != self._epoch:
            self._epoch, self._feed = epoch, self._drawn(epoch)
            self._rows = np.asarray(self._feed.draws.rows)
            self._next = -1
        if within != self._next:
            self._read = self._from(within)
        self._next = within + self._per_call
        return _with_images(self._part(self._feed, within, step), next(self._read))

    def _from(self, first: int) -> Iterator[jax.Array]:
        """The images of the calls from a step of the epoch on."""
        starts = range(first, self._steps, self._per_call)
        rows, shape = self._rows, self._shape(self._rows.shape[-1])

        def read(number: int) -> jax.Array:
            of_call = rows[starts[number] : starts[number] + self._per_call, self._distinct]

            def part(columns: slice) -> np.ndarray:
                wanted = of_call[..., columns]
                found = self._images.read(wanted.ravel(), math.prod(shape[:2]) * wanted.shape[-1])
                return found.reshape(*shape[:2], -1, *shape[3:])

            return self._devices.images(shape, 2, part)

        return ahead(read, len(starts))

    def _of_call(self, epoch: Feed, within: jax.Array, step: jax.Array) -> Feed:
        steps = jnp.minimum(within + jnp.arange(self._per_call), self._steps - 1)
        of_epoch = epoch.rates, epoch.rows, epoch.draws, epoch.keys
        rates, rows, draws, keys = jax.tree.map(lambda leaf: leaf[steps], of_epoch)
        return Feed(Data(None, epoch.data.labels), rates, rows, draws, keys, jnp.asarray(step, jnp.int32))


def _with_images(feed: Feed, images: Any) -> Feed:
    return feed._replace(draws=feed.draws._replace(images=images))


def make(images: Placed, drawn: Drawn, shapes: Feed, per_call: int, views: Sequence[View], devices: Devices) -> Feeds:
    """Those of a run.

    Args:
      images: the training set.
      drawn: draws an epoch.
      shapes: what that looks like.
      per_call: steps of a call.
      views: of the method.
      devices: of the run.
    """
    if isinstance(images, Data):
        return Whole(drawn, shapes)
    return Streamed(images, drawn, shapes, per_call, views, devices)
