"""A folder of pictures as a data set: a folder for each class, in `train` and `test` or with a split of our own."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cutnmix_jax import decoding, images
from cutnmix_jax.data import _pictures
from cutnmix_jax.data._pictures import Source, Split, State
from cutnmix_jax.decoding import Read
from cutnmix_jax.errors import DataError, printable

TEST_FOLDERS = ("test", "val", "valid", "validation")
_PART = re.compile(  # what other programs call the parts of a data set
    "(train(ing)?|tests?|testing|val(id|idation)?|dev|eval(uation)?)([ _-]?(set|data|images?|split))?", re.IGNORECASE
)
_NO_TESTS = (
    "there is no folder of test pictures: a fifth of each class is tested with, chosen by digests of their names"
)


class File(NamedTuple):
    """A picture: its path below the top folder, its size in bytes, its time of modification in ns."""

    path: bytes
    size: int
    time: int


Classes = dict[bytes, list[File]]  # the name of the folder of each class -> its pictures


def state(top: str) -> State:
    """Of the pictures in a folder as it is now.

    Raises:
      DataError: it cannot be read.
    """
    return _state_of(_found(top)[0])


def source(top: str, size: int, resampling: str) -> Source:
    """Looks at a folder; of each picture only its name, size and time.

    Args:
      top: its path.
      size: S, to which `read` of a split brings each picture.
      resampling: how.

    Raises:
      DataError: it cannot be read, has too few classes, or a class without pictures in a split.
    """
    found, notes = _found(top)
    names = sorted(found["train"])
    class_names = tuple(printable(name.decode("utf-8", "backslashreplace")) for name in names)
    _pictures.check_classes(f"folder:{top}", class_names)
    _check_classes(top, found)
    before = _state_of(found)
    if "test" not in found:
        found = _divided(top, found["train"])
    labels = {name: label for label, name in enumerate(names)}
    splits = {split: _split(top, classes, labels, (size, size), resampling) for split, classes in found.items()}
    return Source(top, class_names, splits, True, tuple(notes), before, lambda: state(top))


def _found(top: str) -> tuple[dict[str, Classes], list[str]]:
    """The pictures of each split, `train` alone where nobody says which ones are tests; and what is to be known."""
    if not os.path.isdir(top):  # noqa: PTH112 - here and below names are text of any bytes, and there may be millions
        raise DataError(f"folder:{top}: there is no such folder")
    train = os.path.join(top, "train")  # noqa: PTH118
    if not os.path.isdir(train) or not _look(train)[0]:  # noqa: PTH112 - without folders it is a class, of trains
        tops, notes = {"train": top}, [_NO_TESTS]
        _check_no_split(top, _look(top)[0])
    else:
        inside = set(_look(top)[0])
        tests = [name for name in TEST_FOLDERS if name in inside and _look(os.path.join(top, name))[0]]  # noqa: PTH118
        for name in () if tests else sorted(set(TEST_FOLDERS) & inside):
            if _look(os.path.join(top, name))[1]:  # noqa: PTH118
                what = f"{printable(top)}: the pictures in {name} are not in folders of their classes"
                raise DataError(f"{what}; sort them into such folders, or move {name} away")
        if not tests:
            _check_no_split(top, sorted(inside - {"train"}))
        tops = {"train": train, **({"test": os.path.join(top, tests[0])} if tests else {})}  # noqa: PTH118
        notes = [] if tests else [_NO_TESTS]
        if others := sorted(map(printable, inside - {"train", *tests[:1]})):
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            notes.append(
                f"folders beside train{' and '.join(['', *tests[:1]])} left out: {', '.join(others[:3])}{more}"
            )
    found = {split: _classes(top, folder) for split, folder in tops.items()}
    if beside := sum(_look(folder)[1] for folder in tops.values()):
        notes.append(f"pictures beside the folders of the classes left out: {beside:,}")
    return found, notes


def _check_no_split(top: str, names: Sequence[str]) -> None:
    """Raises DataError where a folder that would be a class, or be left out, is called like a part of a data set."""
    for name in names:
        is_train = name.lower() == "train" and name != "train"
        if is_train or (_PART.fullmatch(name) and _look(os.path.join(top, name))[0]):  # noqa: PTH118
            raise DataError(
                f"{printable(top)}: {name!r} is called like a part of a data set; call the folders of the classes to "
                "train on train, in small letters, and those to test with test, or move it away"
            )


def _look(folder: str) -> tuple[list[str], int]:
    """The names of the folders in a folder, sorted, and the number of pictures beside them."""
    try:
        with os.scandir(folder) as entries:
            shown = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"{printable(folder)}: the folder cannot be read ({error.strerror})") from error
    folders = sorted((name for name, is_folder in shown if is_folder), key=os.fsencode)
    return folders, sum(not is_folder and images.is_shown(name) for name, is_folder in shown)


def _classes(top: str, folder: str) -> Classes:
    """The pictures of each class. A folder is entered once, whatever links lead to it, and for its own class alone."""
    paths = {os.fsencode(name): os.path.join(folder, name) for name in _look(folder)[0]}  # noqa: PTH118
    try:
        own = {name: images.identity(path) for name, path in paths.items()}
    except OSError as error:
        raise DataError(f"{printable(str(error.filename))}: cannot be looked at ({error.strerror})") from error
    closed, found = set(own.values()), Classes()
    if len(closed) < len(own):
        raise DataError(f"{printable(folder)}: two of its folders are links to one; each class needs its own")
    for name, path in paths.items():
        closed |= images.around(path)
        closed.discard(own[name])
        found[name] = [_file(top, picture) for some in images.walked(path, closed) for picture in some]
    return found


def _file(top: str, path: str) -> File:
    below = os.fsencode(os.path.relpath(path, top) if not path.startswith(f"{top}/") else path[len(top) + 1 :])
    try:
        what = os.stat(path)  # noqa: PTH116
    except OSError:  # `decoding.read` says why
        return File(below, 0, 0)
    return File(below, what.st_size, what.st_mtime_ns)


def _state_of(found: Mapping[str, Classes]) -> State:
    return _pictures.state_of(file for classes in found.values() for files in classes.values() for file in files)


def _check_classes(top: str, found: Mapping[str, Classes]) -> None:
    """Raises DataError where a class is not in both splits, or has no picture in one."""
    for split, classes in found.items():
        if empty := [name for name, files in classes.items() if not files]:
            what = f"{_several(empty)} of the {split} classes has no picture"
            raise DataError(f"folder:{top}: {what}; put some into its folder, or remove it")
        for other, others in found.items():
            if missing := sorted(set(classes) - set(others)):
                what = f"{_several(missing)} stands among the {split} classes and not among the {other} classes"
                raise DataError(f"folder:{top}: {what}; each class needs pictures in both")


def _several(names: Sequence[bytes]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"'{printable(names[0].decode('utf-8', 'backslashreplace'))}'{more}"


def _divided(top: str, classes: Classes) -> dict[str, Classes]:
    """Takes the tests out of the only pictures there are."""
    if single := [name for name, files in classes.items() if len(files) < 2]:
        what = f"{_several(single)} has one picture, and needs two: one is tested with"
        raise DataError(f"folder:{top}: {what}; add some, or remove its folder")
    found: dict[str, Classes] = {split: {} for split in _pictures.SPLITS}
    for name, files in classes.items():
        tests = set(_pictures.test_rows([file.path for file in files]))
        found["train"][name] = [file for row, file in enumerate(files) if row not in tests]
        found["test"][name] = [files[row] for row in tests]
    return found


def _split(top: str, classes: Classes, labels: Mapping[bytes, int], size: tuple[int, int], resampling: str) -> Split:
    """The pictures of all classes, in the order in which they are kept."""
    paths = [file.path for files in classes.values() for file in files]
    numbers = np.repeat([labels[name] for name in classes], [len(files) for files in classes.values()])
    order, above = _pictures.shuffled(paths), os.path.join(os.fsencode(top), b"")  # noqa: PTH118

    def read(rows: Sequence[int]) -> Iterator[tuple[int, Read]]:
        for row in rows:
            number = order[row]
            yield int(numbers[number]), decoding.attempt(os.fsdecode(above + paths[number]), size, resampling)

    return Split(len(paths), read)
