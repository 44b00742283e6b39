"""The rows of a run, in `metrics.jsonl` and for TensorBoard; `docs/runs.md` describes the folder."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import console, files
from cutnmix_jax.errors import CheckpointError, described
from cutnmix_jax.layout import EVENTS, ROWS
from cutnmix_jax.types import EpochRow

PATIENCE = (0.0, 1.0, 2.0, 4.0)  # seconds before each try of a write that must not fail; a scheduler gives 30


def named(mean: float, peers: Sequence[float], ensemble: float, heads: Mapping[str, float]) -> dict[str, float]:
    """Accuracies as a row has them, without the name of the images before them; the first is the mean of the peers."""
    return {
        "accuracy": mean,
        **{f"accuracy_peer_{j}": value for j, value in enumerate(peers)},
        "accuracy_ensemble": ensemble,
        **{f"accuracy_{name}": value for name, value in heads.items()},
    }


def chosen_by(rows: Sequence[EpochRow]) -> str:
    """On which images the best epoch is chosen: `validation` where there are such, else `test`."""
    return "validation" if "validation/accuracy" in rows[-1] else "test"


def ranked(rows: Sequence[EpochRow], accuracy: str = "accuracy") -> list[EpochRow]:
    """The rows of epochs that were evaluated, the best first, the first of equals first.

    Args:
      rows: of a run.
      accuracy: which one decides; that of the peers' mean where nothing is said.
    """
    names = [f"{images}/{accuracy}" for images in ("validation", "test")]
    scores = [next((row[name] for name in names if name in row), None) for row in rows]
    order = sorted((-score, i) for i, score in enumerate(scores) if score is not None)
    return [rows[i] for _, i in order]


class Metrics:
    """`metrics.jsonl` and the TensorBoard events of a run, one row per epoch."""

    def __init__(self, folder: Path, rows: Sequence[EpochRow], check: Callable[[], None] = lambda: None):
        """Goes on after the epochs of `rows`.

        Later ones in the file are dropped, because they are made again; a file with other ones is put aside.

        Args:
          folder: of the run.
          rows: what was saved with the state.
          check: raises CheckpointError where the folder was moved, removed or replaced.

        Raises:
          OSError: the file that is there cannot be read.
        """
        self._path, self._check = folder / ROWS, check
        self.rows = list(rows)
        self._left: tuple[int, ...] | None = None
        self._warned: str | None = None
        ours = _lines(rows).encode()
        with contextlib.suppress(FileNotFoundError):
            there = files.read(self._path)
            if there == ours and self._path.lstat().st_nlink == 1:  # or a copy by links would change with it
                self._left = _identity(self._path)
            elif not there.startswith(ours) and not ours.startswith(there):
                aside = files.put_aside(self._path, self._path.with_name("metrics-before.jsonl"))
                console.warn(f"{self._path} had other rows than the run; it is made again, those are in {aside.name}")
        self.written()
        self._events = _Events(folder / EVENTS, len(rows) + 1)

    def append(self, row: EpochRow) -> None:
        """Adds the row of an epoch; one that cannot be written waits, with a warning."""
        self.rows.append(row)
        self._left = None
        self.written()
        self._events.add(row)

    def written(self) -> bool:
        """Whether all rows are on disk; those that wait, or that somebody else has changed, are written again."""
        self._check()
        if self._left is None or _identity(self._path) != self._left:
            try:
                files.write(self._path, _lines(self.rows))
                self._left, self._warned = _identity(self._path), None
            except OSError as error:
                self._left = None
                self._check()
                if error.strerror != self._warned:  # once for as long as it lasts
                    self._warned = error.strerror
                    console.warn(f"cannot write {self._path} ({error.strerror}); training goes on, this is tried again")
        return self._left is not None

    def settle(self) -> None:
        """Returns when all rows are on disk.

        Raises:
          CheckpointError: they cannot be written.
        """
        for seconds in PATIENCE:
            time.sleep(seconds)
            if self.written():
                return
        raise CheckpointError(
            f"cannot write {self._path}; what was saved stays: make room or let it be written, and give the same "
            "command again"
        )

    def close(self) -> None:
        """Closes the TensorBoard events."""
        self._events.close()


class _Events:
    """TensorBoard's copy of the rows, which training never fails for, whatever is wrong with the library or the disk.

    Written here and now: tensorboardX's own writer is a thread that dies of a full disk, and then its queue blocks.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self._file: Any = None
        try:
            from tensorboardX import event_file_writer, summary  # not above: a run can do without it
            from tensorboardX.proto import event_pb2

            self._scalar, self._event = summary.scalar, event_pb2.Event
            # Two starts in one second would share a file without the suffix.
            self._file = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)  # what follows is void
            self._write(step=first_epoch, session_log=started)
        except Exception as error:
            self._fail(error)

    def add(self, row: EpochRow) -> None:
        """Adds the row of an epoch."""
        if not self._file:
            return
        try:
            for name, value in row.items():
                if name != "epoch":
                    self._write(step=row["epoch"], summary=self._scalar(name, value))
            self._file.flush()
        except Exception as error:
            self._fail(error)

    def _write(self, **fields: Any) -> None:
        self._file.write_event(self._event(wall_time=time.time(), **fields))

    def _fail(self, error: Exception) -> None:
        self.close()
        reason = getattr(error, "strerror", None) or described(error)
        console.warn(f"no more TensorBoard events from this start ({reason}); metrics.jsonl has all of them")

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        with contextlib.suppress(Exception):
            if file:
                file.close()


def _identity(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody else writes a file."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _lines(rows: Sequence[EpochRow]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path) -> list[EpochRow]:
    """The rows of a metrics file, none where there is no file; what follows a line that is none is left out.

    Raises:
      CheckpointError, OSError: it is no file, or cannot be read.
    """
    try:
        text = files.read(path).decode(errors="replace")
    except FileNotFoundError:
        return []
    rows = []
    for line in text.splitlines():
        try:
            rows.append(files.fields_of(line))
        except ValueError:
            break
    return rows


def summary(row: EpochRow) -> dict[str, Any]:
    """What results say of an epoch: its number and step, the accuracy of peers, of their mean and other heads."""
    tested = {name.removeprefix("test/"): value for name, value in row.items() if name.startswith("test/")}
    peers = [name for name in tested if name.removeprefix("accuracy_peer_").isdecimal()]
    heads = {name: value for name, value in tested.items() if name not in peers}
    return {"epoch": row["epoch"], "step": row["step"], "accuracy_per_peer": [tested[name] for name in peers], **heads}
