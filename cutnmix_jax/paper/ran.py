"""Which cells of a table are done: whose folder has the results of the run that the cell asks for."""

import functools
from collections.abc import Sequence
from typing import Any

from cutnmix_jax import files, finished, layout
from cutnmix_jax.errors import CheckpointError, one_line
from cutnmix_jax.paper import progress
from cutnmix_jax.paper.cells import Cell, headline
from cutnmix_jax.settings import command_line, tree, unused
from cutnmix_jax.student import start


def results_of(cell: Cell) -> dict[str, Any] | None:
    """What a finished run came to; None where there is none, or one of another configuration in its folder."""
    results = finished.read(cell.workdir)
    return results if results and not other_fields(cell) else None


def other_fields(cell: Cell) -> list[str]:
    """Each field in which the run in a cell's folder is not the one that the cell asks for."""
    asked = _asked(cell.arguments)
    results, why_not = finished.look(cell.workdir)
    if why_not:
        return [why_not]
    if results and headline(cell.row) not in results["last"]:
        return [f"it has no {headline(cell.row)}"]
    try:
        held = files.read_fields(cell.workdir / layout.CONFIG)
        if files.kind(cell.workdir / layout.FORCED):
            return ["its fields were changed by --force"]
    except (OSError, ValueError, CheckpointError) as error:
        return [f"its {layout.CONFIG} cannot be read: {one_line(error)}"]
    changed = list(map(str, unused.changes(held, asked)))
    if results and (why := start.began_otherwise(asked["init_from"], results)):
        changed.append(why)
    if cell.teacher and results:
        changed += _other_teacher(cell.teacher, results, held.get("teacher") == asked["teacher"])
    return changed


def _other_teacher(teacher: Cell, results: dict[str, Any], same_folder: bool) -> list[str]:
    """Why the teacher of some results is not the run of a cell, as far as can be told; empty where it is."""
    there, taught_by = finished.read(teacher.workdir), results.get("teacher_sha256")
    if taught_by and not there:
        return [f"no finished run of its teacher in {teacher.workdir}"]
    same = taught_by == there["weights_sha256"] if taught_by and there else same_folder
    return [] if same else [f"it was taught by another run than the one in {teacher.workdir}"]


@functools.cache  # a cell is looked at several times, and to read a configuration takes 8 ms
def _asked(arguments: tuple[str, ...]) -> dict[str, Any]:
    """The fields that the arguments of a cell ask for; not to be changed."""
    file, *overrides = (argument for argument in arguments if not argument.startswith("--workdir="))
    return tree.of_settings(command_line.from_flags(file.removeprefix("--config="), overrides))


def epochs_done(cell: Cell) -> int:
    """How many; all of them only where the results are there too."""
    if results_of(cell):
        return cell.epochs
    return min(len(progress.rows_of(cell)), cell.epochs - 1)


def left_out(cells: Sequence[Cell]) -> str:
    """A line about results that are in the place of cells and are not theirs; empty where there are none."""
    with_results = (cell for cell in cells if any(finished.look(cell.workdir)))
    others = [(cell, changed[0]) for cell in with_results if (changed := other_fields(cell))]
    if not others:
        return ""
    (cell, change), count = others[0], len(others)
    runs = f"results of {count} other runs, the first" if count > 1 else "results of another run"
    return f"left out: {runs} in {cell.workdir} ({change[:300]})"
