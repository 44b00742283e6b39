"""Cells as tasks of Ray: one each, of a part of a GPU or more; only imported where it is asked for."""

import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray import exceptions

from cutnmix_jax import signals
from cutnmix_jax.errors import UsageError, UserError, described, one_line
from cutnmix_jax.paper import elsewhere
from cutnmix_jax.paper.cells import Cell
from cutnmix_jax.paper.elsewhere import Order
from cutnmix_jax.paper.place import Ended, Place, Status

LOOK_SECONDS = 1.0  # between looks at the logs of those that wait
_END_SECONDS = 120.0  # for the cells to save in, when the table ends early
_NO_RAY = (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError, exceptions.RayError)
_LOST = (
    exceptions.WorkerCrashedError, exceptions.NodeDiedError, exceptions.OutOfMemoryError, exceptions.ObjectLostError,
    exceptions.LocalRayletDiedError, exceptions.TaskCancelledError, exceptions.TaskUnschedulableError,
)  # fmt: skip


class Answer(NamedTuple):
    """What a task returns: the exit code of its run, and why there was none, where there was none."""

    code: int
    error: str


class Task(NamedTuple):
    """A task that is not over."""

    cell: Cell
    order: Order


@contextlib.contextmanager
def opened(address: str | None, gpus: float | None) -> Iterator[Place]:
    """The place; a signal stops all, and they save.

    Args:
      address: of the Ray, as `HOST:PORT`, or `auto` for the one of this machine; none: as `ray.init` chooses.
      gpus: that a cell takes; 0: it has a CPU alone; none: one, where there are any.

    Raises:
      UsageError: there is no Ray, or no node of it can run a cell.
    """
    _connect(address, elsewhere.variables() | ({"JAX_PLATFORMS": "cpu"} if gpus == 0 else {}))
    tasks: dict[Any, Task] = {}
    try:
        # A worker that dies may leave a run that still saves: when to begin again is seen by its folder, not by Ray.
        remote = ray.remote(num_cpus=1, num_gpus=_gpus(gpus), max_retries=0)(train)
        with signals.StopRequest() as stop:
            yield _place(remote, tasks, stop)
    finally:
        _end(tasks)
        ray.shutdown()


def train(order: Order) -> Answer:
    """In a worker of Ray: trains a cell. A KeyboardInterrupt, which is how Ray cancels, stops it, and it saves."""
    try:
        return Answer(elsewhere.wait(elsewhere.begin(order)), "")
    except UserError as error:
        return Answer(error.exit_code, one_line(error))


def _place(remote: Any, tasks: dict[Any, Task], stop: signals.Stop) -> Place:
    answered: dict[Any, float] = {}  # when the tasks that are over were seen to be
    queued: set[Cell] = set()
    looked, cancelled = 0.0, False

    def place(cells: Sequence[Cell]) -> Status:
        nonlocal looked, cancelled
        orders, ended = elsewhere.orders(cells)
        tasks.update({remote.remote(order): Task(cell, order) for cell, order in orders.items()})
        queued.update(orders)
        if stop.requested and not cancelled:
            cancelled = True
            _cancel(tasks)
        over, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=0) if tasks else ([], [])
        for task in over:
            cell, now = tasks[task].cell, time.monotonic()
            how = _how(task)
            if elsewhere.is_settled(cell, how.code, now - answered.setdefault(task, now)):
                del tasks[task]
                ended[cell] = how
                queued.discard(cell)
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            waiting = [(cell, order) for cell, order in tasks.values() if cell in queued]
            queued.difference_update(cell for cell, o in waiting if elsewhere.has_begun(o.log, o.at, o.mark))
        return Status(frozenset(cell for cell, _ in tasks.values()), frozenset(queued), ended, stop.requested)

    return place


def _how(task: Any) -> Ended:
    """How a task that is over has ended.

    Raises:
      UsageError: its machine cannot train; the others would take cells only to fail with them.
    """
    try:
        answer = ray.get(task)
    except _LOST as error:
        return Ended(75, lost=f"lost with its worker or its node ({type(error).__name__})")
    except exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        why = described(cause).partition(" traceback:")[0]
        raise UsageError(
            f"a worker of Ray cannot run a cell ({why}); all its machines need the same program"
        ) from error
    if answer.error:
        raise UsageError(answer.error)
    lost = "stopped on its node" if answer.code in signals.CUT_OFF else ""
    return Ended(answer.code, lost=lost)


def _connect(address: str | None, variables: dict[str, str]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    there = f"--address={address}: no Ray is there" if address else "no Ray could be started or found"
    mend = "; `ray start --head` starts one, and no --address starts one of this machine for the table alone"
    if address and "://" in address:
        raise UsageError(f"--address={address}: give the command on a machine of the Ray, with --address=auto")
    if address and ":" in address:
        host, _, port = address.rpartition(":")
        try:  # Ray itself tries for a minute, and then may end the process
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, ValueError, OverflowError) as error:
            raise UsageError(f"{there} ({one_line(error)}){mend}") from error
    try:
        with _hushed():
            runtime = {"env_vars": variables}
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=runtime)
    except _NO_RAY as error:
        raise UsageError(f"{there}, or it knows another token ({described(error)}){mend}") from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """While entered, nothing is written to standard error: Ray's own program tells of each try to reach another one."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _gpus(gpus: float | None) -> float:
    """How many GPUs a cell takes.

    Raises:
      UsageError: no node has as many.
    """
    most = max((node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if gpus is not None and gpus > most:
        raise UsageError(f"--gpus-per-cell={gpus:g}: no node of the Ray has as many GPUs; the most is {most:g}")
    return min(1.0, most) if gpus is None else gpus


def _cancel(tasks: dict[Any, Task]) -> None:
    for task in tasks:
        with contextlib.suppress(exceptions.RayError, ValueError):
            ray.cancel(task)


def _end(tasks: dict[Any, Task]) -> None:
    """Stops those that are left, because the table ends by an error, and waits until they have saved."""
    if tasks and ray.is_initialized():
        _cancel(tasks)
        with contextlib.suppress(exceptions.RayError):
            ray.wait(list(tasks), num_returns=len(tasks), timeout=_END_SECONDS)
