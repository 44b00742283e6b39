"""What each network sees in a step: a pure function of the key of the run, the training set and the step."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import augment
from cutnmix_jax.method import View
from cutnmix_jax.settings import MOST_PEERS, Settings
from cutnmix_jax.types import Batch, Dataset, Mix

INIT, ORDER, STEP = range(3)  # what a key is for; folded into the key of the run first

# What is folded into the key of a step's forward passes: below it the number of a peer, or J for a shared trunk (see
# `peers.keys`); from it on the number of a view after the first, or 0 for the teachers.
VIEW_KEY = 1000
assert VIEW_KEY > MOST_PEERS


class Data(NamedTuple):
    """A labelled set of images on the device.

    Attributes:
      images: [N, H, W, C] uint8.
      labels: [N] int32.
      by_class: [N] int32, the rows sorted by their class, and
      starts: [K + 1] int32, where each class begins in them; for views of another image of the same class.
    """

    images: jax.Array
    labels: jax.Array
    by_class: jax.Array | None = None
    starts: jax.Array | None = None


BatchMaker = Callable[[jax.Array, Data, jax.Array], tuple[Batch, Mix]]


def step_keys(key: jax.Array, step: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """The keys of a step: of its batch, and of its forward passes."""
    batch_key, forward_key = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, STEP), step))
    return batch_key, forward_key


def view_key(key: jax.Array, view: int) -> jax.Array:
    """The key of the passes of a view, from that of a step's forward passes or of its teachers'."""
    return jax.random.fold_in(key, VIEW_KEY + view) if view else key


def epoch_order(key: jax.Array, epoch: int, num_train: int) -> jax.Array:
    """The order in which an epoch sees the training set: a permutation, [N] int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), num_train)


def rows_at(order: jax.Array, step: jax.Array | int, batch_size: int, steps_per_epoch: int) -> jax.Array:
    """The rows of the training set that are the batch of a step, [n] int32, from the order of its epoch."""
    return jax.lax.dynamic_slice(order, (step % steps_per_epoch * batch_size,), (batch_size,))


def make_batch_maker(dataset: Dataset, settings: Settings) -> BatchMaker:
    """Makes the function from a key, the training set and n rows of it to the batch that the peers see.

    Gather, a crop and flip for each peer or one for all, mix, normalise.

    Args:
      dataset: for its classes, its mean and deviation and whether its images may be mirrored.
      settings: for the number of peers, whether each has its own crop and flip (section 2.2), how batches are mixed,
        and what the method says of the views.
    """
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)
    num_peers, mix, views = len(settings.backbones), settings.mix, settings.loss.views
    count = 1 if settings.same_images else num_peers  # of images where all see the same

    def seen_by_peers(key: jax.Array, images: jax.Array, view: View) -> jax.Array:
        if not view.crop:
            return jnp.broadcast_to(images, (count, *images.shape))
        if settings.views == "shared":
            seen = augment.crop_flip(key, images, dataset.flip)
            return jnp.broadcast_to(seen, (count, *seen.shape))
        keys = [jax.random.fold_in(key, j) for j in range(count)]
        return jnp.stack([augment.crop_flip(peer_key, images, dataset.flip) for peer_key in keys])

    def make_batch(key: jax.Array, data: Data, index: jax.Array) -> tuple[Batch, Mix]:
        view_key, mix_key = jax.random.split(key)
        images, labels = data.images[index], data.labels[index]
        seen = [seen_by_peers(view_key, images, views[0])]
        for number, view in enumerate(views[1:], start=1):
            # From 2 on: `split`, as in `crop_flip`, gives what 0 and 1 folded in would.
            pair_key, crop_key = jax.random.split(jax.random.fold_in(view_key, num_peers + number))
            others = data.images[same_class_rows(pair_key, data, labels)] if view.same_class else images
            seen.append(seen_by_peers(crop_key, others, view))
        # One partner and one lambda for all; of CutnMix a box for each peer and view.
        mixed, how = augment.mix(
            mix_key, jnp.concatenate(seen).astype(jnp.float32) / 255,
            kind=mix.kind, prob=mix.prob, alpha=mix.alpha, box=mix.box,
        )  # fmt: skip
        shape = (len(views), count)
        targets = augment.mixed_targets(jax.nn.one_hot(labels, dataset.num_classes), how)
        targets = targets.reshape(*shape, *targets.shape[1:])
        targets = jnp.broadcast_to(targets, (len(views), num_peers, *targets.shape[2:]))
        batch = Batch(((mixed - mean) / std).reshape(*shape, *mixed.shape[1:]), targets, labels, index)
        by_view = Mix(how.partner, how.amount.reshape(shape), how.boxes.reshape(*shape, 4))
        return batch, by_view

    return make_batch


def same_class_rows(key: jax.Array, data: Data, labels: jax.Array) -> jax.Array:
    """For each label the row of a training image of that class, uniformly drawn: [n] int32 -> [n] int32."""
    assert data.by_class is not None and data.starts is not None
    first, end = data.starts[labels], data.starts[labels + 1]
    return data.by_class[jax.random.randint(key, labels.shape, first, end)]


def on_device(images: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> Data:
    """Puts images on the device, with the rows of each class beside them where K is given."""
    data = Data(jnp.asarray(images), jnp.asarray(labels))
    if num_classes is None:
        return data
    starts = np.searchsorted(np.sort(labels), np.arange(num_classes + 1))
    by_class = np.argsort(labels, kind="stable")
    return data._replace(by_class=jnp.asarray(by_class, jnp.int32), starts=jnp.asarray(starts, jnp.int32))


def normalised(images: jax.Array, mean: np.ndarray, std: np.ndarray) -> jax.Array:
    """Pixels [n, H, W, C] uint8 as a network takes them, float32; mean and deviation [C] float32."""
    return (images.astype(jnp.float32) / 255 - mean) / std
