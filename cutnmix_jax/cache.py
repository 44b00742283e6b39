"""Where this program keeps what it can make again: compiled programs and decoded data, below the user's cache folder."""

import functools
import tempfile
from pathlib import Path

import platformdirs

from cutnmix_jax import console
from cutnmix_jax.errors import one_line


@functools.cache
def folder() -> Path | None:
    """The folder, made if it is not there; None where nothing can be kept, with one warning in a process."""
    try:
        path = Path(platformdirs.user_cache_dir("cutnmix_jax"))
    except RuntimeError as error:  # no HOME, and a user that the system does not know
        return _without("a cache folder", error)
    return path if usable(path) else None


def usable(path: Path) -> bool:
    """Makes a folder and writes a byte in it; where that cannot be, warns and is false."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"0")
            file.flush()
    except (OSError, RuntimeError) as error:
        _without(str(path), error)
        return False
    return True


def _without(what: str, error: Exception) -> None:
    reason = getattr(error, "strerror", None) or one_line(error)
    console.warn(
        f"cannot write in {what} ({reason}): programs are compiled and data are decoded anew in each start; HOME, "
        "XDG_CACHE_HOME or JAX_COMPILATION_CACHE_DIR can name another"
    )
