"""Writes the pictures of a split as arrays in NumPy's own format, a few at a time, with a digest of each file."""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cutnmix_jax import images
from cutnmix_jax.data._moments import Moments, sums_of
from cutnmix_jax.data._pictures import Split
from cutnmix_jax.data._prepared import IMAGES, LABELS
from cutnmix_jax.errors import DataError, one_line

_TASK, _TASK_BYTES = 16, 1 << 22  # pictures a task, and their bytes
_AHEAD = 4  # tasks a thread


class Block(NamedTuple):
    """What a task came to.

    Attributes:
      labels: of the pictures that could be read.
      pictures: these, [n, S, S, 3] uint8.
      sums: of their pixels, from `_moments.sums_of`.
      failed: why others could not, a line each.
    """

    labels: list[int]
    pictures: np.ndarray
    sums: np.ndarray
    failed: list[str]


class Written(NamedTuple):
    """A split on the disk.

    Attributes:
      files: the name of a file -> its `bytes` and its `sha256`.
      labels: [N] int32.
      moments: of the pixels.
      failed: why pictures were skipped, a line each.
    """

    files: dict[str, dict[str, Any]]
    labels: np.ndarray
    moments: Moments
    failed: list[str]


def write(
    split: Split, folder: Path, size: int, skip_damaged: bool, workers: int, progress: Callable[[int], None]
) -> Written:
    """Writes a split in a new folder.

    Args:
      split: of a source.
      folder: made here.
      size: S.
      skip_damaged: leave out pictures that cannot be read.
      workers: how many threads decode.
      progress: called after each task with the number of pictures that are done.

    Raises:
      DataError: a picture cannot be read.
      OSError: the disk is full, for instance.
    """
    folder.mkdir()
    length = max(1, min(_TASK, _TASK_BYTES // (size * size * 3)))
    tasks = (range(first, min(first + length, split.total)) for first in range(0, split.total, length))
    moments, labels, failed, done = Moments(), list[int](), list[str](), 0

    def work(rows: range) -> Iterator[Block]:
        yield _block(split, rows, size)

    with (folder / IMAGES).open("wb") as file:
        sha = _begin(file, (split.total, size, size, 3))
        for block in images.in_order(tasks, work, workers, _AHEAD):
            if block.failed and not skip_damaged:
                raise DataError(f"{block.failed[0]}; mend or remove it, or leave such pictures out with --skip-damaged")
            sha.update(block.pictures)
            file.write(block.pictures.data)
            moments.add(block.sums, block.pictures.size // 3)
            labels += block.labels
            failed += block.failed
            done += len(block.labels) + len(block.failed)
            progress(done)
        if failed:
            file.seek(0)
            _begin(file, (len(labels), size, size, 3))
        file.flush()
        os.fsync(file.fileno())
    facts = {"bytes": (folder / IMAGES).stat().st_size, "sha256": sha.hexdigest()}
    if failed:  # the head, which the digest begins with, was another one
        facts["sha256"] = sha256_of(folder / IMAGES)
    array = np.array(labels, np.int32)
    return Written({IMAGES: facts, LABELS: _write_labels(folder / LABELS, array)}, array, moments, failed)


def _block(split: Split, rows: range, size: int) -> Block:
    labels, failed, pictures = list[int](), list[str](), np.empty((len(rows), size, size, 3), np.uint8)
    for label, read in split.read(rows):
        if isinstance(read, DataError):
            failed.append(one_line(read))
        else:
            pictures[len(labels)] = read
            labels.append(label)
    found = pictures[: len(labels)]
    return Block(labels, found, sums_of(found), failed)


def _begin(file: io.BufferedWriter, shape: tuple[int, ...]) -> Any:
    """Writes the head of an array of bytes, as long for any number of rows; returns a digest that began with it."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    file.write(head.getvalue())
    return hashlib.sha256(head.getvalue())


def _write_labels(path: Path, labels: np.ndarray) -> dict[str, Any]:
    content = io.BytesIO()
    np.save(content, labels.astype("<i4"))
    with path.open("wb") as file:
        file.write(content.getvalue())
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": content.tell(), "sha256": hashlib.sha256(content.getvalue()).hexdigest()}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, of which little is in memory at a time."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
