"""Reads what tfds prepared as array_record, without TensorFlow: decoded once to arrays, from then on out of a cache.

tfds is imported only where records are read: its import costs about a second, and a cached load does without.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cutnmix_jax import files
from cutnmix_jax.data import _cache, _library
from cutnmix_jax.errors import DataError, UsageError, UserError, excused, installation, told
from cutnmix_jax.types import Dataset

IMAGE_SHAPE = (32, 32, 3)
BLOCK = 1000  # records per read: twice as fast as one by one, and more do not help


class Source(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
      name: the name in tfds and on the command line.
      title: the name for people.
      archive: the file name of the official archive.
      counts: {'train': examples, 'test': examples}.
      num_classes: K.
      mean: of the training pixels in [0, 1], per channel.
      std: likewise.
      digest: what `prepare.digest` must give; empty where there is no reference.
    """

    name: str
    title: str
    archive: str
    counts: Mapping[str, int]
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str


class Split(NamedTuple):
    """One split in the order of the records.

    Attributes:
      ids: [N] str, `train_00000` and so on: the place in the official archive.
      images: [N, 32, 32, 3] uint8.
      labels: [N] int32.
    """

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def load(source: Source, data_dir: str) -> Dataset:
    """Reads a prepared data set, from the cache where that still fits the records.

    Args:
      source: which one.
      data_dir: the tfds data folder; empty for the default.

    Returns:
      A `Dataset`; the arrays do not depend on how the records are spread over files.

    Raises:
      DataError: if it is missing or damaged.
    """
    folder = require(source, data_dir)
    file = _cache.file_for(source.name, folder)
    arrays = _cache.read(file, lambda found: problem(source, found))
    if arrays is None:
        arrays = _decode_arrays(source, folder)
        _cache.write(file, arrays)
    return Dataset(
        name=source.name,
        train_images=arrays["train_images"],
        train_labels=arrays["train_labels"],
        test_images=arrays["test_images"],
        test_labels=arrays["test_labels"],
        class_names=tuple(str(name) for name in arrays["class_names"]),
        mean=np.array(source.mean, np.float32),
        std=np.array(source.std, np.float32),
        flip=True,
    )


def root(data_dir: str) -> Path:
    """The tfds data folder: `data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(folder).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # a user that is not known, links in a circle
        raise UsageError(f"data_dir={folder}: {' '.join(str(error).split())}; name a folder") from error


def find(source: Source, data_dir: str) -> Path | None:
    """The folder of the newest prepared version, or None; a preparation under way has another name and is not found.

    Raises:
      DataError: there may be one, but it cannot be looked at.
    """
    folder, versions = root(data_dir) / source.name, []
    try:  # `glob` would pass over what it may not read
        found = list(folder.iterdir())
        versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise DataError(f"{source.title} cannot be read in {folder} ({told(error)}); let it be read") from error
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def require(source: Source, data_dir: str) -> Path:
    """Like `find`, but raises DataError with the command to run where there is none."""
    folder = find(source, data_dir)
    if folder is None:
        command = f"python -m cutnmix_jax.data prepare --dataset={source.name}"
        command += f" --data_dir={data_dir}" if data_dir else ""
        offline = f"with --archive={source.archive} where there is no network"
        where = "if it lies elsewhere, name the folder by data_dir or TFDS_DATA_DIR"
        raise DataError(f"{source.title} not found in {root(data_dir)}; run `{command}` ({offline}); {where}")
    return folder


def problem(source: Source, arrays: Mapping[str, np.ndarray]) -> str:
    """What is wrong with the arrays of a data set, in a few words; empty if nothing is."""
    for split, count in source.counts.items():
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.shape != (count, *IMAGE_SHAPE) or images.dtype != np.uint8:
            return f"{split} images are {images.dtype}{list(images.shape)}, not uint8{[count, *IMAGE_SHAPE]}"
        if labels.shape != (count,) or labels.dtype != np.int32:
            return f"{split} labels are {labels.dtype}{list(labels.shape)}, not int32{[count]}"
        if labels.min() < 0 or labels.max() >= source.num_classes:
            return f"{split} labels go from {labels.min()} to {labels.max()}, not from 0 to {source.num_classes - 1}"
    if len(arrays["class_names"]) != source.num_classes:
        return f"there are {len(arrays['class_names'])} class names, not {source.num_classes}"
    return ""


def damaged(source: Source, folder: Path, what: str) -> DataError:
    """The error for records that are not what they should be; `what` names the file or the thing."""
    again = f"{source.name} --data_dir={folder.parent.parent}"
    return DataError(
        f"{source.title} is damaged: {what}; check with `python -m cutnmix_jax.data verify --dataset={again}`, "
        f"or delete {folder} and run `python -m cutnmix_jax.data prepare --dataset={again}`"
    )


def unreadable(source: Source, folder: Path, what: str, error: Exception) -> UserError:
    """The error for records that could not be read; they are called damaged only where nothing else is to blame.

    Args:
      source: which data set.
      folder: of its records.
      what: the file, and what cannot be done with it.
      error: what a library raised.
    """
    if excuse := excused(error):
        return excuse
    if reason := files.unreadable(folder, error):
        return DataError(f"{source.title} cannot be read: {what} ({reason}); let it be read and try again")
    if failed := _library.failure():
        return installation(failed)
    return damaged(source, folder, f"{what} ({told(error, 1000)})")


def open_builder(source: Source, folder: Path) -> Any:
    """Opens prepared records and checks by their headers that each file is whole; reads no example.

    Returns:
      A read-only tfds builder.

    Raises:
      DataError: if the metadata cannot be read, the format is not array_record, or a file is missing or cut short.
    """
    tfds = _library.imported()
    try:
        builder = tfds.builder_from_directory(folder)
        infos = {split: builder.info.splits[split] for split in source.counts}
        file_format = builder.info.file_format.value
    except Exception as error:  # tfds has no common base class for what unreadable metadata can cause
        raise unreadable(source, folder, f"the metadata in {folder} cannot be read", error) from error
    if file_format != "array_record":
        wanted = f"run `python -m cutnmix_jax.data prepare --dataset={source.name}` with another --data_dir"
        raise DataError(f"{folder} was prepared as {file_format}, not as array_record; {wanted}")
    for split, info in infos.items():
        if info.num_examples != source.counts[split]:
            what = f"{folder} has {info.num_examples} {split} examples, not {source.counts[split]}"
            raise damaged(source, folder, what)
        for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
            _check_file(source, folder, Path(path), length)
    return builder


def _check_file(source: Source, folder: Path, path: Path, length: int) -> None:
    from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[import-untyped]

    if not path.is_file():
        raise damaged(source, folder, f"{path} is missing")
    try:
        found = ArrayRecordReader(str(path)).num_records()
    except Exception as error:
        raise unreadable(source, folder, f"{path} cannot be opened", error) from error
    if found != length:
        raise damaged(source, folder, f"{path} has {found} readable records, not {length}")


def decode(source: Source, folder: Path) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Reads every record, without the cache; about ten seconds for CIFAR.

    Args:
      source: which data set.
      folder: what `require` found.

    Returns:
      ({'train': Split, 'test': Split}, the class names), in the order in which tfds numbers the records.

    Raises:
      DataError: if anything is missing, damaged or out of range.
    """
    with _library.quiet():
        builder = open_builder(source, folder)
        splits = {split: _decode_split(source, folder, builder, split) for split in source.counts}
        try:
            class_names = tuple(builder.info.features["label"].names)
        except Exception as error:
            raise unreadable(source, folder, f"{folder} has no labels", error) from error
    if class_names == tuple(map(str, range(source.num_classes))):  # what tfds makes up where it finds no names
        raise damaged(source, folder, f"{folder / 'label.labels.txt'} has no class names")
    return splits, class_names


def _decode_split(source: Source, folder: Path, builder: Any, split: str) -> Split:
    info, count = builder.info.splits[split], source.counts[split]
    out = Split(np.empty(count, "<U16"), np.empty((count, *IMAGE_SHAPE), np.uint8), np.empty(count, np.int32))
    start = 0
    for path, length in zip(info.filepaths, info.shard_lengths, strict=True):
        try:  # file by file, to name the one that fails
            examples = builder.as_data_source(split)
            for first in range(start, start + length, BLOCK):
                rows = range(first, min(first + BLOCK, start + length))
                _fill(out, rows, examples.__getitems__(list(rows)))
        except Exception as error:  # the record reader, the protocol buffer and the PNG each raise their own
            raise unreadable(source, folder, f"{path} cannot be decoded", error) from error
        start += length
    return out


def _fill(out: Split, rows: range, examples: list[dict[str, Any]]) -> None:
    for row, example in zip(rows, examples, strict=True):
        if example["image"].shape != IMAGE_SHAPE:  # NumPy would broadcast a [32, 1, 3] image without a word
            raise ValueError(f"an image is {list(example['image'].shape)}, not {list(IMAGE_SHAPE)}")
        out.ids[row] = example["id"].decode()
        out.images[row] = example["image"]
        out.labels[row] = example["label"]


def _decode_arrays(source: Source, folder: Path) -> dict[str, np.ndarray]:
    splits, class_names = decode(source, folder)
    arrays = {"class_names": np.array(class_names, dtype=np.str_)}
    for split, read in splits.items():
        arrays |= {f"{split}_images": read.images, f"{split}_labels": read.labels}
    if wrong := problem(source, arrays):
        raise damaged(source, folder, f"in {folder}, {wrong}")
    return arrays
