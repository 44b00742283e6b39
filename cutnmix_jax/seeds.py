"""Several seeds at once on one machine, each a process of its own and so the same run as alone.

One run leaves most of a large GPU idle, and a second core or two of a CPU. On a GPU the processes take turns in slices
of time unless NVIDIA's Multi-Process Service lets their kernels overlap.
"""

import contextlib
import statistics
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from cutnmix_jax import finished, methods, signals
from cutnmix_jax.errors import StoppedError, UsageError, of_exit_code
from cutnmix_jax.pool import Pool


def parse(text: str) -> list[int]:
    """The seeds of `--seeds=95,96,97`.

    Raises:
      UsageError: they are no whole numbers, or one is there twice.
    """
    seeds: list[int] = []
    with contextlib.suppress(ValueError):
        seeds = [int(part) for part in text.split(",")]
    if not seeds or len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds={text}: must be different whole numbers with commas, for instance 95,96,97")
    return seeds


def run(commands: Mapping[int, Sequence[str]], workdirs: Mapping[int, Path]) -> None:
    """Trains all seeds at once and prints what each says, and in the end their mean and deviation.

    Signals are passed on, as `Pool` says.

    Args:
      commands: a seed -> the arguments of `cutnmix_jax.main` that train it.
      workdirs: a seed -> the folder of its run.

    Raises:
      UserError: a run failed, with its exit code; the others were trained to their end.
      StoppedError: they were stopped; the same command continues them.
    """
    codes: dict[int, int] = {}
    with Pool[int]() as pool:
        processes = {
            seed: pool.start(seed, arguments, subprocess.PIPE)
            for seed, arguments in commands.items()
            if not pool.stopping
        }
        readers = [threading.Thread(target=_echo, args=(seed, process)) for seed, process in processes.items()]
        for reader in readers:
            reader.start()
        while len(pool) or any(reader.is_alive() for reader in readers):
            codes |= pool.ended()
            time.sleep(0.1)
        stopped = pool.stopping
    end({seed: codes[seed] for seed in processes}, stopped, workdirs)


def _echo(seed: int, process: subprocess.Popen) -> None:
    assert process.stdout
    for line in process.stdout:
        print(f"seed {seed} | {line}", end="", flush=True)


def end(codes: Mapping[int, int], stopped: bool, workdirs: Mapping[int, Path]) -> None:
    """Prints the mean and deviation of runs that have ended, or raises for those that did not end well.

    Args:
      codes: a seed -> the exit code of its run.
      stopped: whether a signal has come.
      workdirs: a seed -> the folder of its run.

    Raises:
      UserError: a run failed, with its exit code.
      StoppedError: they were stopped.
    """
    by_signal = signals.CUT_OFF if stopped else (StoppedError.exit_code,)
    for seed, code in codes.items():
        if code != 0 and code not in by_signal:
            raise of_exit_code(code)(f"seed {seed} ended with exit code {code}; see its lines above")
    if any(codes.values()) or len(codes) < len(workdirs):
        left = ", ".join(str(seed) for seed, code in (dict.fromkeys(workdirs, 1) | dict(codes)).items() if code)
        raise StoppedError(f"stopped; what was trained of seeds {left} is saved, the same command continues")
    _show(workdirs)


def _show(workdirs: Mapping[int, Path]) -> None:
    found = {seed: results for seed, folder in workdirs.items() if (results := finished.read(folder))}
    if not found:
        return
    head = methods.row(next(iter(found.values()))["method"]).headline  # of all: they are alike but for the seed
    last = {seed: 100 * results["last"][head] for seed, results in found.items()}
    whose = "mean of peers" if head == "accuracy" else head.removeprefix("accuracy_").replace("_", " ")
    each = ", ".join(f"seed {seed} {accuracy:.2f}" for seed, accuracy in last.items())
    print(f"test accuracy of the last epoch, %, {whose}: {each}")
    if len(last) > 1:
        mean, spread = statistics.fmean(last.values()), statistics.stdev(last.values())
        print(f"mean {mean:.2f}, standard deviation {spread:.2f} (n - 1), n {len(last)}", flush=True)
