"""Where this program keeps what it can make again, compiled programs and decoded data: the user's cache folder."""

import functools
import os
import tempfile
from pathlib import Path

import platformdirs

from cutnmix_jax import console
from cutnmix_jax.errors import one_line

_ALL = "compiled or decoded"
_FULL: set[Path] = set()  # folders in which nothing can be written


@functools.cache
def folder() -> Path | None:
    """The folder, made if it is not there; None where nothing can be kept, with one warning in a process."""
    try:
        path = Path(platformdirs.user_cache_dir("cutnmix_jax"))
    except RuntimeError as error:  # no HOME, and a user that the system does not know
        _warn("a cache folder", error, _ALL)
        return None
    return path if usable(path, _ALL) else None


def usable(path: Path, without: str) -> bool:
    """Makes a folder and tries to write in it; warns where that fails, for what was kept before may still be read.

    Args:
      path: the folder.
      without: what is done in each start without it, for the warning.

    Returns:
      Whether it can be read.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
            file.flush()
    except (OSError, RuntimeError) as error:
        _warn(str(path), error, without)
        _FULL.add(path)
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def takes_nothing(path: Path) -> bool:
    """Whether a warning has said that nothing can be written in a folder, or in one that it is in."""
    return any(path.is_relative_to(full) for full in _FULL)


def _warn(what: str, error: Exception, without: str) -> None:
    reason = getattr(error, "strerror", None) or one_line(error)
    console.warn(
        f"cannot write in {what} ({reason}): what is not there yet is {without} in each start; HOME, XDG_CACHE_HOME or "
        "JAX_COMPILATION_CACHE_DIR can name another"
    )
