"""Pictures of a user: found in folders, and read by several threads while something else goes on."""

import itertools
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from cutnmix_jax import decoding
from cutnmix_jax.decoding import SUFFIXES, Read
from cutnmix_jax.errors import DataError, UsageError, printable

_WANTED = "name files of pictures, or folders of them"
_CHUNK, _AHEAD = 16, 8  # paths a task, because a future costs as much as a small picture; tasks a thread
Identity = tuple[int, int]  # the device and the number of a folder
_Task = TypeVar("_Task")
_Result = TypeVar("_Result")


def find(names: Sequence[str]) -> list[Path]:
    """The files that a user names: files as they are, of folders all that have the suffix of a picture; [N] paths.

    What is hidden in a folder is left out; folders that links lead to are walked once, those around it not at all.
    What stands there under a picture's name without being a file is kept, so that `decoding.read` says so.

    Raises:
      UsageError: a name leads to nothing, or to neither a file nor a folder, or a folder holds no picture.
      DataError: a folder cannot be read.
    """
    found: list[Path] = []
    for name in names:
        try:
            mode = os.stat(name).st_mode  # noqa: PTH116 - an empty name is no folder, and `Path("")` is one
        except (OSError, ValueError) as error:
            raise UsageError(f"{printable(name)}: {decoding.why_not(error)}; {_WANTED}") from error
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            raise UsageError(f"{printable(name)}: {decoding.kind_of(mode)}; {_WANTED}")
        held = itertools.chain.from_iterable(walked(name, around(name))) if stat.S_ISDIR(mode) else [name]
        if not (inside := sorted(map(Path, held))):
            raise UsageError(f"{printable(name)}: a folder without pictures ({', '.join(sorted(SUFFIXES))})")
        found += inside
    return found


def around(top: str) -> set[Identity]:
    """The folders that a folder is in, up to the root: those that links in it may not lead back to.

    Raises:
      DataError: they cannot be looked at.
    """
    try:
        return {identity(str(parent)) for parent in Path(top).resolve().parents}
    except (OSError, RuntimeError) as error:
        raise _closed(top, error) from error


def identity(folder: str) -> Identity:
    """What tells a folder from others, by whatever name it is reached."""
    what = os.stat(folder)  # noqa: PTH116 - a name may be any text, as `os.walk` gives it
    return what.st_dev, what.st_ino


def walked(top: str, closed: set[Identity]) -> Iterator[list[str]]:
    """The names of the pictures in a folder and in those below it, as many at a time as one of them holds.

    Args:
      top: the folder; what it yields begins with this name.
      closed: folders that are not entered, to which those are added that were: links may lead in circles, or double the
        ways at each step.

    Raises:
      DataError: a folder cannot be read.
    """
    errors = list[OSError]()
    try:
        for folder, folders, names in os.walk(top, onerror=errors.append, followlinks=True):
            if (this := identity(folder)) in closed:
                folders.clear()
                continue
            closed.add(this)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield [os.path.join(folder, name) for name in names if is_shown(name)]  # noqa: PTH118 - a million of them
    except (OSError, RecursionError) as error:
        raise _closed(top, error) from error
    for failed in errors:
        raise _closed(top, failed) from failed


def is_shown(name: str) -> bool:
    """Whether a file is taken for a picture: by its suffix, and because it is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 - likewise


def _closed(top: str, error: Exception) -> DataError:
    where, why = getattr(error, "filename", None) or top, getattr(error, "strerror", None) or "nested too deeply"
    return DataError(f"{printable(str(where))}: the folder cannot be read ({why})")


def stream(
    paths: Sequence[Path], size: tuple[int, int], resampling: str, workers: int | None = None
) -> Iterator[tuple[Path, Read]]:
    """Reads pictures in threads while the caller computes.

    At most 48 files a thread are read ahead of the caller. The threads end with the iterator, also when it is closed;
    by default there is one for each CPU that this process may use, at most 8. All else is as in `decoding.read`.

    Yields:
      In the order of `paths`: the path, and what `read` returned ([H, W, 3] uint8) or raised.
    """
    workers = workers or decoding.threads(8)
    length = max(1, min(_CHUNK, len(paths) // (2 * workers)))  # of few pictures each thread gets some

    def some(start: int) -> Iterator[tuple[Path, Read]]:
        return ((path, decoding.attempt(path, size, resampling)) for path in paths[start : start + length])

    return in_order(range(0, len(paths), length), some, workers)


def in_order(
    tasks: Iterable[_Task], work: Callable[[_Task], Iterator[_Result]], workers: int, ahead: int = _AHEAD
) -> Iterator[_Result]:
    """Does tasks in threads, which end with the iterator, also when it is closed.

    Args:
      tasks: taken one by one.
      work: what a task comes to, one result after another; a thread that has to end does so between two of them.
      workers: how many threads.
      ahead: tasks a thread that are begun before their results are asked for.

    Yields:
      The results, in the order of the tasks.
    """
    stopped = threading.Event()

    def done(task: _Task) -> list[_Result]:
        return list(itertools.takewhile(lambda _: not stopped.is_set(), work(task)))

    pool = ThreadPoolExecutor(workers, thread_name_prefix="pictures")
    waiting: deque = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(done, task))
            if len(waiting) >= ahead * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        stopped.set()
        pool.shutdown(cancel_futures=True)
