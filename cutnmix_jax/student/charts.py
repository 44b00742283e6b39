"""The pictures of a classifier: what it takes for what, and whether it is as right as it is sure."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from cutnmix_jax.pictures import COLOURS, save
from cutnmix_jax.student.measures import NUM_BINS, Measured

MOST = 10  # confusions in the list
NUMBERED = 20  # classes, at most, for which a number fits into a cell
MAX_PANELS = 8
LEFT = 100 * np.arange(NUM_BINS) / NUM_BINS  # where the bins begin, in %
LETTER = 0.6 * 11 / 72  # inches that a letter of a title is wide


def confusion(path: Path, confusion: np.ndarray, class_names: Sequence[str], title: str) -> None:
    """Draws the share of each predicted class among the images of each true class, and lists the commonest mistakes.

    Up to 20 classes have their shares in the cells; with more, the colours alone tell. The colours are of the square
    root of the share, so that a rare mistake is seen; a pair that never occurs is white, a class without an image grey.

    Args:
      path: of the PNG.
      confusion: [K, K] integers, row is the true class, as in `Measured`.
      class_names: K names, any text; the middle of a long one is left out.
      title: above the picture.

    Raises:
      ValueError: `confusion` is not [K, K] for the K names, or K is 0.
    """
    confusion, num_classes = np.asarray(confusion), len(class_names)
    if num_classes == 0 or confusion.shape != (num_classes, num_classes):
        raise ValueError(f"confusion is [K, K] for {num_classes} class names, not {list(confusion.shape)}")
    numbered, names = num_classes <= NUMBERED, _distinct(class_names)
    size, size_of_list = (9, 9) if numbered else (7, 11)
    listed = _mistakes(confusion, names)
    # In inches. The layouts of Matplotlib give no room for text that is longer than what it stands beside.
    side = max(2.2, num_classes * (0.5 if numbered else 0.155))
    margin = max(_width(name, size) for name in names) + 0.5
    right = margin + side + 1.1
    width = right + _width(listed, size_of_list) + 0.2
    title = _wrapped(title, width)
    height = margin + side + 0.3 + 0.2 * len(title.split("\n"))
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    scale = figure.add_axes(((margin + side + 0.15) / width, margin / height, 0.15 / width, side / height))
    _cells(axes, scale, confusion, names, size)
    if numbered:
        _numbers(axes, confusion)
    figure.text(right / width, (margin + side) / height, listed, va="top", fontsize=size_of_list, linespacing=1.6,
                parse_math=False)  # fmt: skip
    figure.suptitle(title, y=1 - 0.1 / height, fontsize=11, parse_math=False)
    save(figure, path)


def _cells(axes: Axes, scale: Axes, confusion: np.ndarray, names: Sequence[str], size: float) -> None:
    """Draws the matrix with all names on both axes, and the scale of its colours on axes of its own."""
    blues = ListedColormap(colormaps["Blues"](np.linspace(0.12, 1, 256)))
    colours = blues.with_extremes(under="white", bad="0.85")
    shown = axes.imshow(_shares(confusion), cmap=colours, norm=PowerNorm(0.5, vmin=1e-9, vmax=1), aspect="equal")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    axes.set(xlabel="predicted class", ylabel="true class")
    # Lines between cells, with which a cell is followed to its names.
    axes.set_xticks(np.arange(0.5, len(names) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
    axes.grid(which="minor", color="0.88", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    bar = scale.figure.colorbar(shown, cax=scale)
    bar.set_ticks([0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1], labels=["0.1", "1", "5", "10", "25", "50", "100"], fontsize=9)
    bar.set_label("share of the true class, %", fontsize=9)


def _numbers(axes: Axes, confusion: np.ndarray) -> None:
    """Writes the share in % into each cell that has an image."""
    shares = _shares(confusion)
    for row, column in np.argwhere(confusion > 0):
        share = shares[row, column]
        rounded = f"{100 * share:.1f}"
        text = "100" if share == 1 else {"0.0": "<0.1", "100.0": ">99.9"}.get(rounded, rounded)
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if share > 0.3 else "black")


def _shares(confusion: np.ndarray) -> np.ndarray:
    """[K, K] float64, rows that sum to 1; a row of nan for a class without an image."""
    counts = confusion.sum(axis=1, keepdims=True)
    return np.divide(confusion, counts, out=np.full(confusion.shape, np.nan), where=counts > 0)


def _mistakes(confusion: np.ndarray, names: Sequence[str]) -> str:
    """The ten pairs off the diagonal with most images, a line each, of equal pairs the first; and what grey means."""
    wrong = confusion * (1 - np.eye(len(names), dtype=int))
    pairs = [divmod(int(at), len(names)) for at in np.argsort(-wrong, axis=None, kind="stable")[:MOST]]
    lines = [f"{names[i]} \N{RIGHTWARDS ARROW} {names[j]}: {wrong[i, j]}" for i, j in pairs if wrong[i, j] > 0]
    grey = [] if confusion.any(axis=1).all() else ["", "grey: no image of the true class"]
    heading = ["Most frequent confusions,", "true \N{RIGHTWARDS ARROW} predicted: images"]
    return "\n".join([*heading, *(lines or ["none"]), *grey])


def reliability(path: Path, measured: Mapping[str, Measured], title: str) -> None:
    """Draws for each classifier how often it is right when it is how sure, and how many images that are.

    A reliability diagram (Guo et al. 2017, arXiv 1706.04599, Figure 1): a bar per bin is as high as the accuracy, the
    hatched part is its gap to the mean confidence. Below it is the share of the images in each bin.

    Args:
      path: of the PNG.
      measured: name of a classifier -> what was measured, at least one; the first 8 are drawn.
      title: above the picture.

    Raises:
      ValueError: there is no classifier.
    """
    if not measured:
        raise ValueError("measured has no classifier to draw")
    drawn = list(measured.items())[:MAX_PANELS]
    columns = len(drawn) if len(drawn) <= 3 else min(4, -(-len(drawn) // 2))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(max(4.4, 3.1 * columns + 0.5), 4.3 * rows + 1.1), layout="constrained")
    grid = figure.subplots(2 * rows, columns, height_ratios=(3, 1) * rows, squeeze=False)
    for upper, lower in zip(grid[::2, 0], grid[1::2, 0], strict=True):
        upper.set_ylabel("accuracy, %")
        lower.set_ylabel("images, %")
    panels = list(zip(grid[::2].flat, grid[1::2].flat, strict=True))
    for (upper, lower), (name, found) in zip(panels, drawn, strict=False):
        _panel(upper, name, found)
        _counts(lower, found)
    for upper, lower in panels[len(drawn) :]:
        upper.remove()
        lower.remove()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", fontsize=9, frameon=False, ncols=3 if columns > 1 else 1)
    if len(measured) > len(drawn):
        title += f" (the first {len(drawn)} of {len(measured)} classifiers)"
    figure.suptitle(_wrapped(title, figure.get_figwidth()), fontsize=11, parse_math=False)
    save(figure, path)


def _panel(axes: Axes, name: str, found: Measured) -> None:
    """Draws accuracy, gap and diagonal of one classifier."""
    _, confidence, accuracy = found.bins
    width = 100 / NUM_BINS
    axes.bar(LEFT, 100 * accuracy, width, align="edge", color=COLOURS[5], edgecolor="black", linewidth=0.6,
             label="accuracy in the bin")  # fmt: skip
    axes.bar(LEFT, 100 * (confidence - accuracy), width, bottom=100 * accuracy, align="edge", facecolor="none",
             edgecolor=COLOURS[1], hatch="////", linewidth=1, label="gap to the mean confidence")  # fmt: skip
    axes.plot([0, 100], [0, 100], color="black", linestyle="--", linewidth=1, label="perfect calibration")
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20), yticks=range(0, 101, 20))
    axes.tick_params(labelbottom=False)
    scores = f"ECE {100 * found.ece:.2f} %, accuracy {100 * found.accuracy:.2f} %"
    axes.set_title(f"{_short(name, 36)}\n{scores}", fontsize=9, parse_math=False)


def _counts(axes: Axes, found: Measured) -> None:
    """Draws the share of the images in each bin."""
    shares = 100 * found.bins.counts / found.bins.counts.sum()
    axes.bar(LEFT, shares, 100 / NUM_BINS, align="edge", color=COLOURS[0], edgecolor="black", linewidth=0.6)
    # The square root of the share, since most images are in the last bin and the others would not be seen.
    axes.set_yscale("function", functions=(lambda y: np.sqrt(np.maximum(y, 0)), np.square))
    axes.set_yticks([0, 5, 25, 100], ["0", "5", "25", "100"], fontsize=8)
    axes.set(xlim=(0, 100), ylim=(0, 100), xticks=range(0, 101, 20), xlabel="confidence, %")
    axes.grid(axis="y", alpha=0.3)


def _distinct(class_names: Sequence[str]) -> list[str]:
    """The names made short; with the numbers of the classes before them where that made two of them equal."""
    names = [_short(name, 28) for name in class_names]
    return names if len(set(names)) == len(names) else [f"{number} {name}" for number, name in enumerate(names)]


def _width(text: str, size: float) -> float:
    """How wide a text is in inches; of lines, the widest."""
    figure = Figure()
    return figure.text(0, 0, text, fontsize=size, parse_math=False).get_window_extent().width / figure.dpi


def _short(text: str, longest: int) -> str:
    """A name of at most so many letters; the middle is left out, because names often differ at their ends."""
    text = " ".join(_plain(text).split())
    if len(text) <= longest:
        return text
    return f"{text[: longest // 2]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (longest - 1) // 2 :]}"


def _wrapped(title: str, width: float) -> str:
    """A title in lines that fit into so many inches."""
    return textwrap.fill(_plain(title), int(width / LETTER))


def _plain(text: str) -> str:
    """A text without letters that the font may lack, each of which would be a warning."""
    return text.encode("latin-1", "replace").decode("latin-1")
