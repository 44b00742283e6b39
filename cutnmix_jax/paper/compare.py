"""A comparison of any runs: groups that differ in nothing but the seed, and what else differs between them."""

import csv
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cutnmix_jax import files, metrics
from cutnmix_jax.errors import printable
from cutnmix_jax.paper import figures, grids, options, progress
from cutnmix_jax.paper.labels import NAMES, differing, label, value
from cutnmix_jax.paper.runs import Gathered, Group, Run

NUMBERS = ("n", "last epoch", "best epoch", "ensemble", "epochs", "seconds")


def best_ones(groups: Sequence[Group]) -> tuple[list[int], str]:
    """Which groups have the best mean of the last epoch, and a sentence on it: none where a seed is the only one."""
    counted = {number: group.last for number, group in enumerate(groups) if group.last}
    same = ("dataset", "test_examples", "data")
    images = {tuple(group.fields.get(name) for name in same) for group in groups if group.last}
    why = ""
    if len(counted) < 2:
        why = "there are no two groups with finished runs"
    elif single := [str(number + 1) for number, last in counted.items() if len(last) == 1]:
        why = f"n = 1 in group {', '.join(single)}, and how far another seed would be from it nobody knows"
    elif len(images) > 1:
        why = "the groups are not tested on the same images"
    best = [number for number, place in grids.places(counted).items() if place == 0]
    if not why and not best:
        why = "all means are alike"
    return ([], f"No best one is marked: {why}.") if why else (best, "The best mean of the last epoch has a star (*).")


def notes(groups: Sequence[Group], follow: Sequence[str], marks: str) -> Iterator[str]:
    """What the numbers are."""
    heads = sorted({(value(group, "method"), group.head) for group in groups if group.head != "accuracy"})
    of_heads = "".join(f", of {method} {head.removeprefix('accuracy_').replace('_', ' ')}" for method, head in heads)
    yield f"Test accuracy in %, mean over seeds ± standard deviation (n - 1); mean of the peers{of_heads}."
    yield marks
    results = [run.results for group in groups for run in group.finished if run.results]
    if results:
        chosen = " or ".join(sorted({metrics.chosen_by(run.rows) for group in groups for run in group.finished}))
        good = {"test": ", and so is too good", "test or validation": ", and is too good where it is the test set"}
        yield f"The best epoch is chosen on the {chosen} set{good.get(chosen, '')}."
    if follow:
        yield f"What follows from the methods differs, too: {', '.join(map(printable, follow))}."
    if results:
        yield grids.circumstances(results)


def numbers(group: Group, is_best: bool) -> list[str]:
    """What stands in the columns of `NUMBERS`."""
    last = grids.spread(group.last)
    if not group.last:
        last = grids.so_far([(len(run.rows), run.epochs) for run in group.unfinished])
    seconds = [run.results["seconds"] for run in group.finished if run.results]
    return [
        str(len(group.last)), last + " *" * is_best, grids.spread(group.best), grids.spread(group.ensemble),
        str(group.epochs), f"{statistics.fmean(seconds):,.1f}" if seconds else grids.MISSING,
    ]  # fmt: skip


def unfinished(groups: Sequence[Group]) -> list[str]:
    """A line on each run that is not finished."""
    return [
        f"{number}  {printable(str(run.folder))}: {len(run.rows)} of {run.epochs} epochs"
        f"{progress.last_tested(run.rows, run.head)}"
        for number, group in enumerate(groups, 1)
        for run in group.unfinished
    ]


def left_out(gathered: Gathered) -> list[str]:
    """A line on each folder that is not compared."""
    return [f"{printable(str(folder))}: {printable(why)[:300]}" for folder, why in gathered.left_out.items()]


def show(gathered: Gathered) -> None:
    """Prints the comparison: one table where the terminal is wide enough, else the settings above it."""
    groups, console = gathered.groups, Console()
    paths, follow = differing(groups)
    best, marks = best_ones(groups)
    print(_alike(groups))
    rows = [numbers(group, number in best) for number, group in enumerate(groups)]
    columns = _columns(paths)
    wide = _table(columns, [[value(group, path) for path in columns] for group in groups], rows)
    if console.measure(wide, options=console.options.update(max_width=10_000)).maximum > console.width:
        for number, group in enumerate(groups if paths else (), 1):
            console.print(Text(f"{number}  {label(group, paths)}"))
        wide = _table([], [[] for _ in groups], rows)
    console.print(wide)
    for note in notes(groups, follow, marks):
        console.print(Text(note))
    for heading, lines in (("not finished, and in no mean:", unfinished(groups)), ("left out:", left_out(gathered))):
        print("\n".join([heading, *(f"  {line}" for line in lines)]) if lines else "", end="\n" * bool(lines))


def _columns(paths: Sequence[str]) -> list[str]:
    """The fields that have columns of their own: the epochs have one always."""
    return [path for path in paths if path != "epochs"]


def _alike(groups: Sequence[Group]) -> str:
    """What all groups are, and how many runs they have."""
    runs = sum(len(group.finished) + len(group.unfinished) for group in groups)
    count = f"{runs} run{'s' * (runs != 1)}" + (f" in {len(groups)} groups" if len(groups) > 1 else "")
    paths = differing(groups)[0]
    return ", ".join([*(value(groups[0], path) for path in NAMES if path not in paths), count])


def _table(paths: Sequence[str], fields: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> Table:
    table = Table()
    for name in ("", *map(printable, paths)):
        table.add_column(Text(name), overflow="fold")
    for name in NUMBERS:
        table.add_column(name, justify="right", overflow="fold")
    for number, (values, row) in enumerate(zip(fields, rows, strict=True), 1):
        table.add_row(str(number), *map(Text, (*values, *row)))
    return table


def write(gathered: Gathered, folder: Path) -> None:
    """Writes `comparison.csv`, `.md` and `.png` and says where they are; no picture where no accuracy is known.

    Raises:
      UsageError, OSError: the folder cannot be written.
    """
    options.make(folder)
    groups, drawn = gathered.groups, curves(gathered.groups)
    written = [folder / "comparison.csv", folder / "comparison.md"]
    values = io.StringIO()
    csv.writer(values).writerows(rows_of_csv(groups))
    for path, text in zip(written, (values.getvalue(), markdown(gathered)), strict=True):
        files.write(path, text)
    if drawn:
        written.append(folder / "comparison.png")
        figures.compared(written[-1], f"Comparison of runs: {_alike(groups)}", drawn)
    print("written: " + ", ".join(printable(str(path)) for path in written), flush=True)


def rows_of_csv(groups: Sequence[Group]) -> list[list[Any]]:
    """A header and a line per run; what is not known is empty, as the accuracies of a run that is not finished."""
    paths = _columns([path for paths in differing(groups) for path in paths])
    lines: list[list[Any]] = [
        ["group", *map(printable, paths), "seed", "finished", "epochs_done", "epochs", "which_accuracy",
         "last_fraction", "best_fraction", "ensemble_fraction", "seconds", "folder"]
    ]  # fmt: skip
    for number, group in enumerate(groups, 1):
        fields = [value(group, path) if path in group.fields else "" for path in paths]
        lines += [[number, *fields, *_of_run(run)] for run in (*group.finished, *group.unfinished)]
    return lines


def _of_run(run: Run) -> list[Any]:
    is_finished = "yes" if run.results else "no"
    seconds = round(run.results["seconds"], 3) if run.results else ""
    accuracies = ["" if found is None else found for found in (run.last, run.best, run.ensemble)]
    folder = printable(str(run.folder))
    return [run.seed, is_finished, len(run.rows), run.epochs, run.head, *accuracies, seconds, folder]


def markdown(gathered: Gathered) -> str:
    """The comparison in Markdown, with all fields in which the groups differ."""
    groups = gathered.groups
    paths, follow = differing(groups)
    best, marks = best_ones(groups)
    parts = ["# Comparison of runs\n", *(f"{_escaped(note)}\n" for note in (_alike(groups), *notes(groups, [], marks)))]
    paths = _columns([*paths, *follow])
    parts += [_line(["", *map(printable, paths), "seeds", *NUMBERS]), "|---" * (len(paths) + len(NUMBERS) + 2) + "|"]
    for number, group in enumerate(groups):
        seeds = " ".join(str(run.seed) for run in group.finished) or grids.MISSING
        fields = [value(group, path) for path in paths]
        parts.append(_line([str(number + 1), *fields, seeds, *numbers(group, number in best)]))
    for heading, lines in (("Not finished, and in no mean", unfinished(groups)), ("Left out", left_out(gathered))):
        if lines:
            parts += [f"\n{heading}:\n", *(f"- {_escaped(line)}" for line in lines)]
    return "\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """A text without what is markup, or the end of a cell, in Markdown; an underscore within a word is neither."""
    return re.sub(r"[\\`*\[\]<>|~&$]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def curves(groups: Sequence[Group]) -> dict[int, figures.Curve]:
    """The number of a group -> a curve of its finished runs, or of the one that has come farthest."""
    paths = differing(groups)[0]
    found = {}
    for number, group in enumerate(groups, 1):
        runs, what = group.finished, f"n = {len(group.finished)}"
        if not runs:
            runs = [max(group.unfinished, key=lambda run: len(run.rows))]
            what = f"not finished, {grids.so_far([(len(runs[0].rows), runs[0].epochs)])}, seed {runs[0].seed}"
        if all(any(f"test/{run.head}" in row for row in run.rows) for run in runs):
            name = label(group, paths) or label(group, NAMES)
            found[number] = figures.Curve(f"{name} ({what})", group.head, [run.rows for run in runs])
    return found
