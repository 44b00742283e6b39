"""The pictures of a run: its first batch, and its curves."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cutnmix_jax import files
from cutnmix_jax.types import Batch, Dataset, Mix

# Okabe and Ito's palette, told apart by colour-blind readers; a marker and a dash besides for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
DASHES = ("-", "--", "-.", ":")
MARKERS = "os^Dv"


def samples(path: Path, batch: Batch, how: Mix, dataset: Dataset, count: int = 8) -> None:
    """Draws the first images of a batch as each peer sees them.

    A row per peer and view, one for all where they see the same, and a column per image; the partner's box is outlined,
    lambda stands at the row and the two labels with their shares above each image.
    """
    images = np.clip(np.asarray(batch.images) * dataset.std + dataset.mean, 0, 1)
    num_views, num_peers = images.shape[:2]
    count = min(count, images.shape[2])
    labels, partner = np.asarray(batch.labels), np.asarray(how.partner)
    figure = Figure(figsize=(1.7 * count + 1.4, 2.25 * num_views * num_peers + 0.5), layout="constrained")
    grid = figure.subplots(num_views * num_peers, count, squeeze=False)
    for row, (view, j) in enumerate(np.ndindex(num_views, num_peers)):
        amount, box = float(how.amount[view, j]), np.asarray(how.boxes[view, j])
        for i in range(count):
            axes = grid[row][i]
            axes.imshow(images[view, j, i], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            names = [dataset.class_names[labels[row]] for row in (i, partner[i])]
            shares = f"{1 - amount:.2f} {names[0]}\n{amount:.2f} {names[1]}"
            axes.set_title(shares, fontsize=8, parse_math=False)  # a name may have dollars
            _outline(axes, box, images.shape[3:5])
        who = "all peers" if num_peers < batch.targets.shape[1] else f"peer {j}"
        who += f", view {view}" if num_views > 1 else ""
        grid[row][0].set_ylabel(f"{who}\npartner's share\n$\\lambda$ = {amount:.3f}", fontsize=9)
    boxed = ", the partner's box outlined" if np.asarray(how.boxes).any() else ""
    figure.suptitle(f"First batch: label shares above each image{boxed}", fontsize=10)
    save(figure, path)


def save(figure: Figure, path: Path, dpi: int = 110) -> None:
    """Writes a picture as PNG, whole or not at all."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format="png")
    files.write(path, drawn.getvalue())


def _outline(axes: Axes, box: np.ndarray, size: Sequence[int]) -> None:
    """Draws a box on an image of (H, W); one that wraps around the border is drawn at each side and cut by the axes."""
    top, left, height, width = (int(side) for side in box)
    if height == 0 or width == 0:
        return
    for down in (top, top - size[0]):
        for right in (left, left - size[1]):
            if down + height > 0 and right + width > 0:
                corner = (right - 0.5, down - 0.5)
                axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="#F0E442", linewidth=1.8))
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))


def curves(path: Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draws test accuracies and training loss terms over the epochs."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    tested = [row for row in rows if "test/accuracy" in row]
    evaluated, epochs = ([row["epoch"] for row in some] for some in (tested, rows))
    names = [name for name in tested[0] if name.startswith("test/accuracy_")]
    for i, name in enumerate(names):
        values = [100 * row.get(name, np.nan) for row in tested]
        _line(left, i, evaluated, values, name.removeprefix("test/accuracy_").replace("_", " "))
    mean = [100 * row["test/accuracy"] for row in tested]
    left.plot(evaluated, mean, label="mean of peers", color="black", linewidth=2.5, alpha=0.45)
    if "validation/accuracy" in tested[0]:
        chosen = [100 * row["validation/accuracy"] for row in tested]
        left.plot(evaluated, chosen, label="mean of peers, validation", color="black", linestyle=":", linewidth=1.5)
    left.set(xlabel="epoch", ylabel="test accuracy, %", title="Accuracy on the test set")
    terms = [name for name in rows[0] if name.startswith("train/") and name not in ("train/accuracy", "train/loss")]
    for i, name in enumerate(terms):
        _line(right, i, epochs, [row.get(name, np.nan) for row in rows], name.removeprefix("train/").replace("_", " "))
    right.set(xlabel="epoch", ylabel="mean over peers and steps", title="Loss terms before weighting")
    if all(row.get(name, 1) > 0 for row in rows for name in terms):
        right.set_yscale("log")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title, parse_math=False)
    save(figure, path)


def _line(axes: Axes, i: int, epochs: Sequence[int], values: Sequence[float], label: str) -> None:
    colour, dash, marker = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]
    every = max(1, len(epochs) // 20)
    axes.plot(epochs, values, label=label, color=colour, linestyle=dash, marker=marker, markersize=4, markevery=every)
