"""Code of a user's own, a network or a data set, by its name `my_pkg.module:attribute`."""

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

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
