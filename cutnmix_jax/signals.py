"""Stopping on request: a first signal lets the call in progress end and be saved, a second one ends the process."""

import os
import signal
import sys
import threading
import time
from types import FrameType

from cutnmix_jax.errors import StoppedError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
AT_ONCE = 130  # exit code after a second signal
ONE_REQUEST_SECONDS = 1.0  # a scheduler and the parent that passes it on may both send the same request

_SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """While entered, listens to SIGINT, SIGTERM and SIGUSR1.

    The first one sets `requested`, or, as long as there is nothing new to save, ends the process with exit code 75. One
    that comes more than a second later ends it with exit code 130. Both take effect at once whatever the main thread is
    in, a long compilation for instance: a thread reads the signals from Python's wake-up pipe. What is on disk is
    always whole, so ending so is as harmless as a SIGKILL.
    """

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._first: float | None = None

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._request) for number in SIGNALS}
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._read,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._write)  # ends the thread, which closes the other end

    def defer(self) -> None:
        """From now on there is something to save: the first signal only sets `requested`."""
        self._deferred = True

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self._deferred and not self.requested:
            self.requested = True
            print("stopping: the step in progress is finished and saved; once more to end at once", file=sys.stderr)

    def _watch(self, pipe: int) -> None:
        while numbers := os.read(pipe, 64):
            if not set(numbers) & set(SIGNALS):
                continue
            now = time.monotonic()
            if self._first is None:
                self._first = now
                if not self._deferred:
                    _end(
                        "stopped before anything new was trained; the same command begins again", StoppedError.exit_code
                    )
            elif now - self._first > ONE_REQUEST_SECONDS:
                _end("stopped at once; the same command continues from what was saved before", AT_ONCE)
        os.close(pipe)


def _end(message: str, code: int) -> None:
    # No Python of the main thread runs any more, so nothing here may wait for a lock that it holds.
    if os.isatty(1):
        os.write(1, _SHOW_CURSOR)
    os.write(2, f"{message}\n".encode())
    os._exit(code)
