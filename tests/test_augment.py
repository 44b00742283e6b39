"""Mixtures against brute force and against CutMix's law simulated in numpy; what comes before is in `test_crops`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import augment
from tests.runs import few

EXACT = ("cutmix", "uniform", "inside", "wrap")  # the readings under which Eq. 7 holds for the pixels
KEYS = jax.random.split(jax.random.key(0), 20_000)


def boxes_of(reading, num_peers=2, alpha=1.0, keys=KEYS, size=(32, 32)):
    draw = jax.jit(jax.vmap(lambda key: augment.cutnmix_boxes(key, num_peers, alpha, size, reading)))
    return map(np.asarray, draw(keys))


def cutmix_law():
    """Every box of CutMix's rand_bbox with its probability, counted: [32**3, 4] (top, left, height, width) and [32**3].

    side = int(32 sqrt(ratio)) of a uniform ratio is s with probability ((s + 1)^2 - s^2) / 1024; each of the two
    coordinates of the centre is one of 32.
    """
    boxes, chances = [], []
    for side in range(32):
        low = [max(c - side // 2, 0) for c in range(32)]
        high = [min(c + side // 2, 32) for c in range(32)]
        for y in range(32):
            for x in range(32):
                boxes.append((low[y], low[x], high[y] - low[y], high[x] - low[x]))
                chances.append((2 * side + 1) / 1024 / 1024)
    return np.array(boxes), np.array(chances)


def in_words(boxes):
    """What a law of boxes can be told by: each a number per box."""
    top, left, height, width = np.moveaxis(boxes, -1, 0)
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": height * width,
        "height, then top": 100 * height + top,
        "height, then width": 100 * height + width,
        "top, then left": 100 * top + left,
    }


def masks_of(boxes, size=(32, 32)):
    return np.asarray(jax.jit(jax.vmap(jax.vmap(lambda box: augment.box_mask(box, size))))(jnp.asarray(boxes)))


def test_what_is_misspelled_is_nothing_else():
    """Each was taken for the last one of its kind."""
    images = jnp.zeros((2, 3, 8, 8, 3))
    with pytest.raises(ValueError, match="kind='cutmx': must be one of none, mixup, cutmix, cutnmix"):
        augment.mix(KEYS[0], images, kind="cutmx", prob=1.0, alpha=1.0, box="cutmix")
    with pytest.raises(ValueError, match="box='insid': not known; did you mean 'inside'"):
        augment.mix(KEYS[0], images, kind="cutnmix", prob=1.0, alpha=1.0, box="insid")


@pytest.mark.parametrize("reading", EXACT)
@pytest.mark.parametrize("num_peers", few((1, 2, 5), (2,)))
def test_equation_7_holds_for_pixels(reading, num_peers):
    boxes, amounts = boxes_of(reading, num_peers, keys=KEYS[:500])
    counts = masks_of(boxes).sum(axis=(2, 3))
    np.testing.assert_array_equal(counts, counts[:, :1].repeat(num_peers, 1))  # equal areas over peers
    np.testing.assert_array_equal(counts / 1024, amounts)  # lambda is the partner's share of the pixels


@pytest.mark.parametrize("reading", EXACT)
def test_images_that_are_no_squares(reading):
    """Eq. 7 for the pixels; and CutMix's own law, from a NumPy of its rand_bbox, for the readings that keep it."""
    height, width, draws = 20, 36, 100_000
    boxes, amounts = boxes_of(reading, keys=jax.random.split(jax.random.key(3), draws), size=(height, width))
    counts = masks_of(boxes[:500], (height, width)).sum(axis=(2, 3))
    np.testing.assert_array_equal(counts, counts[:, :1].repeat(2, 1))
    np.testing.assert_allclose(counts / (height * width), amounts[:500], rtol=1.2e-7)  # 1 / 720 is no float32
    if reading in ("uniform", "cutmix"):  # the one keeps its heights and widths, the other all of it
        rng = np.random.default_rng(0)
        cut = np.sqrt(rng.uniform(size=draws))
        reach = np.stack([(height * cut).astype(int) // 2, (width * cut).astype(int) // 2], axis=1)
        centre = np.stack([rng.integers(height, size=draws), rng.integers(width, size=draws)], axis=1)
        low, high = np.maximum(centre - reach, 0), np.minimum(centre + reach, [height, width])
        expected, found = in_words(np.concatenate([low, high - low], axis=1)), in_words(boxes[:, 1])
        for name in expected if reading == "cutmix" else ("height", "width", "height, then width"):
            values = np.union1d(expected[name], found[name])
            one, other = (np.searchsorted(np.sort(x[name]), values, side="right") / draws for x in (expected, found))
            assert np.abs(one - other).max() < 0.011, name  # by chance one in 100,000 Kolmogorov-Smirnov distances


@pytest.mark.parametrize("reading", ["uniform", "inside"])
def test_boxes_lie_inside_everywhere_and_differ_between_peers(reading):
    boxes, _ = boxes_of(reading)
    assert (boxes >= 0).all()
    assert (boxes[..., :2] + boxes[..., 2:] <= 32).all()
    free = boxes[:, 0, 2] < 24
    assert (boxes[free, 0, :2] != boxes[free, 1, :2]).any(axis=1).mean() > 0.9
    sized = boxes[(boxes[:, 0, 2] == 10)]
    np.testing.assert_allclose(np.bincount(sized[:, 0, 0], minlength=23) / len(sized), 1 / 23, atol=0.04)


@pytest.mark.parametrize("num_peers", few([1, 2, 3], (1, 3)))
def test_every_peer_s_box_follows_cutmix_s_law(num_peers):
    """200,000 draws against the law itself; by chance one in 100,000 Kolmogorov-Smirnov distances is above .0052."""
    draws = 200_000
    boxes, amounts = boxes_of("cutmix", num_peers, keys=jax.random.split(jax.random.key(1), draws))
    np.testing.assert_array_equal(boxes[..., 2:], boxes[:, :1, 2:].repeat(num_peers, 1))
    np.testing.assert_array_equal(boxes[..., 2] * boxes[..., 3] / 1024, amounts)  # Eq. 7 in every draw
    law, chances = cutmix_law()
    expected = in_words(law)
    for j in range(num_peers):
        for name, found in in_words(boxes[:, j]).items():
            order = np.argsort(expected[name], kind="stable")
            values, last = np.unique(expected[name][order][::-1], return_index=True)
            below = np.cumsum(chances[order])[len(order) - 1 - last]
            share = np.searchsorted(np.sort(found), values, side="right") / draws
            assert np.abs(share - below).max() < 0.0052, f"peer {j}: {name}"


def covered(boxes):
    """Which boxes cover the middle, which cover a corner and which touch a border."""
    top, left, height, width = np.moveaxis(boxes, -1, 0)
    middle = (top <= 16) & (top + height > 16) & (left <= 16) & (left + width > 16)
    corner = (top == 0) & (left == 0) & (height > 0) & (width > 0)
    border = (top == 0) | (left == 0) | (top + height == 32) | (left + width == 32)
    return middle, corner, border


def test_what_boxes_cover():
    """A law that the middle, the corners and the borders tell apart from boxes placed uniformly inside."""
    law, chances = cutmix_law()
    expected = [chances[where].sum() for where in covered(law)]
    reaches = [(2 * s + 1, s // 2) for s in range(32)]  # 2 r of 32 rows have a centre whose box covers the middle one
    np.testing.assert_allclose(expected[0], sum(chance * (2 * r / 32) ** 2 for chance, r in reaches) / 1024)
    np.testing.assert_allclose(expected[1:], [0.135, 0.833], atol=1e-3)
    for reading, wanted in (("cutmix", expected), ("uniform", [0.682, 0.007, 0.278])):
        boxes, _ = boxes_of(reading)
        np.testing.assert_allclose([where.mean() for where in covered(boxes)], wanted, atol=0.01)


def test_peers_draw_their_boxes_apart():
    """Given the height a top is one of few, so that two peers agree now and then, and no more often than by chance."""
    boxes, _ = boxes_of("cutmix")
    free = (boxes[:, 0, 2] == 8) & (boxes[:, 0, 3] == 8)
    tops = boxes[free][:, :, 0]
    assert abs((tops[:, 0] == tops[:, 1]).mean() - np.mean(tops[:, 0] == np.roll(tops[:, 1], 1))) < 0.1
    uncut = ((boxes[:, 0, :2] > 0) & (boxes[:, 0, :2] + boxes[:, 0, 2:] < 32)).all(axis=1)
    assert (boxes[uncut, 0, :2] != boxes[uncut, 1, :2]).any(axis=1).mean() > 0.9
    assert 0.125 < (boxes[:, 0] == boxes[:, 1]).all(axis=1).mean() < 0.145


@pytest.mark.parametrize(
    ("is_there", "of_height"),
    [
        (lambda y, x: 4 <= y <= 28 and 4 <= x <= 28, 8),
        (lambda y, x: y == 1, 5),  # cut at the upper border: rows 0 to 4
        (lambda y, x: y == 31, 5),  # at the lower one: rows 27 to 31
        (lambda y, x: y == 28 and x > 28, 8),
    ],
)
def test_cutmix_box_hand_values(is_there, of_height):
    """The side is int(32 sqrt(1/16)) = 8: four pixels to each side of the centre, cut at the border."""
    centres = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 32))(KEYS))
    number = next(i for i, (y, x) in enumerate(centres) if is_there(y, x))
    top, left, height, width = augment.cutmix_box(KEYS[number], jnp.float32(1 / 16), (32, 32)).tolist()
    (y0, y1), (x0, x1) = ([max(int(c) - 4, 0), min(int(c) + 4, 32)] for c in centres[number])
    assert (top, left, height, width) == (y0, x0, y1 - y0, x1 - x0) and height == of_height
    assert augment.cutmix_box(KEYS[number], jnp.float32(0), (32, 32)).tolist()[2:] == [0, 0]


def test_images_without_an_axis_of_boxes_are_refused():
    """They would be broadcast against the boxes to images of one axis more."""
    with pytest.raises(ValueError, match=r"axes \[B, n, H, W, C\], not \[12, 32, 32, 3\]"):
        augment.mix(KEYS[0], jnp.array(labelled_pixels())[0], kind="cutmix", prob=1.0, alpha=1.0, box="cutmix")


def test_other_readings_of_equation_7():
    inside, amounts = boxes_of("inside")
    assert abs(amounts.mean() - 0.5) < 0.01
    assert (inside[..., 2] == inside[..., 3]).all()
    wrapped, _ = boxes_of("wrap")
    assert (wrapped[..., :2] + wrapped[..., 2:] > 32).any()
    cover = masks_of(wrapped[:4000])[:, 0].mean(axis=0)
    assert cover.max() - cover.min() < 0.1  # every pixel alike
    own, amounts = boxes_of("own")
    np.testing.assert_array_equal(own[..., 2] * own[..., 3] / 1024, amounts)
    assert 0.80 < (amounts[:, 0] != amounts[:, 1]).mean() < 0.95
    raw, amounts = boxes_of("raw")
    assert (amounts[:, 0] == amounts[:, 1]).all()
    assert abs(amounts.mean() - 0.5) < 0.01
    assert abs((raw[..., 2] * raw[..., 3] / 1024).mean() - 0.30) < 0.01


def test_alpha_shapes_the_ratio():
    draw = jax.jit(jax.vmap(augment.draw_ratio, (0, None)), static_argnums=1)
    ratios = np.asarray(draw(KEYS[:4000], 4.0))
    np.testing.assert_allclose([ratios.mean(), ratios.var()], [0.5, 1 / 36], atol=0.01)  # Var Beta(a,a) = 1/(4(2a+1))
    uniform = np.asarray(draw(KEYS[:4000], 1.0))
    np.testing.assert_allclose([uniform.mean(), uniform.var()], [0.5, 1 / 12], atol=0.01)


def labelled_pixels(num_peers=2, n=12):
    """Images whose every pixel is the number of their row, plus 100 for each peer."""
    rows = np.arange(n, dtype=np.float32)[None, :] + 100 * np.arange(num_peers, dtype=np.float32)[:, None]
    return np.broadcast_to(rows[:, :, None, None, None], (num_peers, n, 32, 32, 3))


@pytest.mark.parametrize("reading", augment.BOX_READINGS)
def test_cutnmix_pastes_each_peers_own_view_of_the_partner(reading):
    images = labelled_pixels()
    options = {"kind": "cutnmix", "prob": 1.0, "alpha": 1.0, "box": reading}
    mixed, how = augment.mix(jax.random.key(5), jnp.array(images), **options)
    partner = np.asarray(how.partner)
    assert sorted(partner) == list(range(12))
    for j in range(2):
        top, left, height, width = np.asarray(how.boxes[j])
        inside = np.zeros((32, 32), bool)
        for row in range(top, top + height):
            for column in range(left, left + width):
                inside[row % 32, column % 32] = True
        for i in range(12):
            expected = np.where(inside, 100 * j + partner[i], 100 * j + i)
            np.testing.assert_array_equal(mixed[j, i], expected[:, :, None].repeat(3, 2))
            if reading != "raw" and partner[i] != i:
                assert (np.asarray(mixed[j, i, :, :, 0]) == 100 * j + partner[i]).mean() == how.amount[j]


def test_plain_cutmix_gives_all_peers_one_box():
    options = {"kind": "cutmix", "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    for seed in range(5):
        _, how = augment.mix(jax.random.key(seed), jnp.array(labelled_pixels(3)), **options)
        assert len(np.unique(how.boxes, axis=0)) == 1
        assert len(np.unique(how.amount)) == 1
        assert how.amount[0] == how.boxes[0, 2] * how.boxes[0, 3] / 1024


def test_mixup_against_numpy():
    images = np.random.default_rng(0).uniform(size=(2, 6, 32, 32, 3)).astype(np.float32)
    options = {"kind": "mixup", "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    mixed, how = augment.mix(jax.random.key(1), jnp.array(images), **options)
    share = float(how.amount[0])
    assert 0 < share < 1
    for j in range(2):
        for i, k in enumerate(np.asarray(how.partner)):
            np.testing.assert_allclose(mixed[j, i], share * images[j, k] + (1 - share) * images[j, i], atol=1e-6)


def test_probability_of_mixing_is_one_coin_for_all_peers():
    images = jnp.array(labelled_pixels(n=2))
    labels = jnp.array([0, 1])

    def draw(key, prob):
        mixed, how = augment.mix(key, images, kind="cutnmix", prob=prob, alpha=1.0, box="own")
        return (
            how.amount,
            (mixed == images).all(axis=(1, 2, 3, 4)),
            augment.mixed_targets(jax.nn.one_hot(labels, 3), how),
        )

    draw = jax.jit(jax.vmap(draw, in_axes=(0, None)))
    amounts, same, targets = map(np.asarray, draw(KEYS[:2000], 0.5))
    untouched = (amounts == 0).all(axis=1)
    assert 0.45 < untouched.mean() < 0.55
    assert same[untouched].all()
    np.testing.assert_array_equal(targets[untouched][0, 0], [[1, 0, 0], [0, 1, 0]])
    assert (np.asarray(draw(KEYS[:2000], 0.0)[0]) == 0).all()


def test_kind_none_changes_nothing():
    images = jnp.array(labelled_pixels())
    mixed, how = augment.mix(jax.random.key(0), images, kind="none", prob=1.0, alpha=1.0, box="cutmix")
    np.testing.assert_array_equal(mixed, images)
    np.testing.assert_array_equal(augment.mixed_targets(jnp.eye(12), how)[1], np.eye(12))


def test_mixed_targets_by_hand():
    how = augment.Mix(jnp.array([1, 2, 0]), jnp.array([0.25, 0.25]), jnp.zeros((2, 4), jnp.int32))
    expected = [[0.75, 0.25, 0.0, 0.0], [0.0, 0.75, 0.25, 0.0], [0.25, 0.0, 0.75, 0.0]]
    targets = augment.mixed_targets(jax.nn.one_hot(jnp.array([0, 1, 2]), 4), how)
    np.testing.assert_allclose(targets, [expected, expected])


@pytest.mark.parametrize("reading", [*EXACT, "raw"])
def test_labels_sum_to_one_and_are_equal_over_peers(reading):
    labels = jax.random.randint(jax.random.key(2), (12,), 0, 10)

    def draw(key):
        _, how = augment.mix(key, jnp.array(labelled_pixels(3)), kind="cutnmix", prob=1.0, alpha=1.0, box=reading)
        return augment.mixed_targets(jax.nn.one_hot(labels, 10), how)

    targets = np.asarray(jax.jit(jax.vmap(draw))(KEYS[:50]))
    np.testing.assert_allclose(targets.sum(axis=-1), 1, rtol=1e-6)
    np.testing.assert_array_equal(targets, targets[:, :1].repeat(3, 1))
