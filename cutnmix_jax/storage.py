"""What Orbax and TensorStore say of a disk that fails: in a few words, and nothing beside the exception."""

import errno
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

from cutnmix_jax.errors import one_line

_NOT_DAMAGE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE)


def hush() -> None:
    """Silences what they print: every save at the level of a warning, a failed one with tracebacks besides."""
    for noisy in ("absl", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _unraisable


def _unraisable(told: Any, otherwise: Callable[[Any], Any] = sys.unraisablehook) -> None:
    if str(told.exc_value) != "Event loop is closed":  # what Orbax leaves behind of each read or write that failed
        otherwise(told)


def may_be_whole(error: Exception) -> bool:
    """Whether a file could not be read for want of rights or of a disk that answers, whatever is in it."""
    return any(os.strerror(number) in str(error) for number in _NOT_DAMAGE)  # TensorStore gives the text alone


def reason(error: Exception) -> str:
    """Why something could not be read or written, in a few words."""
    text = one_line(error)
    if "No space left" in text or getattr(error, "errno", 0) == errno.ENOSPC:
        return "the disk is full"
    return f"{type(error).__name__}: {text[:120]}"
