"""Data sets as whole arrays in host memory: one module per data set, found by its name.

A module in this folder is a data set if its name has no leading underscore and it defines `load(data_dir) -> Dataset`
and what is known before it is read: `COUNTS = {"train": N, "test": M}`, `NUM_CLASSES`, `IMAGE_SHAPE = (H, W, 3)`
unless it is (32, 32, 3), and `RESAMPLING = "nearest"` unless pictures of other sizes are brought to it smoothly. What
`prepare` makes ready out of an archive has `SOURCE`, a `_source.Source`, too, and a builder of its name in `_builder`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from cutnmix_jax.errors import DataError, UsageError, blaming, described, excused, nearest

if TYPE_CHECKING:  # at run time nothing else is imported here: `python -m cutnmix_jax.data` begins with this file
    from cutnmix_jax.types import Dataset

_NO_DATA_SET = "prepare"  # the one public module of this folder that is none
RESAMPLINGS = ("bicubic", "nearest")
_CIFAR = (32, 32, 3)  # of a module that does not say its IMAGE_SHAPE


def names() -> list[str]:
    """The data sets there are, sorted: the public modules of this folder. None of them is imported."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return sorted(name for name in found if name != _NO_DATA_SET)


def find(name: str) -> ModuleType:
    """The module of a data set.

    Raises:
      UsageError: if there is no data set of that name, or its module is broken.
    """
    valid = names()
    if name not in valid:
        raise UsageError(f"unknown data set {name!r}; {nearest(name, valid)}")
    with blaming(f"data set {name!r}: {_file(name)} cannot be imported", "install what it needs, or mend it"):
        module = importlib.import_module(f"{__name__}.{name}")
    for wanted in ("load", "COUNTS", "NUM_CLASSES"):
        if not hasattr(module, wanted):
            raise UsageError(f"data set {name!r}: {_file(name)} has no {wanted}; see CONTRIBUTING.md")
    counts, classes = module.COUNTS, module.NUM_CLASSES
    if not isinstance(counts, Mapping) or not {"train", "test"} <= set(counts) or not isinstance(classes, int):
        wanted = "{'train': N, 'test': M} and K"
        raise UsageError(f"data set {name!r}: COUNTS and NUM_CLASSES of {_file(name)} are not {wanted}")
    shape = getattr(module, "IMAGE_SHAPE", _CIFAR)
    is_shape = isinstance(shape, tuple) and len(shape) == 3 and all(type(size) is int and size > 0 for size in shape)
    if not is_shape or shape[2] != 3:
        raise UsageError(f"data set {name!r}: IMAGE_SHAPE of {_file(name)} is {shape!r}, not (height, width, 3)")
    if (how := getattr(module, "RESAMPLING", RESAMPLINGS[0])) not in RESAMPLINGS:
        raise UsageError(f"data set {name!r}: RESAMPLING of {_file(name)} is {how!r}; {nearest(str(how), RESAMPLINGS)}")
    return module


def counts(name: str) -> Mapping[str, int]:
    """How many images a data set has, by its split, without reading it: {'train': N, 'test': M}."""
    return find(name).COUNTS


def num_classes(name: str) -> int:
    """K, without reading the data set."""
    return find(name).NUM_CLASSES


def image_shape(name: str) -> tuple[int, int, int]:
    """(H, W, C), without reading the data set."""
    return getattr(find(name), "IMAGE_SHAPE", _CIFAR)


def resampling(name: str) -> str:
    """How a picture of another size becomes one of this data set: `bicubic` or `nearest`."""
    return getattr(find(name), "RESAMPLING", RESAMPLINGS[0])


def load(
    name: str, data_dir: str | None = None, train_examples: int | None = None, test_examples: int | None = None
) -> "Dataset":
    """Reads a data set, or the first examples of it.

    The stored order is already shuffled and the same on every machine, so the first N are a fair sample of all classes.

    Args:
      name: one of `names()`.
      data_dir: where prepared data sets lie; None for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      train_examples: how many training images to keep; None for all.
      test_examples: how many test images to keep; likewise.

    Returns:
      A `Dataset` of uint8 images and int32 labels.

    Raises:
      UsageError: if the name is unknown, or a number of examples is negative or more than there are, or the module of
        the data set, or a library that it uses, is broken.
      DataError: if the data set is missing or damaged.
    """
    data = _loaded(name, data_dir or "")
    train = first("train_examples", train_examples, len(data.train_labels), name)
    test = first("test_examples", test_examples, len(data.test_labels), name)
    return data._replace(
        train_images=data.train_images[:train],
        train_labels=data.train_labels[:train],
        test_images=data.test_images[:test],
        test_labels=data.test_labels[:test],
    )


def _loaded(name: str, data_dir: str) -> "Dataset":
    module = find(name)
    with blaming(f"data set {name!r}: `load` of {_file(name)} fails", "install what it needs, or mend it"):
        try:
            dataset = module.load(data_dir)
        except OSError as error:
            raise excused(error) or DataError(f"data set {name!r} cannot be read ({described(error)})") from error
        wrong = _wrong(dataset, module.COUNTS, module.NUM_CLASSES, image_shape(name))
    if wrong:
        raise UsageError(f"data set {name!r}: `load` of {_file(name)} returns {wrong}; see `types.Dataset`")
    return dataset


def _wrong(dataset: "Dataset", counts: Mapping[str, int], num_classes: int, shape: tuple[int, int, int]) -> str:
    """What of a data set is not as `Dataset` says, in a few words; empty if nothing is."""
    import numpy as np

    for name in ("mean", "std"):
        if (value := np.asarray(getattr(dataset, name))).shape != (3,) or not np.isfinite(value).all():
            return f"a {name} of {value.tolist()}, not of three finite numbers"
    if not np.all(np.asarray(dataset.std) > 0):
        return f"a std of {np.asarray(dataset.std).tolist()}, by which nothing can be divided"
    if len(dataset.class_names) != num_classes:
        return f"{len(dataset.class_names)} class names where NUM_CLASSES is {num_classes}"
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            return f"{split} images {images.dtype}{list(images.shape)}, not uint8[N, {', '.join(map(str, shape))}]"
        if len(images) != counts[split]:
            return f"{len(images)} {split} images where COUNTS says {counts[split]}"
        if labels.dtype != np.int32 or labels.shape != images.shape[:1] or not len(labels):
            return f"{split} labels {labels.dtype}{list(labels.shape)} of {len(images)} images, not int32[N]"
        if labels.min() < 0 or labels.max() >= num_classes:
            return f"{split} labels from {labels.min()} to {labels.max()}, not from 0 to {num_classes - 1}"
    return ""


def _file(name: str) -> str:
    return f"cutnmix_jax/data/{name}.py"


def first(field: str, wanted: int | None, available: int, name: str) -> int:
    """How many examples of those that a data set has are wanted; None is all of them.

    Raises:
      UsageError: with the name of the field, if it is negative or more than there are.
    """
    if wanted is None:
        return available
    if not 1 <= wanted <= available:
        raise UsageError(f"{field}={wanted}: {name} has {available} of them; give 1 to {available}, or none for all")
    return wanted
