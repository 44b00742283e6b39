"""What is changed of the whole process for a while, by several threads at once: undone in any order, nothing is left.

Warnings and loggers belong to the process, and to restore what was found undoes, where two threads overlap, the change
of the other one, or keeps it for good. So each change here is taken back by itself, or when the last one ends.
"""

import contextlib
import logging
import re
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple


class Shared:
    """A change that several threads may want at once: made for the first, undone after the last."""

    def __init__(self, change: Callable[[], contextlib.AbstractContextManager]):
        """`change` makes it when it is entered, and undoes it when it is left."""
        self._change, self._lock, self._count = change, threading.Lock(), 0
        self._undo = contextlib.ExitStack()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While entered, the change holds."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def enter(self) -> None:
        """Wants it from here on."""
        with self._lock:
            if not self._count:
                self._undo.enter_context(self._change())
            self._count += 1

    def leave(self) -> None:
        """Wants it no more."""
        with self._lock:
            self._count -= 1
            if not self._count:
                self._undo.close()


class Heard(NamedTuple):
    """Who is told of a warning in the place of the person.

    Attributes:
      message: a pattern that its text begins with.
      thread: in which it is raised; None is any.
      by: is called with the text.
    """

    message: re.Pattern
    thread: int | None
    by: Callable[[str], None]


_LOCK = threading.RLock()
_HEARD: list[Heard] = []
_FILTERS: Counter = Counter()  # of those that are wanted now
_LEVELS: dict[str, tuple[int, list[int]]] = {}  # the name of a logger -> its own level, and those that are wanted


@contextlib.contextmanager
def ignored(message: str = "", category: type[Warning] = Warning, module: str = "") -> Iterator[None]:
    """While entered, warnings are not shown; arguments as of `warnings.filterwarnings`."""
    with _filtered("ignore", message, category, module):
        yield


@contextlib.contextmanager
def heard(message: str, by: Callable[[str], None], own_thread: bool = False) -> Iterator[None]:
    """While entered, somebody is told of certain warnings, each time, whatever is asked for otherwise.

    Args:
      message: a pattern that the text of a warning begins with.
      by: is called with the text, in the place of what shows a warning.
      own_thread: leave alone what other threads warn of.
    """
    one = Heard(re.compile(message), threading.get_ident() if own_thread else None, by)
    with _HOOK.held(), _filtered("always", message, Warning, ""):
        _HEARD.append(one)
        try:
            yield
        finally:
            _HEARD.remove(one)


@contextlib.contextmanager
def quieter(name: str, level: int) -> Iterator[None]:
    """While entered, a logger and those below it drop what is less than a level."""
    logger = logging.getLogger(name)
    with _LOCK:
        own, wanted = _LEVELS.setdefault(name, (logger.level, []))
        wanted.append(level)
        logger.setLevel(max(own, *wanted))
    try:
        yield
    finally:
        with _LOCK:
            wanted.remove(level)
            logger.setLevel(max([own, *wanted]))
            if not wanted:
                del _LEVELS[name]


@contextlib.contextmanager
def _filtered(action: Any, message: str, category: type[Warning], module: str) -> Iterator[None]:
    with _LOCK:
        warnings.filterwarnings(action, message, category, module)
        one = warnings.filters[0]
        _FILTERS[one] += 1
    try:
        yield
    finally:
        with _LOCK:
            _FILTERS[one] -= 1
            if not _FILTERS[one]:
                with contextlib.suppress(ValueError):  # undone already by a `catch_warnings` around us that has ended
                    warnings.filters.remove(one)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _hooked() -> Iterator[None]:
    otherwise = warnings.showwarning

    def show(message: Warning | str, *where: Any, **more: Any) -> None:
        text, thread = str(message), threading.get_ident()
        for one in reversed(_HEARD):
            if one.thread in (None, thread) and one.message.match(text):
                one.by(text)
                return
        otherwise(message, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = otherwise


_HOOK = Shared(_hooked)
