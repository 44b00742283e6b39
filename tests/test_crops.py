"""Crops, mirror images and colours against brute force, Pillow, and torchvision's laws simulated in NumPy."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cutnmix_jax import crops
from cutnmix_jax.engine import batches
from cutnmix_jax.settings import Jitter, recipe, tree
from cutnmix_jax.types import Dataset

NO_JITTER = (0.0, 0.0, 0.0)


@functools.partial(jax.jit, static_argnames=("num_images", "size", "kind", "flip", "jitter"))
def drawn(key, num_images, size, kind="auto", flip=True, jitter=NO_JITTER):
    return crops.draw_crops(key, num_images, size, kind=kind, flip=flip, jitter=jitter)


cropped, coloured = jax.jit(crops.cropped), jax.jit(crops.coloured)


def crop_flip(key, images, flip):
    images = jnp.asarray(images)
    return cropped(images, drawn(key, len(images), images.shape[1:3], flip=flip))


def pictures(*shape, seed=1):
    """Smooth pictures with an edge, as photographs are, and noise on them."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 255, (shape[0], 6, 5, shape[3]))
    smooth = np.stack([np.asarray(Image.fromarray(one.astype(np.uint8)).resize(shape[2:0:-1], 2)) for one in coarse])
    return np.clip(smooth + rng.normal(scale=20, size=shape), 0, 255).astype(np.uint8)


def test_crops_are_crops_of_the_zero_padded_image():
    images = np.random.default_rng(1).integers(1, 256, (40, 32, 32, 3), dtype=np.uint8)
    views = np.asarray(crop_flip(jax.random.key(3), images, True))
    assert views.dtype == np.uint8
    seen = set()
    for image, view in zip(images, views, strict=True):
        padded = np.zeros((40, 40, 3), np.uint8)
        padded[4:36, 4:36] = image
        crops = {(t, l): padded[t : t + 32, l : l + 32] for t in range(9) for l in range(9)}  # noqa: E741
        found = [(at, m) for at, crop in crops.items() for m in (1, -1) if (crop[:, ::m] == view).all()]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) > 30  # each image its own offset
    assert {mirrored for _, mirrored in seen} == {1, -1}


def test_crop_offsets_are_uniform_and_half_are_mirrored():
    image = np.zeros((32, 32, 1), np.uint8)
    image[10, 8] = 1  # a crop moves it to 14 - top, 12 - left; a mirror image to 31 - that
    views = np.asarray(crop_flip(jax.random.key(0), np.tile(image, (9000, 1, 1, 1)), True))
    _, rows, columns, _ = np.nonzero(views)
    np.testing.assert_allclose(np.bincount(14 - rows, minlength=9) / 9000, 1 / 9, atol=0.015)
    mirrored = columns > 15
    np.testing.assert_allclose(mirrored.mean(), 0.5, atol=0.02)
    offsets = np.where(mirrored, columns - 19, 12 - columns)
    np.testing.assert_allclose(np.bincount(offsets, minlength=9) / 9000, 1 / 9, atol=0.015)


def test_no_flip_where_mirror_images_are_other_things():
    images = np.random.default_rng(1).integers(1, 256, (60, 32, 32, 1), dtype=np.uint8)
    views = np.asarray(crop_flip(jax.random.key(3), images, False))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for image, view in zip(padded, views, strict=True):
        assert any((image[t : t + 32, l : l + 32] == view).all() for t in range(9) for l in range(9))  # noqa: E741


def test_padding_is_an_eighth_of_each_side():
    images = np.random.default_rng(1).integers(1, 256, (30, 17, 48, 3), dtype=np.uint8)
    views = np.asarray(crop_flip(jax.random.key(3), images, True))
    padded = np.pad(images, ((0, 0), (2, 2), (6, 6), (0, 0)))
    seen = set()
    for image, view in zip(padded, views, strict=True):
        at = [(t, c) for t in range(5) for c in range(13) for m in (1, -1)
              if (image[t : t + 17, c : c + 48][:, ::m] == view).all()]  # fmt: skip
        assert len(at) == 1
        seen |= set(at)
    assert {t for t, _ in seen} == set(range(5)) and {c for _, c in seen} > {0, 12}


def test_the_kind_follows_from_the_size():
    assert [crops.kind_of("auto", size) for size in ((32, 32), (64, 64), (64, 65), (224, 224))] == [
        "pad", "pad", "resized", "resized"
    ]  # fmt: skip
    assert crops.kind_of("resized", (32, 32)) == "resized" and crops.kind_of("pad", (224, 224)) == "pad"
    with pytest.raises(ValueError, match="crop='padd': not known; did you mean 'pad'"):
        crops.draw_crops(jax.random.key(0), 2, (8, 8), kind="padd", flip=True, jitter=NO_JITTER)


def torchvision_parts(rng, count, height, width):
    """RandomResizedCrop.get_params as it is written there, one image after the other; and which are the fallback."""
    found = []
    for _ in range(count):
        for _ in range(10):
            area = height * width * rng.uniform(0.08, 1)
            ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
            w, h = int(round(np.sqrt(area * ratio))), int(round(np.sqrt(area / ratio)))
            if 0 < w <= width and 0 < h <= height:
                found.append((rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w))
                break
        else:
            if width / height < 3 / 4:
                w, h = width, int(round(width / (3 / 4)))
            elif width / height > 4 / 3:
                w, h = int(round(height * (4 / 3))), height
            else:
                w, h = width, height
            found.append(((height - h) // 2, (width - w) // 2, h, w))
    return np.array(found)


@pytest.mark.parametrize("size", [(224, 224), (60, 100), (200, 24)])
def test_random_resized_crops_follow_torchvision_s_law(size):
    """Also where hardly a try fits: of 200x24 more than half are the middle."""
    count = 20_000
    found = drawn(jax.random.key(1), count, size, "resized")
    parts = np.concatenate([found.offsets, found.sizes], axis=1)
    assert (parts[:, :2] >= 0).all() and (parts[:, 2:] > 0).all() and (parts[:, :2] + parts[:, 2:] <= size).all()
    wanted = torchvision_parts(np.random.default_rng(2), count, *size)
    limit = 2.47 * (2 / count) ** 0.5  # by chance one in 100,000 Kolmogorov-Smirnov distances of two samples
    for name, of in {
        "top": lambda p: p[:, 0], "left": lambda p: p[:, 1], "height": lambda p: p[:, 2], "width": lambda p: p[:, 3],
        "area": lambda p: p[:, 2] * p[:, 3], "ratio": lambda p: p[:, 3] / p[:, 2],
        "bottom": lambda p: p[:, 0] + p[:, 2], "place": lambda p: p[:, 1] / np.maximum(size[1] - p[:, 3], 1),
    }.items():  # fmt: skip
        values = np.union1d(of(parts), of(wanted))
        one, other = (np.searchsorted(np.sort(of(p)), values, side="right") / count for p in (parts, wanted))
        assert np.abs(one - other).max() < limit, name
    if size == (200, 24):
        middle = (wanted == [84, 0, 32, 24]).all(axis=1).mean()
        assert 0.5 < middle < 0.9
        assert abs((parts == [84, 0, 32, 24]).all(axis=1).mean() - middle) < 5 * (0.25 * 2 / count) ** 0.5
    assert abs(np.mean(found.mirrored) - 0.5) < 5 * (0.25 / count) ** 0.5


@pytest.mark.parametrize("size", [(48, 80), (96, 64)])
def test_resized_parts_are_those_of_pillow(size):
    """Which cuts out, resizes, and rounds to whole numbers twice."""
    images = pictures(40, *size, 3)
    found = drawn(jax.random.key(1), 40, size, "resized")
    views = np.asarray(cropped(jnp.asarray(images), found))
    assert views.dtype == np.float32 and views.shape == images.shape
    larger = 0
    for view, image, (top, left), (height, width), mirrored in zip(
        views, images, *map(np.asarray, (found.offsets, found.sizes, found.mirrored)), strict=True
    ):
        part = Image.fromarray(image[top : top + height, left : left + width])
        wanted = np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR), np.float64)
        wanted = wanted[:, ::-1] if mirrored else wanted
        assert np.abs(view - wanted).max() <= 1.01 and np.abs(view - wanted).mean() < 0.4
        larger += height < size[0]
    assert larger > 20 and {True, False} == set(np.asarray(found.mirrored).tolist())


def test_a_part_that_is_all_of_the_image_is_the_image():
    images = pictures(2, 40, 70, 3)
    whole = crops.Crops(jnp.zeros((2, 2), int), jnp.array([False, True]), jnp.tile(jnp.array([40, 70]), (2, 1)))
    views = np.asarray(cropped(jnp.asarray(images), whole))
    np.testing.assert_allclose(views, [images[0], images[1][:, ::-1]], atol=1e-3)


def test_a_small_part_is_enlarged_by_hand():
    """Two pixels made eight: what lies between them, and nothing of what lies beside them."""
    row = np.array([0, 0, 0, 100, 200, 0, 0, 0], np.uint8)
    images = np.tile(row[None, None, :, None], (1, 8, 1, 3))
    part = crops.Crops(jnp.array([[0, 3]]), None, jnp.array([[8, 2]]))
    view = np.asarray(cropped(jnp.asarray(images), part))[0, 0, :, 0]
    # The new centres lie at (i + 1/2) / 4 of the two pixels, whose own centres are 1/2 and 3/2; the ends are kept.
    np.testing.assert_allclose(view, [100, 100, 112.5, 137.5, 162.5, 187.5, 200, 200], atol=1e-3)


ENHANCERS = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color


def of_factors(images, order, factors):
    order, factors = np.broadcast_to(order, (len(images), 3)), np.broadcast_to(factors, (len(images), 3))
    return np.asarray(coloured(images, crops.Colours(jnp.asarray(order), jnp.asarray(factors, jnp.float32))))


@pytest.mark.parametrize("which", range(3))
def test_brightness_contrast_and_saturation_are_those_of_pillow(which):
    """Which cuts off what follows the point, and rounds the mean of the grey."""
    images = pictures(6, 30, 40, 3)
    factors = np.ones((6, 3))
    factors[:, which] = 0, 0.3, 0.8, 1.2, 1.7, 4
    found = of_factors(images, (0, 1, 2), factors)
    for image, view, factor in zip(images, found, factors[:, which], strict=True):
        wanted = np.asarray(ENHANCERS[which](Image.fromarray(image)).enhance(factor), np.float64)
        rounding = 1 + 0.51 * abs(1 - factor) * (which > 0)
        assert np.abs(view - wanted).max() <= rounding + 1e-3


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_colours_are_changed_in_the_order_that_is_drawn(order):
    images, factors = pictures(4, 30, 40, 3), np.array([1.3, 0.5, 1.7])
    one_by_one = images
    for which in order:
        one_by_one = of_factors(one_by_one, (0, 1, 2), np.where(np.arange(3) == which, factors, 1))
    np.testing.assert_allclose(of_factors(images, order, factors), one_by_one, atol=1e-3)
    back = of_factors(images, order[::-1], factors)
    assert np.abs(back - one_by_one).max() > 1


def test_the_law_of_colours():
    count, strengths = 30_000, (0.4, 1.5, 0.0)
    found = drawn(jax.random.key(4), count, (8, 8), "pad", jitter=strengths).colours
    factors, order = np.asarray(found.factors), np.asarray(found.order)
    for i, (low, high) in enumerate(((0.6, 1.4), (0, 2.5))):
        place = (np.sort(factors[:, i]) - low) / (high - low)
        assert place[0] >= 0 and place[-1] <= 1
        assert np.abs(place - np.arange(count) / count).max() < 2.47 / count**0.5  # one in 100,000 by chance
    assert (factors[:, 2] == 1).all()
    assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 5 / count**0.5
    share = [(order == one).all(axis=1).mean() for one in itertools.permutations(range(3))]
    np.testing.assert_allclose(share, 1 / 6, atol=5 * (5 / 36 / count) ** 0.5)


def test_factors_of_one_change_nothing():
    images = pictures(3, 9, 7, 3)
    ones = crops.Colours(jnp.tile(jnp.array([2, 0, 1]), (3, 1)), jnp.ones((3, 3)))
    np.testing.assert_array_equal(coloured(jnp.asarray(images), ones), images)


# Of a run.

SIZE = (80, 72)
IMAGES = pictures(12, *SIZE, 3)
LARGE = Dataset(
    "large", IMAGES, np.arange(12, dtype=np.int32) % 4, IMAGES[:4], np.arange(4, dtype=np.int32), tuple("abcd"),
    np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32), True,
)  # fmt: skip


def batch_of(row, **fields):
    """The first six images as a run's peers see them, as pixels, and what was drawn."""
    settings = tree.to_settings(recipe.make("resnet8", f"digits,{row}").to_dict())
    maker = batches.make_batch_maker(LARGE, dataclasses.replace(settings, **fields))
    data, key, index = batches.on_device(*LARGE[1:3], 4), jax.random.key(5), jnp.arange(6)
    draws = jax.jit(maker.draw)(key, data, index)
    batch, how = jax.jit(maker.make)(data, index, draws)
    return (np.asarray(batch.images) * 0.25 + 0.5) * 255, draws, how


def test_large_images_are_resized_for_each_peer_or_once_for_all():
    shared, draws, _ = batch_of("dml")
    assert shared.shape == (1, 1, 6, *SIZE, 3) and draws.crops[0].sizes.shape == (1, 6, 2)
    wanted = cropped(jnp.asarray(IMAGES[:6]), jax.tree.map(lambda leaf: leaf[0], draws.crops[0]))
    np.testing.assert_allclose(shared[0, 0], wanted, atol=1e-2)
    own, draws, how = batch_of("cutnmix")
    assert own.shape == (1, 2, 6, *SIZE, 3)
    for j in range(2):
        seen = cropped(jnp.asarray(IMAGES[:6]), jax.tree.map(lambda leaf, j=j: leaf[j], draws.crops[0]))
        top, left, height, width = np.asarray(how.boxes[0, j])
        inside = np.zeros(SIZE, bool)
        inside[top : top + height, left : left + width] = True
        pasted = np.where(inside[:, :, None], np.asarray(seen)[np.asarray(how.partner)], seen)
        np.testing.assert_allclose(own[0, j], pasted, atol=1e-2)
    assert not np.array_equal(*np.asarray(draws.crops[0].sizes))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(draws.crops)) <= 2 * 6 * 17  # small enough for a whole epoch


def test_colours_of_a_run_change_nothing_but_colours():
    plain, _, _ = batch_of("dml")
    jittered, draws, _ = batch_of("dml", jitter=Jitter(brightness=0.4, contrast=0.4, saturation=0.4))
    colours = jax.tree.map(lambda leaf: leaf[0], draws.crops[0].colours)
    np.testing.assert_allclose(jittered[0, 0], coloured(jnp.asarray(plain[0, 0]), colours), atol=1e-2)
    assert np.abs(jittered - plain).max() > 20
    two, draws, _ = batch_of("ddgsd", jitter=Jitter(contrast=0.4))  # two views of one network, from keys of their own
    assert two.shape[0] == 2 and len(draws.crops) == 2
    assert not np.array_equal(draws.crops[0].colours.factors, draws.crops[1].colours.factors)


def test_padded_large_images_where_they_are_asked_for():
    padded, draws, _ = batch_of("dml", crop="pad")
    assert draws.crops[0].sizes is None
    top, left = np.asarray(draws.crops[0].offsets[0, 0])
    image = np.pad(IMAGES[0], ((10, 10), (9, 9), (0, 0)))[top : top + 80, left : left + 72]
    image = image[:, ::-1] if draws.crops[0].mirrored[0, 0] else image
    np.testing.assert_allclose(padded[0, 0, 0], image, atol=1e-3)
