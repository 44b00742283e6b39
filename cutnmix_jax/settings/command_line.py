"""Reading the settings of a run from the command line."""

import dataclasses
import json
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from cutnmix_jax import files
from cutnmix_jax.errors import UsageError, blaming, described, nearest, one_line
from cutnmix_jax.settings import Settings, overrides, recipe, tree
from cutnmix_jax.settings.check import check_row, checked


def from_flags(file: str, arguments: Sequence[str], all_devices: bool = False) -> Settings:
    """Reads `--config=NAME[:dataset,method]` and the `--config.field=value` that follow it.

    Args:
      file: what was given to `--config`: the name of a configuration that the package has (`recipe.names`), or the path
        of a Python file whose `get_config(argument)` returns one.
      arguments: the remaining ones of the command line.
      all_devices: whether `config.devices` is all that there are, where neither the file nor the line says another one.

    Returns:
      Settings that can be carried out.

    Raises:
      UsageError: with the field, what is wrong and the nearest valid name.
    """
    found = _found(file)
    loss = found.get("loss")
    row, method = found.get("method"), loss.get("name") if isinstance(loss, Mapping) else None
    if isinstance(row, str) and isinstance(method, str):
        check_row(row, method)  # first: another method has other fields
    given = tree.to_settings(found)  # so that it has no field that is not known
    tree.check_groups(found, given)
    if all_devices and given.devices == Settings.devices:
        given = dataclasses.replace(given, devices=0)
    settings = checked(_overridden(tree.to_config_dict(given), file, arguments))
    _resolved(settings, "data_dir")  # kept as it is written, but told here if it is no folder's name
    # The same folder by another name is the same network.
    teacher, init_from = _resolved(settings, "teacher"), _resolved(settings, "init_from")
    return dataclasses.replace(settings, teacher=teacher, init_from=init_from)


def _overridden(config: ConfigDict, file: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The fields of a configuration with those that the command line sets."""
    unset, others = overrides.unset(overrides.alike(arguments), tree.optional_fields())
    groups = {name: next(iter(value), "") for name, value in config.items() if isinstance(value, ConfigDict)}
    values, arguments = flags.FlagValues(), ["main", *overrides.last_of_each(others)]
    paths = dict(tree.flat(config.to_dict()))
    for text in others:
        overrides.check_name(text.partition("=")[0], paths)
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
        unread = values(arguments)[1:]
    except Exception as error:
        raise UsageError(overrides.explain(error, file, paths)) from None
    if unread:
        raise UsageError(f"cannot read {unread[0]!r}: a field is set by --config.field=value")
    given = config_flags.get_override_values(values["config"])
    if group := next((name for name in given if name in groups), None):
        raise UsageError(f"config.{group}: must be set field by field, as --config.{group}.{groups[group]}=...")
    for field in ("method", "loss.name"):
        if field in given:
            raise UsageError(f"config.{field} follows from the argument: --config=NAME:dataset,method")
    with config.ignore_type():
        for path in unset:
            group, _, name = path.rpartition(".")
            (config[group] if group else config)[name] = None
    return config.to_dict()


def _found(file: str) -> dict[str, Any]:
    """The fields of a configuration that the package has, or of a file."""
    name, _, argument = file.partition(":")
    if name in recipe.names():
        return recipe.shipped(name, argument).to_dict()
    path = Path(name)
    if path.suffix != ".py" and path.parent == Path():
        raise UsageError(f"--config: no configuration {name[:200]!r}; {nearest(name, recipe.names())}, or FILE.py")
    if path.suffix != ".py" or not _is_file(path):
        folders = {path.parent, Path("configs")} if path.parent == Path() else {path.parent}
        known = sorted(str(other) for folder in folders for other in folder.glob("*.py") if other.stem != "__init__")
        hint = f"; {nearest(str(path), known)}" if known else ""
        raise UsageError(f"--config: no file {str(path)[:200]}{hint}")
    return _read(file)


def _read(file: str) -> dict[str, Any]:
    """What `get_config` of a configuration file returns; whatever comes out of the file is told as the file's."""
    path, *argument = file.split(":", 1)
    with blaming(f"--config={file}: the file fails", "mend it; a file of a few lines is shown by --help"):
        get_config = runpy.run_path(path, run_name="config_file").get("get_config")
        config = get_config(*argument) if callable(get_config) else None
    if not isinstance(config, ConfigDict):
        raise UsageError(f"--config={file}: no get_config returns a ConfigDict there; --help shows a file that does")
    try:
        json.dumps(config.to_dict())
    except (TypeError, ValueError) as error:
        raise UsageError(f"--config={file}: a run cannot keep a field of it ({described(error)}); change it") from error
    return config.to_dict()


def _resolved(settings: Settings, field: str) -> str | None:
    value = getattr(settings, field)
    try:
        return value and str(files.resolved(value))
    except (OSError, RuntimeError) as error:  # links in a circle, a user that is not known
        raise UsageError(f"config.{field}={value[:200]}: {one_line(error)}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False
