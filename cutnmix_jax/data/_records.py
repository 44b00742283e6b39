"""A data set of tensorflow-datasets as a source of pictures: one class label each, in array_record, no TensorFlow."""

import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutnmix_jax import decoding
from cutnmix_jax.data import _library, _names, _pictures, _source
from cutnmix_jax.data._pictures import Source, Split, State
from cutnmix_jax.data.prepare import unreachable
from cutnmix_jax.decoding import Read
from cutnmix_jax.errors import DataError, UserError, described, excused

_TESTS = ("test", "validation")
_NO_TESTS = "it has no test pictures: a fifth of all is tested with, chosen by digests of their numbers"


class Records(NamedTuple):
    """Prepared records.

    Attributes:
      folder: that holds them.
      info: tfds's `DatasetInfo`.
      image: the name of the feature that is the picture.
      label: of the one that is its class.
      open: a split -> what reads its examples, the picture as the bytes of a file.
    """

    folder: Path
    info: Any
    image: str
    label: str
    open: Any


def state(path: str) -> State:
    """Of the files of the records as they are now.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        with os.scandir(path) as entries:
            stats = [(os.fsencode(entry.name), entry.stat()) for entry in entries if entry.is_file()]
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be read ({error.strerror})") from error
    return _pictures.state_of((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def source(name: str, data_dir: str, size: int | None, resampling: str) -> tuple[Source, int]:
    """Looks at a data set of tfds, which is prepared before where it is not and can be.

    Args:
      name: `tfds:NAME` or `tfds:NAME/CONFIG`.
      data_dir: the tfds data folder; empty for the usual one.
      size: S, to which `read` of a split brings each picture; None for the size that all of them have.
      resampling: how.

    Returns:
      The source, and S.

    Raises:
      DataError: it is not there and cannot be prepared here, or it is no set of pictures with a class each.
    """
    with _library.quiet():
        folder = _folder(name, data_dir) or _built(name, data_dir)
        before = state(str(folder))
        try:
            records = _opened(name, folder)
            size = size or _own_size(name, records)
            names = tuple(records.info.features[records.label].names)
            _pictures.check_classes(name, names)
            splits, notes = _splits(name, records, size, resampling)
        except UserError:
            raise
        except Exception as error:  # tfds has no common base class for what damaged metadata and records can cause
            why = f"{folder} cannot be read ({described(error)}); prepare it with tfds again"
            raise excused(error) or DataError(f"{name}: {why}") from error
    return Source(str(folder), names, splits, False, tuple(notes), before, lambda: state(str(folder))), size


def _folder(name: str, data_dir: str) -> Path | None:
    return _source.newest(_source.root(data_dir) / name.removeprefix(_names.TFDS), name)


def _built(name: str, data_dir: str) -> Path:
    """Has tfds prepare a data set, which of some it can do without TensorFlow."""
    rest, root = name.removeprefix(_names.TFDS), _source.root(data_dir)
    tfds = _library.imported()
    try:
        builder = tfds.builder(rest, data_dir=root, file_format="array_record")
        for url in list(builder.url_infos)[:1]:  # tfds itself tries for minutes
            if wrong := unreachable(url):
                raise ConnectionError(f"{url}: {wrong}")
        print(f"having tfds prepare {rest}", flush=True)
        _library.build(builder)
        if found := _folder(name, data_dir):
            return found
        raise ValueError("nothing was written")
    except Exception as error:  # each builder, the network and the disk raise their own
        how = f"`tfds build {rest} --file_format=array_record --data_dir={root}`"
        raise DataError(
            f"{name} is not in {root}, and tfds cannot prepare it here, without TensorFlow ({described(error, 150)}); "
            f"run {how} where TensorFlow and a network are"
        ) from error


def _opened(name: str, folder: Path) -> Records:
    tfds = _library.imported()
    builder = tfds.builder_from_directory(folder)
    if (found := builder.info.file_format.value) != "array_record":
        why = f"{folder} was prepared as {found}, which takes TensorFlow to read"
        raise DataError(f"{name}: {why}; prepare it with --file_format=array_record")
    features, kinds = builder.info.features, tfds.features
    images = [key for key, feature in features.items() if type(feature) is kinds.Image]
    labels = [key for key, feature in features.items() if type(feature) is kinds.ClassLabel]
    supervised = builder.info.supervised_keys
    if supervised and supervised[0] in images and supervised[1] in labels:
        images, labels = [supervised[0]], [supervised[1]]
    if len(images) != 1 or len(labels) != 1:
        raise DataError(f"{name}: {len(images)} pictures and {len(labels)} class labels an example; there must be one")
    [image], [label] = images, labels
    opened = functools.partial(builder.as_data_source, decoders={image: tfds.decode.SkipDecoding()})
    return Records(folder, builder.info, image, label, opened)


def _own_size(name: str, records: Records) -> int:
    height, width, _ = records.info.features[records.image].shape
    if not height or height != width:
        raise DataError(f"{name}: its pictures are not all squares of one size; say --size=S")
    return height


def _splits(name: str, records: Records, size: int, resampling: str) -> tuple[dict[str, Split], list[str]]:
    there = records.info.splits
    if "train" not in there:
        raise DataError(f"{name}: it has no split called train, only {', '.join(there)}")
    tests = [split for split in _TESTS if split in there and _is_labelled(records, split)]

    def rows_of(split: str) -> list[bytes]:
        return [b"%d" % row for row in range(there[split].num_examples)]

    order = _pictures.shuffled(rows_of("train"))
    if not tests:
        taken = set(_pictures.test_rows(rows_of("train")))
        parts = {split: [row for row in order if (row in taken) == (split == "test")] for split in _pictures.SPLITS}
        return {split: _split(records, "train", rows, size, resampling) for split, rows in parts.items()}, [_NO_TESTS]
    train = _split(records, "train", order, size, resampling)
    test = _split(records, tests[0], _pictures.shuffled(rows_of(tests[0])), size, resampling)
    left = f"; {tests[1]} is left out" if tests[1:] else ""
    notes = [f"the test pictures are those of the split {tests[0]}{left}"] if tests != ["test"] else []
    return {"train": train, "test": test}, notes


def _is_labelled(records: Records, split: str) -> bool:
    """Whether the first example has a class: where tests are kept secret all of them have the label -1."""
    return records.open(split).__getitems__([0])[0][records.label] >= 0


def _split(records: Records, place: str, order: Sequence[int], size: int, resampling: str) -> Split:
    examples = records.open(place)

    def read(rows: Sequence[int]) -> Iterator[tuple[int, Read]]:
        numbers = [order[row] for row in rows]
        try:
            found = examples.__getitems__(numbers)
        except Exception as error:  # the record reader and the protocol buffer each raise their own
            why = f"{records.folder}: records of {place} cannot be read ({described(error)})"
            raise excused(error) or DataError(f"{why}; prepare it with tfds again") from error
        for number, example in zip(numbers, found, strict=True):
            called = f"{records.folder}, record {number} of {place}"
            if not 0 <= (label := int(example[records.label])) < len(records.info.features[records.label].names):
                raise DataError(f"{called} has the label {label}, which no class has")
            yield label, decoding.of_bytes(called, example[records.image], (size, size), resampling)

    return Split(len(order), read)
