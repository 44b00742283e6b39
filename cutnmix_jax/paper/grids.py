"""What the finished runs of a table came to, cell by cell, and what is said of it beside the numbers."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from cutnmix_jax import layout, metrics
from cutnmix_jax.paper import ran
from cutnmix_jax.paper.cells import Cell, Choice, Key, cells_of, headline, no_reproduction, paper_number, title

MISSING = "—"
Name = TypeVar("Name")


class Found(NamedTuple):
    """What the finished seeds of a cell of a table came to, accuracies in %.

    Attributes:
      cell: one of its runs, for the names.
      seeds: that are finished.
      last: accuracy of the last epoch, per seed.
      best: of the best epoch of each.
      paper: mean and deviation in the paper, if it has them.
      results: the `results.json` of each seed.
      begun: epochs that each seed has which is not finished and is begun.
    """

    cell: Cell
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    paper: tuple[float, float] | None
    results: tuple[dict[str, Any], ...]
    begun: tuple[int, ...] = ()

    @property
    def mean(self) -> float:
        """Of the last epoch."""
        return statistics.fmean(self.last)


Grid = dict[Key, Found]  # what was found, in the table's order


def gather(choice: Choice) -> Grid:
    """Reads every run of a table, and how far those are that are not finished."""
    grouped: dict[Key, list[Cell]] = {}
    for cell in cells_of(choice):
        grouped.setdefault((cell.dataset, cell.backbone, cell.variant), []).append(cell)
    return {key: _found(choice, cells) for key, cells in grouped.items()}


def _found(choice: Choice, cells: Sequence[Cell]) -> Found:
    pairs = [(cell, results) for cell in cells if (results := ran.results_of(cell))]
    head = headline(cells[0].row)
    return Found(
        cell=cells[0],
        seeds=tuple(cell.seed for cell, _ in pairs),
        last=tuple(100 * results["last"][head] for _, results in pairs),
        best=tuple(100 * best(results, metrics.read_rows(cell.workdir / layout.ROWS), head) for cell, results in pairs),
        paper=None if choice.mini else paper_number(choice, cells[0]),
        results=tuple(results for _, results in pairs),
        begun=tuple(done for cell in cells if (done := _begun(cell))),
    )


def best(results: Mapping[str, Any], rows: Sequence[metrics.EpochRow], head: str) -> float:
    """The accuracy of a head in its best epoch; that in `results.json` is of the peers' mean, another head has another.

    Args:
      results: of a finished run.
      rows: of the same.
      head: as `methods.row` has it, and the results too.

    Returns:
      A fraction.
    """
    return results["best"][head] if head == "accuracy" else metrics.ranked(rows, head)[0][f"test/{head}"]


def _begun(cell: Cell) -> int:
    """The epochs of a run that is begun and not finished, 0 for any other, and for one with other fields."""
    done = ran.epochs_done(cell)
    return done if 0 < done < cell.epochs and not ran.other_fields(cell) else 0


def accuracy(found: Found) -> str:
    """The last epoch of a cell, or how far its runs are, as `12/240 epochs`, where none is finished."""
    if found.last or not found.begun:
        return spread(found.last)
    return so_far([(done, found.cell.epochs) for done in found.begun])


def so_far(runs: Iterable[tuple[int, int]]) -> str:
    """How far runs are of which none is finished: the epochs that each has, and is to have."""
    return ", ".join(f"{done}/{epochs}" for done, epochs in runs) + " epochs"


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
    return places({other: found.last for other, found in grid.items() if other[:2] == key[:2]}).get(key)


def places(values: Mapping[Name, Sequence[float]]) -> dict[Name, int]:
    """Whose mean is the best one, 0, and whose the second best, 1, as they are shown; those of one value have no place.

    Args:
      values: a name -> accuracies in %.
    """
    means = {name: round(statistics.fmean(those), 2) for name, those in values.items() if len(those) > 1}
    order = sorted(set(means.values()), reverse=True)[:2]
    return {name: order.index(mean) for name, mean in means.items() if mean in order} if len(order) > 1 else {}


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
        what = no_reproduction([found.cell for found in grid.values()]).partition(": ")[2]
        notes.append(f"**No reproduction of the paper**: {what}.\n")
    heads = {title(found.cell.row): headline(found.cell.row).removeprefix("accuracy_") for found in grid.values()}
    others = [f", of {row} the {head.replace('_', ' ')}" for row, head in heads.items() if head != "accuracy"]
    notes.append(
        "Top-1 test accuracy in %, mean over seeds ± standard deviation (n - 1), "
        f"n = {' or '.join(map(str, counts)) or '0'}; mean of the peers{''.join(others)}. " + _marks(grid)
    )
    if any(found.paper for found in grid.values()):
        notes.append("Below each number the paper's own, and ours minus it.")
    if lacking := missing(grid):
        going_on = ", or the epochs that its runs have so far" if any(found.begun for found in grid.values()) else ""
        notes.append(f"{lacking} ({MISSING}{going_on}).")
    if results:
        notes.append(circumstances(results))
    return notes


def circumstances(results: Sequence[Mapping[str, Any]]) -> str:
    """A sentence on what runs were trained with; there is at least one."""
    kinds = {
        "epochs": sorted({str(one["epochs"]) for one in results}),
        "training images": sorted({str(one["train_examples"]) for one in results}),
        "device": sorted({one["device"] for one in results}),
        "jax": sorted({one["versions"].get("jax", "not known") for one in results}),
    }
    return "; ".join(f"{name} {' or '.join(map(_plain, values))}" for name, values in kinds.items()) + "."


def _plain(text: str) -> str:
    """A text out of a run's folder, without what would begin a line, a cell or markup of a table's own."""
    return "".join(character if character.isalnum() or character in " .,+-()/@" else "?" for character in text[:100])


def _marks(grid: Grid) -> str:
    """What the marks of a table say, or why there are none."""
    if all(rank(grid, key) is None for key in grid):
        return "No best one is marked: there are no two to compare of two seeds or more."
    among = " among the cells of two seeds or more" if any(len(found.last) == 1 for found in grid.values()) else ""
    return f"**Best** and _second best_ of a column{among} are marked."
