"""What the libraries that store things say, in a few words and nothing beside the exception, and what they ask."""

import contextlib
import errno
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cutnmix_jax.errors import one_line


def hush() -> Callable[[], None]:
    """Silences what they print; returns what undoes that.

    Orbax and TensorStore tell of every save as a warning and of a failed one with tracebacks, Matplotlib of a cache
    folder that it cannot write in.
    """
    loggers = [logging.getLogger(noisy) for noisy in ("absl", "asyncio", "matplotlib")]
    levels, otherwise, filters = [logger.level for logger in loggers], sys.unraisablehook, warnings.catch_warnings()

    def unraisable(told: Any) -> None:
        if str(told.exc_value) != "Event loop is closed":  # what Orbax leaves behind of each read or write that failed
            otherwise(told)

    def undo() -> None:
        filters.__exit__(None, None, None)
        sys.unraisablehook = otherwise
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    filters.__enter__()
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = unraisable
    return undo


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Silent while entered."""
    undo = hush()
    try:
        yield
    finally:
        undo()


def reason(error: Exception) -> str:
    """Why something could not be read or written, in a few words."""
    text = one_line(error)
    if "No space left" in text or getattr(error, "errno", 0) == errno.ENOSPC:
        return "the disk is full"
    return f"{type(error).__name__}: {text[:120]}"


class NewestAndBest:
    """What Orbax asks, when a save has been committed, which checkpoints to keep."""

    def __init__(self, newest: int):
        self._newest = newest
        self.ranking: Sequence[int] = ()

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each of them whether it stays."""
        saved = sorted(info.step for info in checkpoints)
        best = next((step for step in self.ranking if step in saved), None)
        return [info.step in saved[-self._newest :] or info.step == best for info in checkpoints]
