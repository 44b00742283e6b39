"""What Slurm says of jobs, by the names of their arrays."""

import subprocess
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Job(NamedTuple):
    """A job that is not known to be over.

    Attributes:
      array: its name.
      number: its place in the array.
      at: bytes of the log before the line that asks for it.
      mark: that line.
    """

    array: str
    number: int
    at: int
    mark: str


def alive(arrays: Collection[str]) -> set[tuple[str, int]] | None:
    """Which jobs of arrays wait or run, as names and places; None where Slurm does not say."""
    if not arrays:
        return set()
    lines = _said("squeue", "--noheader", "--array", "--format=%j %K", f"--name={','.join(sorted(arrays))}")
    # A job that is alone in its array is none of an array for Slurm.
    return None if lines is None else {(name, _number(rest)) for name, *rest in map(str.split, lines)}


def _number(rest: Sequence[str]) -> int:
    return int(rest[0]) if rest and rest[0].isdigit() else 0


def state(job: Job) -> str:
    """How Slurm's accounting says that a job has ended, as `NODE_FAIL`; empty where it says nothing."""
    command = ("sacct", "--noheader", "--parsable2", "--allocations", "--starttime=now-2days", "--format=JobID,State")
    states = [line.split("|") for line in _said(*command, f"--name={job.array}") or []]
    return next((state for number, state in states if _number(number.split("_")[1:]) == job.number), "")


def _said(*command: str) -> list[str] | None:
    """The lines that a command of Slurm's prints; None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return [line for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else None
