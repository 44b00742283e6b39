"""Where the runs of a table stand while they go on: a live display in a terminal, a line now and then elsewhere."""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cutnmix_jax import files, layout, metrics
from cutnmix_jax.console import PROGRESS, InTerminal
from cutnmix_jax.errors import CheckpointError
from cutnmix_jax.paper.cells import Cell, headline

LOG = "log.txt"
PLAIN_SECONDS = 60.0  # between the lines of a run where there is no terminal
REFRESH_SECONDS = 1.0
NOT_KNOWN = "time left not known"
TAIL_BYTES = 4096  # of a log, enough for its last lines


class Started(NamedTuple):
    """A run that goes on.

    Attributes:
      cell: what is trained.
      begun: when it was started, by `time.monotonic`.
      logged: bytes that its log had by then, of earlier starts.
    """

    cell: Cell
    begun: float
    logged: int


class Display(InTerminal):
    """Shows where every running cell stands."""

    def __init__(self) -> None:
        self._console = Console()
        self._shown: dict[Cell, str] = {}
        self._next = time.monotonic() + self._seconds
        # Refreshed by `update` alone, so there is no thread to end.
        self._live = Live(console=self._console, transient=True, auto_refresh=False)

    @property
    def _seconds(self) -> float:
        return REFRESH_SECONDS if self._console.is_terminal else PLAIN_SECONDS

    def update(self, running: Sequence[Started], done: int, count: int, queued: int = 0) -> None:
        """Shows the running cells where it is time to; elsewhere than in a terminal those that have moved.

        Args:
          running: in the order in which they are shown.
          done: how many cells of the table are done.
          count: of all.
          queued: how many wait for a machine.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._seconds
        lines = {one.cell: f"{one.cell.name}: {standing(one)}" for one in running}
        if not self._console.is_terminal:
            for cell, line in lines.items():
                if self._shown.get(cell) != line:
                    print(line, flush=True)
            self._shown = lines
            return
        times = [clock(now - one.begun) for one in running]
        shown = [f"{done} of {count} cells done, {len(running)} running" + (f", {queued} queued" if queued else "")]
        shown += [f"{since}  {line}" for since, line in zip(times, lines.values(), strict=True)]
        self._live.update(Group(*(Text(line, no_wrap=True, overflow="ellipsis") for line in shown)), refresh=True)


def standing(run: Started) -> str:
    """Where a run is: its epoch and step, its accuracy after the last whole epoch, and the time left, where known."""
    rows = rows_of(run.cell)
    lines = last_lines(run.cell.workdir / LOG, run.logged)
    tested = last_tested(rows, headline(run.cell.row))
    shown = next((found for line in reversed(lines) if (found := PROGRESS.match(line))), None)
    if shown and int(shown[1]) > len(rows):
        return f"epoch {shown[1]} of {run.cell.epochs}, {shown[2]}{tested}; about {shown[3]} left"
    if not rows:
        return lines[-1][:100] if lines else "starting"
    seconds = seconds_per_epoch(rows)
    left = f"about {clock(seconds * (run.cell.epochs - len(rows)))} left" if seconds is not None else NOT_KNOWN
    return f"{len(rows)} of {run.cell.epochs} epochs{tested}; {left}"


def last_tested(rows: Sequence[metrics.EpochRow], head: str) -> str:
    """The last accuracy that is known and its epoch, after a semicolon; empty where none is known.

    Args:
      rows: of a run.
      head: the accuracy that is shown, as `methods.row` has it.
    """
    name = f"test/{head}"
    values = [(epoch, row.get(name)) for epoch, row in enumerate(rows, start=1)]
    known = [(epoch, value) for epoch, value in values if isinstance(value, int | float) and 0 <= value <= 1]
    return f"; test accuracy {100 * known[-1][1]:.2f} % after epoch {known[-1][0]}" if known else ""


def size(log: Path) -> int:
    """Bytes of a log, 0 where there is none."""
    return log.stat().st_size if files.kind(log) == "file" else 0


def rows_of(cell: Cell) -> list[metrics.EpochRow]:
    """The rows of a cell's run so far; none where they cannot be read, which the run itself will say."""
    with suppress(OSError, CheckpointError):
        return metrics.read_rows(cell.workdir / layout.ROWS)
    return []


def last_lines(log: Path, start: int = 0) -> list[str]:
    """The last lines of a log after its first `start` bytes, without empty ones; none where it cannot be read."""
    with suppress(OSError):
        if files.kind(log) == "file":  # a pipe would be waited for
            with log.open("rb") as file:
                end = file.seek(0, 2)
                file.seek(max(start, end - TAIL_BYTES))
                return [line for line in file.read(TAIL_BYTES).decode(errors="replace").splitlines() if line.strip()]
    return []


def seconds_per_epoch(rows: Sequence[metrics.EpochRow]) -> float | None:
    """What an epoch took, the first one, which compiles, left out where there are more; None where nothing tells."""
    seconds = [row["seconds"] for row in rows[1:] or rows if isinstance(row.get("seconds"), int | float)]
    return sum(seconds) / len(seconds) if seconds else None


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))
