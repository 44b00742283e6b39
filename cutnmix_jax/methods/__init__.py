"""Training methods: one module each, found by its name."""

import importlib
import inspect
import pkgutil
from types import ModuleType

from cutnmix_jax.errors import UsageError, blaming, nearest
from cutnmix_jax.types import Method


def names() -> list[str]:
    """The modules of this folder that are methods."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def find(name: str) -> ModuleType:
    """The module of a method.

    Raises:
      UsageError: there is no method of that name, or its module is broken.
    """
    if name not in names():
        raise UsageError(f"config.loss.name: no method {name!r}; {nearest(name, names())}")
    file = f"cutnmix_jax/methods/{name}.py"
    with blaming(f"method {name!r}: {file} cannot be imported", "install what it needs, or mend it"):
        module = importlib.import_module(f"{__name__}.{name}")
    if not hasattr(module, "make"):
        raise UsageError(f"method {name!r}: {file} has no make; see CONTRIBUTING.md")
    return module


def load(name: str, **options: object) -> Method:
    """Makes a method.

    Args:
      name: a module of this folder.
      **options: what its `make` takes.

    Raises:
      UsageError: there is no such method, its module is broken, or it does not take these options.
    """
    make = find(name).make
    try:
        inspect.signature(make).bind(**options)
    except TypeError as error:
        raise UsageError(f"config.loss: method {name!r} does not take these options: {error}") from error
    return make(**options)
