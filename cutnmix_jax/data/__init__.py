"""Data sets as whole arrays in host memory: one module per data set, found by its name.

A module in this folder is a data set if its name has no leading underscore and it defines `load(data_dir) -> Dataset`
and what is known before it is read: `COUNTS = {"train": N, "test": M}` and `NUM_CLASSES`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType

from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.types import Dataset


def names() -> list[str]:
    """The data sets there are, sorted: the public modules of this folder that define `load`."""
    public = [found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_")]
    return sorted(name for name in public if hasattr(importlib.import_module(f"{__name__}.{name}"), "load"))


def find(name: str) -> ModuleType:
    """The module of a data set.

    Raises:
      UsageError: if there is no data set of that name.
    """
    valid = names()
    if name not in valid:
        raise UsageError(f"unknown data set {name!r}; {nearest(name, valid)}")
    return importlib.import_module(f"{__name__}.{name}")


def counts(name: str) -> Mapping[str, int]:
    """How many images a data set has, by its split, without reading it: {'train': N, 'test': M}."""
    return find(name).COUNTS


def num_classes(name: str) -> int:
    """K, without reading the data set."""
    return find(name).NUM_CLASSES


def load(name: str, data_dir: str = "", train_examples: int = 0, test_examples: int = 0) -> Dataset:
    """Reads a data set, or the first examples of it.

    The stored order is already shuffled and the same on every machine, so the first N are a fair sample of all classes.

    Args:
      name: one of `names()`.
      data_dir: where prepared data sets lie; empty for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      train_examples: how many training images to keep; 0 for all.
      test_examples: how many test images to keep; 0 for all.

    Returns:
      A `Dataset` of uint8 images and int32 labels.

    Raises:
      UsageError: if the name is unknown, or a number of examples is negative or more than there are.
      DataError: if the data set is missing or damaged.
    """
    data = find(name).load(data_dir)
    train = _first("train_examples", train_examples, len(data.train_labels), name)
    test = _first("test_examples", test_examples, len(data.test_labels), name)
    return data._replace(
        train_images=data.train_images[:train],
        train_labels=data.train_labels[:train],
        test_images=data.test_images[:test],
        test_labels=data.test_labels[:test],
    )


def _first(field: str, wanted: int, available: int, name: str) -> int:
    if not 0 <= wanted <= available:
        raise UsageError(f"{field}={wanted}: {name} has {available} of them; give 1 to {available}, or 0 for all")
    return wanted or available
