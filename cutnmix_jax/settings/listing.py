"""What `--config` takes: configurations, data sets, methods and fields, each from the place where it is defined."""

import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from cutnmix_jax import backbones, data, methods
from cutnmix_jax.errors import UsageError
from cutnmix_jax.fields import Change
from cutnmix_jax.method import Method
from cutnmix_jax.settings import recipe, tree

_HEAD = """\
# The fields of a run

Any of them is set on the command line, as `--config.optimizer.learning_rate=0.1`; `none` stands for no value. The text
is that of `cutnmix_jax/settings` and of `cutnmix_jax/methods`, printed by `python -m cutnmix_jax.settings`; `--list`
shows it, too. May a run that was begun go on with another value? *yes*: it changes neither the data nor the numbers;
*force*: with `--force`; *extend*: more of it with `--extend`, another number with `--force`; *no*: it decides which
images belong to a step, which ones a run is tested on, or what a checkpoint holds.
"""
_MAY_CHANGE = {Change.FREE: "yes", Change.FORCED: "force", Change.EXTENDED: "extend", Change.NEVER: "no"}


class Described(NamedTuple):
    """A field.

    Attributes:
      path: as `optimizer.learning_rate`.
      default: its value where nobody says another.
      range: what it may be.
      may_change: whether a run that was begun may go on with another value: yes, force, extend or no.
      reason: what it is, and why it has its default.
    """

    path: str
    default: str
    range: str
    may_change: str
    reason: str


def of_run() -> list[Described]:
    """The fields that every run has."""
    return [_described(*leaf) for leaf in tree.leaves()]


def of_methods() -> dict[str, list[Described]]:
    """The options of each method that has any."""
    found = {name: [_described(*leaf) for leaf in tree.leaves(methods.find(name), "loss.")] for name in methods.names()}
    return {name: options for name, options in found.items() if options}


def _described(path: str, hint: Any, field: dataclasses.Field) -> Described:
    about = field.metadata
    change, reason = _MAY_CHANGE[about["change"]], about["reason"]
    if "check" in about:
        return Described(path, _shown(field.default), about["check"].range, change, reason)
    return Described(f"{path}.{'name' if hint is Method else 'TERM'}", "from the row", about["range"], change, reason)


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "from the argument"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def page() -> Iterator[str]:
    """`docs/fields.md`, line by line."""
    yield from _HEAD.splitlines()
    yield from _table(of_run())
    for name, options in of_methods().items():
        yield from ("", f"## Options of the method `{name}`", *_table(options))


def _table(fields: list[Described]) -> Iterator[str]:
    yield from ("", "| field | default | what it may be | may change | what it is, and why |", "|---|---|---|---|---|")
    for one in fields:
        reason = one.reason.replace("|", "\\|")
        yield f"| `{one.path}` | `{one.default}` | {one.range} | {one.may_change} | {reason} |"


def _configurations() -> Iterator[str]:
    yield "configurations: --config=NAME[:DATASET,METHOD], by the paper's recipe; or the path of a file"
    yield from _wrapped("", ", ".join(recipe.names()))
    yield from _wrapped("", f"not by the paper's but by ImageNet's usual recipe: {', '.join(recipe.IMAGENET)}")
    yield from _wrapped("", "a network of your own: any of them with --config.backbone.name=my_pkg.nets:make")


def _networks() -> Iterator[str]:
    yield "networks: --config.backbone.name=NAME, or of unlike peers --config.peers=NAME,NAME"
    for name in backbones.names():
        yield from _wrapped(name, (inspect.getdoc(backbones.find(name)) or "").partition("\n")[0])


def _data_sets() -> Iterator[str]:
    yield "data sets: --config=NAME:DATASET,METHOD"
    for name in data.names():
        counts, classes, _ = data.facts(name)
        what = f"{classes} classes, {counts['train']:,} training and {counts['test']:,} test images"
        yield from _wrapped(name, what)
    yield from _wrapped("folder:PATH", "pictures of your own: PATH/train/CLASS and PATH/test/CLASS, or PATH/CLASS")
    yield from _wrapped("tfds:NAME", "of tensorflow-datasets, with a class each; both are made ready by `data prepare`")
    yield from _wrapped("my_pkg.data:load", "code of your own, `load(data_dir) -> cutnmix_jax.types.Dataset`")


def _methods() -> Iterator[str]:
    yield "methods: --config=NAME:DATASET,METHOD; J networks, and each loss term with its weight"
    for name, row in methods.rows_by_name().items():
        loss = " + ".join(f"{weight:g} {term}" for term, weight in row.weights.items() if weight)
        branches = " branches" if row.share_trunk else ""
        yield from _wrapped(name, f"J = {row.num_peers}{branches}; views {row.views}, mix {row.mix}; {loss}")
    yield "loss terms: --config.weights.TERM=WEIGHT; alpha, beta and gamma of Eq. 8 are those of dml, mmd and pt"
    terms = [(name, kind) for kind in map(methods.find, methods.names()) for name in kind.meanings]
    for name in dict.fromkeys(name for name, _ in terms):
        meanings = dict.fromkeys(kind.meanings[name] for other, kind in terms if other == name)
        yield from _wrapped(name, "; or ".join(meanings), width=16)


def _fields() -> Iterator[str]:
    yield "fields: --config.FIELD=VALUE; in brackets the default"
    for title, fields in {"": of_run(), **of_methods()}.items():
        yield from [f"options of the method {title}"] * bool(title)
        for one in fields:
            yield from _wrapped(one.path, f"[{one.default}] {one.range}. {one.reason}", width=26)


def _wrapped(name: str, text: str, width: int = 14) -> list[str]:
    start = f"  {name:{width}} " if name else "  "
    return textwrap.wrap(text, 118, initial_indent=start, subsequent_indent=" " * len(start)) or [start]


PARTS = {
    "configurations": _configurations, "networks": _networks, "datasets": _data_sets, "methods": _methods,
    "fields": _fields,
}  # fmt: skip


def listed(part: str) -> str:
    """What `--list` prints: one of `PARTS`, or all of them for an empty name.

    Raises:
      UsageError: there is no such part.
    """
    if part and part not in PARTS:
        raise UsageError(f"--list={part}: there are {', '.join(PARTS)}; leave it out for all")
    return "\n\n".join("\n".join(PARTS[name]()) for name in ([part] if part else PARTS))
