"""Programs to be timed, each in a process of its own, that take turns; the standard library alone.

A worker prepares, says what it found, and then waits: for `{"steps": n}` it trains n steps and answers with the
seconds, at the end of its input with nothing. Between its turns it does nothing, so several can be compared while the
machine drifts. (PyTorch's tier A makes a few batches ahead.) One line of JSON each way.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

Window = Callable[[int], float]  # a number of steps -> the seconds that they took


def serve(prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], Window, Callable[[], dict[str, Any]]]]) -> None:
    """The worker's side.

    Args:
      prepare: from what to measure, the first argument of the command, to what is known before timing, the function
        that trains for some steps, and one that tells what is known after.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed is no answer

    def answer(**found: Any) -> None:
        answers.write(json.dumps(found) + "\n")

    try:
        found, window, after = prepare(json.loads(sys.argv[1]))
        answer(**found)
        for line in sys.stdin:
            asked = json.loads(line)
            answer(**({"seconds": window(asked["steps"])} if "steps" in asked else after()))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}"[:500])


class Failed(Exception):
    """A worker could not do what it was asked to; says why."""


class Worker(NamedTuple):
    """The other side: a process and what it was asked to measure."""

    name: str
    process: subprocess.Popen
    log: IO[str]

    def ask(self, **request: Any) -> dict[str, Any]:
        """Sends a request, if any, and waits for the answer.

        Raises:
          Failed: the worker failed, or ended.
        """
        assert self.process.stdin and self.process.stdout
        line = ""
        with contextlib.suppress(BrokenPipeError):
            if request:
                self.process.stdin.write(json.dumps(request) + "\n")
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": self._why_it_ended()}
        if "error" in found:
            raise Failed(found["error"])
        return found

    def kill(self) -> None:
        """Ends the process, and those that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and forgets what it printed."""
        self.kill()
        self.process.communicate()
        self.log.close()

    def _why_it_ended(self) -> str:
        self.process.wait()
        return f"ended with {self.process.returncode}: {last_line(self.log)}"


def last_line(log: IO[str]) -> str:
    """What a process that has ended printed last."""
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no message"


def start(
    name: str, python: str, module: str, spec: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Worker:
    """Starts a worker; it prepares while the caller does other things."""
    return of_command(name, [python, "-m", module, json.dumps(spec)], os.environ | dict(environment or {}))


def of_command(name: str, command: Sequence[str], environment: Mapping[str, str]) -> Worker:
    """Starts a process of any command, with these variables alone; one that answers no requests is not to be asked."""
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by the worker
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env=environment,
        start_new_session=True,
    )
    return Worker(name, process, log)


def timed(call: Callable[[int], None], steps: int) -> float:
    """Seconds that a call with a number of steps takes; the call waits for its results."""
    begun = time.perf_counter()
    call(steps)
    return time.perf_counter() - begun
