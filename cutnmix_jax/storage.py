"""What the libraries that store things say, in a few words and nothing beside the exception, and what they ask."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import files, process
from cutnmix_jax.errors import CheckpointError, one_line
from cutnmix_jax.layout import DAMAGED, ROWS


def hush() -> contextlib.ExitStack:
    """Silences what they print; closed, or left as a context, what is returned undoes that.

    Orbax and TensorStore tell of every save as a warning and of a failed one with tracebacks, Matplotlib of a cache
    folder that it cannot write in, and of each letter of a class's name that its font lacks.
    """
    _HUSHED.enter()
    undo = contextlib.ExitStack()
    undo.callback(_HUSHED.leave)
    return undo


def _hushed() -> contextlib.ExitStack:
    undo, otherwise = contextlib.ExitStack(), sys.unraisablehook

    def unraisable(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":  # left by each read or write of Orbax that failed
            otherwise(raised)

    for name in ("absl", "asyncio", "matplotlib"):
        undo.enter_context(process.quieter(name, logging.CRITICAL))
    undo.enter_context(process.ignored("coroutine .* was never awaited", RuntimeWarning))
    undo.enter_context(process.ignored("Glyph .* missing from", UserWarning))
    undo.callback(setattr, sys, "unraisablehook", otherwise)
    sys.unraisablehook = unraisable
    return undo


_HUSHED = process.Shared(_hushed)


def reason(error: Exception) -> str:
    """Why something could not be read or written, in a few words."""
    text = one_line(error)
    if "No space left" in text or getattr(error, "errno", 0) == errno.ENOSPC:
        return "the disk is full"
    return f"{type(error).__name__}: {text[:120]}"


def put_damaged_aside(checkpoints: Path, step: int) -> Path:
    """Moves a checkpoint to `checkpoints-damaged`, beside the folder that it is in; returns where it is now.

    Raises:
      CheckpointError: it cannot be moved, because it is on a disk of its own for instance.
    """
    damaged = checkpoints.with_name(DAMAGED)
    try:
        damaged.mkdir(exist_ok=True)
        target = files.put_aside(checkpoints / str(step), damaged / str(step))
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint of step {step} in {checkpoints} is damaged and cannot be moved to {damaged} "
            f"({error.strerror}); move it away"
        ) from error
    with contextlib.suppress(OSError, CheckpointError):  # of use to somebody who mends it by hand
        files.write(target.with_name(f"metrics-{target.name}.jsonl"), files.read(checkpoints.with_name(ROWS)))
    return target


class Place:
    """A folder for a library that knows names alone: what it writes goes where the folder is, not where it was."""

    def __init__(self, folder: Path):
        """Holds the folder; only Linux has names for what is held, elsewhere it is the folder's own."""
        self._number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) if folder.is_dir() else None
        held = Path(f"/proc/self/fd/{self._number}")
        self.path = held if self._number is not None and held.is_dir() else folder

    def close(self) -> None:
        """Lets it go; the name is of no use any more."""
        number, self._number = self._number, None
        if number is not None:
            os.close(number)


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
