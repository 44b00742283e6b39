"""A cell on a machine of a cluster, whatever runs it there: what the machine is told, and what it looks at first."""

import os
import platform
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cutnmix_jax import environment, files, finished, pool
from cutnmix_jax.errors import UsageError, UserError
from cutnmix_jax.paper import progress
from cutnmix_jax.paper.cells import Cell
from cutnmix_jax.paper.place import Ended
from cutnmix_jax.paper.progress import LOG

HELD_SECONDS = 300.0  # that a cell waits for a held folder: a file server keeps the lock of a lost machine for minutes
STALE_SECONDS = 60.0  # after which a shared folder shows to one machine what another one has written
# What a cell would have in a process of the command's own machine; what names a GPU is the cluster's to say.
_PASSED_ON = ("JAX_", "XLA_", "PYTHONPATH", "PYTHONSAFEPATH", "TF_CPP_MIN_LOG_LEVEL", "TFDS_DATA_DIR")


class Order(NamedTuple):
    """What a machine is told of a cell.

    Attributes:
      arguments: of `cutnmix_jax.main`.
      folder: where the command was given, which relative paths mean.
      log: what the run prints goes here, by its whole path.
      mark: a line of the log by which it is known.
      at: bytes before that line.
      host: where the command was given.
      program: what this program is there.
    """

    arguments: tuple[str, ...]
    folder: str
    log: Path
    mark: str
    at: int
    host: str
    program: dict[str, str]


def order(cell: Cell) -> Order:
    """Writes a line into the log of a cell, so that its folder is there and can be told from another one.

    Raises:
      CheckpointError: the log is no file.
      OSError: nothing can be written there.
    """
    cell.workdir.mkdir(parents=True, exist_ok=True)
    log, host = cell.workdir.absolute() / LOG, platform.node()
    at, mark = progress.size(log), f"asked for by {host} at {time.strftime('%Y-%m-%d %H:%M:%S')}, {uuid.uuid4().hex}"
    with files.append(log) as file:
        print(mark, file=file)
    return Order(cell.arguments, str(Path.cwd()), log, mark, at, host, environment.program())


def orders(cells: Sequence[Cell]) -> tuple[dict[Cell, Order], dict[Cell, Ended]]:
    """What a machine is told of each cell; and of those whose folders cannot be written, that they have ended."""
    asked: dict[Cell, Order] = {}
    ended: dict[Cell, Ended] = {}
    for cell in cells:
        try:
            asked[cell] = order(cell)
        except OSError as error:
            ended[cell] = Ended(2, UsageError(f"cannot write in {cell.workdir}: {error.strerror}"))
        except UserError as error:
            ended[cell] = Ended(error.exit_code, error)
    return asked, ended


def variables() -> dict[str, str]:
    """Those of this process that a cell has wherever it runs, of which the machine knows nothing."""
    found = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    if path := found.get("PYTHONPATH"):  # there the current folder is another one
        found["PYTHONPATH"] = os.pathsep.join(str(Path(part).absolute()) for part in path.split(os.pathsep))
    return found


def has_begun(log: Path, at: int, mark: str) -> bool:
    """Whether a machine has written into the log of an order."""
    return progress.size(log) > at + len(mark.encode()) + 1


def begin(order: Order) -> subprocess.Popen:
    """Starts a cell on this machine, as told.

    Raises:
      UsageError: this is another program, or the folder is not seen here.
    """
    host, here = platform.node(), environment.program()
    for name, asked in order.program.items():
        if (held := here.get(name)) != asked:
            raise UsageError(
                f"{host} has {name} {held} and {order.host} has {asked}; all machines need the same program"
            )
    until = time.monotonic() + STALE_SECONDS
    while not _is_seen(order):
        if time.monotonic() > until:
            raise UsageError(
                f"{host} does not see what {order.host} has written in {order.log.parent}; "
                "--runs must name a folder on storage that all machines share"
            )
        time.sleep(1)
    folder = order.folder if Path(order.folder).is_dir() else None
    if not folder and f"--workdir={order.log.parent}" not in order.arguments:
        raise UsageError(f"{host} has no folder {order.folder}, which --runs is relative to; give --runs in full")
    try:
        with files.append(order.log) as log:
            print(f"begun on {host}", file=log, flush=True)
            # Ray's workers kill their children when they end; this one is not the run, which then has time to save.
            return pool.start(order.arguments, log, folder=folder, module="cutnmix_jax.pool")
    except OSError as error:
        raise UsageError(f"{host} cannot start in {order.log.parent}: {error.strerror}") from error


def _is_seen(order: Order) -> bool:
    try:
        with order.log.open("rb") as file:
            file.seek(order.at)
            return file.read(len(order.mark.encode())) == order.mark.encode()
    except OSError:
        return False


def wait(process: subprocess.Popen) -> int:
    """The exit code of a run; whatever ends the wait stops the run, which saves, and is waited for."""
    try:
        while (code := process.poll()) is None:
            time.sleep(0.1)  # and not for the process alone: a request to stop must be heard
        return code
    except BaseException:
        process.terminate()
        process.wait()
        raise


def is_settled(cell: Cell, code: int, seconds: float) -> bool:
    """Whether a cell that ended so many seconds ago can be looked at: its results may not be seen here yet."""
    return code != 0 or seconds > STALE_SECONDS or finished.read(cell.workdir) is not None
