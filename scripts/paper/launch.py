"""Runs cells as processes of `cutnmix_jax.main`, some at once; every run writes and continues its own folder."""

import functools
import signal
import subprocess
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple

from cutnmix_jax import files, finished, folder, lock, seeds, signals
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError, UserError, of_exit_code, one_line
from cutnmix_jax.settings import command_line, tree
from scripts.paper import progress
from scripts.paper.cells import HEADLINE, Cell
from scripts.paper.progress import LOG, Started

_CUT_OFF = (StoppedError.exit_code, -signal.SIGTERM, signals.AT_ONCE)  # the second before Python could listen


class Job(NamedTuple):
    """A run that goes on, its process, and the place among those at once that it holds."""

    run: Started
    process: subprocess.Popen
    slot: int

    @property
    def cell(self) -> Cell:
        """What is trained."""
        return self.run.cell


def results_of(cell: Cell) -> dict[str, Any] | None:
    """What a finished run came to; None where there is none, or one of another configuration in its folder."""
    results = finished.read(cell.workdir)
    return results if results and not other_fields(cell) else None


def other_fields(cell: Cell) -> list[str]:
    """Each field in which the run in a cell's folder is not the one that the cell asks for."""
    asked = _asked(cell.arguments)
    results, why_not = finished.look(cell.workdir)
    if why_not:
        return [why_not]
    if results and HEADLINE.get(cell.row, "accuracy") not in results["last"]:
        return [f"it has no {HEADLINE[cell.row]}"]
    try:
        held = files.read_fields(cell.workdir / finished.CONFIG)
        if files.kind(cell.workdir / folder.FORCED):
            return ["its fields were changed by --force"]
    except (OSError, ValueError, CheckpointError) as error:
        return [f"its {finished.CONFIG} cannot be read: {one_line(error)}"]
    changed = list(map(str, tree.changes(held, asked)))
    if cell.teacher and results:
        teacher = finished.read(cell.teacher.workdir) or {}
        if results.get("teacher_sha256", asked["teacher"]) != teacher.get("weights_sha256", held.get("teacher")):
            changed.append(f"it was taught by another run than the one in {cell.teacher.workdir}")
    return changed


@functools.cache  # a cell is looked at several times, and to read a configuration takes 8 ms
def _asked(arguments: tuple[str, ...]) -> dict[str, Any]:
    """The fields that the arguments of a cell ask for; not to be changed."""
    file, *overrides = (argument for argument in arguments if not argument.startswith("--workdir="))
    return tree.of_settings(command_line.from_flags(file.removeprefix("--config="), overrides))


def left_out(cells: Sequence[Cell]) -> str:
    """A line about results that are in the place of cells and are not theirs; empty where there are none."""
    with_results = (cell for cell in cells if any(finished.look(cell.workdir)))
    others = [(cell, changed[0]) for cell in with_results if (changed := other_fields(cell))]
    if not others:
        return ""
    (cell, change), count = others[0], len(others)
    runs = f"results of {count} other runs, the first" if count > 1 else "results of another run"
    return f"left out: {runs} in {cell.workdir} ({change[:300]})"


def run(cells: Sequence[Cell], jobs: int, devices: Sequence[str]) -> None:
    """Trains what is not finished.

    Args:
      cells: teachers before those they teach.
      jobs: how many at once.
      devices: GPUs that the jobs are spread over, from `devices.chosen`; none: all see all.

    Raises:
      StoppedError: by a signal; the cells have saved.
      UserError: cells have failed; all others are done.
    """
    waiting = [cell for cell in cells if not results_of(cell)]
    print(f"{len(cells) - len(waiting)} of {len(cells)} cells are done", flush=True)
    running: list[Job] = []
    failed: dict[Cell, UserError] = {}
    resumed: set[Cell] = set()
    stop = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal stop
        stop = True
        for job in running:
            job.process.send_signal(signal.SIGTERM)

    def done() -> int:
        return len(cells) - len(waiting) - len(running) - len(failed)

    handlers = {number: signal.signal(number, pass_on) for number in signals.heard()}
    try:
        with progress.Display() as display:
            while running or (waiting and not stop):
                while not stop and len(running) < jobs and (cell := _next(waiting, running, failed)):
                    slot = min(set(range(jobs)) - {job.slot for job in running})
                    try:
                        logged = progress.size(cell.workdir / LOG)
                        process = _start(cell, devices[slot % len(devices)] if devices else "")
                    except OSError as error:
                        _fail(cell, UsageError(f"cannot start in {cell.workdir}: {error.strerror}"), failed, "failed")
                        continue
                    except CheckpointError as error:
                        _fail(cell, error, failed, "failed")
                        continue
                    running.append(Job(Started(cell, time.monotonic(), logged), process, slot))
                    if stop:  # the signal came before the process was listed
                        process.send_signal(signal.SIGTERM)
                    print(f"started: {cell.name}, log in {cell.workdir / LOG}", flush=True)
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode in _CUT_OFF and (stop or job.cell not in resumed):
                        # What somebody else stopped goes on, but once, because they may mean it.
                        resumed.add(job.cell)
                        waiting.insert(0, job.cell)
                        if not stop:
                            print(f"stopped from elsewhere, started again: {job.cell.name}", flush=True)
                    else:
                        _say(job, failed, done(), len(cells))
                display.update([job.run for job in running], done(), len(cells))
                time.sleep(0.1)
    finally:
        for job in running:  # none goes on unseen if something failed here
            job.process.terminate()
            job.process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if stop:
        raise StoppedError("stopped; what was trained is saved, the same command continues")
    if failed:
        names = "; ".join(f"{cell.name} ({error})" for cell, error in failed.items())
        raise type(next(iter(failed.values())))(f"{len(failed)} cells failed: {names}")


def _next(waiting: list[Cell], running: Sequence[Job], failed: dict[Cell, UserError]) -> Cell | None:
    """Takes the first cell out whose teacher, if it has one, is there; one whose teacher will never be there fails."""
    expected = {*waiting, *(job.cell for job in running)}
    for cell in list(waiting):
        if cell.teacher in expected:
            continue
        waiting.remove(cell)
        if not cell.teacher or results_of(cell.teacher):
            return cell
        expected.remove(cell)
        why = f"no finished run of its teacher in {cell.teacher.workdir}"
        if any(finished.look(cell.teacher.workdir)):
            why += f", but results of another one ({other_fields(cell.teacher)[0]})"
        _fail(cell, UsageError(why), failed, "left out")
    return None


def _fail(cell: Cell, error: UserError, failed: dict[Cell, UserError], how: str) -> None:
    failed[cell] = error
    print(f"{how}: {cell.name}: {error}", flush=True)


def _start(cell: Cell, device: str) -> subprocess.Popen:
    cell.workdir.mkdir(parents=True, exist_ok=True)
    # A run that outlived the one who started it may still be saving.
    lock.wait(cell.workdir, seconds=60)
    # The numbers are nvidia-smi's, and so by the bus; CUDA alone would count the fastest card first.
    environment = {"CUDA_VISIBLE_DEVICES": device, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if device else {}
    with files.append(cell.workdir / LOG) as log:
        return seeds.start(cell.arguments, log, environment)


def _say(job: Job, failed: dict[Cell, UserError], done: int, count: int) -> None:
    code, seconds = job.process.returncode, time.monotonic() - job.run.begun
    results = results_of(job.cell)
    if code == 0 and results:
        accuracy = 100 * results["last"][HEADLINE.get(job.cell.row, "accuracy")]
        print(f"[{done}/{count}] {job.cell.name}: {accuracy:.2f} % in {seconds:.0f} s", flush=True)
        return
    log = job.cell.workdir / LOG
    failed[job.cell] = of_exit_code(code)(f"exit code {code}, see {log}")
    last = (progress.last_lines(log) or [""])[-1]
    print(f"failed: {job.cell.name}: exit code {code}: {last}", flush=True)
