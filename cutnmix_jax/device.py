"""Settings of JAX that hold for the whole process."""

import warnings
import zlib
from pathlib import Path
from typing import Any

import jax
import platformdirs

from cutnmix_jax import console
from cutnmix_jax.errors import UsageError, one_line

# XLA's names for how 32-bit products are made; a CPU has one way only.
_PRODUCTS = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}


def set_up_jax(precision: str) -> None:
    """Chooses the precision of products and keeps compiled programs for the next start.

    Args:
      precision: `tf32`, `float32` or `bfloat16`.

    Raises:
      UsageError: JAX finds no device of the kind that it was told to use.
    """
    try:
        jax.devices()
    except RuntimeError as error:
        raise UsageError(f"JAX finds no device: {one_line(error)[:200]}; see JAX_PLATFORMS") from error
    jax.config.update("jax_default_matmul_precision", _PRODUCTS[precision])
    if jax.config.values["jax_compilation_cache_dir"] is None:  # not chosen by JAX_COMPILATION_CACHE_DIR
        folder = Path(platformdirs.user_cache_dir("cutnmix_jax"), "compiled")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _mend_cache(Path(jax.config.values["jax_compilation_cache_dir"]))


def _mend_cache(folder: Path) -> None:
    """Removes compiled programs that were cut off when JAX comes upon one, by a kill while it was written for instance.

    JAX alone compiles such a program again at every start, and never writes it again because its file is there.
    """
    otherwise = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        if "persistent compilation cache entry" not in str(message):
            otherwise(message, *where, **more)
        elif "Error reading" in str(message):
            removed = [path for path in folder.glob("*-cache") if _is_cut(path)]
            for path in removed:
                path.unlink(missing_ok=True)
            console.warn(f"removed {len(removed)} damaged compiled programs from {folder}; they are compiled again")
        else:  # a full disk: the next start compiles once more
            console.warn(f"cannot keep a compiled program in {folder} ({str(message)[-100:]})")

    warnings.showwarning = show
    warnings.filterwarnings("always", ".* persistent compilation cache entry", UserWarning)


def _is_cut(path: Path) -> bool:
    """Whether a file of the cache does not hold what was written; JAX may compress by other means, which pass here."""
    content, reader = path.read_bytes(), zlib.decompressobj()
    if content[:1] != b"\x78":  # with which all that zlib writes begins
        return not content
    try:
        reader.decompress(content)
    except zlib.error:
        return True
    return not reader.eof
