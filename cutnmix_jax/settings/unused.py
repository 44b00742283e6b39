"""Fields that have no effect beside the others, and those of them that somebody has set."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import Optimizer, Settings, recipe, tree


def unused(settings: Settings) -> dict[str, str]:
    """The path of each field that has no effect beside the others, whatever its value -> what does not look at it."""
    return {path: who for who, paths in _by_reason(settings) for path in paths}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[tree.Difference]:
    """Like `tree.changes`, without the fields that have no effect in either: with any value of them it is one run."""
    try:
        first, second = (unused(tree.to_settings(one)) for one in (before, after))
    except (UsageError, ArithmeticError):  # one of them is of another version
        return tree.changes(before, after)
    return [change for change in tree.changes(before, after) if not (change.path in first and change.path in second)]


def set_in_vain(settings: Settings) -> dict[str, list[str]]:
    """What does not look at some fields -> the paths of those that no recipe of the package has as they are."""
    given, left = tree.deciding(tree.of_settings(settings)), unused(settings)
    recipes = recipe.all_of(settings.method)
    while left and (one := next(recipes, None)):  # most runs need the first alone, and each takes 3 ms
        plain = tree.deciding(tree.of_settings(one))
        left = {path: who for path, who in left.items() if given[path] != plain[path]}
    found: dict[str, list[str]] = {}
    for path, who in left.items():
        found.setdefault(who, []).append(path)
    return found


def _by_reason(settings: Settings) -> Iterator[tuple[str, list[str]]]:
    mix, rising = settings.mix, settings.ramp_up.terms
    if settings.peers:
        yield "a run with peers of its own", ["backbone.name"]
    if mix.kind == "none":
        yield "a run with mix.kind=none", ["mix.prob", "mix.alpha", "mix.box"]
    elif mix.prob == 0:
        yield "a run with mix.prob=0", ["mix.alpha", "mix.box"]
    elif mix.kind != "cutnmix":
        yield f"a run with mix.kind={mix.kind}", ["mix.box"]
    if not any(settings.weights.get(name) for name in rising):
        # Without terms it is they that decide it: others would rise.
        yield "a run in which no weight rises", ["ramp_up.terms"] * bool(rising) + ["ramp_up.epochs"]
    optimizer = settings.optimizer
    if optimizer.schedule == "stepwise" and not optimizer.milestones:
        yield "a run without milestones", ["optimizer.decay"]
    yield f"{optimizer.name} with a {optimizer.schedule} schedule", _of_others(optimizer)


def _of_others(optimizer: Optimizer) -> list[str]:
    """The fields of other optimizers and schedules."""
    of_each = {field.name: field.metadata["of"] for field in dataclasses.fields(optimizer)}
    return [
        f"optimizer.{name}"
        for name, of in of_each.items()
        if any(getattr(optimizer, other) not in values for other, values in of.items())
    ]
