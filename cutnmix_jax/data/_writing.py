"""Decodes the pictures of a source once and writes them as a prepared data set: all of it, or nothing of that name.

No more than a few hundred pictures are in memory at a time.
"""

import contextlib
import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import PIL

from cutnmix_jax import decoding, files
from cutnmix_jax.data import _about, _arrays
from cutnmix_jax.data._about import About
from cutnmix_jax.data._arrays import Written
from cutnmix_jax.data._pictures import SPLITS, Source
from cutnmix_jax.data._prepared import ABOUT
from cutnmix_jax.errors import DataError, described, excused

MOST_WORKERS = 32  # threads, which share one interpreter: more do not help
MOST_NAMED = 10  # pictures that were skipped
Progress = Callable[[int, int], None]  # called with how many of how many pictures are done


def write(
    source: Source, name: str, target: Path, size: int, flip: bool, skip_damaged: bool, progress: Progress
) -> tuple[About, dict[str, np.ndarray]]:
    """Prepares a data set.

    Args:
      source: of the pictures.
      name: of the data set.
      target: the folder that is to hold it, which is not there yet.
      size: S of the images.
      flip: whether a mirror image keeps its class.
      skip_damaged: leave out pictures that cannot be read.
      progress: called while the pictures are decoded.

    Returns:
      What is known of it; a split -> how many pictures each class has, [K].

    Raises:
      DataError: a picture cannot be read, a class has none left, the disk has too little room, the source changed
        meanwhile, or another process prepares the same.
    """
    workers = decoding.threads(MOST_WORKERS)
    total = sum(split.total for split in source.splits.values())
    _check_room(target, total * (size * size * 3 + 4))
    done = Counter[str]()

    def count(split: str, rows: int) -> None:
        done[split] = rows
        progress(done.total(), total)

    try:
        with _partial(target) as folder:
            written = {
                split: _arrays.write(
                    source.splits[split], folder / split, size, skip_damaged, workers, partial(count, split)
                )
                for split in SPLITS
            }
            per_class = {
                split: np.bincount(of.labels, minlength=len(source.class_names)) for split, of in written.items()
            }
            _check_left(source, per_class, any(of.failed for of in written.values()))
            if source.state() != source.before:
                raise DataError(f"{source.path} changed while it was being prepared; run the command again")
            about = _described(source, name, size, flip, written)
            if not min(about.std) > 0:
                why = "a colour has one value in all of its training pictures, so that they have no deviation"
                raise DataError(f"{source.path}: {why} to be divided by; add others")
            files.write_json(folder / ABOUT, _about.to_json(about))
    except OSError as error:
        raise excused(error) or DataError(
            f"{name} could not be prepared in {target} ({described(error)}); mend that, or choose another --data_dir"
        ) from error
    return about, per_class


def _described(source: Source, name: str, size: int, flip: bool, written: dict[str, Written]) -> About:
    failed = [why for of in written.values() for why in of.failed]
    return About(
        name=name,
        size=size,
        class_names=source.class_names,
        counts={split: len(of.labels) for split, of in written.items()},
        mean=tuple(written["train"].moments.mean),
        std=tuple(written["train"].moments.std),
        flip=flip,
        files={f"{split}/{file}": facts for split, of in written.items() for file, facts in of.files.items()},
        path=source.path,
        source=source.before,
        skipped=(len(failed), tuple(failed[:MOST_NAMED])),
        rules=decoding.RULES,
        pillow=PIL.__version__,
    )


def _check_room(target: Path, needed: int) -> None:
    """Raises DataError where a disk is already too full, rather than after an hour."""
    there = next(parent for parent in target.parents if parent.is_dir())
    if (free := shutil.disk_usage(there).free) < needed:
        need, have = (f"{count / 1e9:,.2f} GB" for count in (needed, free))
        raise DataError(f"{there} has {have} free, and {need} are needed; free some room or choose another --data_dir")


def _check_left(source: Source, per_class: dict[str, np.ndarray], skipped: bool) -> None:
    for split, counts in per_class.items():
        empty = [source.class_names[label] for label in np.flatnonzero(counts == 0)]
        if empty and (skipped or source.every_class or len(empty) == len(counts)):
            more = f" (and {len(empty) - 1} more)" if empty[1:] else ""
            raise DataError(
                f"{source.path}: {empty[0]!r}{more} has no {split} picture that can be read; mend or add some"
            )


@contextlib.contextmanager
def _partial(target: Path) -> Iterator[Path]:
    """A folder that gets the name of the target once all that is in it is on the disk; one process at a time."""
    folder = target.with_name(f"{target.name}.partial")
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            _lock(handle, folder)
        try:
            for left in folder.iterdir():  # of a process that was killed
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            yield folder
            for split in SPLITS:
                _sync(folder / split)
            os.fsync(handle)
            folder.rename(target)
            _sync(target.parent)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    busy = DataError(f"another process prepares {folder.parent}/{folder.stem}; wait for it, or end it")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_it = os.path.samestat(os.fstat(handle), folder.stat())  # the other one has just ended, and renamed it
    except (BlockingIOError, FileNotFoundError) as error:
        raise busy from error
    if not is_it:
        raise busy


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
