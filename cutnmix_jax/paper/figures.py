"""Pictures of a table: accuracy by method and backbone, and curves over the epochs with their deviation shaded."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cutnmix_jax import metrics
from cutnmix_jax.paper.cells import Key, columns_of, datasets_of, headline, rows_of, title
from cutnmix_jax.pictures import COLOURS, DASHES, MARKERS, save


def accuracies(path: Path, heading: str, grid: Mapping[Key, Any]) -> None:
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
    figure.suptitle(f"{heading}\nlast epoch; {over_seeds(grid, 'bars of one standard deviation', 'bar')}", fontsize=10)
    save(figure, path, dpi=130)


def curves(path: Path, heading: str, grid: Mapping[Key, Any]) -> None:
    """Draws test accuracy over the epochs: a panel per data set and backbone, a mean curve and its deviation shaded."""
    places = list(dict.fromkeys((dataset, backbone) for dataset, backbone, _ in grid))
    figure = Figure(figsize=(6.4, 3.8 * len(places)), layout="constrained")
    for axes, place in zip(figure.subplots(len(places), squeeze=False)[:, 0], places, strict=True):
        for number, ((*where, variant), found) in enumerate(grid.items()):
            if tuple(where) == place and found.last:
                folders = [found.cell.workdir.with_name(f"seed{seed}") for seed in found.seeds]
                _curve(axes, folders, headline(found.cell.row), title(variant), number)
        axes.set(xlabel="epoch", ylabel="test accuracy, %", title=", ".join(map(title, place)))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, frameon=False, loc="lower right")
    figure.suptitle(f"{heading}\n{over_seeds(grid, 'one standard deviation shaded', 'shade')}", fontsize=10)
    save(figure, path, dpi=130)


def over_seeds(grid: Mapping[Key, Any], shown: str, what: str) -> str:
    """What a picture shows of its seeds: how their deviation is `shown`, and that a single one has none."""
    counts = {len(found.last) for found in grid.values() if found.last}
    if counts == {1}:
        return "a single seed, no deviation"
    return f"mean over seeds, {shown}" + (f"; no {what}: a single seed" if 1 in counts else "")


def _curve(axes: Axes, folders: Sequence[Path], head: str, label: str, number: int) -> None:
    name = f"test/{head}"
    rows = [metrics.read_rows(folder / metrics.ROWS) for folder in folders]
    runs = [{row["epoch"]: 100 * row[name] for row in of_run if name in row} for of_run in rows]
    epochs = [epoch for epoch in runs[0] if all(epoch in run for run in runs)]
    columns = [[run[epoch] for run in runs] for epoch in epochs]
    means = [statistics.fmean(column) for column in columns]
    colour = COLOURS[number % len(COLOURS)]
    axes.plot(
        epochs, means, DASHES[number % len(DASHES)], color=colour, label=f"{label} (n = {len(runs)})",
        marker=MARKERS[number % len(MARKERS)], markevery=max(1, len(means) // 10), markersize=4,
    )  # fmt: skip
    if len(runs) > 1:
        stds = [statistics.stdev(column) for column in columns]
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        axes.fill_between(epochs, low, high, color=colour, alpha=0.2, linewidth=0)
