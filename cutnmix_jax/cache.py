"""Where this program keeps what it can make again, compiled programs and decoded data: the user's cache folder."""

import functools
import tempfile
from pathlib import Path

import platformdirs

from cutnmix_jax import console
from cutnmix_jax.errors import one_line

_ALL = "programs are compiled and data are decoded"


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
    """Makes a folder and writes a byte in it.

    Args:
      path: the folder.
      without: what is done in each start where that cannot be, for the warning.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
            file.flush()
    except (OSError, RuntimeError) as error:
        _warn(str(path), error, without)
        return False
    return True


def _warn(what: str, error: Exception, without: str) -> None:
    reason = getattr(error, "strerror", None) or one_line(error)
    console.warn(
        f"cannot write in {what} ({reason}): {without} anew in each start; HOME, XDG_CACHE_HOME or "
        "JAX_COMPILATION_CACHE_DIR can name another"
    )
