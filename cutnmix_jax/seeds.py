"""Several seeds at once on one machine, each a process of its own and so the same run as alone.

A step of these networks leaves most of a large GPU idle; what one process does not use, the others do.
"""

import os
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from cutnmix_jax import metrics
from cutnmix_jax.errors import CheckpointError, DataError, DivergedError, StoppedError, UsageError, UserError

_ERRORS = {error.exit_code: error for error in (UsageError, DataError, CheckpointError, DivergedError)}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def parse(text: str) -> list[int]:
    """The seeds of `--seeds=95,96,97`.

    Raises:
      UsageError: they are no whole numbers, or one is there twice.
    """
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds={text}: must be different whole numbers with commas, for instance 95,96,97")
    return seeds


def run(commands: Mapping[int, Sequence[str]], workdirs: Mapping[int, Path]) -> None:
    """Trains all seeds at once and prints what each says, and in the end their mean and deviation.

    Ctrl-C and SIGTERM are passed on: every run saves and stops, and the same command continues all of them.

    Args:
      commands: a seed -> the arguments of `cutnmix_jax.main` that train it.
      workdirs: a seed -> the folder of its run.

    Raises:
      UserError: a run failed, with its exit code; the others were trained to their end.
      StoppedError: they were stopped, and saved.
    """
    # Each process takes the memory that it needs, not three quarters of the card.
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ, "PYTHONUNBUFFERED": "1"}
    processes = {
        seed: subprocess.Popen(
            [sys.executable, "-m", "cutnmix_jax.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            start_new_session=True,  # signals come from here alone, so none comes twice
        )
        for seed, arguments in commands.items()
    }

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _SIGNALS}
    try:
        readers = [threading.Thread(target=_echo, args=(seed, process)) for seed, process in processes.items()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        codes = {seed: process.wait() for seed, process in processes.items()}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    _raise_for(codes)
    _show(workdirs)


def _echo(seed: int, process: subprocess.Popen) -> None:
    assert process.stdout
    for line in process.stdout:
        print(f"seed {seed} | {line}", end="", flush=True)


def _raise_for(codes: Mapping[int, int]) -> None:
    for seed, code in codes.items():
        if code not in (0, StoppedError.exit_code):
            raise _ERRORS.get(code, UserError)(f"seed {seed} ended with exit code {code}; see its lines above")
    if any(codes.values()):
        stopped = ", ".join(str(seed) for seed, code in codes.items() if code)
        raise StoppedError(f"stopped and saved: seeds {stopped}; the same command continues")


def _show(workdirs: Mapping[int, Path]) -> None:
    last = {}
    for seed, folder in workdirs.items():
        results = metrics.read_results(folder)
        if results:
            last[seed] = 100 * results["last"]["accuracy"]
    each = ", ".join(f"seed {seed} {accuracy:.2f}" for seed, accuracy in last.items())
    print(f"test accuracy of the last epoch, %, mean of peers: {each}")
    if len(last) > 1:
        mean, spread = statistics.fmean(last.values()), statistics.stdev(last.values())
        print(f"mean {mean:.2f}, standard deviation {spread:.2f} (n - 1), n {len(last)}", flush=True)
