"""Trains the cells of a table wherever they run, each in its own folder, which it continues."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import suppress

from cutnmix_jax import digests, finished, layout, lock, signals
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError, UserError, of_exit_code
from cutnmix_jax.paper import progress, ran
from cutnmix_jax.paper.cells import Cell, headline
from cutnmix_jax.paper.place import Ended, Place, Status
from cutnmix_jax.paper.progress import LOG, Started

HELD_SECONDS = 60.0  # that a cell waits for the folder that somebody holds


@dataclasses.dataclass
class _Table:
    """Where the cells of a call stand.

    Attributes:
      count: how many there are.
      waiting: those that are not begun, in their order.
      running: those that go on, or wait for a machine.
      queued: those of them that wait.
      failed: why each of those has failed.
      resumed: those that something stopped, and that were started again, with the step of the newest checkpoint.
      held: since when the folders of those are held by somebody else.
      patience: seconds that a cell waits for such a folder.
    """

    count: int
    waiting: list[Cell]
    patience: float
    running: dict[Cell, Started] = dataclasses.field(default_factory=dict)
    queued: set[Cell] = dataclasses.field(default_factory=set)
    failed: dict[Cell, UserError] = dataclasses.field(default_factory=dict)
    resumed: dict[Cell, int] = dataclasses.field(default_factory=dict)
    held: dict[Cell, float] = dataclasses.field(default_factory=dict)

    @property
    def done(self) -> int:
        """How many have their results."""
        return self.count - len(self.waiting) - len(self.running) - len(self.failed)


def run(cells: Sequence[Cell], jobs: int, place: Place, patience: float = HELD_SECONDS) -> None:
    """Trains what is not finished.

    Args:
      cells: teachers before those they teach.
      jobs: how many at once.
      place: where they run.
      patience: seconds that a cell waits for a folder that somebody holds.

    Raises:
      StoppedError: by a signal; the cells have saved, or go on without this process.
      UserError: cells have failed, and all others are done; or the place is none.
    """
    waiting = [cell for cell in cells if not ran.results_of(cell)]
    table = _Table(len(cells), waiting, patience)
    print(f"{table.done} of {len(cells)} cells are done", flush=True)
    with progress.Display() as display:
        status = place(())
        _take(table, status)
        while table.running or (table.waiting and not status.stopping):
            status = place([] if status.stopping else _fresh(table, jobs))
            _take(table, status)
            shown = [run for cell, run in table.running.items() if cell not in table.queued]
            display.update(shown, table.done, len(cells), len(table.queued))
            time.sleep(0.1)
    if status.stopping:
        raise StoppedError("stopped; what was trained is saved, the same command continues")
    if table.failed:
        names = "; ".join(f"{cell.name} ({error})" for cell, error in table.failed.items())
        raise type(next(iter(table.failed.values())))(f"{len(table.failed)} cells failed: {names}")


def _fresh(table: _Table, jobs: int) -> list[Cell]:
    """Takes those out that are to be started now."""
    fresh: list[Cell] = []
    while len(table.running) < jobs and (cell := _next(table)):
        table.running[cell] = _started(cell)
        table.queued.add(cell)  # until the place says otherwise
        fresh.append(cell)
    return fresh


def _started(cell: Cell) -> Started:
    with suppress(OSError, CheckpointError):  # the start will tell
        return Started(cell, time.monotonic(), progress.size(cell.workdir / LOG))
    return Started(cell, time.monotonic(), 0)


def _take(table: _Table, status: Status) -> None:
    """Writes down what a place says, and prints what is new."""
    for cell in [cell for cell in table.waiting if cell in status.running]:  # since an earlier start of this command
        table.waiting.remove(cell)
        table.running[cell] = _started(cell)
        table.queued.add(cell)
    for cell, ended in status.ended.items():
        if cell not in table.running:  # it was done when this command was given
            continue
        if not ended.error and not ended.lost:
            _begun(table, cell)
        table.queued.discard(cell)
        _ended(table, table.running.pop(cell), ended, status.stopping)
    # Those that are neither there nor have ended go on without this process.
    table.running = {cell: run for cell, run in table.running.items() if cell in status.running}
    for cell in [cell for cell in table.running if cell not in status.queued]:
        _begun(table, cell)


def _begun(table: _Table, cell: Cell) -> None:
    if cell in table.queued:
        table.queued.remove(cell)
        table.running[cell] = table.running[cell]._replace(begun=time.monotonic())
        print(f"started: {cell.name}, log in {cell.workdir / LOG}", flush=True)


def _next(table: _Table) -> Cell | None:
    """Takes the first cell out that can be started; one whose teacher will never be there fails."""
    expected = {*table.waiting, *table.running}
    for cell in list(table.waiting):
        if cell.teacher in expected or _is_held(table, cell):
            continue
        table.waiting.remove(cell)
        if not cell.teacher or ran.results_of(cell.teacher):
            return cell
        expected.remove(cell)
        why = f"no finished run of its teacher in {cell.teacher.workdir}"
        if any(finished.look(cell.teacher.workdir)):
            why += f", but results of another one ({ran.other_fields(cell.teacher)[0]})"
        _fail(table, cell, UsageError(why), "left out")
    return None


def _is_held(table: _Table, cell: Cell) -> bool:
    """Whether to wait for a cell's folder: a run that outlived the one who started it may still be saving."""
    try:
        if not cell.workdir.is_dir() or not lock.is_held(cell.workdir):
            table.held.pop(cell, None)
            return False
    except OSError:  # which the start will tell
        return False
    return time.monotonic() - table.held.setdefault(cell, time.monotonic()) < table.patience


def _ended(table: _Table, run: Started, ended: Ended, stopping: bool) -> None:
    cell, code = run.cell, ended.code
    if ended.error:
        _fail(table, cell, ended.error, "failed")
        return
    if (code in signals.CUT_OFF or ended.lost) and (stopping or _goes_on(table, cell, bool(ended.lost))):
        table.resumed[cell] = _step(cell)
        table.waiting.insert(0, cell)
        if not stopping:
            print(f"{ended.lost or 'stopped from elsewhere'}, started again: {cell.name}", flush=True)
        return
    results, seconds = ran.results_of(cell), time.monotonic() - run.begun
    if code == 0 and results:
        accuracy = 100 * results["last"][headline(cell.row)]
        print(f"[{table.done}/{table.count}] {cell.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
        return
    log, why = cell.workdir / LOG, ended.lost or f"exit code {code}"
    table.failed[cell] = of_exit_code(code)(f"{why}, see {log}")
    last = (progress.last_lines(log) or [""])[-1]
    print(f"failed: {cell.name}: {why}: {last}", flush=True)


def _goes_on(table: _Table, cell: Cell, lost: bool) -> bool:
    """Whether what was cut off is started again: once, because they may mean it; of what was lost as it moves on."""
    return cell not in table.resumed or (lost and _step(cell) > table.resumed[cell])


def _step(cell: Cell) -> int:
    """Of the newest checkpoint, 0 where there is none."""
    with suppress(OSError, CheckpointError):
        return max(digests.steps_in(cell.workdir / layout.CHECKPOINTS), default=0)
    return 0


def _fail(table: _Table, cell: Cell, error: UserError, how: str) -> None:
    table.failed[cell] = error
    print(f"{how}: {cell.name}: {error}", flush=True)
