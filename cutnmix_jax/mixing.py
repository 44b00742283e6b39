"""MixUp, CutMix and CutnMix for a training loop of one's own: pure functions that can be compiled and mapped.

They are those that a run uses (`augment`), with a distribution for each image in place of its class.
J peers, n images, K classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import augment
from cutnmix_jax.types import Mix


class Mixed(NamedTuple):
    """A mixed batch.

    Attributes:
      images: of the shape and type that were given.
      targets: [J, n, K] for images [J, n, H, W, C], [n, K] for images [n, H, W, C]; rows sum to 1 where those given do.
      how: the partner of each image, [n] int32; lambda, its share, [J] float32; and the boxes, [J, 4] int32 (top, left,
        height, width). Without the axis J for images [n, H, W, C].
    """

    images: jax.Array
    targets: jax.Array
    how: Mix


def cutnmix(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float = 1.0, prob: float = 1.0, box: str = "cutmix"
) -> Mixed:
    """CutnMix (Eq. 5 to 7): every peer has a box of its own; the partners and lambda are the same for all.

    Args:
      key: PRNG key.
      images: [J, n, H, W, C], what each of J peers sees of the same n images; or [n, H, W, C] for one.
      targets: [n, K] float, a distribution over classes for each image, as from `jax.nn.one_hot`.
      alpha: of Beta(alpha, alpha), the law of lambda.
      prob: the chance that the batch is mixed at all.
      box: how to read Eq. 7, one of `augment.BOX_READINGS`; see `augment.cutnmix_boxes`. With `own`, and with it alone,
        targets differ over peers.

    Raises:
      ValueError: arrays of other shapes or types, or numbers out of range.

    Example:
      >>> import cutnmix_jax
      >>> key = jax.random.key(0)
      >>> images = jax.random.uniform(key, (2, 4, 32, 32, 3))  # what each of 2 peers sees of 4 images
      >>> mixed = cutnmix_jax.cutnmix(key, images, jax.nn.one_hot(jnp.array([0, 1, 2, 0]), 3))
      >>> mixed.images.shape, mixed.targets.shape, mixed.how.boxes.shape
      ((2, 4, 32, 32, 3), (2, 4, 3), (2, 4))
      >>> bool(mixed.how.amount[0] == mixed.how.amount[1])  # Eq. 7
      True
    """
    return _mixed(key, images, targets, kind="cutnmix", alpha=alpha, prob=prob, box=box)


def cutmix(key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float = 1.0, prob: float = 1.0) -> Mixed:
    """CutMix (Yun et al. 2019; Eq. 2 and 3): one box for all peers. Arguments as those of `cutnmix`."""
    return _mixed(key, images, targets, kind="cutmix", alpha=alpha, prob=prob, box="cutmix")


def mixup(key: jax.Array, images: jax.Array, targets: jax.Array, *, alpha: float = 1.0, prob: float = 1.0) -> Mixed:
    """MixUp (Zhang et al. 2017): the weighted mean of two images. As `cutnmix`; images of a floating type."""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; a mean of two wants a floating type")
    mixed = _mixed(key, images, targets, kind="mixup", alpha=alpha, prob=prob, box="cutmix")
    return mixed._replace(images=mixed.images.astype(images.dtype))


def _mixed(
    key: jax.Array, images: jax.Array, targets: jax.Array, *, kind: str, alpha: float, prob: float, box: str
) -> Mixed:
    if images.ndim not in (4, 5):
        raise ValueError(f"images are [J, n, H, W, C] or [n, H, W, C], not {list(images.shape)}")
    if targets.ndim != 2 or len(targets) != images.shape[-4]:
        raise ValueError(
            f"targets are [n, K], a distribution for each of the n = {images.shape[-4]} images, not "
            f"{list(targets.shape)}; jax.nn.one_hot(labels, K) makes them of labels [n]"
        )
    if not jnp.issubdtype(targets.dtype, jnp.floating):
        raise ValueError(f"targets are {targets.dtype}; distributions are of a floating type")
    images, targets = jnp.asarray(images), jnp.asarray(targets)  # which JAX can index while it traces
    alpha, prob = float(alpha), float(prob)
    for name, check, value in (("alpha", augment.ALPHA, alpha), ("prob", augment.PROB, prob)):
        if wrong := check(value):
            raise ValueError(f"{name}={value}: {wrong}")
    many = images if images.ndim == 5 else images[None]
    mixed, how = augment.mix(key, many, kind=kind, prob=prob, alpha=alpha, box=box)
    found = Mixed(mixed, augment.mixed_targets(targets, how), how)
    if images.ndim == 5:
        return found
    return Mixed(mixed[0], found.targets[0], Mix(how.partner, how.amount[0], how.boxes[0]))
