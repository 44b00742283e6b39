"""One run at a time in a folder: a lock that the operating system lets go of when its owner dies."""

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cutnmix_jax import files
from cutnmix_jax.errors import CheckpointError, UsageError

LOCK, OWNER = ".lock", ".owner.json"


@contextmanager
def held(folder: Path, instead: str = "choose another --workdir") -> Iterator[Callable[[], None]]:
    """Keeps others out of a folder while it is open.

    Args:
      folder: is there.
      instead: what one can do where it is held.

    Yields:
      What raises CheckpointError where the folder was moved, removed or replaced: what is written there then would be
      half a run.

    Raises:
      UsageError: somebody else holds it, and says who; or it cannot be locked.
    """
    # A lock that is a file alone outlives its owner, and two machines can hold it.
    lock = FileLock(folder / LOCK, fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{folder} is in use by {_owner(folder)}; wait for it or {instead}") from error
    except OSError as error:  # a disk that is read-only, or a network's that knows no locks
        raise UsageError(f"cannot lock {folder}: {error.strerror}; {instead}") from error
    try:
        owner: dict[str, Any] = {"pid": os.getpid(), "host": platform.node(), "start": uuid.uuid4().hex}
        owner["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError):  # a full disk; the lock holds without a name
            files.write_json(folder / OWNER, owner)
        begun = _identity(folder)

        def check() -> None:
            moved = False
            with suppress(OSError):  # a disk that does not answer says nothing
                moved = _identity(folder) != begun
            # The numbers of some network file systems change by themselves; what was written in the folder does not.
            if moved and _read_owner(folder).get("start") != owner["start"]:
                raise CheckpointError(
                    f"{folder} was moved, removed or replaced while the run went on; nothing more is written. Put it "
                    "back and give the same command again, or go on where it is now with --workdir"
                )

        yield check
    finally:
        with suppress(OSError):
            if _read_owner(folder).get("start") == owner["start"]:
                (folder / OWNER).unlink()
        with suppress(OSError):  # a file system that has gone; the kernel lets go with the process
            lock.release()


def _identity(folder: Path) -> tuple[int, int] | None:
    """What tells a folder from another one under its name; None where there is none.

    Raises:
      OSError: it cannot be told, because a disk does not answer for instance.
    """
    try:
        found = folder.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _read_owner(folder: Path) -> dict[str, Any]:
    """What the owner has written; nothing where that cannot be read."""
    try:
        return files.read_fields(folder / OWNER)
    except (OSError, ValueError, CheckpointError):
        return {}


def is_held(folder: Path) -> bool:
    """Whether somebody holds the folder now."""
    try:
        with FileLock(folder / LOCK, fallback_to_soft=False).acquire(timeout=0):
            return False
    except Timeout:
        return True


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, PermissionError) as error:
        return isinstance(error, PermissionError)  # it is somebody else's
    return True


def _owner(folder: Path) -> str:
    for _ in range(10):  # it may be about to write its name over that of a dead one
        owner = _read_owner(folder)
        with suppress(KeyError, TypeError, OverflowError):
            if owner["host"] != platform.node() or _alive(owner["pid"]):
                return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        time.sleep(0.05)
    return "another process"
