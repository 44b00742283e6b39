"""Runs cells as processes of `cutnmix_jax.main`, some at once; every run writes and continues its own folder."""

import ctypes
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from cutnmix_jax import lock, metrics, seeds
from cutnmix_jax.errors import StoppedError, UsageError, of_exit_code
from scripts.paper.cells import HEADLINE, Cell

LOG = "log.txt"
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


class Job(NamedTuple):
    """A cell that is being trained."""

    cell: Cell
    process: subprocess.Popen
    slot: int
    begun: float


def results_of(cell: Cell) -> dict[str, Any] | None:
    """What a finished run came to; None where there is none, or one of another length in its folder."""
    results = metrics.read_results(cell.workdir)
    return results if results and results.get("epochs") == cell.epochs else None


def run(cells: Sequence[Cell], jobs: int, devices: Sequence[str]) -> None:
    """Trains what is not finished.

    Args:
      cells: teachers before those they teach.
      jobs: how many at once.
      devices: GPUs that the jobs are spread over; none: all see all.

    Raises:
      StoppedError: by a signal; the cells have saved.
      UserError: cells have failed; all others are done.
    """
    waiting = [cell for cell in cells if not results_of(cell)]
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    running: list[Job] = []
    failed: dict[Cell, int] = {}
    stop = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        for job in running:
            job.process.send_signal(signal.SIGTERM)

    handlers = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while running or (waiting and not stop):
            while not stop and len(running) < jobs and (cell := _next(waiting, running, failed)):
                slot = min(set(range(jobs)) - {job.slot for job in running})
                running.append(
                    Job(cell, _start(cell, devices[slot % len(devices)] if devices else ""), slot, time.monotonic())
                )
                if stop:  # the signal came before the process was listed
                    running[-1].process.send_signal(signal.SIGTERM)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                _say(job, {} if stop else failed, sum(results_of(cell) is not None for cell in cells), len(cells))
            time.sleep(0.1)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop:
        raise StoppedError("stopped; what was trained is saved, the same command continues")
    if failed:
        names = "; ".join(f"{cell.name} (exit code {code}, see {cell.workdir / LOG})" for cell, code in failed.items())
        raise of_exit_code(next(iter(failed.values())))(f"{len(failed)} cells failed: {names}")


def _next(waiting: list[Cell], running: Sequence[Job], failed: dict[Cell, int]) -> Cell | None:
    """Takes the first cell out whose teacher, if it has one, is there; one whose teacher will never be there fails."""
    expected = {cell.workdir for cell in waiting} | {job.cell.workdir for job in running}
    for cell in list(waiting):
        if not cell.teacher or metrics.read_results(cell.teacher):
            waiting.remove(cell)
            return cell
        if cell.teacher not in expected:
            waiting.remove(cell)
            failed[cell] = UsageError.exit_code
            print(f"left out: {cell.name}: no finished run of its teacher in {cell.teacher}", flush=True)
    return None


def _start(cell: Cell, device: str) -> subprocess.Popen:
    cell.workdir.mkdir(parents=True, exist_ok=True)
    # A run that outlived the one who started it may still be saving.
    lock.wait(cell.workdir, seconds=60)
    environment = {"CUDA_VISIBLE_DEVICES": device} if device else {}
    with Path(cell.workdir, LOG).open("a") as log:
        return seeds.start(cell.arguments, log, environment, before=functools.partial(_end_with_parent, os.getpid()))


def _end_with_parent(parent: int) -> None:
    """Lets Linux stop the run, which then saves, when this process is killed; elsewhere it would go on."""
    if sys.platform == "linux":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent's handler would swallow it until the run begins
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM)
        if os.getppid() != parent:  # it died before it could be asked for
            os._exit(1)


def _say(job: Job, failed: dict[Cell, int], done: int, count: int) -> None:
    code, seconds = job.process.returncode, time.monotonic() - job.begun
    results = results_of(job.cell)
    if code == 0 and results:
        accuracy = 100 * results["last"][HEADLINE.get(job.cell.row, "accuracy")]
        print(f"[{done}/{count}] {job.cell.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
    elif code not in (StoppedError.exit_code, -signal.SIGTERM):  # the latter before it had anything to save
        failed[job.cell] = code
        last = (Path(job.cell.workdir, LOG).read_text(errors="replace").splitlines() or [""])[-1]
        print(f"failed: {job.cell.name}: exit code {code}: {last}", flush=True)
