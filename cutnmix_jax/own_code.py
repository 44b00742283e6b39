"""Code of a user's own, a network or a data set, by its name `my_pkg.module:attribute`."""

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cutnmix_jax import console
from cutnmix_jax.errors import UsageError, blaming, nearest


def is_well_named(name: str) -> bool:
    """Whether a name can be that of such code; a folder is called by it, too."""
    module, colon, attribute = name.partition(":")
    return bool(colon) and all(map(str.isidentifier, (*module.split("."), attribute)))


def module_of(what: str, name: str) -> ModuleType:
    """The module that a name begins with.

    Args:
      what: it is of, as `backbone`; it opens the message.
      name: `module:attribute`.

    Raises:
      UsageError: it cannot be imported.
    """
    module = name.partition(":")[0]
    mend = "mend that module, install what it needs, or begin where it is found"
    with blaming(f"{what} {name!r}: cannot import {module!r}", mend):
        return importlib.import_module(module)


def named(what: str, name: str) -> Callable[..., Any]:
    """What a name stands for, a function or a class. Arguments as those of `module_of`.

    Raises:
      UsageError: the module cannot be imported, or has no such attribute, or it cannot be called.
    """
    module, attribute = module_of(what, name), name.partition(":")[2]
    with blaming(f"{what} {name!r}: {module.__name__!r} does not give {attribute!r}", "mend that module"):
        found = getattr(module, attribute, None)  # a module may have a `__getattr__`
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(f"{what} {name!r}: {module.__name__!r} has no {attribute!r}; {nearest(attribute, public)}")
    if not callable(found):
        raise UsageError(f"{what} {name!r} is a {type(found).__name__}, not a function or a class")
    return found


def digest(name: str) -> str:
    """A SHA-256 of the file of such code, once it is imported; empty where there is no file, say where it was typed."""
    try:
        file = sys.modules[name.partition(":")[0]].__file__
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:16]
    except (KeyError, AttributeError, TypeError, ValueError, OSError):
        return ""


def check_same(then: object, names: Sequence[str], where: object) -> None:
    """Warns where the code of networks is not that with which weights were trained.

    Args:
      then: the name of a module -> its `digest` of then; anything else tells nothing.
      names: of the networks, `module:attribute`.
      where: the weights are.
    """
    for name in dict.fromkeys(names):
        before, now = then.get(name.partition(":")[0]) if isinstance(then, Mapping) else None, digest(name)
        if before and now and before != now:
            console.warn(
                f"the code of {name} is not that with which {where} was trained; its numbers may be others now"
            )
