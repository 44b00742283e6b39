"""Files of a run's folder: written whole or not at all and never through a link, read only where they are files.

A folder may hold anything under the names that a run uses. A pipe would be waited for, and a device read,
without end; what a link leads to belongs to somebody else.
"""

import contextlib
import errno
import itertools
import json
import os
import resource
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cutnmix_jax.errors import CheckpointError, UsageError, not_given

_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FILES, _FEWEST_FILES = 1024, 128
MOST_BYTES = 1 << 28  # of a file that is read at once; the rows of 100,000 epochs are a quarter of it


def allow_many() -> None:
    """Lets this process have many files open, of which saving a state takes some dozens.

    Raises:
      UsageError: it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
        if most < _FEWEST_FILES:
            raise UsageError(f"a process may have only {most} files open here; allow {_OPEN_FILES} with `ulimit -n`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def kind(path: Path) -> str:
    """What stands under a name: `file`, `folder`, `a link`, `a pipe`, `a socket`, `a device`, or no text for nothing.

    Raises:
      OSError: it cannot be told, for want of rights for instance.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return ""
    names = {"-": "file", "d": "folder", "l": "a link", "p": "a pipe", "s": "a socket"}
    return names.get(stat.filemode(mode)[0], "a device")


def resolved(path: str) -> Path:
    """The whole path, without links; `~` is the home.

    Raises:
      OSError: links lead in a circle. Python 3.12 and older raise RuntimeError there.
      RuntimeError: nobody knows the user whose home it is.
    """
    found = Path(path).expanduser().resolve()
    try:
        found.stat()  # Python 3.13 and newer leave a circle as it is
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise
    return found


def refuse_other(path: Path, wanted: str) -> None:
    """Raises CheckpointError where something else than a `file` or a `folder`, as `wanted`, stands under a name."""
    found = kind(path)
    if found not in ("", wanted):
        where = f" to {path.readlink()}" if found == "a link" else ""
        found = f"a {found}" if found in ("file", "folder") else found
        raise CheckpointError(
            f"{path} is {found}{where}, where a run has a {wanted}; put that in its place, or choose another folder"
        )


def read(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
      CheckpointError: it is no file, or larger than any file of a run.
      OSError: it is not there, or cannot be read.
    """
    refuse_other(path, "file")
    number = os.open(path, _TO_READ)
    with open(number, "rb") as file:  # noqa: PTH123 - it was opened by number
        size = os.fstat(number).st_size
        if size > MOST_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes, more than a run can have written; restore it")
        return file.read(MOST_BYTES)


def fields_of(text: bytes | str) -> dict[str, Any]:
    """The fields of a text of JSON.

    Raises:
      ValueError: it holds none, whatever is wrong with it.
    """
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("it holds no fields")
    return found


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of a file of JSON; raises what `read` and `fields_of` do."""
    return fields_of(read(path))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Like `write`, as JSON."""
    write(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def write(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; what stood under its name is replaced and never written through.

    Raises:
      OSError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.unlink(missing_ok=True)  # left by a kill; O_EXCL refuses a link
        number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with open(number, "wb") as file:  # noqa: PTH123 - it was opened by number
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())  # before the rename, or a power cut could leave an empty file under its name
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):  # the rest of a full disk is worth more than half a file
            temporary.unlink(missing_ok=True)
        raise


def append(path: Path) -> IO[str]:
    """Opens a file to write at its end, and never one that a link leads to.

    Raises:
      CheckpointError: it is no file.
      OSError: it cannot be opened.
    """
    refuse_other(path, "file")
    if kind(path) and path.lstat().st_nlink > 1:  # a copy by links, which is somebody else's
        write(path, read(path))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "a", encoding="utf-8")  # noqa: PTH123 - it was opened by number


def look_anew(folder: Path) -> None:
    """Has this machine see what another one has just written in a folder of a network's file system.

    Such a file system may show what the folder held some seconds ago, until this machine changes something in it.
    """
    mark = folder / ".look.tmp"
    if kind(folder) == "folder":
        for change in (mark.mkdir, mark.rmdir):
            with contextlib.suppress(OSError):  # left by a kill, or a folder in which nothing can be written
                change()


def put_aside(path: Path, target: Path) -> Path:
    """Renames a file or a folder to a name that is free: the time stands in it, and a number where it has to.

    Args:
      path: what is renamed.
      target: the name that it gets before its suffix, on the same disk.

    Returns:
      The new name.

    Raises:
      OSError: it cannot be renamed.
    """
    stem = f"{target.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    stems = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(1)))
    free = next(name for one in stems if not kind(name := target.with_name(one + target.suffix)))
    path.rename(free)
    return free


def check_readable(path: Path) -> None:
    """Raises OSError where a file cannot be opened to be read; no byte of it is."""
    os.close(os.open(path, _TO_READ))


def survey(folder: Path, most_bytes: int) -> None:
    """Looks at all that a folder holds before a library is handed it.

    Args:
      folder: of a checkpoint.
      most_bytes: that one of its files can have.

    Raises:
      OSError: something in it cannot be looked into or read, so that nothing can be said of it.
      ValueError: something in it is neither a file nor a folder, or is larger than what was written.
    """
    for path in _entries(folder):
        found = kind(path)
        if found not in ("file", "folder"):
            raise ValueError(f"{path.relative_to(folder)} is {found}")
        if found == "file":
            check_readable(path)
            if (size := path.lstat().st_size) > most_bytes:
                raise ValueError(f"{path.relative_to(folder)} has {size:,} bytes, more than what was saved")


def unreadable(folder: Path, error: Exception) -> str:
    """Why nothing can be said of what a library could not read; empty where its bytes are there to be read.

    The file system is asked, because what a library says of it may be anything.

    Args:
      folder: that it was told to read.
      error: what it raised.
    """
    if why := not_given(error):
        return why
    try:
        for path in _entries(folder):
            if path.is_file():
                with path.open("rb") as file:
                    while file.read(1 << 20) and file.tell() < MOST_BYTES:
                        pass
    except OSError as refused:
        return f"{refused.filename or folder}: {refused.strerror}"
    return ""


def _entries(folder: Path) -> list[Path]:
    """All that is in a folder, and in those in it; links are not followed."""
    found, folders = [], [folder]
    while folders:
        inside = sorted(folders.pop().iterdir())
        found += inside
        folders += [path for path in inside if kind(path) == "folder"]
    return found
