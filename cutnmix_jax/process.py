"""What is changed of the whole process for a while, by several threads at once, and undone in any order.

Warnings and loggers belong to the process, and to restore what was found undoes, where two threads overlap, the change
of the other one, or keeps it for good. So each change here is taken back by itself, or when the last one ends. Other
code still restores: where its `warnings.catch_warnings` in one thread begins before or ends after a change of another
thread, it undoes that early, or brings it back.
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
_LEVELS: dict[str, tuple[int, int, list[int]]] = {}  # of a logger: its own, the one it follows, those that are wanted


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
    with _filtered("always", message, Warning, ""):
        with _LOCK:
            _HEARD.append(one)
            if not isinstance(warnings.showwarning, _Hook):  # nobody's yet, or a `catch_warnings` has put it aside
                warnings.showwarning = _Hook(warnings.showwarning)
        try:
            yield
        finally:
            with _LOCK:
                _HEARD.remove(one)
                while not _HEARD and isinstance(warnings.showwarning, _Hook):
                    warnings.showwarning = warnings.showwarning.otherwise


@contextlib.contextmanager
def quieter(name: str, level: int) -> Iterator[None]:
    """While entered, a logger and those below it drop what is less than a level, and all that they dropped before."""
    logger = logging.getLogger(name)
    with _LOCK:
        own, least, wanted = _LEVELS.setdefault(name, (logger.level, logger.getEffectiveLevel(), []))
        wanted.append(level)
        logger.setLevel(max(least, *wanted))
    try:
        yield
    finally:
        with _LOCK:
            wanted.remove(level)
            logger.setLevel(max(least, *wanted) if wanted else own)
            if not wanted:
                del _LEVELS[name]


@contextlib.contextmanager
def _filtered(action: Any, message: str, category: type[Warning], module: str) -> Iterator[None]:
    # No program has a filter with an empty group in front, so that none of its own is taken for this one.
    message, module = (pattern and f"(?:){pattern}" for pattern in (message, module))
    texts, modules = re.compile(message, re.I) if message else None, re.compile(module) if module else None
    one = (action, texts, category, modules, 0)  # as `filterwarnings` makes it
    with _LOCK:
        warnings.filterwarnings(action, message, category, module)
        _FILTERS[one] += 1
    try:
        yield
    finally:
        with _LOCK:
            _FILTERS[one] -= 1
            if not _FILTERS[one]:
                with contextlib.suppress(ValueError):  # undone by a `catch_warnings` that has ended meanwhile
                    warnings.filters.remove(one)  # type: ignore[attr-defined]


class _Hook:
    """What shows warnings while somebody listens."""

    def __init__(self, otherwise: Callable):
        self.otherwise = otherwise

    def __call__(self, message: Warning | str, *where: Any, **more: Any) -> None:
        text, thread = str(message), threading.get_ident()
        for one in _HEARD[::-1]:  # a copy, because other threads come and go
            if one.thread in (None, thread) and one.message.match(text):
                one.by(text)
                return
        self.otherwise(message, *where, **more)
