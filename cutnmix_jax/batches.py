"""From rows of the training set to the batch that the peers see."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import augment
from cutnmix_jax.types import Batch, Dataset, Mix

INIT, ORDER, STEP = range(3)  # what a key is for; folded into the seed's key first
VIEWS = ("shared", "per_peer")


class Data(NamedTuple):
    """A labelled set of images on the device.

    Attributes:
      images: [N, 32, 32, 3] uint8.
      labels: [N] int32.
      by_class: [N] int32, the rows sorted by their class, and
      starts: [K + 1] int32, where each class begins in them; for methods that pair images of one class.
    """

    images: jax.Array
    labels: jax.Array
    by_class: jax.Array | None = None
    starts: jax.Array | None = None


BatchMaker = Callable[[jax.Array, Data, jax.Array], tuple[Batch, Mix]]


def make_batch_maker(
    dataset: Dataset,
    *,
    num_peers: int,
    views: str,
    mix: Mapping[str, Any],
    views_per_peer: int = 1,
    same_class: bool = False,
) -> BatchMaker:
    """Makes the function from a key, the training set and n row numbers to the batch that the peers see.

    Gather, one view per peer (or one for all), mix, normalise.

    Args:
      dataset: for its classes, its mean and deviation and whether its images may be mirrored.
      num_peers: J.
      views: `per_peer` (each peer its own crop and flip, section 2.2) or `shared`.
      mix: the keyword arguments of `augment.mix`.
      views_per_peer: how many views of an image each peer sees.
      same_class: whether views after the first are of another image of the same class.
    """
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)

    def seen_by_peers(key: jax.Array, images: jax.Array) -> jax.Array:
        if views == "per_peer":
            keys = [jax.random.fold_in(key, j) for j in range(num_peers)]
            return jnp.stack([augment.crop_flip(peer_key, images, dataset.flip) for peer_key in keys])
        seen = augment.crop_flip(key, images, dataset.flip)
        return jnp.broadcast_to(seen, (num_peers, *seen.shape))

    def make_batch(key: jax.Array, data: Data, index: jax.Array) -> tuple[Batch, Mix]:
        view_key, mix_key = jax.random.split(key)
        images, labels = data.images[index], data.labels[index]
        seen = [seen_by_peers(view_key, images)]
        for view in range(1, views_per_peer):
            pair_key, other_key = jax.random.split(jax.random.fold_in(view_key, num_peers + view))
            others = data.images[same_class_rows(pair_key, data, labels)] if same_class else images
            seen.append(seen_by_peers(other_key, others))
        mixed, how = augment.mix(mix_key, jnp.concatenate(seen).astype(jnp.float32) / 255, **mix)
        targets = augment.mixed_targets(labels, how, dataset.num_classes)[:num_peers]
        return Batch((mixed - mean) / std, targets, labels, index), how

    return make_batch


def same_class_rows(key: jax.Array, data: Data, labels: jax.Array) -> jax.Array:
    """For each label the row of a training image of that class, uniformly drawn: [n] int32 -> [n] int32."""
    assert data.by_class is not None and data.starts is not None
    first, end = data.starts[labels], data.starts[labels + 1]
    return data.by_class[jax.random.randint(key, labels.shape, first, end)]


def with_classes(data: Data, num_classes: int) -> Data:
    """`data` with the rows of each class beside it."""
    labels = np.asarray(data.labels)
    starts = np.searchsorted(np.sort(labels), np.arange(num_classes + 1))
    by_class = np.argsort(labels, kind="stable")
    return data._replace(by_class=jnp.asarray(by_class, jnp.int32), starts=jnp.asarray(starts, jnp.int32))


def epoch_order(key: jax.Array, epoch: int, num_train: int) -> jax.Array:
    """The order in which an epoch sees the training set: a permutation, [N] int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), num_train)
