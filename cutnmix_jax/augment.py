"""MixUp, CutMix and CutnMix: pure functions of a key and arrays.

Each has two halves, one that draws and one that does what was drawn, so that a run can draw all batches of an epoch at
once; what comes before is in `crops`. J peers, n images of H x W pixels.

Throughout, lambda is the share of the *partner* image x_k, as Eq. 5 and 6 write it; CutMix's own code calls the share
of the original image lambda, which is the same law because Beta(a, a) is symmetric.
"""

import jax
import jax.numpy as jnp

from cutnmix_jax import fields
from cutnmix_jax.types import Mix, Size

BOX_READINGS = ("cutmix", "uniform", "inside", "wrap", "raw", "own")
MIX_KINDS = ("none", "mixup", "cutmix", "cutnmix")
# What `mix` may be asked for, of a run and of a training loop of one's own.
PROB = fields.number(0, 1)
# At 1e-3 lambda is 0 or 1 to a pixel in 99 of 100 batches, at 1e6 it is 1/2 to a pixel: beyond, nothing changes.
ALPHA = fields.number(1e-3, 1e6)
BOX = fields.one_of(BOX_READINGS)


def draw_ratio(key: jax.Array, alpha: float) -> jax.Array:
    """A mixing ratio from Beta(alpha, alpha); the paper's Beta(1, 1) is drawn as the uniform law that it is."""
    if alpha == 1.0:  # the general sampler is a rejection loop: slower to compile and to run
        return jax.random.uniform(key)
    return jax.random.beta(key, alpha, alpha)


def cutmix_box(key: jax.Array, ratio: jax.Array, size: Size) -> jax.Array:
    """CutMix's box (Yun et al. 2019): about `ratio` of the image around a uniform centre, clipped at the border.

    Its sides are int(size * sqrt(ratio)), and it reaches side // 2 pixels to each side of its centre. Clipping shrinks
    it, so its own area, not `ratio`, is the partner's share of the image: for a uniform ratio about 0.30 on average.

    Args:
      key: PRNG key.
      ratio: scalar float in [0, 1].
      size: (H, W).

    Returns:
      [4] int32: top, left, height, width.
    """
    return _clipped(jax.random.randint(key, (2,), 0, jnp.asarray(size)), _reach(ratio, size), size)


def _reach(ratio: jax.Array, size: Size) -> jax.Array:
    """How many pixels CutMix's box reaches from its centre, up and down and to the sides: [2] int32."""
    return jnp.floor(jnp.asarray(size) * jnp.sqrt(ratio)).astype(jnp.int32) // 2


def _clipped(centre: jax.Array, reach: jax.Array, size: Size) -> jax.Array:
    """The box around a centre [2], cut at the border: [4] int32."""
    low, high = jnp.maximum(centre - reach, 0), jnp.minimum(centre + reach, jnp.asarray(size))
    return jnp.concatenate([low, high - low])


def _alike(key: jax.Array, box: jax.Array, reach: jax.Array, size: Size) -> jax.Array:
    """Another box of the height and width of CutMix's `box`, by CutMix's law given these two.

    Its centre is uniform among the rows whose clipped box has this height, and the columns that give this width.
    """
    every, ends, reaches = jnp.arange(max(size)), jnp.asarray(size)[:, None], reach[:, None]
    extents = jnp.minimum(every + reaches, ends) - jnp.maximum(every - reaches, 0)
    fits = (extents == box[2:, None]) & (every < ends)  # [2, max(H, W)]
    number = jax.random.randint(key, (2,), 0, fits.sum(axis=1))
    centre = jnp.argmax(jnp.cumsum(fits, axis=1) > number[:, None], axis=1)
    return _clipped(centre, reach, size)


def cutnmix_boxes(
    key: jax.Array, num_peers: int, alpha: float, size: Size, reading: str
) -> tuple[jax.Array, jax.Array]:
    """A box per peer with one shared lambda (Eq. 5 to 7), by one of the ways to read them.

    CutMix clips its boxes, so boxes drawn independently differ in area and Eq. 7 would not hold for the pixels.

    - `cutmix`: one height and width by CutMix's procedure; each peer draws a centre of its own among those that give
      them. Eq. 7 is exact, and every peer's box follows CutMix's whole law (section 2.2: "following the previous
      sampling strategy in [9]"). One peer alone is plain CutMix.
    - `uniform`: the same height and width, placed uniformly inside the image. Exact; the area follows CutMix's law, but
      boxes cover the middle more often and touch the border less: 28 % of them instead of 83 %.
    - `inside`: sides of round(size * sqrt(lambda)), placed inside. Exact; a mean area of 0.5, so stronger mixing.
    - `wrap`: the unclipped box, placed anywhere on the torus. Exact; a box may fall into up to four parts.
    - `raw`: CutMix's clipped box for each peer, all labelled with the unclipped lambda. Labels disagree with pixels.
    - `own`: CutMix's clipped box for each peer, labelled with its own area. Eq. 7 does not hold.

    Args:
      key: PRNG key.
      num_peers: J.
      alpha: of Beta(alpha, alpha), the law of lambda before clipping.
      size: (H, W).
      reading: one of `BOX_READINGS`.

    Returns:
      boxes [J, 4] int32 (top, left, height, width) and lambda [J] float32, the partner's share in the label.

    Raises:
      ValueError: there is no such reading.
    """
    if wrong := BOX(reading):
        raise ValueError(f"box={reading!r}: {wrong}")
    ratio_key, box_key, place_key = jax.random.split(key, 3)
    ratio = draw_ratio(ratio_key, alpha)
    if reading in ("raw", "own"):
        boxes = jax.vmap(lambda peer_key: cutmix_box(peer_key, ratio, size))(jax.random.split(box_key, num_peers))
    elif reading == "cutmix":
        boxes, reach = cutmix_box(box_key, ratio, size)[None], _reach(ratio, size)
        if num_peers > 1:
            peer_keys, box = jax.random.split(place_key, num_peers), boxes[0]
            boxes = jax.vmap(lambda peer_key: _alike(peer_key, box, reach, size))(peer_keys)
    else:
        if reading == "uniform":
            shape = cutmix_box(box_key, ratio, size)[2:]
        else:
            shape = jnp.round(jnp.asarray(size) * jnp.sqrt(ratio)).astype(jnp.int32)
        places = jnp.asarray(size) - (0 if reading == "wrap" else shape - 1)
        corners = jax.random.randint(place_key, (num_peers, 2), 0, places)
        boxes = jnp.concatenate([corners, jnp.broadcast_to(shape, (num_peers, 2))], axis=1)
    return boxes, jnp.broadcast_to(ratio, (num_peers,)) if reading == "raw" else area(boxes, size)


def area(boxes: jax.Array, size: Size) -> jax.Array:
    """The share of the image that each box covers: [J, 4] int32 -> [J] float32."""
    return (boxes[:, 2] * boxes[:, 3]).astype(jnp.float32) / (size[0] * size[1])


def box_mask(box: jax.Array, size: Size) -> jax.Array:
    """M^j of Eq. 5, true inside the box: [4] int32 -> [H, W] bool. A box that leaves the image wraps around."""
    rows, columns = ((jnp.arange(size[axis]) - box[axis]) % size[axis] < box[2 + axis] for axis in (0, 1))
    return rows[:, None] & columns[None, :]


def draw_mix(
    key: jax.Array, num_boxes: int, num_images: int, size: Size, *, kind: str, prob: float, alpha: float, box: str
) -> Mix:
    """Draws how a batch is mixed: every image with a partner from the same batch, the same one for all peers.

    Args:
      key: PRNG key.
      num_boxes: B, one for each view and peer.
      num_images: n.
      size: (H, W).
      kind: `none`; `mixup` (Zhang et al. 2017: the weighted mean, one lambda); `cutmix` (one box for all peers, as
        Eq. 2 and 3 in the paper's DML with CutMix); `cutnmix` (a box per peer, Eq. 5 to 7).
      prob: the chance that a batch is mixed at all; one coin for all peers.
      alpha: of Beta(alpha, alpha), the law of lambda.
      box: for `cutnmix`, one of `BOX_READINGS`; see `cutnmix_boxes`.

    Returns:
      partner [n], amount [B] and boxes [B, 4].

    Raises:
      ValueError: there is no such kind, or for `cutnmix` no such box.
    """
    if kind not in MIX_KINDS:
        raise ValueError(f"kind={kind!r}: must be one of {', '.join(MIX_KINDS)}")
    coin_key, partner_key, box_key = jax.random.split(key, 3)
    no_box = jnp.zeros((num_boxes, 4), jnp.int32)
    if kind == "none":
        return Mix(jnp.arange(num_images), jnp.zeros(num_boxes), no_box)
    partner = jax.random.permutation(partner_key, num_images)
    mixed = jax.random.bernoulli(coin_key, prob)
    if kind == "mixup":
        amount = jnp.where(mixed, draw_ratio(box_key, alpha), 0.0)
        return Mix(partner, jnp.broadcast_to(amount, (num_boxes,)), no_box)
    one_box = kind == "cutmix"
    boxes, amount = cutnmix_boxes(box_key, 1 if one_box else num_boxes, alpha, size, "cutmix" if one_box else box)
    boxes, amount = jnp.broadcast_to(boxes, (num_boxes, 4)), jnp.broadcast_to(amount, (num_boxes,))
    return Mix(partner, jnp.where(mixed, amount, 0.0), jnp.where(mixed, boxes, 0))


def mixed_images(images: jax.Array, how: Mix, kind: str, partners: jax.Array | None = None) -> jax.Array:
    """Mixes images [B, n, H, W, C] as `draw_mix` has drawn it for them; their partners may be at hand already."""
    if kind == "none":
        return images
    partners = images[:, how.partner] if partners is None else partners
    if kind == "mixup":
        amount = how.amount[:, None, None, None, None]
        return amount * partners + (1 - amount) * images
    size = images.shape[2], images.shape[3]
    masks = jax.vmap(lambda box: box_mask(box, size))(how.boxes)[:, None, :, :, None]
    return jnp.where(masks, partners, images)


def mix(key: jax.Array, images: jax.Array, *, kind: str, prob: float, alpha: float, box: str) -> tuple[jax.Array, Mix]:
    """Draws how to mix images [B, n, H, W, C] float32, not yet normalised, and mixes them. Arguments as of `draw_mix`.

    Returns:
      The mixed images, and how they were mixed.

    Raises:
      ValueError: the images have other axes; or as `draw_mix` does.
    """
    if images.ndim != 5:
        raise ValueError(f"images have the axes [B, n, H, W, C], not {list(images.shape)}")
    num_boxes, num_images, height, width, _ = images.shape
    how = draw_mix(key, num_boxes, num_images, (height, width), kind=kind, prob=prob, alpha=alpha, box=box)
    return mixed_images(images, how, kind), how


def mixed_targets(own: jax.Array, how: Mix) -> jax.Array:
    """The labels of Eq. 6: lambda^j y_k + (1 - lambda^j) y_i.

    Args:
      own: y, [n, K] float, each image's own label: one-hot, or any distribution over classes.
      how: what `mix` returned.

    Returns:
      [J, n, K] float, rows sum to 1.
    """
    amount = how.amount[:, None, None]
    return amount * own[how.partner] + (1 - amount) * own
