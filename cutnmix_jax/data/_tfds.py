"""Reads what tfds prepared as array_record, without TensorFlow: decoded once to arrays, from then on out of a cache.

tfds is imported only where records are read: its import costs about a second, and a cached load does without.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cutnmix_jax.command import program
from cutnmix_jax.data import _cache, _facts, _library, _source
from cutnmix_jax.data._facts import Facts
from cutnmix_jax.data._source import Source, Split, damaged, unreadable
from cutnmix_jax.errors import DataError
from cutnmix_jax.types import Dataset

BLOCK = 1000  # records per read: twice as fast as one by one, and more do not help


def load(source: Source, data_dir: str) -> Dataset:
    """Reads a prepared data set, from the cache where that still fits the records.

    Args:
      source: which one.
      data_dir: the tfds data folder; empty for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

    Returns:
      A `Dataset` in the order in which tfds stores it, which is hashed and the same on every machine; the arrays do not
      depend on how the records are spread over files.

    Raises:
      DataError: if it was not prepared, or is damaged.
    """
    folder = _source.require(source, data_dir)
    file = _cache.file_for(source.name, folder)
    arrays = _cache.read(file, lambda found: _wrong(source, found))
    if arrays is None:
        arrays = _decode_arrays(source, folder)
        _cache.write(file, arrays)
    return _dataset(source, arrays)


def _dataset(source: Source, arrays: Mapping[str, np.ndarray]) -> Dataset:
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


def _wrong(source: Source, arrays: Mapping[str, np.ndarray]) -> str:
    known = Facts(source.counts, source.num_classes, _source.IMAGE_SHAPE)
    return _facts.wrong(_dataset(source, arrays), known)


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
        wanted = f"run `{program()} data prepare --dataset={source.name}` with another --data_dir"
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
    out = Split(np.empty(count, "<U16"), np.empty((count, *_source.IMAGE_SHAPE), np.uint8), np.empty(count, np.int32))
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
        if example["image"].shape != _source.IMAGE_SHAPE:  # NumPy would broadcast a [32, 1, 3] image without a word
            raise ValueError(f"an image is {list(example['image'].shape)}, not {list(_source.IMAGE_SHAPE)}")
        out.ids[row] = example["id"].decode()
        out.images[row] = example["image"]
        out.labels[row] = example["label"]


def _decode_arrays(source: Source, folder: Path) -> dict[str, np.ndarray]:
    splits, class_names = decode(source, folder)
    arrays = {"class_names": np.array(class_names, dtype=np.str_)}
    for split, read in splits.items():
        arrays |= {f"{split}_images": read.images, f"{split}_labels": read.labels}
    if wrong := _wrong(source, arrays):
        raise damaged(source, folder, f"in {folder}, {wrong}")
    return arrays
