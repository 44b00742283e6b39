"""What groups of runs are called: the fields in which they differ, and the values of these."""

from collections.abc import Sequence
from typing import Any

from cutnmix_jax.errors import UserError, printable
from cutnmix_jax.paper.grids import MISSING
from cutnmix_jax.paper.runs import Group
from cutnmix_jax.settings import recipe, tree

NAMES = ("dataset", "backbone.name", "method")  # fields whose values tell which ones they are
# Digests, which are shown only where the field that they are of is the same.
DIGESTS = {"data": "dataset", "teacher.recipe": "teacher", "init_from.recipe": "init_from"}
_ABSENT = object()  # of a field that a configuration does not have


def differing(groups: Sequence[Group]) -> tuple[list[str], list[str]]:
    """The fields in which groups differ.

    Returns:
      Their paths, those of `NAMES` first, and then those that only follow from the methods, where these differ, too.
    """
    paths = sorted({path for group in groups for path in group.fields})
    paths = [*(path for path in NAMES if path in paths), *(path for path in paths if path not in NAMES)]
    paths = [path for path in paths if len(_values(groups, path)) > 1 and not _follows(groups, path)]
    if "method" not in paths:
        return paths, []
    pairs = [(group.fields, _of_row(group)) for group in groups]
    follow = [
        path
        for path in paths
        if path not in NAMES and all(path not in fields or fields[path] == row.get(path) for fields, row in pairs)
    ]
    return [path for path in paths if path not in follow], follow


def _follows(groups: Sequence[Group], path: str) -> bool:
    """Whether a digest differs only where the field differs that it is of."""
    if path not in DIGESTS:
        return False
    of = [(group.fields.get(DIGESTS[path], _ABSENT), group.fields.get(path, _ABSENT)) for group in groups]
    return len(set(of)) == len({field for field, _ in of})


def _values(groups: Sequence[Group], path: str) -> set[Any]:
    """The values that groups have of a field; one that nothing in a group looks at makes no difference."""
    return {group.fields.get(path, _ABSENT) for group in groups if path in group.fields or path not in group.unused}


def _of_row(group: Group) -> dict[str, Any]:
    """The fields that the recipe has for a group's method; none where that is broken."""
    dataset, backbone, method = (group.fields.get(name) for name in ("dataset", "backbone.name", "method"))
    try:
        return tree.deciding(tree.of_settings(recipe.of_row(str(backbone), str(dataset), str(method))))
    except UserError:
        return {}


def value(group: Group, path: str) -> str:
    """The value of a field, as a command line has it; a dash where there is no such field."""
    found = group.fields.get(path, _ABSENT)
    if found is _ABSENT:
        return MISSING
    return "none" if found is None else printable(str(found).lower() if isinstance(found, bool) else str(found))


def label(group: Group, paths: Sequence[str]) -> str:
    """What a group is, by some of its fields."""
    parts = [value(group, path) if path in NAMES else f"{printable(path)}={value(group, path)}" for path in paths]
    return ", ".join(parts)
