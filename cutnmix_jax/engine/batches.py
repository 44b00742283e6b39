"""What each network sees in a step: a pure function of the key of the run, the training set and the step."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import augment, crops
from cutnmix_jax.engine.devices import DATA, ONE, PEERS, Devices
from cutnmix_jax.method import View
from cutnmix_jax.settings import MOST_PEERS, Settings
from cutnmix_jax.types import Batch, Dataset, Mix, Tree

INIT, ORDER, STEP = range(3)  # what a key is for; folded into the key of the run first

# What is folded into the key of a step's forward passes: below it the number of a peer, or J for a shared trunk (see
# `mappings.keys`); from it on the number of a view after the first, or 0 for the teachers.
VIEW_KEY = 1000
assert VIEW_KEY > MOST_PEERS


class Data(NamedTuple):
    """A labelled set of images on the device.

    Attributes:
      images: [N, H, W, C] uint8; None where they are on the host.
      labels: [N] int32.
      by_class: [N] int32, the rows sorted by their class, and
      starts: [K + 1] int32, where each class begins in them; for views of another image of the same class.
    """

    images: Any
    labels: jax.Array
    by_class: jax.Array | None = None
    starts: jax.Array | None = None


class Draws(NamedTuple):
    """All that is random in a batch; those of an epoch have no images, so that they are small.

    Attributes:
      rows: [views, n] int32, the rows of the training set that each view shows.
      crops: for each view the crops of J networks, or of one where all see the same; None where it is not cropped.
      how: `augment.draw_mix` of a box for each view and peer, [views * J].
      images: where images are on the host, those of the views that show images of their own, see `feeding`: [distinct
        views, n, H, W, C] uint8.
    """

    rows: jax.Array
    crops: tuple[crops.Crops | None, ...]
    how: Mix
    images: Any = None


@dataclasses.dataclass(frozen=True)
class BatchMaker:
    """How a batch comes about.

    Attributes:
      draw: `draw(key, data, index) -> draws`, of n rows of the training set.
      make: `make(data, index, draws) -> (batch, how it was mixed)`.
    """

    draw: Callable[[jax.Array, Data, jax.Array], Tree]
    make: Callable[[Data, jax.Array, Tree], tuple[Batch, Mix]]

    def __call__(self, key: jax.Array, data: Data, index: jax.Array) -> tuple[Batch, Mix]:
        """Draws a batch and makes it."""
        return self.make(data, index, self.draw(key, data, index))


def step_keys(key: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The keys of a step: of its batch, and of its forward passes."""
    batch_key, forward_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, STEP), step))
    return batch_key, forward_key


def view_key(key: jax.Array, view: int) -> jax.Array:
    """The key of the peers' passes of a view, from that of a step's forward passes."""
    return jax.random.fold_in(key, VIEW_KEY + view) if view else key


def teachers_key(key: jax.Array, view: int) -> jax.Array:
    """The key of the teachers' passes of a view, likewise."""
    return view_key(jax.random.fold_in(key, VIEW_KEY), view)


def epoch_order(key: jax.Array, epoch: jax.Array | int, num_train: int) -> jax.Array:
    """The order in which an epoch sees the training set: a permutation, [N] int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), num_train)


def make_batch_maker(dataset: Dataset, settings: Settings, devices: Devices = ONE) -> BatchMaker:
    """Makes what draws and what makes the batches that the peers see.

    Gather, a crop, a flip and colours for each peer or once for all, mix, normalise.

    Args:
      dataset: for its classes, its mean and deviation and whether its images may be mirrored.
      settings: for the number of peers, whether each has its own crop and flip (section 2.2), how batches are mixed,
        and what the method says of the views.
      devices: of the run.
    """
    count = 1 if settings.same_images else len(settings.backbones)  # of images where all see the same
    return BatchMaker(_drawing(dataset, settings, count), _making(dataset, settings, count, devices))


def _drawing(dataset: Dataset, settings: Settings, count: int) -> Callable[[jax.Array, Data, jax.Array], Draws]:
    num_peers, mix, views = len(settings.backbones), settings.mix, settings.loss.views
    size = dataset.train_images.shape[1:3]
    jitter = dataclasses.astuple(settings.jitter)

    def draw_crops(key: jax.Array, num_images: int, view: View) -> crops.Crops | None:
        if not view.crop:
            return None

        def of_one(key: jax.Array) -> crops.Crops:
            return crops.draw_crops(key, num_images, size, kind=settings.crop, flip=dataset.flip, jitter=jitter)

        if settings.views == "shared":
            return jax.tree.map(lambda leaf: leaf[None], of_one(key))
        keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(count))
        return jax.vmap(of_one)(keys)

    def draw(key: jax.Array, data: Data, index: jax.Array) -> Draws:
        view_key, mix_key = jax.random.split(key)
        rows, seen = [index], [draw_crops(view_key, len(index), views[0])]
        for number, view in enumerate(views[1:], start=1):
            # From 2 on: `split`, as in `crops.draw_crops`, gives what 0 and 1 folded in would.
            pair_key, crop_key = jax.random.split(jax.random.fold_in(view_key, num_peers + number))
            rows.append(same_class_rows(pair_key, data, data.labels[index]) if view.same_class else index)
            seen.append(draw_crops(crop_key, len(index), view))
        # One partner and one lambda for all; of CutnMix a box for each peer and view.
        how = augment.draw_mix(
            mix_key, len(views) * count, len(index), size,
            kind=mix.kind, prob=mix.prob, alpha=mix.alpha, box=mix.box,
        )  # fmt: skip
        return Draws(jnp.stack(rows), tuple(seen), how)

    return draw


def _making(
    dataset: Dataset, settings: Settings, count: int, devices: Devices
) -> Callable[[Data, jax.Array, Draws], tuple[Batch, Mix]]:
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)
    num_peers, mix, views = len(settings.backbones), settings.mix, settings.loss.views
    own = distinct(views)  # the place of the images of each view among those that are on the host
    places = [own.index(number) if number in own else 0 for number in range(len(views))]

    def seen_by_peers(images: jax.Array, drawn: crops.Crops | None) -> jax.Array:
        seen = images[None] if drawn is None else jax.vmap(crops.cropped, (None, 0))(images, drawn)
        return jnp.broadcast_to(seen, (count, *seen.shape[1:]))

    def pixels(data: Data, draws: Draws) -> jax.Array:
        """What all views and peers see of the images of a batch before it is mixed, [views * count, n, H, W, C]."""
        seen = []
        for place, rows, drawn in zip(places, draws.rows, draws.crops, strict=True):
            images = data.images[rows] if draws.images is None else draws.images[place]
            seen.append(seen_by_peers(devices.split_batch(images, 0), drawn))
        return jnp.concatenate(seen).astype(jnp.float32) / 255

    def make(data: Data, index: jax.Array, draws: Draws) -> tuple[Batch, Mix]:
        labels, how, shape = data.labels[index], draws.how, (len(views), count)
        # On several devices a partner may be on another one. To make it twice costs less than to send it.
        is_apart = devices.mesh and mix.kind != "none"
        partners = pixels(data, _of_partners(draws)) if is_apart else None
        mixed = augment.mixed_images(pixels(data, draws), how, mix.kind, partners)
        targets = augment.mixed_targets(jax.nn.one_hot(labels, dataset.num_classes), how)
        targets = targets.reshape(*shape, *targets.shape[1:])
        targets = jnp.broadcast_to(targets, (len(views), num_peers, *targets.shape[2:]))
        images = ((mixed - mean) / std).reshape(*shape, *mixed.shape[1:])
        images = devices.split(images, None, PEERS if count > 1 else None, DATA)
        batch = Batch(images, devices.split_batch(targets, 2), labels, index)
        by_view = Mix(how.partner, how.amount.reshape(shape), how.boxes.reshape(*shape, 4))
        return batch, by_view

    return make


def _of_partners(draws: Draws) -> Draws:
    """What was drawn for a batch in which each image is the partner of the one that was there."""
    of = draws.how.partner
    rows, seen, images = jax.tree.map(lambda leaf: leaf[:, of], (draws.rows, draws.crops, draws.images))
    return Draws(rows, seen, draws.how, images)


def distinct(views: Sequence[View]) -> list[int]:
    """The views that show images of their own; the others show those of the first one."""
    return [number for number, view in enumerate(views) if number == 0 or view.same_class]


def epoch_draws(
    make_batch: BatchMaker, steps_per_epoch: int, batch_size: int, key: jax.Array, data: Data, epoch: jax.Array | int
) -> tuple[jax.Array, Tree, jax.Array]:
    """Draws what is random in all steps of an epoch, from the key of the run.

    Returns:
      The rows of the training set in each batch, [steps, n] int32; what is drawn for each, leaves [steps, ...]; and the
      keys of the forward passes, [steps].
    """
    order = epoch_order(key, epoch, len(data.labels))
    rows = order[: steps_per_epoch * batch_size].reshape(steps_per_epoch, batch_size)
    steps = epoch * steps_per_epoch + jnp.arange(steps_per_epoch)
    batch_keys, forward_keys = jax.vmap(step_keys, (None, 0))(key, steps)
    return rows, jax.vmap(make_batch.draw, (0, None, 0))(batch_keys, data, rows), forward_keys


def same_class_rows(key: jax.Array, data: Data, labels: jax.Array) -> jax.Array:
    """For each label the row of a training image of that class, uniformly drawn: [n] int32 -> [n] int32."""
    assert data.by_class is not None and data.starts is not None
    first, end = data.starts[labels], data.starts[labels + 1]
    return data.by_class[jax.random.randint(key, labels.shape, first, end)]


def on_device(images: np.ndarray | None, labels: np.ndarray, num_classes: int | None = None) -> Data:
    """Puts images and labels on the device, with the rows of each class beside them where K is given."""
    data = Data(None if images is None else jnp.asarray(images), jnp.asarray(labels))
    if num_classes is None:
        return data
    starts = np.searchsorted(np.sort(labels), np.arange(num_classes + 1))
    by_class = np.argsort(labels, kind="stable")
    return data._replace(by_class=jnp.asarray(by_class, jnp.int32), starts=jnp.asarray(starts, jnp.int32))


def normalised(images: jax.Array, mean: np.ndarray, std: np.ndarray) -> jax.Array:
    """Pixels [n, H, W, C] uint8 as a network takes them, float32; mean and deviation [C] float32."""
    return (images.astype(jnp.float32) / 255 - mean) / std
