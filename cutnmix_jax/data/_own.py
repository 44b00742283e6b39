"""Data sets from code of a user's own: `my_pkg.data:load`, a function `load(data_dir) -> types.Dataset`."""

import functools
import importlib
from types import ModuleType
from typing import Any

import numpy as np

from cutnmix_jax.errors import DataError, UsageError, blaming, described, excused, nearest
from cutnmix_jax.types import Dataset


def module_of(name: str) -> ModuleType:
    """The module that a data set names.

    Raises:
      UsageError: it cannot be imported.
    """
    module = name.partition(":")[0]
    with blaming(f"data set {name!r}: cannot import {module!r}", "mend it, or begin where it is found"):
        return importlib.import_module(module)


@functools.lru_cache(maxsize=1)  # what is known of it before it is read comes from reading it
def load(name: str, data_dir: str) -> Dataset:
    """Calls a user's function.

    Args:
      name: as `my_pkg.data:load`.
      data_dir: as the settings have it; empty where they have none.

    Returns:
      What it returns, under this name; not looked at.

    Raises:
      UsageError: there is no such function, it fails, or it returns something else than a `Dataset`.
      DataError: it cannot read a file.
    """
    function = _function(name)
    with blaming(f"data set {name!r}: its function fails", "mend it"):
        try:
            found = function(data_dir)
        except OSError as error:
            raise excused(error) or DataError(f"data set {name!r} cannot be read ({described(error)})") from error
        if not isinstance(found, Dataset):
            raise UsageError(f"data set {name!r}: its function returns a {type(found).__name__}, not a types.Dataset")
        return found._replace(
            name=name,
            class_names=tuple(map(str, found.class_names)),
            mean=np.asarray(found.mean, np.float32),
            std=np.asarray(found.std, np.float32),
            flip=bool(found.flip),
            sha256="",
        )


def _function(name: str) -> Any:
    module, attribute = module_of(name), name.partition(":")[2]
    if not callable(found := getattr(module, attribute, None)):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UsageError(
            f"data set {name!r}: {module.__name__!r} has no function {attribute!r}; {nearest(attribute, public)}"
        )
    return found
