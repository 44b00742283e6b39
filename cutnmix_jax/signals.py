"""Stopping on request: a first signal lets the call in progress end and be saved, a second one ends the process."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Protocol

from cutnmix_jax.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)  # the last one of a terminal that is closed
AT_ONCE = 130  # exit code after a second signal
# What a process that was asked to stop may end with; the second one before Python could listen.
CUT_OFF = (StoppedError.exit_code, -signal.SIGTERM, AT_ONCE)
ONE_REQUEST_SECONDS = 1.0  # a scheduler and the parent that passes it on may both send the same request

_STOPPING = b"stopping: what has begun, steps or compiling, is finished and saved; once more to end at once\n"
_SHOW_CURSOR = b"\x1b[?25h"


class Stop(Protocol):
    """What a run asks whether it is to stop."""

    @property
    def requested(self) -> bool:
        """Whether it is."""

    def defer(self) -> None:
        """From now on there is something to save."""


class StopRequest:
    """While entered, listens to SIGINT, SIGTERM, SIGUSR1 and SIGHUP, or to some of them only.

    The first one sets `requested`. One that comes more than a second later is for whoever listened before: Ctrl-C then
    is a KeyboardInterrupt as ever.

    With `own_process`, of a command that is all that its process does, the first one ends the process with exit code 75
    as long as there is nothing new to save, and the later one with 130. Both do so whatever the main thread is in, a
    long compilation for instance: a thread reads the signals from Python's wake-up pipe. What is on disk is always
    whole, so ending so is as harmless as a SIGKILL.
    """

    def __init__(
        self, own_process: bool = False, only: Sequence[signal.Signals] = SIGNALS, says: bytes = _STOPPING
    ) -> None:
        self._says = says
        self.requested: bool = False
        self._own_process = own_process
        self._only = only
        self._deferred = False
        self._first: float | None = None

    def __enter__(self) -> "StopRequest":
        self._hears = threading.current_thread() is threading.main_thread()  # Python lets no other thread listen
        if not self._hears:
            return self
        self._before = {number: signal.signal(number, self._request) for number in heard() if number in self._only}
        if not self._own_process:
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._read,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._hears:
            return
        for number, handler in self._before.items():
            # Asked once, the process is about to end: the same request, passed on by somebody, must not change how.
            signal.signal(number, signal.SIG_IGN if self.requested and self._own_process else handler)
        if not self._own_process:
            return
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._write)  # ends the thread, which closes the other end

    def defer(self) -> None:
        """From now on there is something to save: the first signal only sets `requested`."""
        self._deferred = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        if self._own_process:  # the thread does the rest
            return
        now = time.monotonic()
        if self._first is None:
            self._first = now
            _tell(self._says)
        elif now - self._first > ONE_REQUEST_SECONDS:
            signal.signal(number, self._before[signal.Signals(number)])
            signal.raise_signal(number)

    def _watch(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            if not set(numbers) & set(SIGNALS):
                continue
            now = time.monotonic()
            if self._first is None:
                self._first = now
                if not self._deferred:
                    what = "stopped before a new step was trained; the same command begins where this one did"
                    _end(what, StoppedError.exit_code)
                _tell(self._says)
            elif now - self._first > ONE_REQUEST_SECONDS:
                _end("stopped at once; the same command continues from what was saved before", AT_ONCE)
        os.close(pipe)


def heard() -> list[signal.Signals]:
    """The signals to listen to: what `nohup` has turned off stays so."""
    return [number for number in SIGNALS if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]


def end(code: int) -> NoReturn:
    """Ends the process, which has done what it was for, at once.

    Threads that a library left behind, of a save that failed for instance, are not waited for: that can take minutes.
    """
    for number in SIGNALS:  # a stop that comes now comes too late to change the exit code
        signal.signal(number, signal.SIG_IGN)
    os._exit(code)


def _end(message: str, code: int) -> None:
    if os.isatty(1):
        _tell(_SHOW_CURSOR, 1)
    _tell(f"{message}\n".encode())
    os._exit(code)


def _tell(message: bytes, file: int = 2) -> None:
    """Writes past Python's streams, whose locks the main thread may hold, and waits for no reader that has stopped."""

    def write() -> None:
        with suppress(OSError):
            os.write(file, message)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    writer.join(0.2)
