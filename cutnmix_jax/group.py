"""Several processes that train one run: how they come together, what they say to each other, and how they end.

The first one leads: it alone has the run's folder, and tells the others what to do next. What they say goes through the
store of `jax.distributed`, which the first process serves.
"""

import contextlib
import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax._src import distributed  # the store has no other name

from cutnmix_jax.errors import GONE, StoppedError, UsageError, UserError, described, one_line
from cutnmix_jax.signals import Stop

AUTO, ON = "auto", "on"  # how processes find each other
SILENT_SECONDS = 30  # after which a process that says nothing is taken for dead
START_SECONDS = 300  # in which all have to have started
PREPARE_SECONDS = 3600  # in which all have to have their data, and then the compiled step
_LOOK_SECONDS = 0.5
_KEPT = 1000  # commands that nobody needs any more; without end they would fill memory
_COMMAND, _SAID = "cutnmix/command/", "cutnmix/said/"


class Joining(NamedTuple):
    """How the processes of a run find each other.

    Attributes:
      how: `auto` as Slurm, Open MPI or Kubernetes tell, `on` by what follows.
      coordinator: HOST:PORT of the first one.
      processes: how many there are.
      process: which of them this is, from 0.
    """

    how: str
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None


class Group:
    """The processes of a run, as one of them sees them."""

    def __init__(self) -> None:
        self.index, self.count = jax.process_index(), jax.process_count()
        self.stop_asked = False
        self._client: Any = distributed.global_state.client
        self._sent = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, *command: Any) -> None:
        """Tells the others what to do next; of the first process."""
        self._client.key_value_set(f"{_COMMAND}{self._sent}", json.dumps(command))
        if self._sent >= _KEPT:
            self._client.key_value_delete(f"{_COMMAND}{self._sent - _KEPT}")
        self._sent += 1

    def commands(self, stop: Stop) -> Iterator[list[Any]]:
        """What the first process tells, one after the other; where this one is told to stop, it asks that one to.

        Raises:
          LostError: the first process has gone.
        """
        asked = False
        for number in range(sys.maxsize):
            while True:
                if stop.requested and not asked:
                    asked = True
                    self._say("stop", {})
                with contextlib.suppress(TimeoutError):
                    yield json.loads(self._get(f"{_COMMAND}{number}", _LOOK_SECONDS))
                    break

    def introduce(self, facts: dict[str, Any]) -> None:
        """Says what this process is about to train, to be compared by the first one."""
        self._client.key_value_set(f"cutnmix/member/{self.index}", json.dumps({"host": platform.node(), **facts}))

    def members(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """What the others have said of themselves; waits for it.

        Raises:
          UsageError: one says nothing in an hour.
        """
        for index in range(1, self.count):
            yield index, json.loads(self._of(index, "member", "read its data"))

    def _of(self, index: int, key: str, what: str) -> str:
        """What another process has said under a key; waits for it."""
        try:
            return self._get(f"cutnmix/{key}/{index}", PREPARE_SECONDS)
        except TimeoutError as error:
            said = f"process {index} of {self.count} has not {what} in {PREPARE_SECONDS} s; look at what it prints"
            raise UsageError(said) from error

    def meet(self) -> None:
        """Says that this process has come as far; the first one waits for the others, who wait for what it tells then.

        Raises:
          UsageError: one does not come in an hour.
        """
        if self.index:
            self._client.key_value_set(f"cutnmix/met/{self.index}", "")
            return
        for index in range(1, self.count):
            self._of(index, "met", "compiled the step")

    def failed(self, code: int, why: str) -> None:
        """Says that this process ends for a reason of its own, with which no other can go on."""
        self._say("failed", {"process": self.index, "host": platform.node(), "code": code, "why": why})

    def _say(self, name: str, value: dict[str, Any]) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another one was faster, or all have ended
            self._client.key_value_set(f"{_SAID}{name}", json.dumps(value))

    def _get(self, key: str, seconds: float) -> str:
        """The value of a key once it is there.

        Raises:
          TimeoutError: it does not come in time.
          LostError: the store has gone.
        """
        try:
            return self._client.blocking_key_value_get(key, round(1000 * seconds))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" in str(error):
                raise TimeoutError from error
            raise LostError(described(error, 120)) from error

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            try:
                found = dict(self._client.key_value_dir_get(_SAID))
            except jax.errors.JaxRuntimeError:  # it does not answer now; JAX ends this process where it never does
                continue
            said = {key.rpartition("/")[2]: json.loads(value) for key, value in found.items()}
            self.stop_asked |= "stop" in said
            if (other := said.get("failed")) and other["process"] != self.index:
                what = f"process {other['process']} on {other['host']} has ended with exit code {other['code']}"
                print(f"error: {what}: {other['why']}", file=sys.stderr, flush=True)
                time.sleep(2 * _LOOK_SECONDS)  # in which the others see it, too; the store ends with the first one
                os._exit(other["code"])


class LostError(StoppedError):
    """Another process of the run cannot be reached any more; the message says what JAX has said."""

    def __init__(self, said: str) -> None:
        super().__init__(f"{GONE} ({said})")


@contextlib.contextmanager
def joined(joining: Joining) -> Iterator[Group]:
    """While entered, this process is one of those of a run.

    Raises:
      UsageError: they do not find each other.
    """
    _check_port(joining)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from us
    many = f"{joining.processes} processes" if joining.processes else "the processes of the run"
    where = f" at {joining.coordinator}" if joining.coordinator else ""
    print(f"waiting for {many} to meet{where}, for {START_SECONDS // 60} minutes at most", flush=True)
    try:
        jax.distributed.initialize(
            joining.coordinator,
            joining.processes,
            joining.process,
            # Or JAX would look at Slurm all the same, and take one GPU of those that the process sees.
            cluster_detection_method="deactivate" if joining.how == ON else None,
            initialization_timeout=START_SECONDS,
            heartbeat_timeout_seconds=SILENT_SECONDS,
            shutdown_timeout_seconds=SILENT_SECONDS,
        )
    except (ValueError, RuntimeError, OSError) as error:
        raise _not_joined(joining, error) from error
    group = Group()
    try:
        yield group
    except UserError as error:
        # The store ends with the first process, which therefore waits for the others to have heard of it.
        if group.index == 0 and not isinstance(error, LostError):
            _leave()
        raise
    _leave()


def _check_port(joining: Joining) -> None:
    """Raises UsageError where the first process cannot listen: JAX would share the port and end the run that has it."""
    if not joining.coordinator:
        return
    host, _, port = joining.coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--coordinator={joining.coordinator}: give HOST:PORT, a port from 1024 to 65535")
    if joining.process:
        return
    try:
        with contextlib.closing(socket.socket()) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a run before may linger
            tried.bind(("", int(port)))
    except OSError as error:
        what = f"--coordinator={joining.coordinator}: nobody can listen at that port here ({one_line(error)})"
        raise UsageError(f"{what}; another run may have it, give each its own") from error


def _leave() -> None:
    with contextlib.suppress(RuntimeError):  # one of the others has gone without a word; this one has done its part
        jax.distributed.shutdown()


def _not_joined(joining: Joining, error: Exception) -> UsageError:
    flags = "--distributed=on --coordinator=HOST:PORT --processes=N --process=I"
    if isinstance(error, ValueError) and joining.how == AUTO:
        return UsageError(f"--distributed=auto: no Slurm, Open MPI or Kubernetes tells of processes here; {flags}")
    where = joining.coordinator or "the first process"
    return UsageError(f"the processes of the run do not come together at {where} ({described(error)}); {flags}")
