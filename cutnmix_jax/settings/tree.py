"""Settings as a tree of plain values and back, and where two of them differ.

A tree is what a ConfigDict holds and what `config.json` says: dictionaries by the names of the fields, with the method
as its name and its options.
"""

import contextlib
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, config_dict

from cutnmix_jax import fields, methods
from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.fields import Change
from cutnmix_jax.method import Method
from cutnmix_jax.settings import Settings


class Difference(NamedTuple):
    """A field in which two trees differ.

    Attributes:
      path: of the field, as `optimizer.learning_rate`.
      before: its value; None also where there is no such field.
      after: likewise.
      change: whether a run may go on with the other value.
    """

    path: str
    before: Any
    after: Any
    change: Change

    def shown(self, of: str) -> str:
        """As a person reads it; `of` is what the trees are of."""
        return f"{of}.{self.path}: {self.before!r} -> {self.after!r}"

    def __str__(self) -> str:
        return self.shown("config")


def of_settings(settings: Any) -> dict[str, Any]:
    """The tree of settings; tuples are lists, as in JSON."""
    return _of(settings, lambda value, hint: list(value) if isinstance(value, tuple) else value)


def to_config_dict(settings: Settings) -> ConfigDict:
    """The settings as a ConfigDict, whose fields a file and a command line may set.

    It has a placeholder of its type for each None, so that it can be set.
    """
    return ConfigDict(
        _of(settings, lambda value, hint: config_dict.placeholder(_kinds(hint)[0]) if value is None else value)
    )


def _of(settings: Any, leaf: Callable[[Any, Any], Any]) -> dict[str, Any]:
    hints = typing.get_type_hints(type(settings))
    tree: dict[str, Any] = {"name": methods.name_of(settings)} if isinstance(settings, Method) else {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            tree[field.name] = _of(value, leaf)
        else:
            tree[field.name] = dict(value) if isinstance(value, Mapping) else leaf(value, hints[field.name])
    return tree


def to_settings(tree: Mapping[str, Any]) -> Settings:
    """Settings from a tree; fields that it does not have are as they are by default.

    Raises:
      UsageError: a field is not known, or its value is not one that it may have.
    """
    return _made(Settings, tree, "")


def check_groups(found: Mapping[str, Any], given: Settings) -> None:
    """Raises UsageError where another group was put in the place of a recipe's, whose other fields are lost.

    A tree that was written as a whole, as its missing fields show, may leave them out of groups too.

    Args:
      found: the tree as it was written.
      given: the settings that it makes.
    """
    whole = of_settings(given)
    if set(whole) - set(found):
        return
    for group, parts in found.items():
        if not isinstance(parts, Mapping) or group == "weights":
            continue
        if lacks := [name for name in whole[group] if name not in parts]:
            raise UsageError(
                f"config.{group} has no {lacks[0]!r}: give all fields of a group, or set those of a recipe one by one, "
                f"as config.{group}.{next(iter(parts), lacks[0])}, so that it keeps the others"
            )


def _made(kind: type, tree: Any, path: str) -> Any:
    if not isinstance(tree, Mapping):
        raise UsageError(f"config.{path}={tree!r}: must be a group of fields")
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in dataclasses.fields(kind)}
    values = {}
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if name not in known:
            raise UsageError(f"--config: no field {where!r}; {nearest(str(name), known)}")
        values[name] = _value(known[name], hints[name], value, where)
    for name, field in known.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UsageError(
                f"config.{path}{'.' if path else ''}{name} is missing; `settings.recipe` fills in all fields"
            )
    return kind(**values)


def _value(field: dataclasses.Field, hint: Any, value: Any, path: str) -> Any:
    if hint is Method:
        return _method(value, path)
    if dataclasses.is_dataclass(hint):
        return _made(typing.cast(type, hint), value, path)
    if "check" not in field.metadata:
        return _weights(value, path)
    if isinstance(value, list):  # as JSON has it
        value = tuple(value)
    if wrong := field.metadata["check"](value):
        raise UsageError(f"config.{path}={value!r}: {wrong}")
    return float(value) if float in _kinds(hint) and value is not None else value


def _method(tree: Any, path: str) -> Method:
    if not isinstance(tree, Mapping) or not isinstance(tree.get("name"), str):
        raise UsageError(f"config.{path}.name is missing")
    options = {name: value for name, value in tree.items() if name != "name"}
    return _made(methods.find(tree["name"]), options, path)


def _weights(tree: Any, path: str) -> dict[str, float]:
    if not isinstance(tree, Mapping):
        raise UsageError(f"config.{path}={tree!r}: must be a group of fields")
    for name, value in tree.items():
        if wrong := fields.weight(value):
            raise UsageError(f"config.{path}.{name}={value!r}: {wrong}")
    return {str(name): float(value) for name, value in tree.items()}


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a field may have: both of `float | None`."""
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def leaves(kind: type = Settings, path: str = "") -> Iterator[tuple[str, Any, dataclasses.Field]]:
    """Each field in its order, with its path and its type; a method is one, and so are all weights."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and hint is not Method:
            yield from leaves(typing.cast(type, hint), f"{path}{field.name}.")
        else:
            yield path + field.name, hint, field


def optional_fields() -> tuple[str, ...]:
    """The paths of all fields that may be None, with the options of all methods that are not broken."""
    options: list[tuple[str, Any, dataclasses.Field]] = []
    for name in methods.names():
        with contextlib.suppress(UsageError):  # told by whoever asks for one of its rows
            options += leaves(methods.find(name), "loss.")
    return tuple(path for path, hint, _ in (*leaves(), *options) if type(None) in _kinds(hint))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Each field in which two trees differ, in the order of their names."""
    return [
        # `all` devices are as many as there are when they are counted, which a run does before it trains.
        Difference(path, old, new, Change.FREE if path == "devices" and 0 in (old, new) else _change_in(after, path))
        for path, old, new in _unlike(before, after, "")
    ]


def _change_in(tree: Mapping[str, Any], path: str) -> Change:
    """Whether a run with these settings may change a field."""
    if path == "devices" and tree.get("bn") == "local":
        return Change.FORCED  # a device normalises its own images: with others it is another network that is trained
    return change_of(path, tree["loss"].get("name", "") if isinstance(tree.get("loss"), Mapping) else "")


def _unlike(before: Mapping[str, Any], after: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(set(before) | set(after)):
        old, new, where = before.get(name), after.get(name), f"{path}.{name}" if path else name
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _unlike(old, new, where)
        elif old != new:
            yield where, old, new


def deciding(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide about the data or the numbers, by their paths; two trees that agree in them are one run.

    Args:
      tree: of settings, from `of_settings`.

    Returns:
      A path, as `mix.kind`, -> a value; lists are tuples.
    """
    fields = {path: tuple(value) if isinstance(value, list) else value for path, value in flat(tree)}
    return {path: value for path, value in fields.items() if _change_in(tree, path) is not Change.FREE}


def flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The path and the value of each field of a tree."""
    for name, value in tree.items():
        where = f"{path}.{name}" if path else name
        if isinstance(value, Mapping):
            yield from flat(value, where)
        else:
            yield where, value


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Like `differences`, without the fields that change neither the data nor the numbers."""
    return [difference for difference in differences(before, after) if difference.change is not Change.FREE]


@functools.cache  # a call takes a tenth of a millisecond, and a run has sixty fields
def change_of(path: str, method: str = "") -> Change:
    """Whether a run may change a field; a field that is not known it may change by force.

    Args:
      path: of the field, as `optimizer.learning_rate`.
      method: the name of the method's module, for its options.
    """
    options = leaves(methods.find(method), "loss.") if method in methods.names() else ()
    changes = {known: field.metadata["change"] for known, _, field in (*leaves(), *options)}
    group = "weights" if path.startswith("weights.") else "loss" if path == "loss.name" else ""
    return changes.get(group or path, Change.FORCED)
