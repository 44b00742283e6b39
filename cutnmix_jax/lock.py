"""One run at a time in a folder: a lock that the operating system lets go of when its owner dies."""

import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from cutnmix_jax.errors import UsageError

_LOCK, _OWNER = ".lock", ".owner.json"


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps others out of a folder while it is open.

    Raises:
      UsageError: somebody else holds it, and says who; or it cannot be locked.
    """
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{folder} is in use by {_owner(folder)}; wait for it or choose another --workdir") from error
    except OSError as error:  # a disk that is read-only, or a network's that knows no locks
        raise UsageError(f"cannot lock {folder}: {error.strerror}; choose another --workdir") from error
    try:
        owner = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with suppress(OSError):  # a full disk; the lock holds without a name
            (folder / _OWNER).write_text(json.dumps(owner) + "\n")
        yield
    finally:
        with suppress(OSError):
            (folder / _OWNER).unlink()
        lock.release()


def wait(folder: Path, seconds: float) -> None:
    """Returns when nobody holds the folder, or after so many seconds."""
    try:
        with FileLock(folder / _LOCK).acquire(timeout=seconds):
            pass
    except Timeout:
        pass


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _owner(folder: Path) -> str:
    for _ in range(10):  # it may be about to write its name over that of a dead one
        try:
            owner = json.loads((folder / _OWNER).read_text())
            if owner["host"] != platform.node() or _alive(owner["pid"]):
                return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        time.sleep(0.05)
    return "another process"
