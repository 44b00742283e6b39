"""Prints every field of a run with its default, whether it may change, and its reason: `docs/fields.md`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from cutnmix_jax import methods
from cutnmix_jax.fields import Change
from cutnmix_jax.method import Method
from cutnmix_jax.settings import Settings, tree

_HEAD = """\
# The fields of a run

Any of them is set on the command line, as `--config.optimizer.learning_rate=0.1`; `none` stands for no value. The text
is that of `cutnmix_jax/settings` and of `cutnmix_jax/methods`, printed by `python -m cutnmix_jax.settings`. May a run
that was begun go on with another value? *yes*: it changes neither the data nor the numbers; *force*: with `--force`;
*no*: it decides which images belong to a step, which ones a run is tested on, or what a checkpoint holds.
"""
_MAY_CHANGE = {Change.FREE: "yes", Change.FORCED: "force", Change.NEVER: "no"}


def lines() -> Iterator[str]:
    """The file, line by line."""
    yield from _HEAD.splitlines()
    yield from _table(Settings, "")
    for name in methods.names():
        kind = methods.find(name)
        if dataclasses.fields(kind):
            yield from ("", f"## Options of the method `{name}`", *_table(kind, "loss."))


def _table(kind: type, path: str) -> Iterator[str]:
    yield from ("", "| field | default | may change | what it is, and why |", "|---|---|---|---|")
    for name, hint, field in tree.leaves(kind, path):
        if "check" in field.metadata:
            reason, change = field.metadata["reason"].replace("|", "\\|"), _MAY_CHANGE[field.metadata["change"]]
            yield f"| `{name}` | `{_shown(field.default)}` | {change} | {reason} |"
        elif hint is Method:
            yield f"| `{name}.name` | from the row | force | a file of cutnmix_jax/methods; its options are below |"
        else:
            yield f"| `{name}.TERM` | from the row | force | the weight of a loss term; with 0 it is only measured |"


def _shown(value: Any) -> str:
    if value is dataclasses.MISSING:
        return "from the argument"
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    print("\n".join(lines()))
