"""What the picture of the first batch shows: a row for each view and peer, and boxes where they are."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from cutnmix_jax import pictures, storage
from cutnmix_jax.types import Batch, Dataset, Mix

K, SHAPE = 4, (48, 64, 3)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))

    def draw(views, seen, num_peers, box, names=tuple("abcd")):
        images = np.zeros((views, seen, 3, *SHAPE), np.float32)
        targets = jnp.full((views, num_peers, 3, K), 1 / K)
        batch = Batch(images, targets, np.array([0, 1, 2]), np.arange(3))
        mix = Mix(np.array([1, 2, 0]), np.full((views, seen), 0.25), np.tile(np.array(box), (views, seen, 1)))
        one = np.ones(3, np.float32)
        dataset = Dataset("", images[0, 0], None, images[0, 0], None, names, 0 * one, one, True)
        pictures.samples(None, batch, mix, dataset, count=8)
        return figures[-1].axes

    return draw


@pytest.mark.parametrize(
    ("views", "seen", "labels"),
    [
        (1, 2, ["peer 0", "peer 1"]),
        (1, 1, ["all peers"]),
        (2, 1, ["all peers, view 0", "all peers, view 1"]),
        (2, 2, ["peer 0, view 0", "peer 1, view 0", "peer 0, view 1", "peer 1, view 1"]),
    ],
)
def test_a_row_for_each_view_and_peer(views, seen, labels, drawn):
    axes = drawn(views, seen, 2, (0, 0, 0, 0))
    assert [one.get_ylabel().split("\n")[0] for one in axes[::3]] == labels
    assert [one.get_title() for one in axes[:3]] == ["0.75 a\n0.25 b", "0.75 b\n0.25 c", "0.75 c\n0.25 a"]
    assert not any(isinstance(patch, Rectangle) for one in axes for patch in one.patches)


@pytest.mark.parametrize(
    ("box", "corners"),
    [
        ((24, 20, 20, 40), [(20, 24)]),
        ((40, 20, 20, 40), [(20, 40), (20, -8)]),  # around the lower border
        ((0, 50, 20, 30), [(50, 0), (-14, 0)]),  # around the right one
    ],
)
def test_boxes_on_an_image_that_is_no_square(box, corners, drawn):
    for axes in drawn(1, 2, 2, box):
        assert [patch.get_xy() for patch in axes.patches] == [(x - 0.5, y - 0.5) for x, y in corners]
        assert {(patch.get_height(), patch.get_width()) for patch in axes.patches} == {box[2:]}
        assert axes.get_xlim() == (-0.5, 63.5) and axes.get_ylim() == (47.5, -0.5)


def test_each_row_has_the_pictures_boxes_and_shares_of_its_peer_and_view(monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    rng, (views, peers, n) = np.random.default_rng(0), (2, 2, 3)
    pixels = rng.random((views, peers, n, *SHAPE))
    mean, std = np.array([0.5, 0.4, 0.3], np.float32), np.array([0.2, 0.25, 0.3], np.float32)
    amount = np.arange(1, 5).reshape(views, peers) / 10
    boxes = np.arange(1, 17).reshape(views, peers, 4)
    batch = Batch((pixels - mean) / std, jnp.zeros((views, peers, n, K)), np.array([0, 1, 2]), np.arange(n))
    dataset = Dataset("", pixels[0, 0], None, pixels[0, 0], None, tuple("abcd"), mean, std, True)
    pictures.samples(None, batch, Mix(np.array([1, 2, 0]), amount, boxes), dataset, count=2)
    axes = figures[0].axes
    assert len(axes) == views * peers * 2
    for number, one in enumerate(axes):
        (view, j), i = divmod(number // 2, peers), number % 2
        np.testing.assert_allclose(one.images[0].get_array(), pixels[view, j, i], atol=1e-6)
        share = amount[view, j]
        assert one.get_title() == f"{1 - share:.2f} {'ab'[i]}\n{share:.2f} {'bc'[i]}"
        [box] = [patch for patch in one.patches if isinstance(patch, Rectangle)]
        top, left, height, width = boxes[view, j]
        assert (box.get_xy(), box.get_height(), box.get_width()) == ((left - 0.5, top - 0.5), height, width)
        assert i or one.get_ylabel().endswith(f"= {share:.3f}")


def test_names_are_no_formulas_and_of_any_letters(drawn, monkeypatch):
    """There was no picture, or a line of Matplotlib's on stderr for each letter."""
    wrong = "$\\nothing{$ \N{CJK UNIFIED IDEOGRAPH-732B}"
    figure = drawn(1, 2, 2, (0, 0, 0, 0), (wrong, "b", "c", "d"))[0].figure
    monkeypatch.setattr(pictures, "save", lambda figure, path: figure.draw_without_rendering())
    rows = [{"epoch": 1, "test/accuracy": 0.5, "test/accuracy_peer_0": 0.5, "train/ce": 1.0}]
    with warnings.catch_warnings(record=True) as shown, storage.hush():
        figure.draw_without_rendering()
        pictures.curves(None, rows, wrong)
    assert not shown


def test_each_curve_is_of_what_its_name_says(monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: figures.append(figure))
    rows = [
        {"epoch": e, "test/accuracy": 0.1 * e, "test/accuracy_peer_0": 0.1 * e + 0.01, "test/accuracy_ensemble": 0.05,
         "validation/accuracy": 0.1 * e + 0.02, "train/loss": 9.0, "train/accuracy": 0.9, "train/ce": 2.0 / e,
         "train/dml": 0.5 / e} for e in (1, 2)
    ]  # fmt: skip
    pictures.curves(None, rows, "a run")
    left, right = ({line.get_label(): line.get_ydata() for line in axes.lines} for axes in figures[0].axes)
    wanted = {
        "peer 0": [11, 21],
        "ensemble": [5, 5],
        "mean of peers": [10, 20],
        "mean of peers, validation": [12, 22],
    }
    assert set(left) == set(wanted) and set(right) == {"ce", "dml"}
    for name, values in wanted.items():
        np.testing.assert_allclose(left[name], values, err_msg=name)
    np.testing.assert_allclose([right["ce"], right["dml"]], [[2, 1], [0.5, 0.25]])
