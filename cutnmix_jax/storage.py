"""What Orbax and TensorStore say of a disk that fails: in a few words, and nothing beside the exception."""

import errno
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

from cutnmix_jax.errors import one_line


def hush() -> None:
    """Silences what they print: every save at the level of a warning, a failed one with tracebacks besides."""
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _unraisable


def _unraisable(told: Any, otherwise: Callable[[Any], Any] = sys.unraisablehook) -> None:
    if str(told.exc_value) != "Event loop is closed":  # what Orbax leaves behind of each read or write that failed
        otherwise(told)


def reason(error: Exception) -> str:
    """Why something could not be read or written, in a few words."""
    text = one_line(error)
    if "No space left" in text or getattr(error, "errno", 0) == errno.ENOSPC:
        return "the disk is full"
    return f"{type(error).__name__}: {text[:120]}"
