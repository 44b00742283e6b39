"""The files of a run besides its checkpoints; the run's folder is described in the README."""

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tensorboardX import SummaryWriter

from cutnmix_jax import __version__
from cutnmix_jax.errors import CheckpointError
from cutnmix_jax.types import Dataset

Row = dict[str, Any]  # one line of metrics.jsonl

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a file whole or not at all."""
    _write_whole(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_whole(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def config_json(config: ConfigDict) -> dict[str, Any]:
    """The configuration as it reads back from its file: tuples are lists."""
    return json.loads(json.dumps(config.to_dict()))


def config_sha256(config: ConfigDict) -> str:
    """A digest of the configuration, the same for the same fields."""
    return hashlib.sha256(json.dumps(config_json(config), sort_keys=True).encode()).hexdigest()


def environment() -> dict[str, Any]:
    """What the run was made with: command, versions, devices, commit."""
    return {
        "command": sys.argv,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "device_count": jax.device_count(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    ours = {"python": platform.python_version(), "cutnmix-jax": __version__}  # a clone need not be installed
    return ours | {package: importlib.metadata.version(package) for package in _PACKAGES}


def _commit() -> str:
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():  # installed; a repository further up would be somebody else's
        return ""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


class Metrics:
    """`metrics.jsonl` and the TensorBoard events of a run, one row per epoch."""

    def __init__(self, folder: Path, epochs_done: int):
        """Goes on after `epochs_done` epochs: rows of later epochs, written but not saved with a state, are dropped.

        Raises:
          CheckpointError: a row of an epoch that is done is missing.
        """
        self._path = folder / "metrics.jsonl"
        self.rows = read_rows(self._path)[:epochs_done]
        if [row.get("epoch") for row in self.rows] != list(range(1, epochs_done + 1)):
            raise CheckpointError(
                f"{self._path} lacks rows of the {epochs_done} epochs that are saved; restore the file"
            )
        _write_whole(self._path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=epochs_done + 1, write_to_disk=True)

    def append(self, row: Row) -> None:
        """Adds the row of an epoch; it is on disk when this returns."""
        self.rows.append(row)
        with self._path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in row.items():
            if name != "epoch":
                self._events.add_scalar(name, value, row["epoch"])
        self._events.flush()

    def close(self) -> None:
        """Closes the TensorBoard events."""
        self._events.close()


def read_rows(path: Path) -> list[Row]:
    """The rows of a metrics file, none where there is no file; what follows a line that is none is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def read_results(folder: Path) -> dict[str, Any] | None:
    """What `results.json` of a run says; None where there is none, or none that can be read."""
    try:
        return json.loads((folder / "results.json").read_text())
    except (FileNotFoundError, ValueError):
        return None


def results(config: ConfigDict, backbone: str, dataset: Dataset, rows: Sequence[Row]) -> dict[str, Any]:
    """What `results.json` says: the last epoch, the headline, and the best one by the mean accuracy of the peers."""
    best = max(rows, key=lambda row: row["test/accuracy"])  # the first of equals
    return {
        "dataset": config.dataset,
        "backbone": backbone,
        "method": config.method,
        "seed": config.seed,
        "epochs": config.epochs,
        "train_examples": len(dataset.train_labels),
        "test_examples": len(dataset.test_labels),
        "last": _summary(rows[-1]),
        "best": _summary(best),
        "seconds": sum(row["seconds"] for row in rows),
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
        "config_sha256": config_sha256(config),
    }


def _summary(row: Row) -> dict[str, Any]:
    tested = {name.removeprefix("test/"): value for name, value in row.items() if name.startswith("test/")}
    peers = [name for name in tested if name.removeprefix("accuracy_peer_").isdigit()]
    heads = {name: value for name, value in tested.items() if name not in peers}
    return {"epoch": row["epoch"], "accuracy_per_peer": [tested[name] for name in peers], **heads}
