"""Runs from Python: their settings, and what came of them."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from cutnmix_jax import finished, metrics
from cutnmix_jax.errors import CheckpointError
from cutnmix_jax.settings import Settings, command_line
from cutnmix_jax.types import Row


def configure(config: str, fields: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a run, as `--config=... --config.field=...` makes them.

    Args:
      config: as on the command line: `quickstart`, `resnet32:cifar10,dml`, or the path of a file.
      fields: other values by the names of fields, as `{"epochs": 2, "optimizer.learning_rate": 0.1}`.

    Raises:
      UsageError: with the field, what is wrong and the nearest valid name.
    """
    return command_line.from_flags(config, [f"--config.{name}={value}" for name, value in (fields or {}).items()])


def results(folder: str | PathLike[str]) -> dict[str, Any]:
    """What a finished run came to: its `results.json`, once it is sure that it belongs to what lies beside it.

    Raises:
      CheckpointError: there are none, or they are not those of this run.
    """
    found, why_not = finished.look(Path(folder))
    if not found:
        raise CheckpointError(f"no results of a finished run in {folder}{f' ({why_not})' if why_not else ''}")
    return found


def history(folder: str | PathLike[str]) -> list[Row]:
    """The rows of a run so far, one for each epoch, finished or not: its `metrics.jsonl`.

    Raises:
      CheckpointError: a row is damaged.
      OSError: there is no such file, or it cannot be read.
    """
    return metrics.read_rows(Path(folder) / metrics.ROWS)
