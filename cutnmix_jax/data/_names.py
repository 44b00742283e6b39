"""What a data set may be called: a file of this folder, `folder:PATH`, `tfds:NAME[/CONFIG]` or `my_pkg.data:load`."""

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cutnmix_jax import files
from cutnmix_jax.errors import UsageError, nearest, one_line, printable
from cutnmix_jax.own_code import is_well_named

FOLDER, TFDS = "folder:", "tfds:"
KINDS = "folder:PATH, tfds:NAME[/CONFIG] or my_pkg.data:load"
_OF_TFDS = r"[a-z][a-z0-9_]*(/\w[\w.+-]*)?"


def is_prepared(name: str) -> bool:
    """Whether `prepare` decodes the pictures of a data set before they can be loaded."""
    return name.startswith((FOLDER, TFDS))


def is_own(name: str) -> bool:
    """Whether a data set comes from code of a user's own, `my_pkg.data:load`."""
    return ":" in name and not is_prepared(name)


def problem(name: object, shipped: Sequence[str]) -> str:
    """What is wrong with the name of a data set, whether there is such a one or not; empty if nothing is."""
    if not isinstance(name, str) or not name:
        return f"must be text: {KINDS}, or one of {', '.join(shipped)}"
    rest = name.partition(":")[2]
    if name.startswith(FOLDER):
        if not rest:
            return "names no folder; give folder:PATH"
        return "" if rest.isprintable() else "its path cannot be written as text; reach it by a link with a plain name"
    if name.startswith(TFDS):
        return "" if re.fullmatch(_OF_TFDS, rest) else "is no name of tensorflow-datasets; give tfds:NAME[/CONFIG]"
    if ":" in name:
        return "" if is_well_named(name) else f"must be {KINDS}"
    return "" if name in shipped else f"not known; {nearest(name, shipped)}; or {KINDS}"


def canonical(name: str) -> str:
    """The same data set by the one name that it is kept under: of a folder its whole path, without links.

    Raises:
      UsageError: the path leads nowhere, because of links in a circle or a user that is not known.
    """
    if not name.startswith(FOLDER):
        return name
    try:
        found = FOLDER + str(files.resolved(name.removeprefix(FOLDER)))
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"{printable(name)[:300]}: {one_line(error)}") from error
    if wrong := problem(found, ()):
        raise UsageError(f"{printable(found)[:300]}: {wrong}")
    return found


def title(name: str) -> str:
    """What everybody may be told of a data set: of a folder its last part, for the rest says where a home is."""
    return Path(name.removeprefix(FOLDER)).name or name if name.startswith(FOLDER) else name


def slug(name: str) -> str:
    """The name as that of a folder: the same for the same data set, and hardly ever for two.

    Of `folder:PATH` it is the last part of the path and eight digits of a SHA-256 of all of it.
    """
    if not name.startswith(FOLDER):
        return name.replace(":", ".").replace("/", ".")
    path = canonical(name).removeprefix(FOLDER)
    readable = re.sub(r"[^\w.-]+", "_", Path(path).name)[:40].strip(".") or "root"
    return f"{readable}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
