"""Standard output and error that no run can end for, and logging that is left to the program around this one."""

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_GONE = (errno.EPIPE, errno.EIO, errno.EBADF)  # a reader that ended, a terminal that was closed


@contextlib.contextmanager
def unbreakable() -> Iterator[None]:
    """While entered, output that cannot be written is lost, and nothing else: no training ends for want of a reader."""
    _open_closed()
    before = sys.stdout, sys.stderr
    ours = sys.stdout, sys.stderr = _Unbreakable(before[0]), _Unbreakable(before[1])
    try:
        yield
    finally:
        for stream in ours:
            stream.flush()
            stream.as_before()
        _given_back(ours, before)


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Takes back what absl's log, which Orbax and tfds write to, adds to the root logger where nothing is there.

    With a handler there a program's own `logging.basicConfig` would do nothing, without a word. Those that the program
    itself adds meanwhile, in another thread, stay; but for that of a bare `basicConfig()`, which is as absl's.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        yield
    finally:
        added = [handler for handler in root.handlers if handler not in before and _is_plain(handler)]
        for handler in added if root.level == level else ():  # which absl leaves as it is
            root.removeHandler(handler)


def _is_plain(handler: logging.Handler) -> bool:
    """Whether it is as `logging.basicConfig()` makes one, which is what absl calls."""
    form = handler.formatter
    return type(handler) is logging.StreamHandler and form is not None and form._fmt == logging.BASIC_FORMAT


@contextlib.contextmanager
def labelled() -> Iterator[Callable[[str], contextlib.AbstractContextManager[None]]]:
    """While entered, threads can put a label before each line that they print; with errors, all on standard output.

    Yields:
      `label(text)`, a context within which that holds for the thread it is entered in.
    """
    before, lock = (sys.stdout, sys.stderr), threading.Lock()
    labels: dict[int, str] = {}
    ours = sys.stdout, sys.stderr = tuple(_Labelled(stream, before[0], labels, lock) for stream in before)

    @contextlib.contextmanager
    def label(text: str) -> Iterator[None]:
        labels[threading.get_ident()] = text
        try:
            yield
        finally:
            del labels[threading.get_ident()]

    try:
        yield label
    finally:
        _given_back(ours, before)


def _given_back(ours: tuple[Any, ...], before: tuple[Any, Any]) -> None:
    """Standard output and error as they were, but for one that somebody else's code, say a network's, has replaced."""
    for name, own, old in zip(("stdout", "stderr"), ours, before, strict=True):
        if getattr(sys, name) is own:
            setattr(sys, name, old)


def _open_closed() -> None:
    """Opens nothing in the place of what was closed by `>&-`; or a file of the run would be standard error."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", closefd=False))  # noqa: PTH123, SIM115


class _Labelled:
    """A stream whose lines begin with the label of the thread that prints them, where it has one."""

    def __init__(self, stream: Any, common: Any, labels: dict[int, str], lock: threading.Lock):
        self._stream, self._common, self._labels, self._lock = stream, common, labels, lock
        self._begun: dict[int, str] = {}

    def isatty(self) -> bool:  # no bars, of which a terminal has one at a time
        return False

    def write(self, text: str) -> int:
        thread = threading.get_ident()
        if (label := self._labels.get(thread)) is None:
            return self._stream.write(text)
        *lines, begun = (self._begun.pop(thread, "") + text).split("\n")
        if begun:
            self._begun[thread] = begun
        with self._lock:
            for line in lines:
                self._common.write(f"{label}{line}\n")
            self._common.flush()
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Unbreakable:
    """A stream that forgets what it cannot write."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._errors = getattr(stream, "errors", None)
        self._set_errors("backslashreplace")  # a name that its encoding lacks is written as an escape

    def _set_errors(self, errors: str | None) -> None:
        if hasattr(self._stream, "reconfigure"):
            self._stream.reconfigure(errors=errors)

    def as_before(self) -> None:
        """Gives the stream back."""
        self._set_errors(self._errors)

    def write(self, text: str) -> int:
        self._tried(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, call: Callable[..., Any], *text: str) -> None:
        try:
            call(*text)
        except OSError as error:
            # What waits in the buffer would be tried again at the end of the process, and fail it. The file of a full
            # disk is kept: there may be room again.
            if error.errno in _GONE:
                with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                    os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
