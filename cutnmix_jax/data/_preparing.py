"""Prepares and verifies pictures of a user's own, and says what came of it."""

import time
from collections.abc import Iterator, Mapping

import numpy as np

from cutnmix_jax import data
from cutnmix_jax.console import PLAIN_SECONDS
from cutnmix_jax.data import _arrays, _folder, _names, _prepared, _records, _writing
from cutnmix_jax.data._about import About
from cutnmix_jax.data._pictures import Source
from cutnmix_jax.errors import DataError, UsageError


def prepare(name: str, data_dir: str, size: int | None, flip: bool = True, skip_damaged: bool = False) -> str:
    """Decodes the pictures of `folder:PATH` or `tfds:NAME` once and writes them as arrays, see `_prepared`.

    Args:
      name: canonical.
      data_dir: the data folder; empty for the usual one.
      size: S; None for that of the pictures of tfds, where all have one.
      flip: whether a mirror image keeps its class.
      skip_damaged: leave out pictures that cannot be read.

    Returns:
      Lines for a person.

    Raises:
      UsageError: there is no size.
      DataError: see `_writing.write`; or what was prepared before is of other pictures.
    """
    if size is None and name.startswith(_names.FOLDER):
        raise UsageError("--size=S is missing: pictures of a folder are brought to S x S pixels, 32 for instance")
    if size is not None and size in _prepared.sizes(name, data_dir):
        return _there(name, data_dir, size, flip)
    source, size = _source(name, data_dir, size)
    target = _prepared.folder_of(name, data_dir, size)
    if size in _prepared.sizes(name, data_dir):
        return _there(name, data_dir, size, flip)
    counted = sum(split.total for split in source.splits.values())
    print(f"preparing {counted:,} pictures of {len(source.class_names):,} classes", flush=True)
    began = time.monotonic()
    about, per_class = _writing.write(source, name, target, size, flip, skip_damaged, _Progress())
    seconds = time.monotonic() - began
    notes = [f"{name} prepared in {target} in {seconds:.1f} s: {_counts(about)}", *_balance(about, per_class)]
    notes += source.notes
    if about.skipped[0]:
        more = ", and more" if about.skipped[0] > len(about.skipped[1]) else ""
        notes.append(f"skipped {about.skipped[0]:,} that cannot be read: {'; '.join(about.skipped[1])}{more}")
    return "\n".join(notes)


def _source(name: str, data_dir: str, size: int | None) -> tuple[Source, int]:
    if name.startswith(_names.TFDS):
        return _records.source(name, data_dir, size, data.resampling(name))
    assert size is not None
    return _folder.source(name.removeprefix(_names.FOLDER), size, data.resampling(name)), size


def _there(name: str, data_dir: str, size: int, flip: bool) -> str:
    about, folder = _prepared.find(name, data_dir, size), _prepared.folder_of(name, data_dir, size)
    if changed := _prepared.change(about):
        raise DataError(f"{changed}; {_anew(folder)}")
    if about.flip != flip:
        how = "with" if about.flip else "without"
        raise UsageError(f"{name} is already prepared {how} mirror images; {_anew(folder)}, or give another --data_dir")
    return f"{name} is already prepared in {folder}: {_counts(about)}"


def _anew(folder: object) -> str:
    return f"to prepare it anew delete {folder}, with which runs that began with it cannot go on"


class _Progress:
    """Prints how far it is, but not often."""

    def __init__(self) -> None:
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._said > PLAIN_SECONDS:
            self._said = now
            print(f"{done:,} of {total:,}, {done / (now - self._began):,.0f} a second", flush=True)


def _counts(about: About) -> str:
    train, test = (f"{about.counts[split]:,}" for split in ("train", "test"))
    size, classes = f"{about.size}x{about.size}", f"{len(about.class_names):,} classes"
    mirrored = "" if about.flip else ", never mirrored"
    return f"{train} training and {test} test images of {size} pixels, {classes}{mirrored}"


def _balance(about: About, per_class: Mapping[str, np.ndarray]) -> Iterator[str]:
    """The classes with the fewest and the most pictures."""
    for split, counts in per_class.items():
        least, most = int(counts.argmin()), int(counts.argmax())
        few, many = (f"{about.class_names[label]!r} with {counts[label]:,}" for label in (least, most))
        if counts[least] < counts[most]:
            times = f", {counts[most] / counts[least]:.1f} times as many" if counts[least] else ""
            yield f"{split} classes from {few} to {many} pictures{times}"
        else:
            yield f"{split} classes of {counts[least]:,} pictures each"


def verify(name: str, data_dir: str, size: int | None) -> str:
    """Reads every byte of a prepared data set and compares it with what was written; looks at where it came from.

    Args:
      name: canonical.
      data_dir: as for `prepare`.
      size: S; None for the only one that there is.

    Returns:
      Lines for a person.

    Raises:
      DataError: it is not prepared, or damaged.
      UsageError: there are several sizes.
    """
    size = _prepared.only_size(name, data_dir, size, "--size")
    folder = _prepared.folder_of(name, data_dir, size)
    _prepared.load(name, data_dir, size, quiet=True)
    about = _prepared.find(name, data_dir, size)
    for file, facts in about.files.items():
        try:
            found = _arrays.sha256_of(folder / file)
        except OSError as error:
            raise DataError(f"{folder / file} cannot be read ({error.strerror}); let it be read") from error
        if found != facts["sha256"]:
            raise _prepared.damaged(name, folder, f"the SHA-256 of {folder / file} is {found}, not {facts['sha256']}")
    source = _prepared.change(about) or (
        f"{about.path} is as it was then" if _prepared.is_there(about) else f"{about.path} is not there"
    )
    return (
        f"{name} in {folder}: {_counts(about)}; sha256 of images and classes {about.sha256} (as it must be)\n{source}"
    )
