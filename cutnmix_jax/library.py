"""Runs from Python: their settings, and what came of them."""

from collections import Counter
from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from cutnmix_jax import data, finished, layout, metrics
from cutnmix_jax.command import folder_of
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.settings import Settings, command_line, tree
from cutnmix_jax.types import EpochRow


def configure(config: str | PathLike[str], fields: Mapping[str, Any] | None = None) -> Settings:
    """The settings of a run, as `--config=... --config.field=...` makes them.

    Args:
      config: as on the command line: `quickstart`, `resnet32:cifar10,dml`, or the path of a file.
      fields: other values by the names of fields, as `{"epochs": 2, "optimizer.learning_rate": 0.1}`; a group may be a
        mapping, `{"optimizer": {"learning_rate": 0.1}}`, whose other fields stay as they are.

    Raises:
      UsageError: with the field, what is wrong and the nearest valid name.

    Example:
      >>> import cutnmix_jax
      >>> settings = cutnmix_jax.configure("resnet32:cifar10,dml", {"epochs": 2, "optimizer.milestones": (1,)})
      >>> settings.dataset, settings.method, settings.num_peers, settings.optimizer.learning_rate
      ('cifar10', 'dml', 2, 0.05)
    """
    if empty := _empty(fields or {}):
        raise UsageError(f"config.{empty[0]} is given no fields; give it some, or leave it out")
    given = list(tree.flat(fields or {}))
    if twice := [path for path, count in Counter(path for path, _ in given).items() if count > 1]:
        raise UsageError(f"config.{twice[0]} is given twice; leave one of them out")
    settings = command_line.from_flags(
        fspath(config), [f"--config.{path}={_written(path, value)}" for path, value in given]
    )
    data.forget()
    return settings


def _empty(fields: Mapping[str, Any], path: str = "") -> list[str]:
    """The paths of groups without a field, which `tree.flat` passes over."""
    groups = [(path + name, value) for name, value in fields.items() if isinstance(value, Mapping)]
    return [found for where, value in groups for found in (_empty(value, f"{where}.") if value else [where])]


def _written(path: str, value: Any) -> str:
    """A value as it is written on a command line."""
    if not isinstance(value, list | tuple):
        return str(value)
    one_by_one = [getattr(one, "item", lambda one=one: one)() for one in value]
    return ",".join(map(str, one_by_one)) if path == "peers" else str(tuple(one_by_one))


def results(folder: str | PathLike[str]) -> dict[str, Any]:
    """What a finished run came to: its `results.json`, once it is sure that it belongs to what lies beside it.

    Raises:
      CheckpointError: there are none, or they are not those of this run.
    """
    path = folder_of(fspath(folder), "folder")
    found, why_not = finished.look(path)
    if not found:
        raise CheckpointError(f"no results of a finished run in {path}{f' ({why_not})' if why_not else ''}")
    return found


def history(folder: str | PathLike[str]) -> list[EpochRow]:
    """The rows of a run so far, one for each epoch, finished or not: its `metrics.jsonl`.

    Raises:
      OSError: there is no such file, or it cannot be read.
      CheckpointError: what has its name is no file.
    """
    path = folder_of(fspath(folder), "folder") / layout.ROWS
    path.stat()  # a file that is not there would be one without rows
    return metrics.read_rows(path)
