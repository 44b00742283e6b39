"""Measures of a classifier against hand values, scikit-learn and plain loops, and the pictures of them."""

import math
import warnings

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from sklearn.metrics import confusion_matrix, log_loss, top_k_accuracy_score

from cutnmix_jax.student import charts
from cutnmix_jax.student.measures import agreement, linear_cka, measure

M, K = 400, 7
RANDOM = np.random.default_rng(0)
LABELS = RANDOM.integers(K, size=M)
LOGITS = RANDOM.normal(size=(M, K)) * 2 + 2 * np.eye(K)[LABELS]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def softmax64(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def calibration_error(logits, labels):
    """Eq. 3 as it is written: for each bin its images are looked for."""
    error = 0.0
    for m in range(1, 16):
        inside = []
        for row, label in zip(softmax64(logits), labels, strict=True):
            if (m - 1) / 15 < max(row) <= m / 15:
                inside.append((max(row), list(row).index(max(row)) == label))
        if inside:
            confidence, accuracy = (sum(column) / len(inside) for column in zip(*inside, strict=True))
            error += len(inside) / len(labels) * abs(accuracy - confidence)
    return error


def test_hand_values():
    # Two classes: probabilities 3/4 (right), 3/4 (wrong), 9/10 (right), 9/10 (right)
    found = measure(np.log([[3, 1], [3, 1], [1, 9], [1, 9]]), np.array([0, 1, 1, 1]))
    assert found.accuracy == 0.75 and found.top5 is None
    assert found.nll == pytest.approx((math.log(4 / 3) + math.log(4) + 2 * math.log(10 / 9)) / 4)
    assert found.ece == pytest.approx(0.5 * (0.75 - 0.5) + 0.5 * (1 - 0.9))  # a gap of each sign
    np.testing.assert_array_equal(found.per_class, [1, 2 / 3])
    np.testing.assert_array_equal(found.confusion, [[1, 0], [1, 2]])
    counts = np.zeros(15)
    counts[[11, 13]] = 2  # (11/15, 12/15] and (13/15, 14/15]
    np.testing.assert_array_equal(found.bins.counts, counts)
    for values, expected in ((found.bins.confidence, (0.75, 0.9)), (found.bins.accuracy, (0.5, 1))):
        np.testing.assert_array_equal(np.isnan(values), counts == 0)
        np.testing.assert_allclose(values[[11, 13]], expected)


@pytest.mark.parametrize("scale", [0.2, 1, 1.5])
def test_against_scikit_learn_and_a_loop(scale):
    logits = scale * LOGITS
    found = measure(logits, LABELS)
    classes, probabilities = range(K), softmax64(logits)
    assert found.accuracy == top_k_accuracy_score(LABELS, logits, k=1, labels=classes)
    assert found.top5 == top_k_accuracy_score(LABELS, logits, k=5, labels=classes)
    assert found.nll == pytest.approx(log_loss(LABELS, probabilities, labels=classes))
    assert found.ece == pytest.approx(calibration_error(logits, LABELS), rel=1e-12)
    expected = confusion_matrix(LABELS, logits.argmax(axis=1), labels=classes)
    np.testing.assert_array_equal(found.confusion, expected)
    assert found.confusion.dtype.kind == "i"
    np.testing.assert_allclose(found.per_class, expected.diagonal() / expected.sum(axis=1))
    assert found.bins.counts.sum() == M


@pytest.mark.parametrize("num_classes", [3, 5, 15])
def test_a_confidence_on_an_edge_belongs_to_the_bin_below(num_classes):
    """1/K of equal scores is the right edge of a bin where K divides 15."""
    found = measure(np.zeros((4, num_classes)), np.zeros(4, int))
    np.testing.assert_array_equal(found.bins.counts.nonzero(), [[15 // num_classes - 1]])
    sure = measure(np.array([[1e4, 0.0]]), np.array([0]))
    np.testing.assert_array_equal(sure.bins.counts.nonzero(), [[14]])


def test_equal_scores():
    logits = np.zeros((7, 7))
    found = measure(logits, np.arange(7))
    np.testing.assert_array_equal(found.confusion[:, 0], np.ones(7))  # the first is predicted
    assert found.accuracy == 1 / 7 and found.top5 == 1
    assert found.nll == pytest.approx(math.log(7)) and found.ece == pytest.approx(0, abs=1e-15)
    logits[:, :4] = 1
    assert measure(logits, np.arange(7)).top5 == 1  # four are higher than the last three
    logits[:, :5] = 1
    assert measure(logits, np.arange(7)).top5 == 5 / 7


def test_top5_needs_more_than_five_classes():
    for num_classes, expected in ((5, None), (6, 0.0)):
        logits = np.arange(float(num_classes))[None]  # the label has the lowest score
        assert measure(logits, np.array([0])).top5 == expected


def test_extreme_logits():
    logits = np.float32([[1e4, -1e4, 0], [1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e30, 0, -1e30]])
    found = measure(logits, np.array([0, 1, 2, 0]))
    assert found.nll == pytest.approx((0 + 2e4 + math.log(3) + 0) / 4)
    assert found.accuracy == 0.5
    # Sure three times, of which right twice; 1/3 once, and wrong
    assert found.ece == pytest.approx(3 / 4 * (1 - 2 / 3) + 1 / 4 * (1 / 3))


def test_arithmetic_is_float64_and_labels_are_of_any_integer_type():
    single = np.float32(LOGITS)
    expected = log_loss(LABELS, softmax64(np.float64(single)), labels=range(K))
    assert measure(single, LABELS).nll == pytest.approx(expected, rel=1e-13)
    many = RANDOM.normal(size=(300, 100))
    labels = RANDOM.integers(100, size=300)
    found = measure(many, labels.astype(np.uint8))
    np.testing.assert_array_equal(found.confusion, confusion_matrix(labels, many.argmax(axis=1), labels=range(100)))


def test_a_shift_of_a_row_changes_nothing_but_rounding():
    found, shifted = (measure(LOGITS + shift, LABELS) for shift in (0, RANDOM.normal(size=(M, 1)) * 100))
    assert shifted.nll == pytest.approx(found.nll) and shifted.ece == pytest.approx(found.ece)
    np.testing.assert_array_equal(shifted.confusion, found.confusion)


def test_a_class_without_an_image():
    found = measure(LOGITS[LABELS != 2], LABELS[LABELS != 2])
    np.testing.assert_array_equal(np.isnan(found.per_class), np.arange(K) == 2)
    assert not found.confusion[2].any()


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (np.zeros((3, 2)), np.zeros(4, int), r"\[3, 2\] and \[4\]"),
        (np.zeros((3, 2)), np.zeros((3, 1), int), r"\[3, 2\] and \[3, 1\]"),
        (np.zeros(3), np.zeros(3, int), r"\[3\] and \[3\]"),
        (np.zeros((0, 2)), np.zeros(0, int), r"\[0, 2\] and \[0\]"),
        (np.zeros((3, 0)), np.zeros(3, int), r"\[3, 0\] and \[3\]"),
        (np.zeros((3, 2)), np.array([0, 1, 2]), r"integers in \[0, 2\)"),
        (np.zeros((3, 2)), np.array([0, 1, -1]), r"integers in \[0, 2\)"),
        (np.zeros((3, 2)), np.zeros(3), "float64"),
        (np.full((1, 2), np.nan), np.zeros(1, int), "not finite"),
    ],
)
def test_what_measure_refuses(logits, labels, said):
    with pytest.raises(ValueError, match=said):
        measure(logits, labels)


def test_agreement():
    predicted = np.array([[0, 1, 2, 3], [0, 1, 0, 0], [1, 0, 2, 3]])
    np.testing.assert_array_equal(agreement(predicted), [[1, 0.5, 0.5], [0.5, 1, 0], [0.5, 0, 1]])
    assert agreement(np.zeros((0, 4), int)).shape == (0, 0)
    for wrong in (np.zeros(4, int), np.zeros((2, 0), int), np.zeros((2, 3, 4), int)):
        with pytest.raises(ValueError, match=r"\[J, M\]"):
            agreement(wrong)


def test_cka_is_the_alignment_of_centred_kernels():
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with HSIC(K, L) = tr(K H L H) / (M - 1)^2 and H = I - 1/M."""
    x = RANDOM.normal(size=(50, 6)) + 3
    y = x[:, :4] @ RANDOM.normal(size=(4, 9)) + RANDOM.normal(size=(50, 9)) - 2
    h = np.eye(50) - 1 / 50

    def hsic(one, other):
        return np.trace(one @ one.T @ h @ other @ other.T @ h) / 49**2

    expected = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert 0.1 < expected < 0.9
    assert linear_cka(x, y) == pytest.approx(expected) and linear_cka(y, x) == pytest.approx(expected)


def test_cka_limits():
    x = RANDOM.normal(size=(60, 5))
    rotation = np.linalg.qr(RANDOM.normal(size=(5, 5)))[0]
    assert linear_cka(x, x) == pytest.approx(1)
    assert linear_cka(x, -7 * x @ rotation + RANDOM.normal(size=5)) == pytest.approx(1)
    assert linear_cka(x, x * [1, 1, 1, 1, 50]) < 0.9  # not any linear map
    one, other = RANDOM.normal(size=(2, 10_000, 4))
    assert 0 <= linear_cka(one, other) < 0.01
    assert linear_cka([[1.0], [-1], [1], [-1]], [[1.0], [1], [-1], [-1]]) == 0


def test_cka_of_a_constant_is_nan():
    x = RANDOM.normal(size=(9, 3))
    constant = np.tile([0.1, 1 / 3, 1e9], (9, 1))  # their means are not exactly these numbers
    assert math.isnan(linear_cka(x, constant)) and math.isnan(linear_cka(constant, x))
    assert math.isnan(linear_cka(x[:1], x[:1]))
    assert linear_cka(x, np.hstack([x, constant])) == pytest.approx(1)


@pytest.mark.parametrize("shapes", [((4, 2), (5, 2)), ((4,), (4, 2)), ((4, 0), (4, 2)), ((0, 2), (0, 2))])
def test_what_cka_refuses(shapes):
    with pytest.raises(ValueError, match="not " + " and ".join(str(list(s)).replace("[", r"\[") for s in shapes)):
        linear_cka(*map(np.ones, shapes))
    with pytest.raises(ValueError, match=r"y \[2, 1\] has numbers that are not finite"):
        linear_cka([[1.0], [2]], [[1.0], [np.inf]])


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved; their texts have the places of the file, which has another resolution."""
    figures = []
    save = charts.save

    def keep(figure, path):
        save(figure, path)
        figure.set_dpi(110)
        figure.draw_without_rendering()
        figures.append(figure)

    monkeypatch.setattr(charts, "save", keep)
    return figures


def texts_of(figure):
    """All texts that are seen, and how far each reaches in pixels."""
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_text")) if text.get_visible()]
    return {text.get_text(): text.get_window_extent() for text in texts if text.get_text().strip()}


def image_of(path):
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image


def fits(figure, *parts):
    """Whether texts with these parts are there, inside of the picture, and high enough to be read."""
    width, height = figure.bbox.size
    for part in parts:
        boxes = [box for text, box in texts_of(figure).items() if part in text]
        assert boxes, part
        for box in boxes:
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, part
            assert min(box.width, box.height) > 0.08 * figure.dpi, part


@pytest.mark.parametrize(("num_classes", "least", "most"), [(2, 300, 1600), (10, 600, 1700), (100, 1700, 3000)])
def test_a_picture_of_confusions(num_classes, least, most, tmp_path, drawn):
    labels = RANDOM.integers(num_classes, size=3000)
    matrix = confusion_matrix(labels, (labels + (RANDOM.random(3000) < 0.1)) % num_classes)
    for kind, names in {
        "short": [f"c{i}" for i in range(num_classes)],
        "long": [f"{i} the name of a class that is long, with $ and _{i}" for i in range(num_classes)],
    }.items():
        charts.confusion(tmp_path / kind, matrix, names, "A title, which may be long. " * 12)
        assert all(least <= side <= most for side in image_of(tmp_path / kind).size)
        axes = drawn[-1].axes[0]
        for labels_of in (axes.get_xticklabels(), axes.get_yticklabels()):
            assert len({label.get_text() for label in labels_of}) == num_classes
            assert all(box.size.all() for box in (label.get_window_extent() for label in labels_of))
        heights = [label.get_window_extent() for label in axes.get_yticklabels()]
        assert all(up.y0 >= down.y0 + 0.09 * drawn[-1].dpi for up, down in zip(heights, heights[1:], strict=False))
        first = axes.get_yticklabels()[0].get_text()
        fits(drawn[-1], first, "Most frequent", "true class", "predicted class", "A title", "share of the true class")
        numbers = [text.get_text() for text in axes.texts]
        assert len(numbers) == (np.count_nonzero(matrix) if num_classes <= 20 else 0)


def test_the_ten_most_frequent_confusions_and_the_shares(tmp_path, drawn):
    matrix = np.diag(np.full(6, 100))
    matrix[0, 1], matrix[1, 0], matrix[5, 2] = 50, 300, 7
    matrix[4, :4] = 1, 2, 3, 4
    matrix[2, 3:] = 1
    matrix[3, 0] = 1
    charts.confusion(tmp_path / "a", matrix, list("abcdef"), "")
    listed = next(text for text in texts_of(drawn[0]) if text.startswith("Most"))
    arrow = "\N{RIGHTWARDS ARROW}"
    expected = ["ba: 300", "ab: 50", "fc: 7", "ed: 4", "ec: 3", "eb: 2", "cd: 1", "ce: 1", "cf: 1", "da: 1"]
    assert listed.split("\n")[2:] == [f"{pair[0]} {arrow} {pair[1:]}" for pair in expected]
    cells = {text.get_position(): text.get_text() for text in drawn[0].axes[0].texts}
    assert cells[0, 0] == "66.7" and cells[1, 0] == "33.3" and cells[0, 1] == "75.0" and (3, 1) not in cells


def test_shares_that_round_to_nothing_or_all(tmp_path, drawn):
    charts.confusion(tmp_path / "a", np.array([[9999, 1], [0, 4]]), ["a", "b"], "")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == [">99.9", "<0.1", "100"]


def test_a_picture_of_a_class_without_an_image(tmp_path, drawn):
    charts.confusion(tmp_path / "a", np.array([[200, 1, 0], [0, 0, 0], [0, 0, 5]]), ["a", "none", "c"], "")
    fits(drawn[0], "grey: no image")
    shown = drawn[0].axes[0].images[0]
    colours = shown.cmap(shown.norm(shown.get_array()))
    assert to_hex(colours[0, 2]) == "#ffffff" and {to_hex(cell) for cell in colours[1]} == {"#d9d9d9"}
    assert colours[0, 1, :3].min() < 0.9  # once in 200 images is seen
    charts.confusion(tmp_path / "b", np.diag([1, 2]), ["a", "\N{CJK UNIFIED IDEOGRAPH-5B57}"], "")
    assert any(text.endswith("none") for text in texts_of(drawn[1])) and "grey" not in str(texts_of(drawn[1]))


def test_short_names_that_would_be_equal_have_their_numbers(tmp_path, drawn):
    names = ["a" * 30 + middle + "z" * 30 for middle in "xy"]
    charts.confusion(tmp_path / "a", np.eye(2, dtype=int), names, "")
    assert [label.get_text()[:3] for label in drawn[0].axes[0].get_yticklabels()] == ["0 a", "1 a"]


def test_names_and_titles_are_no_formulas(tmp_path, drawn):
    wrong = r"$\nothing{$"  # an error of Matplotlib where it reads a formula
    charts.confusion(tmp_path / "a", np.array([[2, 1], [1, 2]]), [wrong, "b"], wrong)
    charts.reliability(tmp_path / "b", {wrong: measure(LOGITS, LABELS)}, wrong)
    assert all(sum(wrong in text for text in texts_of(figure)) >= 2 for figure in drawn)


def test_what_the_pictures_refuse(tmp_path):
    for shape, names in (((2, 3), "ab"), ((3, 3), "ab"), ((0, 0), "")):
        with pytest.raises(ValueError, match=r"\[K, K\]"):
            charts.confusion(tmp_path / "a", np.ones(shape, int), list(names), "")
    with pytest.raises(ValueError, match="no classifier"):
        charts.reliability(tmp_path / "a", {}, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9])
def test_a_picture_of_reliability(count, tmp_path, drawn):
    measured = {f"{i} a network with a name that is too long for its panel": measure(LOGITS, LABELS)
                for i in range(count)}  # fmt: skip
    charts.reliability(tmp_path / "a", measured, "How sure and how right")
    assert all(400 <= side <= 1600 for side in image_of(tmp_path / "a").size)
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    assert len(panels) == min(count, 8)
    found = measure(LOGITS, LABELS)
    assert all(f"ECE {100 * found.ece:.2f} %" in axes.get_title() for axes in panels)
    bars, gaps = (container.patches for container in panels[0].containers)
    some = found.bins.counts > 0
    np.testing.assert_allclose([bars[i].get_height() for i in some.nonzero()[0]], 100 * found.bins.accuracy[some])
    ends = [gaps[i].get_y() + gaps[i].get_height() for i in some.nonzero()[0]]
    np.testing.assert_allclose(ends, 100 * found.bins.confidence[some])
    below = [axes for axes in drawn[0].axes if axes.get_xlabel()]
    assert sum(bar.get_height() for bar in below[0].patches) == pytest.approx(100)
    fits(drawn[0], "How sure", "ECE", "gap to", "perfect", "accuracy in the bin", "confidence, %", "images, %")
    starts = [bar.get_x() for bar in bars]
    np.testing.assert_allclose(starts, np.arange(15) * 100 / 15)
    assert starts == [bar.get_x() for bar in gaps] == [bar.get_x() for bar in below[0].patches]
    shares = [bar.get_height() for bar in below[0].patches]
    np.testing.assert_allclose(shares, 100 * found.bins.counts / len(LABELS))
    assert any("first 8 of 9" in text for text in texts_of(drawn[0])) == (count == 9)


def test_each_panel_is_of_its_own_classifier(tmp_path, drawn):
    measured = {f"net {k}": measure(k * LOGITS, LABELS) for k in (1, 2, 5)}
    charts.reliability(tmp_path / "a", measured, "title")
    panels = [axes for axes in drawn[0].axes if axes.get_title()]
    counts = [axes for axes in drawn[0].axes if axes.get_xlabel()]
    for (name, found), upper, lower in zip(measured.items(), panels, counts, strict=True):
        assert upper.get_title() == f"{name}\nECE {100 * found.ece:.2f} %, accuracy {100 * found.accuracy:.2f} %"
        heights = [bar.get_height() for bar in lower.patches]
        np.testing.assert_allclose(heights, 100 * found.bins.counts / len(LABELS))
    assert len({found.ece for found in measured.values()}) == 3
