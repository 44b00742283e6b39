"""Crops, mirror images and colours of training images: pure functions of a key and arrays, before images are mixed.

Each has two halves, as in `augment`: one draws, one does what was drawn. n images of H x W pixels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import fields
from cutnmix_jax.types import Size

KINDS = ("auto", "pad", "resized")
KIND = fields.one_of(KINDS)
LARGEST_PADDED = 64  # pixels on the longer side: CIFAR, Tiny ImageNet and the like
# Of torchvision's RandomResizedCrop, which is that of Szegedy et al. 2015 (section 6): the share of the image, width by
# height, and how often both are drawn before the middle is taken.
SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, of Pillow's mode L
# At 100 nearly every pixel is black or white; beyond, nothing changes.
STRENGTH = fields.number(0, 100)
_COLOURS = 1000  # folded into a key; more than what `engine.batches` folds into the same one


class Colours(NamedTuple):
    """How the colours of n images are changed.

    Attributes:
      order: [n, 3] int32, in which order brightness (0), contrast (1) and saturation (2) are changed.
      factors: [n, 3] float32, of brightness, contrast and saturation; 1 changes nothing.
    """

    order: jax.Array
    factors: jax.Array


class Crops(NamedTuple):
    """What is cut out of n images, which are mirrored, and how colours are changed.

    Attributes:
      offsets: [n, 2] int32, the first row and column; of the padded image where there are no `sizes`.
      mirrored: [n] bool; None where none is.
      sizes: [n, 2] int32, height and width of what becomes the whole image; None where it is cut out in its own size.
      colours: None where they stay.
    """

    offsets: jax.Array
    mirrored: jax.Array | None
    sizes: jax.Array | None = None
    colours: Colours | None = None


def kind_of(kind: str, size: Size) -> str:
    """`pad` or `resized`: what `auto` is for images of a size."""
    if kind != "auto":
        return kind
    return "pad" if max(size) <= LARGEST_PADDED else "resized"


def padding(size: Size) -> Size:
    """Rows and columns of zeros on each side before a crop: an eighth, the 4 of 32 of the paper's lineage."""
    return size[0] // 8, size[1] // 8


def draw_crops(
    key: jax.Array, num_images: int, size: Size, *, kind: str, flip: bool, jitter: tuple[float, float, float]
) -> Crops:
    """Draws crops for n images, and a mirror image half of the time where `flip`.

    Args:
      key: PRNG key.
      num_images: n.
      size: (H, W).
      kind: `pad`, a crop of the image's size out of the padded one, uniformly; `resized`, a part of it that becomes
        the whole, as `draw_parts` has it; `auto`, one of the two, see `kind_of`.
      flip: whether mirror images may be shown.
      jitter: the strengths of brightness, contrast and saturation, see `draw_colours`; 0 changes nothing.

    Raises:
      ValueError: there is no such kind.
    """
    if wrong := KIND(kind):
        raise ValueError(f"crop={kind!r}: {wrong}")
    crop_key, flip_key = jax.random.split(key)
    mirrored = jax.random.bernoulli(flip_key, 0.5, (num_images,)) if flip else None
    colours = draw_colours(jax.random.fold_in(key, _COLOURS), num_images, jitter) if any(jitter) else None
    if kind_of(kind, size) == "resized":
        offsets, sizes = draw_parts(crop_key, num_images, size)
        return Crops(offsets, mirrored, sizes, colours)
    ends = 2 * jnp.asarray(padding(size)) + 1
    return Crops(jax.random.randint(crop_key, (num_images, 2), 0, ends), mirrored, None, colours)


def draw_parts(key: jax.Array, num_images: int, size: Size) -> tuple[jax.Array, jax.Array]:
    """Draws the part of each image that a random resized crop shows, by the law of torchvision's RandomResizedCrop.

    Area and ratio are drawn until such a part fits into the image, ten times at most; then it is the largest part of
    the middle whose ratio is allowed. The last of ten that fit has the law of the first, and needs no memory of whether
    one was found.

    Args:
      key: PRNG key.
      num_images: n.
      size: (H, W).

    Returns:
      The first row and column and the height and width, each [n, 2] int32.
    """
    size_key, place_key = jax.random.split(key)
    whole, fallback = jnp.asarray(size), jnp.asarray(_middle(size))

    def attempt(found: jax.Array, one_key: jax.Array) -> tuple[jax.Array, None]:
        share, place = jax.random.uniform(one_key, (2, num_images))
        area = (SCALE[0] + (SCALE[1] - SCALE[0]) * share) * (size[0] * size[1])
        ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** place  # its logarithm is uniform
        drawn = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=1))).astype(jnp.int32)
        fits = ((drawn > 0) & (drawn <= whole)).all(axis=1, keepdims=True)
        return jnp.where(fits, drawn, found), None

    # One try after the other: ten at once for all images of an epoch would be some 100 MB for a million of them.
    none = jnp.zeros((num_images, 2), jnp.int32)
    sizes, _ = jax.lax.scan(attempt, none, jax.random.split(size_key, TRIES))
    is_drawn = sizes[:, :1] > 0
    offsets = jax.random.randint(place_key, (num_images, 2), 0, whole - sizes + 1)
    return jnp.where(is_drawn, offsets, (whole - fallback) // 2), jnp.where(is_drawn, sizes, fallback)


def _middle(size: Size) -> Size:
    """The largest part of the middle of an image whose ratio is allowed."""
    height, width = size
    if width < RATIO[0] * height:
        return round(width / RATIO[0]), width
    if width > RATIO[1] * height:
        return height, round(height * RATIO[1])
    return size


def cropped(images: jax.Array, crops: Crops) -> jax.Array:
    """What was drawn, of images [n, H, W, C] of pixels from 0 to 255.

    They are not yet normalised, so that padding is black. uint8 where nothing is computed, else float32.
    """
    found = _cut(images, crops) if crops.sizes is None else _resized(images, crops, crops.sizes)
    return found if crops.colours is None else coloured(found, crops.colours)


def _cut(images: jax.Array, crops: Crops) -> jax.Array:
    rows, columns = padding((images.shape[1], images.shape[2]))
    padded = jnp.pad(images, ((0, 0), (rows, rows), (columns, columns), (0, 0)))
    cut = jax.vmap(lambda image, at: jax.lax.dynamic_slice(image, (at[0], at[1], 0), images.shape[1:]))
    found = cut(padded, crops.offsets)
    return found if crops.mirrored is None else jnp.where(crops.mirrored[:, None, None, None], found[:, :, ::-1], found)


def _resized(images: jax.Array, crops: Crops, sizes: jax.Array) -> jax.Array:
    """Bilinear, as Pillow resizes a cut-out picture, but not rounded to whole numbers.

    A part is never larger than the image that it becomes, so that nothing has to be filtered against aliases.
    Two products with matrices, of rows and of columns: 67 M multiply-adds for an image of 224x224, where a step of
    ResNet-18 has 5,400 M. As precise as the products of the run: tf32 rounds a pixel by 0.4 of 255 at most.
    """
    height, width = images.shape[1:3]
    upright = jnp.zeros(len(images), bool)
    mirrored = upright if crops.mirrored is None else crops.mirrored
    rows = jax.vmap(_weights, (0, 0, 0, None))(crops.offsets[:, 0], sizes[:, 0], upright, height)
    columns = jax.vmap(_weights, (0, 0, 0, None))(crops.offsets[:, 1], sizes[:, 1], mirrored, width)
    found = jnp.einsum("noh,nhwc->nowc", rows, images.astype(jnp.float32))
    return jnp.einsum("npw,nowc->nopc", columns, found)


def _weights(first: jax.Array, extent: jax.Array, mirrored: jax.Array, size: int) -> jax.Array:
    """How much each of `size` pixels of a row counts for each of the resized row: [size, size] float32, rows sum to 1.

    A triangle around the place of the new pixel, one old pixel to each side; none outside of the part that is shown
    counts.
    """
    scale = extent / size
    new, old = jnp.arange(size), jnp.arange(size)
    centres = first + (jnp.where(mirrored, size - 1 - new, new) + 0.5) * scale
    weights = jnp.maximum(1 - jnp.abs(old + 0.5 - centres[:, None]), 0)
    weights = jnp.where((old >= first) & (old < first + extent), weights, 0)
    return weights / weights.sum(axis=1, keepdims=True)


def draw_colours(key: jax.Array, num_images: int, strengths: tuple[float, float, float]) -> Colours:
    """Draws as torchvision's ColorJitter: factors uniform in [max(0, 1 - s), 1 + s] for a strength s, and any order."""
    order_key, factor_key = jax.random.split(key)
    order = jnp.argsort(jax.random.uniform(order_key, (num_images, 3)), axis=1).astype(jnp.int32)
    most = jnp.asarray(strengths, jnp.float32)
    least = jnp.maximum(1 - most, 0)
    return Colours(order, least + (1 + most - least) * jax.random.uniform(factor_key, (num_images, 3)))


def coloured(images: jax.Array, colours: Colours) -> jax.Array:
    """Changes brightness, contrast and saturation of images [n, H, W, 3], pixels from 0 to 255; float32.

    Each is f x + (1 - f) y, cut at 0 and 255, of an image x: y is black for brightness, the mean of its grey for
    contrast, and its grey for saturation, as in torchvision and Pillow's ImageEnhance, but not rounded.
    """
    found = images.astype(jnp.float32)
    for place in range(3):
        which = colours.order[:, place]
        factor = jnp.take_along_axis(colours.factors, which[:, None], axis=1)[:, :, None, None]
        kind = which[:, None, None, None]
        grey = (found * jnp.asarray(LUMA)).sum(axis=3, keepdims=True)
        other = jnp.where(kind == 0, 0, jnp.where(kind == 1, grey.mean(axis=(1, 2), keepdims=True), grey))
        found = jnp.clip(factor * found + (1 - factor) * other, 0, 255)
    return found
