"""Training methods: one module each, found by its name."""

import importlib
import pkgutil

from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.types import Method


def names() -> list[str]:
    """The modules of this folder that are methods."""
    return [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]


def load(name: str, **options: object) -> Method:
    """Makes a method.

    Args:
      name: a module of this folder.
      **options: what its `make` takes.

    Raises:
      UsageError: there is no such method, or it does not take these options.
    """
    if name not in names():
        raise UsageError(f"config.loss.name: no method {name!r}; {nearest(name, names())}")
    module = importlib.import_module(f"{__name__}.{name}")
    try:
        return module.make(**options)
    except TypeError as error:
        raise UsageError(f"config.loss: method {name!r} does not take these options: {error}") from error
