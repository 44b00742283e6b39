"""What the finished runs of a table came to, cell by cell, and what is said of it beside the numbers."""

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from cutnmix_jax import metrics
from cutnmix_jax.paper import launch
from cutnmix_jax.paper.cells import Cell, Choice, Key, cells_of, headline, paper_number

MISSING = "—"


class Found(NamedTuple):
    """What the finished seeds of a cell of a table came to, accuracies in %.

    Attributes:
      cell: one of its runs, for the names.
      seeds: that are finished.
      last: accuracy of the last epoch, per seed.
      best: of the best epoch of each.
      paper: mean and deviation in the paper, if it has them.
      results: the `results.json` of each seed.
    """

    cell: Cell
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    paper: tuple[float, float] | None
    results: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        """Of the last epoch."""
        return statistics.fmean(self.last)


Grid = dict[Key, Found]  # what was found, in the table's order


def gather(choice: Choice) -> Grid:
    """Reads every run of a table that is finished."""
    grouped: dict[Key, list[Cell]] = {}
    for cell in cells_of(choice):
        grouped.setdefault((cell.dataset, cell.backbone, cell.variant), []).append(cell)
    return {key: _found(choice, cells) for key, cells in grouped.items()}


def _found(choice: Choice, cells: Sequence[Cell]) -> Found:
    pairs = [(cell, results) for cell in cells if (results := launch.results_of(cell))]
    head = headline(cells[0].row)
    return Found(
        cell=cells[0],
        seeds=tuple(cell.seed for cell, _ in pairs),
        last=tuple(100 * results["last"][head] for _, results in pairs),
        best=tuple(100 * _best(cell, results, head) for cell, results in pairs),
        paper=None if choice.mini else paper_number(choice, cells[0]),
        results=tuple(results for _, results in pairs),
    )


def _best(cell: Cell, results: dict[str, Any], head: str) -> float:
    """Of all epochs; the best one in `results.json` is that of the peers' mean, and another head's is another."""
    if head == "accuracy":
        return results["best"][head]
    return metrics.ranked(metrics.read_rows(cell.workdir / metrics.ROWS), head)[0][f"test/{head}"]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (n - 1), the latter where there are two values."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def fewer(grid: Grid, found: Found) -> str:
    """`n = 1` in brackets for a cell that has fewer seeds than another cell of the table, else nothing."""
    n, most = len(found.last), max(len(other.last) for other in grid.values())
    return f" (n = {n})" if 0 < n < most else ""


def rank(grid: Grid, key: Key) -> int | None:
    """0 for the best mean of a column, 1 for the second best, None for any other.

    Only cells of two seeds or more are compared: how far another seed would have moved a single run nobody knows.
    """
    means = {
        variant: round(found.mean, 2)
        for (*where, variant), found in grid.items()
        if tuple(where) == key[:2] and len(found.last) > 1
    }
    order = sorted(set(means.values()), reverse=True)
    place = order.index(means[key[2]]) if key[2] in means else len(order)
    return place if place < 2 <= len(order) else None


def missing(grid: Grid) -> str:
    """How many cells have no finished run; empty where all have one."""
    count = sum(not found.last for found in grid.values())
    return f"{count} of {len(grid)} cells have no finished run" if count else ""


def notes(choice: Choice, grid: Grid) -> list[str]:
    """What the numbers are, so that the table can stand alone."""
    results = [one for found in grid.values() for one in found.results]
    counts = sorted({len(found.last) for found in grid.values() if found.last})
    notes = []
    if choice.mini:
        notes.append(
            "**No reproduction of the paper**: embedded digits, a tiny network, few epochs; the machinery alone.\n"
        )
    notes.append(
        "Top-1 test accuracy in %, mean over seeds ± standard deviation (n - 1), "
        f"n = {' or '.join(map(str, counts)) or '0'}; mean of the peers, of OKDDip the leader. " + _marks(grid)
    )
    if any(found.paper for found in grid.values()):
        notes.append("Below each number the paper's own, and ours minus it.")
    if lacking := missing(grid):
        notes.append(f"{lacking} ({MISSING}).")
    if results:
        kinds = {
            "epochs": sorted({str(one["epochs"]) for one in results}),
            "training images": sorted({str(one["train_examples"]) for one in results}),
            "device": sorted({one["device"] for one in results}),
            "jax": sorted({one["versions"]["jax"] for one in results}),
        }
        notes.append("; ".join(f"{name} {' or '.join(map(_plain, values))}" for name, values in kinds.items()) + ".")
    return notes


def _plain(text: str) -> str:
    """A text out of a run's folder, without what would begin a line, a cell or markup of a table's own."""
    return "".join(character if character.isalnum() or character in " .,+-()/@" else "?" for character in text[:100])


def _marks(grid: Grid) -> str:
    """What the marks of a table say, or why there are none."""
    if all(rank(grid, key) is None for key in grid):
        return "No best one is marked: there are no two to compare of two seeds or more."
    among = " among the cells of two seeds or more" if any(len(found.last) == 1 for found in grid.values()) else ""
    return f"**Best** and _second best_ of a column{among} are marked."
