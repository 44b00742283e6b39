"""Runs cells as processes of `cutnmix_jax.main`, some at once; every run writes and continues its own folder."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from cutnmix_jax import files, finished, layout, lock, signals
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError, UserError, of_exit_code, one_line
from cutnmix_jax.paper import progress
from cutnmix_jax.paper.cells import Cell, headline
from cutnmix_jax.paper.progress import LOG, Started
from cutnmix_jax.pool import Pool
from cutnmix_jax.settings import command_line, tree, unused

HELD_SECONDS = 60.0  # that a cell waits for the folder that somebody holds


class Job(NamedTuple):
    """A run that goes on, and the place among those at once that it holds."""

    run: Started
    slot: int


@dataclasses.dataclass
class _Table:
    """Where the cells of a call stand.

    Attributes:
      count: how many there are.
      waiting: those that are not begun, in their order.
      running: those that go on.
      failed: why each of those has failed.
      resumed: those that somebody stopped from elsewhere, and that were started again.
      held: since when the folders of those are held by somebody else.
    """

    count: int
    waiting: list[Cell]
    running: dict[Cell, Job] = dataclasses.field(default_factory=dict)
    failed: dict[Cell, UserError] = dataclasses.field(default_factory=dict)
    resumed: set[Cell] = dataclasses.field(default_factory=set)
    held: dict[Cell, float] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many have their results."""
        return self.count - len(self.waiting) - len(self.running) - len(self.failed)


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


def run(cells: Sequence[Cell], jobs: int, devices: Sequence[str]) -> None:
    """Trains what is not finished.

    Args:
      cells: teachers before those they teach.
      jobs: how many at once.
      devices: GPUs that the jobs are spread over, from `devices.chosen`; none: all see all.

    Raises:
      StoppedError: by a signal; the cells have saved.
      UserError: cells have failed; all others are done.
    """
    table = _Table(len(cells), [cell for cell in cells if not results_of(cell)])
    print(f"{table.done} of {len(cells)} cells are done", flush=True)
    with Pool[Cell]() as pool, progress.Display() as display:
        while table.running or (table.waiting and not pool.stopping):
            while not pool.stopping and len(table.running) < jobs and (cell := _next(table)):
                slot = min(set(range(jobs)) - {job.slot for job in table.running.values()})
                _start(table, pool, cell, slot, devices[slot % len(devices)] if devices else None)
            for cell, code in pool.ended().items():
                _ended(table, table.running.pop(cell), code, pool.stopping)
            display.update([job.run for job in table.running.values()], table.done, len(cells))
            time.sleep(0.1)
    if pool.stopping:
        raise StoppedError("stopped; what was trained is saved, the same command continues")
    if table.failed:
        names = "; ".join(f"{cell.name} ({error})" for cell, error in table.failed.items())
        raise type(next(iter(table.failed.values())))(f"{len(table.failed)} cells failed: {names}")


def _next(table: _Table) -> Cell | None:
    """Takes the first cell out that can be started; one whose teacher will never be there fails."""
    expected = {*table.waiting, *table.running}
    for cell in list(table.waiting):
        if cell.teacher in expected or _is_held(table, cell):
            continue
        table.waiting.remove(cell)
        if not cell.teacher or results_of(cell.teacher):
            return cell
        expected.remove(cell)
        why = f"no finished run of its teacher in {cell.teacher.workdir}"
        if any(finished.look(cell.teacher.workdir)):
            why += f", but results of another one ({other_fields(cell.teacher)[0]})"
        _fail(table, cell, UsageError(why), "left out")
    return None


def _is_held(table: _Table, cell: Cell) -> bool:
    """Whether to wait for a cell's folder: a run that outlived the one who started it may still be saving."""
    try:
        if not cell.workdir.is_dir() or not lock.is_held(cell.workdir):
            return False
    except OSError:  # which the start will tell
        return False
    return time.monotonic() - table.held.setdefault(cell, time.monotonic()) < HELD_SECONDS


def _start(table: _Table, pool: Pool[Cell], cell: Cell, slot: int, device: str | None) -> None:
    # The numbers are nvidia-smi's, and so by the bus; CUDA alone would count the fastest card first.
    environment = {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if device is not None else {}
    log = cell.workdir / LOG
    try:
        logged = progress.size(log)
        cell.workdir.mkdir(parents=True, exist_ok=True)
        with files.append(log) as opened:
            pool.start(cell, cell.arguments, opened, environment)
    except OSError as error:
        _fail(table, cell, UsageError(f"cannot start in {cell.workdir}: {error.strerror}"), "failed")
        return
    except CheckpointError as error:
        _fail(table, cell, error, "failed")
        return
    table.running[cell] = Job(Started(cell, time.monotonic(), logged), slot)
    print(f"started: {cell.name}, log in {log}", flush=True)


def _ended(table: _Table, job: Job, code: int, stopping: bool) -> None:
    cell = job.run.cell
    if code in signals.CUT_OFF and (stopping or cell not in table.resumed):
        # What somebody else stopped goes on, but once, because they may mean it.
        table.resumed.add(cell)
        table.waiting.insert(0, cell)
        if not stopping:
            print(f"stopped from elsewhere, started again: {cell.name}", flush=True)
        return
    results, seconds = results_of(cell), time.monotonic() - job.run.begun
    if code == 0 and results:
        accuracy = 100 * results["last"][headline(cell.row)]
        print(f"[{table.done}/{table.count}] {cell.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
        return
    log = cell.workdir / LOG
    table.failed[cell] = of_exit_code(code)(f"exit code {code}, see {log}")
    last = (progress.last_lines(log) or [""])[-1]
    print(f"failed: {cell.name}: exit code {code}: {last}", flush=True)


def _fail(table: _Table, cell: Cell, error: UserError, how: str) -> None:
    table.failed[cell] = error
    print(f"{how}: {cell.name}: {error}", flush=True)
