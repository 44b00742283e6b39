"""The files of a run besides its checkpoints; the run's folder is described in the README."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cutnmix_jax import console, environment
from cutnmix_jax.errors import CheckpointError, told
from cutnmix_jax.types import Dataset

ROWS = "metrics.jsonl"
Row = dict[str, Any]  # one line of it

PATIENCE = (0.0, 1.0, 2.0, 4.0)  # seconds before each try of a write that must not fail; a scheduler gives 30


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    _write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file under its name
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the rest of a full disk is worth more than half a file
            temporary.unlink(missing_ok=True)
        raise


def config_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as it reads back from its file: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def config_sha256(config: ConfigDict) -> str:
    """A digest of the configuration, the same for the same fields."""
    return hashlib.sha256(json.dumps(config_json(config), sort_keys=True).encode()).hexdigest()


class Metrics:
    """`metrics.jsonl` and the TensorBoard events of a run, one row per epoch."""

    def __init__(self, folder: Path, epochs_done: int):
        """Goes on after `epochs_done` epochs: rows of later epochs, written but not saved with a state, are dropped.

        Raises:
          CheckpointError: a row of an epoch that is done is missing.
        """
        self._path = folder / ROWS
        self.rows = rows_done(self._path, epochs_done)
        self._whole = self._path.exists() and self._path.read_bytes() == _lines(self.rows).encode()
        self.written()
        self._events = _Events(folder / "tensorboard", epochs_done + 1)

    @property
    def ranking(self) -> list[int]:
        """The step after each epoch, by the mean accuracy of the peers, the best first, the first of equals first."""
        return [row["step"] for row in sorted(self.rows, key=lambda row: -row["test/accuracy"])]

    def append(self, row: Row) -> None:
        """Adds the row of an epoch; one that cannot be written waits, with a warning."""
        self.rows.append(row)
        if self._whole:
            self._try(lambda: _append(self._path, _lines([row])))
        self._events.add(row)

    def written(self) -> bool:
        """Whether all rows are on disk; those that wait are tried again."""
        return self._whole or self._try(lambda: _write_whole(self._path, _lines(self.rows)))

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

    def _try(self, write: Callable[[], None]) -> bool:
        try:
            write()
            self._whole = True
        except OSError as error:
            self._whole = False
            console.warn(f"cannot write {self._path} ({error.strerror}); training goes on, and this is tried again")
        return self._whole

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

    def add(self, row: Row) -> None:
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
        reason = getattr(error, "strerror", None) or told(error)
        console.warn(f"no more TensorBoard events from this start ({reason}); metrics.jsonl has all of them")

    def close(self) -> None:
        """Closes the file."""
        file, self._file = self._file, None
        with contextlib.suppress(Exception):
            if file:
                file.close()


def _append(path: Path, text: str) -> None:
    """Adds to a file; it is on disk when this returns, and the file as it was where it cannot be."""
    size = path.stat().st_size
    try:
        with path.open("a") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise


def _lines(rows: Sequence[Row]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def best_of(rows: Sequence[Row]) -> Row:
    """The row of the best mean accuracy of the peers, the first of equals."""
    return max(rows, key=lambda row: row["test/accuracy"])


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file, none where there is no file; what follows a line that is none is left out."""
    rows = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def rows_done(path: Path, epochs_done: int) -> list[Row]:
    """The rows of the epochs that are done; later ones are left out.

    Raises:
      CheckpointError: one is missing, or is not a row.
    """
    rows = read_rows(path)[:epochs_done]
    numbers = [row for row in rows if all(isinstance(value, int | float) for value in row.values())]
    told = [row.get("epoch") for row in numbers if {"step", "test/accuracy", "seconds"} <= set(row)]
    if told != list(range(1, epochs_done + 1)):
        raise CheckpointError(f"{path} lacks rows of the {epochs_done} epochs that are saved; restore the file")
    return rows


def read_results(folder: Path) -> dict[str, Any] | None:
    """What `results.json` of a run says; None where there is none, or none that can be read."""
    try:
        found = json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and {"last", "best", "epochs"} <= set(found) else None


def results(config: ConfigDict, backbone: str, dataset: Dataset, num_train: int, rows: Sequence[Row]) -> dict[str, Any]:
    """What `results.json` says: the last epoch, the headline, and the best one by the mean accuracy of the peers."""
    return {
        "dataset": config.dataset,
        "backbone": backbone,
        "method": config.method,
        "seed": config.seed,
        "epochs": config.epochs,
        "train_examples": num_train,
        "test_examples": len(dataset.test_labels),
        "last": _summary(rows[-1]),
        "best": _summary(best_of(rows)),
        "seconds": sum(row["seconds"] for row in rows),
        "device": jax.devices()[0].device_kind,
        "versions": environment.versions(),
        "config_sha256": config_sha256(config),
    }


def _summary(row: Row) -> dict[str, Any]:
    tested = {name.removeprefix("test/"): value for name, value in row.items() if name.startswith("test/")}
    peers = [name for name in tested if name.removeprefix("accuracy_peer_").isdigit()]
    heads = {name: value for name, value in tested.items() if name not in peers}
    return {"epoch": row["epoch"], "accuracy_per_peer": [tested[name] for name in peers], **heads}
