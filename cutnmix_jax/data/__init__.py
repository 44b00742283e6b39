"""Data sets as arrays: one module per data set, found by its name; or pictures and code of a user's own.

`folder:PATH` and `tfds:NAME[/CONFIG]` are prepared first, see `_prepared`; `my_pkg.data:load` is called, see `_own`. A
module in this folder is a data set if its name has no leading underscore and it defines `load(data_dir) -> Dataset`
and what is known before it is read: `COUNTS = {"train": N, "test": M}`, `NUM_CLASSES`, `IMAGE_SHAPE = (H, W, 3)`
unless it is (32, 32, 3), and `RESAMPLING = "nearest"` unless pictures of other sizes are brought to it smoothly. What
`prepare` makes ready out of an archive has `SOURCE`, a `_source.Source`, too, and a builder of its name in `_builder`.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from cutnmix_jax import own_code
from cutnmix_jax.data import _names
from cutnmix_jax.data._names import canonical as canonical
from cutnmix_jax.data._names import is_own as is_own
from cutnmix_jax.data._names import is_prepared as is_prepared
from cutnmix_jax.data._names import slug as slug
from cutnmix_jax.data._names import title as title
from cutnmix_jax.errors import DataError, UsageError, blaming, described, excused, nearest

if TYPE_CHECKING:  # at run time nothing else is imported here: `python -m cutnmix_jax.data` begins with this file
    from cutnmix_jax.data._facts import Facts as Facts
    from cutnmix_jax.types import Dataset

_NO_DATA_SET = "prepare"  # the one public module of this folder that is none
RESAMPLINGS = ("bicubic", "nearest")
_CIFAR = (32, 32, 3)  # of a module that does not say its IMAGE_SHAPE


def names() -> list[str]:
    """The data sets there are, sorted: the public modules of this folder. None of them is imported."""
    found = [module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_")]
    return sorted(name for name in found if name != _NO_DATA_SET)


def problem(name: object) -> str:
    """What is wrong with the name of a data set, whether it is prepared or not; empty if nothing is."""
    return _names.problem(name, names())


def find(name: str) -> ModuleType:
    """The module of a data set of this folder.

    Raises:
      UsageError: if there is no data set of that name, or its module is broken.
    """
    valid = names()
    if name not in valid:
        raise UsageError(f"unknown data set {name!r}; of your own: {_names.KINDS}; {nearest(name, valid)}")
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
    _resampling_of(module, name, _file(name))
    return module


def _resampling_of(module: ModuleType, name: str, where: str) -> str:
    if (how := getattr(module, "RESAMPLING", RESAMPLINGS[0])) not in RESAMPLINGS:
        raise UsageError(f"data set {name!r}: RESAMPLING of {where} is {how!r}; {nearest(str(how), RESAMPLINGS)}")
    return how


def facts(name: str, data_dir: str | None = None, image_size: int | None = None) -> "Facts":
    """What is known of a data set before its images are read; code of a user's own has to be asked for them.

    Args:
      name: one of `names()`, `folder:PATH`, `tfds:NAME[/CONFIG]` or `my_pkg.data:load`.
      data_dir: as for `load`.
      image_size: as for `load`.

    Raises:
      UsageError, DataError: as `load`.
    """
    from cutnmix_jax.data._facts import Facts, of_dataset

    if _names.is_prepared(name):
        from cutnmix_jax.data import _prepared

        name = canonical(name)
        about = _prepared.find(name, data_dir or "", _prepared.only_size(name, data_dir or "", image_size))
        return Facts(about.counts, len(about.class_names), (about.size, about.size, 3))
    if _names.is_own(name):
        from cutnmix_jax.data import _own

        resampling(name)  # which is needed at the end
        found = of_dataset(_own.load(name, data_dir or ""))
    else:
        module = find(name)
        found = Facts(module.COUNTS, module.NUM_CLASSES, getattr(module, "IMAGE_SHAPE", _CIFAR))
    return found if image_size is None else found._replace(image_shape=(image_size, image_size, 3))


def forget() -> None:
    """Has the function of a data set of somebody's own called again by the next run, whatever `facts` has asked for."""
    from cutnmix_jax.data import _own

    _own.load.cache_clear()


def resampling(name: str) -> str:
    """How a picture of another size becomes one of a data set: `bicubic` or `nearest`."""
    if _names.is_prepared(name):
        return RESAMPLINGS[0]
    if not _names.is_own(name):
        return _resampling_of(find(name), name, _file(name))
    return _resampling_of(own_code.module_of("data set", name), name, "its module")


def settled(name: str, data_dir: str | None, image_size: int | None) -> tuple[str, int | None]:
    """The name and the size that stay the same wherever a command is given: the whole path, the only size there is.

    Raises:
      UsageError, DataError: the data set is not prepared, or in several sizes of which none is chosen.
    """
    name = canonical(name)
    if not _names.is_prepared(name):
        return name, image_size
    from cutnmix_jax.data import _prepared

    return name, _prepared.only_size(name, data_dir or "", image_size)


def load(
    name: str,
    data_dir: str | None = None,
    train_examples: int | None = None,
    test_examples: int | None = None,
    image_size: int | None = None,
) -> "Dataset":
    """Reads a data set, or the first examples of it.

    The stored order is already shuffled and the same on every machine, so the first N are a fair sample of all classes.

    Args:
      name: as for `facts`.
      data_dir: where prepared data sets lie; None for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      train_examples: how many training images to keep; None for all.
      test_examples: how many test images to keep; likewise.
      image_size: S, to which images of another size are brought as `predict` does it, [S, S, 3], and of which mean and
        deviation are then; of a folder and of tfds the size that they were prepared in. None for their own.

    Returns:
      A `Dataset` of uint8 images and int32 labels; images of a folder or of tfds are maps of files.

    Raises:
      UsageError: if the name is unknown, a number of examples is less than 1 or more than there are, or the module of
        the data set, or a library that it uses, is broken.
      DataError: if the data set is missing or damaged.
    """
    data = _loaded(name, data_dir or "", image_size)
    train = how_many("train_examples", train_examples, len(data.train_labels), name)
    test = how_many("test_examples", test_examples, len(data.test_labels), name)
    return data._replace(
        train_images=data.train_images[:train],
        train_labels=data.train_labels[:train],
        test_images=data.test_images[:test],
        test_labels=data.test_labels[:test],
    )


def _loaded(name: str, data_dir: str, image_size: int | None) -> "Dataset":
    if _names.is_prepared(name):
        from cutnmix_jax.data import _prepared

        name = canonical(name)
        return _prepared.load(name, data_dir, _prepared.only_size(name, data_dir, image_size))
    if _names.is_own(name):
        from cutnmix_jax.data import _own

        dataset = _own.load(name, data_dir)
        forget()
    else:
        dataset = _shipped(name, data_dir)
    if image_size is None or dataset.train_images.shape[1:3] == (image_size, image_size):
        return dataset
    from cutnmix_jax.data import _resized

    return _resized.to_size(dataset, (image_size, image_size), resampling(name))


def _shipped(name: str, data_dir: str) -> "Dataset":
    from cutnmix_jax.data import _facts

    module = find(name)
    with blaming(f"data set {name!r}: `load` of {_file(name)} fails", "install what it needs, or mend it"):
        try:
            dataset = module.load(data_dir)
        except OSError as error:
            raise excused(error) or DataError(f"data set {name!r} cannot be read ({described(error)})") from error
        wrong = _facts.wrong(dataset, facts(name))
    if wrong:
        raise UsageError(f"data set {name!r}: `load` of {_file(name)} returns {wrong}; see `types.Dataset`")
    return dataset._replace(name=name)  # a module may have been made from another one


def _file(name: str) -> str:
    return f"cutnmix_jax/data/{name}.py"


def how_many(field: str, wanted: int | None, available: int, name: str) -> int:
    """How many examples of those that a data set has are wanted; None is all of them.

    Raises:
      UsageError: with the name of the field, if it is less than 1 or more than there are.
    """
    if wanted is None:
        return available
    if not 1 <= wanted <= available:
        raise UsageError(f"{field}={wanted}: {name} has {available} of them; give 1 to {available}, or none for all")
    return wanted
