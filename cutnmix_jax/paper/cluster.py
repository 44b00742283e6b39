"""What a command line says of a cluster, and the place that it means; Ray and submitit are imported only on request."""

import argparse
import contextlib
import importlib.util
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from cutnmix_jax import lock
from cutnmix_jax.command import given
from cutnmix_jax.errors import UsageError
from cutnmix_jax.paper import options
from cutnmix_jax.paper.cells import Cell, Choice
from cutnmix_jax.paper.place import Place

FOLDER = "cluster"  # below that of the runs: what belongs to no cell
_LIBRARIES = {"ray": "ray", "slurm": "submitit"}
_OURS = ("array", "job-name")  # options of sbatch, by which cells are found again


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments that say where cells run."""
    parser.add_argument("--on", choices=tuple(_LIBRARIES), help="train on a cluster; processes here without it")
    parser.add_argument("--address", type=given, metavar="HOST:PORT", help="of the Ray; auto: the one of this machine")
    parser.add_argument("--gpus-per-cell", type=float, metavar="G", help="1, or 0.25 for four cells on a GPU (Ray)")
    parser.add_argument(
        "--slurm", action="append", default=[], metavar="NAME=VALUE", help="an option of sbatch; may be given again"
    )


def check(known: argparse.Namespace) -> None:
    """Refuses what does not go together, before anything is made.

    Raises:
      UsageError: something does not, or a library is missing.
    """
    for flag, on in (("address", ("ray",)), ("slurm", ("slurm",)), ("gpus_per_cell", tuple(_LIBRARIES))):
        value = getattr(known, flag)
        if value not in (None, []) and known.on not in on:
            raise UsageError(f"--{flag.replace('_', '-')} goes with --on={' or --on='.join(on)}")
    if not known.on:
        return
    for flag in ("devices", "cell"):
        if getattr(known, flag) is not None:
            raise UsageError(f"--{flag} does not go with --on={known.on}, which gives cells their machines itself")
    gpus = known.gpus_per_cell
    if gpus is not None and not (math.isfinite(gpus) and (0 <= gpus < 1 or gpus == int(gpus) > 0)):
        raise UsageError(f"--gpus-per-cell={gpus:g}: must be a whole number, or a part of one, for instance 0.25")
    if known.on == "slurm" and gpus not in (None, int(gpus or 0)):
        raise UsageError(f"--gpus-per-cell={gpus:g}: Slurm gives whole GPUs; docs/clusters.md says what shares one")
    for option in known.slurm:
        name, _, value = option.partition("=")
        if not name or not value or name.replace("_", "-") in _OURS:
            what = f"a long option of sbatch but {' and '.join(_OURS)}, as partition=gpu"
            raise UsageError(f"--slurm {option}: must be NAME=VALUE, {what}")
    if not importlib.util.find_spec(library := _LIBRARIES[known.on]):
        in_clone = (Path(__file__).parents[2] / "requirements-cluster.txt").is_file()
        what = "-r requirements-cluster.txt" if in_clone else f"'cutnmix_jax[{known.on}]'"
        raise UsageError(f"--on={known.on} needs {library}: run `{sys.executable} -m pip install {what}`")


@contextlib.contextmanager
def opened(known: argparse.Namespace, choice: Choice, cells: Sequence[Cell], jobs: int) -> Iterator[Place]:
    """The place that the command line means, after `check`.

    Raises:
      UsageError: it is none, or another command trains the same table.
    """
    folder = choice.runs.absolute() / FOLDER / (choice.table + ("_mini" if choice.mini else ""))
    options.make(folder)
    with (
        lock.held(folder, "watch that command, which trains the same table"),
        _place(known, cells, folder, jobs) as place,
    ):
        yield place


def _place(known: argparse.Namespace, cells: Sequence[Cell], folder: Path, jobs: int) -> AbstractContextManager[Place]:
    if known.on == "ray":
        from cutnmix_jax.paper import on_ray

        return on_ray.opened(known.address, known.gpus_per_cell)
    from cutnmix_jax.paper import on_slurm

    named = {name: value for name, _, value in (option.partition("=") for option in known.slurm)}
    gpus = 1 if known.gpus_per_cell is None else int(known.gpus_per_cell)
    return on_slurm.opened(cells, folder, jobs, gpus, named)
