"""Several seeds at once on one machine, each a process of its own and so the same run as alone.

One run leaves most of a large GPU idle, and a second core or two of a CPU. On a GPU the processes take turns in slices
of time unless NVIDIA's Multi-Process Service lets their kernels overlap.
"""

import ctypes
import functools
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from cutnmix_jax import finished, signals
from cutnmix_jax.errors import StoppedError, UsageError, of_exit_code

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


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

    Ctrl-C, SIGTERM, SIGUSR1 and SIGHUP are passed on: every run saves what it has and stops; a second one, more than a
    second later, ends them at once.

    Args:
      commands: a seed -> the arguments of `cutnmix_jax.main` that train it.
      workdirs: a seed -> the folder of its run.

    Raises:
      UserError: a run failed, with its exit code; the others were trained to their end.
      StoppedError: they were stopped; the same command continues them.
    """
    processes: dict[int, subprocess.Popen] = {}
    requests: list[int] = []  # only noted by the handler: what it would pass on to may just be starting
    before = {number: signal.signal(number, lambda number, _: requests.append(number)) for number in signals.heard()}
    try:
        for seed, arguments in commands.items():
            if not requests:
                processes[seed] = start(arguments, subprocess.PIPE)
        readers = [threading.Thread(target=_echo, args=(seed, process)) for seed, process in processes.items()]
        for reader in readers:
            reader.start()
        passed_on = 0
        while any(reader.is_alive() for reader in readers):
            if len(requests) > passed_on:
                passed_on = len(requests)
                for process in processes.values():
                    process.terminate()
            time.sleep(0.1)
        codes = {seed: process.wait() for seed, process in processes.items()}
    finally:
        for process in processes.values():  # none goes on unseen if something failed here
            process.terminate()
            process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    _raise_for(codes, stopped=bool(requests))
    _show(workdirs)


def start(
    arguments: Sequence[str],
    stdout: int | IO[str],
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen:
    """Starts a run that shares the machine with others.

    Args:
      arguments: of `cutnmix_jax.main`.
      stdout: where what it prints goes, errors too.
      environment: what it is to have besides that of this process.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cutnmix_jax.main", *arguments],
        stdout=stdout,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        # Each process takes the memory that it needs, not three quarters of the card.
        env={
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            **os.environ,
            **(environment or {}),
            "PYTHONUNBUFFERED": "1",
        },
        start_new_session=True,  # signals come from here alone, so none comes twice
        preexec_fn=functools.partial(end_with_parent, os.getpid()),
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


def _echo(seed: int, process: subprocess.Popen) -> None:
    assert process.stdout
    for line in process.stdout:
        print(f"seed {seed} | {line}", end="", flush=True)


def _raise_for(codes: Mapping[int, int], stopped: bool) -> None:
    by_signal = (StoppedError.exit_code, *((-signal.SIGTERM, signals.AT_ONCE) if stopped else ()))
    for seed, code in codes.items():
        if code != 0 and code not in by_signal:
            raise of_exit_code(code)(f"seed {seed} ended with exit code {code}; see its lines above")
    if stopped or any(codes.values()):
        left = ", ".join(str(seed) for seed, code in codes.items() if code)
        raise StoppedError(f"stopped; what was trained of seeds {left} is saved, the same command continues")


def _show(workdirs: Mapping[int, Path]) -> None:
    last = {}
    for seed, folder in workdirs.items():
        results = finished.read(folder)
        if results:
            last[seed] = 100 * results["last"]["accuracy"]
    each = ", ".join(f"seed {seed} {accuracy:.2f}" for seed, accuracy in last.items())
    print(f"test accuracy of the last epoch, %, mean of peers: {each}")
    if len(last) > 1:
        mean, spread = statistics.fmean(last.values()), statistics.stdev(last.values())
        print(f"mean {mean:.2f}, standard deviation {spread:.2f} (n - 1), n {len(last)}", flush=True)
