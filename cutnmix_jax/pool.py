"""Runs as processes of their own that share one machine: started, told to stop together, and never left behind."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Hashable, Mapping, Sequence
from typing import IO, Any, Generic, TypeVar

from cutnmix_jax import signals

Key = TypeVar("Key", bound=Hashable)
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Pool(Generic[Key]):
    """Processes of runs, by a key for each.

    While entered, Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are passed on to all of them by `ended`: every run saves what it
    has and stops; a second one, more than a second later, ends them at once. At the end those that are left are stopped
    and waited for.
    """

    def __init__(self) -> None:
        self._processes: dict[Key, subprocess.Popen] = {}
        self._requests: list[int] = []  # only noted by the handler: what it would pass on to may just be starting
        self._passed_on = 0

    def __enter__(self) -> "Pool[Key]":
        self._before = {
            number: signal.signal(number, lambda number, _: self._requests.append(number)) for number in signals.heard()
        }
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():  # they save at the same time
            process.wait()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def stopping(self) -> bool:
        """Whether a signal has come."""
        return bool(self._requests)

    def start(
        self, key: Key, arguments: Sequence[str], stdout: int | IO[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen:
        """Starts a run.

        Args:
          key: by which `ended` tells of it.
          arguments: of `cutnmix_jax.main`.
          stdout: where what it prints goes, errors too.
          environment: what it is to have besides that of this process.

        Raises:
          OSError: it cannot be started.
        """
        process = self._processes[key] = start(arguments, stdout, environment)
        if self.stopping:  # the signal came before the process was listed
            process.terminate()
        return process

    def ended(self) -> dict[Key, int]:
        """The exit codes of those that have ended since the last call; passes signals on before."""
        if len(self._requests) > self._passed_on:
            self._passed_on = len(self._requests)
            for process in self._processes.values():
                process.terminate()
        codes = {key: code for key, process in self._processes.items() if (code := process.poll()) is not None}
        for key in codes:
            del self._processes[key]
        return codes

    def __len__(self) -> int:
        return len(self._processes)


def start(
    arguments: Sequence[str],
    stdout: int | IO[str] | None,
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    module: str = "cutnmix_jax.main",
) -> subprocess.Popen:
    """Starts a run that shares the machine with others; see `Pool.start`.

    Args:
      arguments: of the module.
      stdout: see there.
      environment: likewise.
      folder: to run in, if not the current one.
      module: `cutnmix_jax.pool` for a process between that outlives its child; see `between`.
    """
    # Each process takes the memory that it needs, not three quarters of the card.
    own = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, **(environment or {}), "PYTHONUNBUFFERED": "1"}
    return child(arguments, module, stdout=stdout, stderr=subprocess.STDOUT, cwd=folder, env=own)


def child(arguments: Sequence[str], module: str = "cutnmix_jax.main", **how: Any) -> subprocess.Popen:
    """Starts a module of this program as a process that this one alone signals, and that does not outlive it."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        text=True,
        errors="replace",
        start_new_session=True,  # so no signal of a terminal comes twice
        preexec_fn=functools.partial(end_with_parent, os.getpid()),
        **how,
    )


def end_with_parent(parent: int) -> None:
    """Lets Linux stop a run, which then saves, when its parent is killed; elsewhere it would go on.

    Args:
      parent: the process that starts the run, in which this is called.
    """
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would swallow it until the run begins
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)


def between(arguments: Sequence[str]) -> int:
    """Runs a run as a child of its own, for a parent that kills its children at once when it ends, as Ray's workers do.

    The run is told of its parent's death, and saves. A SIGTERM is passed on.

    Args:
      arguments: of `cutnmix_jax.main`.

    Returns:
      The exit code; a signal that ended the run ends this process, too.
    """
    process = start(arguments, None)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    code = process.wait()
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(between(sys.argv[1:]))
