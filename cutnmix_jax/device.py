"""Settings of JAX that hold for the whole process."""

import contextlib
import logging
import re
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import platformdirs

from cutnmix_jax import console
from cutnmix_jax.errors import UsageError, one_line, told

# XLA's names for how 32-bit products are made; a CPU has one way only.
_PRODUCTS = {"tf32": "tensorfloat32", "float32": "highest", "bfloat16": "default"}


def set_up_jax(precision: str) -> None:
    """Chooses the precision of products and keeps compiled programs for the next start.

    Args:
      precision: `tf32`, `float32` or `bfloat16`.

    Raises:
      UsageError: JAX finds no device of the kind that it was told to use.
    """
    find_devices()
    jax.config.update("jax_default_matmul_precision", _PRODUCTS[precision])
    if jax.config.values["jax_compilation_cache_dir"] is None:  # not chosen by JAX_COMPILATION_CACHE_DIR
        folder = Path(platformdirs.user_cache_dir("cutnmix_jax"), "compiled")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    _mend_cache(Path(jax.config.values["jax_compilation_cache_dir"]))


def find_devices() -> None:
    """Raises UsageError where JAX finds no device of the kind that it was told to use."""
    try:
        jax.devices()
    except RuntimeError as error:
        raise UsageError(f"JAX finds no device: {one_line(error)[:200]}; see JAX_PLATFORMS") from error


def failure(error: jax.errors.JaxRuntimeError, names: Sequence[str]) -> UsageError:
    """Whose it is that a compiled program fails: a network's that calls back to Python, or JAX's and the device's.

    Args:
      error: what JAX raised.
      names: of the networks.
    """
    left = "what was saved stays, and the same command goes on from there"
    own = " and ".join(sorted({name for name in names if ":" in name}))
    if own and "Traceback (most recent call last)" in str(error):  # JAX hands it on as text
        raised = str(error).strip().splitlines()[-1]
        return UsageError(f"backbone {own!r} fails in a function that it calls back ({raised[:300]}); mend it: {left}")
    what = f"JAX or the device fails on {jax.devices()[0].device_kind} ({told(error)})"
    return UsageError(f"{what}; {left}, where the cause is mended")


@contextlib.contextmanager
def told_once() -> Iterator[None]:
    """While entered, JAX does not log the traceback of a function that fails when it is called back: it raises, too."""

    def refuse(record: logging.LogRecord) -> bool:
        return False

    loggers = [logging.getLogger(f"jax._src.{name}") for name in ("callback", "debugging")]
    for logger in loggers:
        logger.addFilter(refuse)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(refuse)


def _mend_cache(folder: Path) -> None:
    """Removes compiled programs that were cut off when JAX comes upon one, by a kill while it was written for instance.

    JAX alone compiles such a program again at every start, and never writes it again because its file is there.
    """
    otherwise = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        told = re.search(r"Error (reading|writing) persistent compilation cache entry for '(.*?)'", str(message))
        if not told:
            otherwise(message, *where, **more)
            return
        console.warn(f"trouble with {told[1]} the compiled program {told[2]} in {folder}; it is compiled anew")
        if told[1] == "reading":
            for path in folder.glob(f"{told[2]}-*-cache"):
                with contextlib.suppress(OSError):  # another user's, or removed by another run
                    if not _is_whole(path):
                        path.unlink()

    warnings.showwarning = show
    warnings.filterwarnings("always", "Error .* persistent compilation cache entry", UserWarning)


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache holds what was written; never where JAX has used another compression than zlib's."""
    content, reader = path.read_bytes(), zlib.decompressobj()
    if content[:1] != b"\x78":  # with which all that zlib writes begins
        return False
    try:
        reader.decompress(content)
    except zlib.error:
        return False
    return reader.eof
