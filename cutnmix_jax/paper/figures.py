"""Pictures of a table: accuracy by method and backbone, and curves over the epochs with their deviation shaded."""

import math
import statistics
import textwrap
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from cutnmix_jax import layout, metrics
from cutnmix_jax.paper.cells import columns_of, datasets_of, headline, rows_of, title
from cutnmix_jax.paper.grids import Grid
from cutnmix_jax.pictures import COLOURS, DASHES, MARKERS, save


class Curve(NamedTuple):
    """Runs that are drawn as one line.

    Attributes:
      label: in the legend.
      head: the accuracy that is drawn, as `methods.row` has it.
      runs: the rows of each; there is at least one.
    """

    label: str
    head: str
    runs: Sequence[Sequence[metrics.EpochRow]]


def accuracies(path: Path, heading: str, grid: Grid) -> None:
    """Draws the mean of the last epoch with its deviation: a panel per data set, a group per backbone.

    Args:
      path: of the PNG.
      heading: above all panels.
      grid: from `grids.gather`.
    """
    datasets, variants = datasets_of(grid), rows_of(grid)
    widest = max(len(columns_of(grid, dataset)) for dataset in datasets)
    size = (max(5.5, 1.1 + 0.11 * widest * (len(variants) + 2)) + 1.6, 3.4 * len(datasets) + 0.5)
    figure = Figure(figsize=size, layout="constrained")
    for axes, dataset in zip(figure.subplots(len(datasets), squeeze=False)[:, 0], datasets, strict=True):
        backbones = columns_of(grid, dataset)
        for number, variant in enumerate(variants):
            at, means, errors = [], [], []
            for group, backbone in enumerate(backbones):
                found = grid.get((dataset, backbone, variant))
                if found and found.last:
                    at.append(group + 0.8 * ((number + 0.5) / len(variants) - 0.5))
                    means.append(found.mean)
                    # No bar, where one of length 0 would say that the seeds agree.
                    errors.append(statistics.stdev(found.last) if len(found.last) > 1 else math.nan)
            axes.errorbar(
                at, means, yerr=errors, fmt=MARKERS[number % len(MARKERS)], color=COLOURS[number % len(COLOURS)],
                markersize=6, capsize=2, linewidth=1.2, label=title(variant),
                markerfacecolor="none" if number >= len(COLOURS) else None,
            )  # fmt: skip
        axes.set_xticks(range(len(backbones)), list(map(title, backbones)))
        axes.set(xlim=(-0.5, len(backbones) - 0.5), ylabel="test accuracy, %", title=title(dataset))
        axes.grid(axis="y", alpha=0.3)
        for edge in range(1, len(backbones)):
            axes.axvline(edge - 0.5, color="0.85", linewidth=0.8)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8, frameon=False)
    figure.suptitle(
        f"{heading}\nlast epoch; {over_seeds(_seeds(grid), 'bars of one standard deviation', 'bar')}", fontsize=10
    )
    save(figure, path, dpi=130)


def curves(path: Path, heading: str, grid: Grid) -> None:
    """Draws test accuracy over the epochs: a panel per data set and backbone, a mean curve and its deviation shaded."""
    places = list(dict.fromkeys((dataset, backbone) for dataset, backbone, _ in grid))
    figure = Figure(figsize=(6.4, 3.8 * len(places)), layout="constrained")
    for axes, place in zip(figure.subplots(len(places), squeeze=False)[:, 0], places, strict=True):
        for number, ((*where, variant), found) in enumerate(grid.items()):
            if tuple(where) == place and found.last:
                folders = [found.cell.workdir.with_name(f"seed{seed}") for seed in found.seeds]
                rows = [metrics.read_rows(folder / layout.ROWS) for folder in folders]
                label = f"{title(variant)} (n = {len(rows)})"
                _curve(axes, Curve(label, headline(found.cell.row), rows), number)
        axes.set(xlabel="epoch", ylabel="test accuracy, %", title=", ".join(map(title, place)))
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=9, frameon=False, loc="lower right")
    figure.suptitle(f"{heading}\n{over_seeds(_seeds(grid), 'one standard deviation shaded', 'shade')}", fontsize=10)
    save(figure, path, dpi=130)


def compared(path: Path, heading: str, drawn: Mapping[int, Curve]) -> None:
    """Draws test accuracy over all epochs of groups of runs, their last quarter beside it, and the legend below.

    Args:
      path: of the PNG.
      heading: above the panels.
      drawn: the number of a group, from 1 -> its curve, one or more; their labels may be any text.
    """
    lines, ends = 0, {}
    last = max(row["epoch"] for curve in drawn.values() for rows in curve.runs for row in rows)
    figure = Figure(figsize=(11.4, 5.0 + 0.19 * len(drawn)), layout="constrained")
    whole, end = figure.subplots(1, 2, width_ratios=(1.25, 1))
    for number, curve in drawn.items():
        label = textwrap.wrap(f"{number}  {curve.label[:400]}", 130, subsequent_indent="     ")
        lines += len(label)
        _curve(whole, curve._replace(label="\n".join(map(_plain, label))), number - 1)
        ends[number] = _curve(end, curve, number - 1, last * 3 // 4 + 1)
    figure.set_figheight(5.0 + 0.19 * lines)
    _number_ends(end, ends)
    for axes, part in ((whole, "all epochs"), (end, "their last quarter")):
        axes.set(xlabel="epoch", ylabel="test accuracy, %", title=part)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = whole.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=9, frameon=False, handlelength=3.2)
    counts = {len(curve.runs) for curve in drawn.values()}
    figure.suptitle(f"{_plain(heading)}\n{over_seeds(counts, 'one standard deviation shaded', 'shade')}", fontsize=10)
    save(figure, path, dpi=130)


def _number_ends(axes: Axes, ends: Mapping[int, float | None]) -> None:
    """Writes the number of each group beside the end of its line, moved up where it would lie on another one."""
    low, high = axes.get_ylim()
    below = -math.inf
    for at, number in sorted((at, number) for number, at in ends.items() if at is not None):
        below = max(at, below + 0.04 * (high - low))
        axes.text(1.015, below, str(number), transform=axes.get_yaxis_transform(), va="center")


def _plain(text: str) -> str:
    """A text without a dollar that begins a formula, or a letter that the font lacks, which is a warning each time."""
    return text.encode("latin-1", "replace").decode("latin-1").replace("$", r"\$")


def _seeds(grid: Grid) -> set[int]:
    return {len(found.last) for found in grid.values() if found.last}


def over_seeds(counts: Collection[int], shown: str, what: str) -> str:
    """What a picture shows of its seeds.

    Args:
      counts: of the seeds of its parts.
      shown: how their deviation is.
      what: a part with a single seed does not have.
    """
    if set(counts) == {1}:
        return "a single seed, no deviation"
    if not counts:
        return f"mean over seeds, {shown}"
    least, most = min(counts), max(counts)
    seeds = f"{most}" if least == most else f"{least} to {most}"
    return f"mean over {seeds} seeds, {shown}" + (f"; no {what}: a single seed" if 1 in counts else "")


def _curve(axes: Axes, curve: Curve, number: int, first: int = 1) -> float | None:
    """Draws a curve from its `first` epoch on; returns where it ends, None where it has no such epoch."""
    name = f"test/{curve.head}"
    runs = [
        {row["epoch"]: 100 * row[name] for row in rows if name in row and row["epoch"] >= first} for rows in curve.runs
    ]
    epochs = [epoch for epoch in runs[0] if all(epoch in run for run in runs)]
    columns = [[run[epoch] for run in runs] for epoch in epochs]
    means = [statistics.fmean(column) for column in columns]
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(
        epochs, means, DASHES[number % len(DASHES)], color=colour, label=curve.label,
        marker=MARKERS[number % len(MARKERS)], markevery=max(1, len(means) // 10), markersize=4, linewidth=1.3,
        path_effects=[withStroke(linewidth=2.4, foreground="0.4")] if colour == COLOURS[-1] else None,
    )  # fmt: skip
    if len(runs) > 1:
        stds = [statistics.stdev(column) for column in columns]
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
    return means[-1] if means else None
