"""Cells as arrays of Slurm, through submitit; only imported where it is asked for.

What runs is asked of `squeue`, by the name that each array has of its own and that is written down before it is
submitted: so another start of the command finds it again. What has ended well or badly is a file of the cell's job.
"""

import contextlib
import io
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit import helpers
from submitit.core.utils import FailedJobError, FailedSubmissionError

from cutnmix_jax import files, signals
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError, UserError, one_line
from cutnmix_jax.paper import elsewhere, slurm_queue
from cutnmix_jax.paper.cells import Cell
from cutnmix_jax.paper.elsewhere import Order
from cutnmix_jax.paper.place import Ended, Place, Status
from cutnmix_jax.paper.progress import LOG
from cutnmix_jax.paper.slurm_queue import Job

LOOK_SECONDS = 15.0  # between questions to Slurm
KEPT_SECONDS = 86400.0  # that the list of an array of which nothing is left stays, for somebody to look at
PREFIX = "cutnmix-"  # of the name of an array
_ENOUGH_TIMEOUTS = 1_000_000  # a run may take any number of time limits
_DEFAULTS = {"time": "24:00:00", "cpus_per_task": "4", "requeue": True}


class Trained(helpers.Checkpointable):
    """What a job calls. At the time limit, and where Slurm tells of a preemption so, submitit queues it again."""

    def __init__(self, order: Order, answer: Path):
        self._order, self._answer = order, answer
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        """Trains a cell, and writes down how that ended; not where it was stopped, because it is not over then."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(StoppedError.exit_code))
        code, error = 0, ""
        try:
            self._process = elsewhere.begin(self._order)
            code = elsewhere.wait(self._process)
        except UserError as why:
            code, error = why.exit_code, one_line(why)
        if code in signals.CUT_OFF:
            sys.exit(StoppedError.exit_code)
        files.write_json(self._answer, {"code": code, "error": error})

    def checkpoint(self) -> helpers.DelayedSubmission:
        """The same again, after what runs has saved."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which to be queued again brings along
        if self._process:
            self._process.terminate()
            self._process.wait()
        return helpers.DelayedSubmission(Trained(self._order, self._answer))


@contextlib.contextmanager
def opened(cells: Sequence[Cell], folder: Path, jobs: int, gpus: int, options: Mapping[str, str]) -> Iterator[Place]:
    """The place; a signal ends the watching, and the jobs go on.

    Args:
      cells: that may be running already.
      folder: where the files of the jobs lie, on shared storage.
      jobs: the most of an array that run at once.
      gpus: that a cell takes.
      options: more of `sbatch`, by their long names.

    Raises:
      UsageError: there is no Slurm.
    """
    try:
        executor = submitit.SlurmExecutor(folder, max_num_timeout=_ENOUGH_TIMEOUTS)
    except RuntimeError as error:
        raise UsageError(f"--on=slurm: no Slurm is here ({one_line(error)}); give it where sbatch works") from error
    executor.update_parameters(array_parallelism=jobs, stderr_to_stdout=True, setup=_setup())
    running = _found(cells, folder)
    if running:
        print(f"{len(running)} cells are in Slurm since an earlier start of this command", flush=True)
    try:
        with signals.StopRequest(says=b"") as stop:  # nothing is stopped
            yield _place(executor, folder, running, stop, _parameters(gpus, options))
    finally:
        _tell_of(running)


def _tell_of(running: Mapping[Cell, Job]) -> None:
    if running:
        names = ",".join(sorted({job.array for job in running.values()}))
        print(f"{len(running)} cells go on in Slurm; `scancel --name={names}` would stop them", flush=True)


def _parameters(gpus: int, options: Mapping[str, str]) -> dict[str, Any]:
    wanted = {"gres": f"gpu:{gpus}"} if gpus else {}
    return _DEFAULTS | wanted | {name.replace("-", "_"): value for name, value in options.items()}


def _setup() -> list[str]:
    """Lines of the script before its command: what a site may not pass on to a job, and what srun does not see."""
    variables = [f"export {name}={shlex.quote(value)}" for name, value in elsewhere.variables().items()]
    return [*variables, "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK"]


def _place(
    executor: Any, folder: Path, running: dict[Cell, Job], stop: signals.Stop, parameters: dict[str, Any]
) -> Place:
    missed: dict[Cell, int] = {}  # how often in turn Slurm did not know of a cell
    answered: dict[Cell, float] = {}  # when those that are over were seen to be
    queued = set(running)
    looked = float("-inf")

    def place(fresh: Sequence[Cell]) -> Status:
        nonlocal looked
        ended: dict[Cell, Ended] = {}
        if stop.requested:
            return Status(frozenset(), frozenset(), ended, True)
        if fresh:
            asked = _submit(executor, folder, fresh, parameters, ended)
            running.update(asked)
            queued.update(asked)
        if time.monotonic() - looked > LOOK_SECONDS:
            looked = time.monotonic()
            there = slurm_queue.alive({job.array for job in running.values()})
            for cell, job in running.items():
                missed[cell] = 0 if there is None or (job.array, job.number) in there else missed.get(cell, 0) + 1
                how = _how(folder, job, missed[cell] > 1)
                if how and elsewhere.is_settled(cell, how.code, looked - answered.setdefault(cell, looked)):
                    ended[cell] = how
                elif cell in queued and elsewhere.has_begun(_log(cell), job.at, job.mark):
                    queued.remove(cell)
            for cell in ended:
                running.pop(cell, None)
                missed.pop(cell, None)
                answered.pop(cell, None)
                queued.discard(cell)
        return Status(frozenset(running), frozenset(queued), ended, False)

    return place


def _submit(
    executor: Any, folder: Path, cells: Sequence[Cell], parameters: dict[str, Any], ended: dict[Cell, Ended]
) -> dict[Cell, Job]:
    """Submits cells as an array; those whose folders cannot be written have ended.

    Raises:
      UsageError: Slurm does not take them.
    """
    orders, failed = elsewhere.orders(cells)
    ended.update(failed)
    if not orders:
        return {}
    name = PREFIX + uuid.uuid4().hex[:12]
    jobs = {cell: Job(name, number, order.at, order.mark) for number, (cell, order) in enumerate(orders.items())}
    # Before it is submitted: should this process end in between, the jobs are found all the same.
    files.write_json(folder / f"{name}.json", {str(_log(cell)): job._asdict() for cell, job in jobs.items()})
    calls = [Trained(order, _answer(folder, jobs[cell])) for cell, order in orders.items()]
    executor.update_parameters(job_name=name, additional_parameters=parameters)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the error has it, too
            array = executor.submit_array(calls)[0].job_id.partition("_")[0]
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        raise UsageError(f"Slurm does not take the cells: {one_line(error)[:500]}; see --slurm and --jobs") from error
    print(f"submitted: {len(jobs)} cells, job {array}, {name}, logs in {folder}", flush=True)
    return jobs


def _log(cell: Cell) -> Path:
    return cell.workdir.absolute() / LOG


def _answer(folder: Path, job: Job) -> Path:
    return folder / f"{job.array}_{job.number}.json"


def _found(cells: Sequence[Cell], folder: Path) -> dict[Cell, Job]:
    """The cells that earlier starts have submitted and that are not over.

    Raises:
      UsageError: Slurm does not say what runs.
    """
    written = {path.stem: path for path in folder.glob(f"{PREFIX}*.json") if "_" not in path.stem}
    there = slurm_queue.alive(set(written))
    if there is None:
        raise UsageError("squeue does not say what runs, so that cells could be submitted twice; try again later")
    by_log = {str(_log(cell)): cell for cell in cells}
    found: dict[Cell, Job] = {}
    for name, path in written.items():
        with contextlib.suppress(OSError, ValueError, CheckpointError, TypeError):
            jobs = {log: Job(**fields) for log, fields in files.read_fields(path).items()}
            found |= {by_log[log]: job for log, job in jobs.items() if log in by_log and (name, job.number) in there}
            if name not in {array for array, _ in there} and time.time() - path.stat().st_mtime > KEPT_SECONDS:
                path.unlink()
    return found


def _how(folder: Path, job: Job, gone: bool) -> Ended | None:
    """How a job has ended; None where it has not.

    Raises:
      UsageError: its machine cannot train; the others may, and go on.
    """
    answer: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, CheckpointError):
        answer = files.read_fields(_answer(folder, job))
    if answer:
        if answer["error"]:
            raise UsageError(answer["error"])
        return Ended(answer["code"])
    if not gone:
        return None
    state = slurm_queue.state(job)
    if state.startswith("CANCELLED"):
        return Ended(75, UsageError("cancelled in Slurm; the same command submits it again"))
    return Ended(75, lost=f"gone from Slurm ({state or 'why is not known'})")
