"""The arguments that scripts/reproduce and scripts/report share: which cells, and where their runs and tables lie."""

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path

from cutnmix_jax import command, seeds
from cutnmix_jax.command import given, values_of
from cutnmix_jax.errors import UsageError
from cutnmix_jax.paper.cells import Choice


def add(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which cells of a table."""
    parser.add_argument("--datasets", type=given, metavar="A,B")
    parser.add_argument("--backbones", type=given, metavar="A,B")
    parser.add_argument(
        "--methods", type=given, metavar="A,B", help="rows of `train --list=methods`, or ablations; all: every row"
    )
    parser.add_argument("--seeds", type=given, metavar="95,96,97")
    parser.add_argument("--epochs", type=int, help="instead of 240; milestones and ramp-ups in proportion")
    parser.add_argument(
        "--preset", choices=("mini",), help="embedded data, a tiny network, few epochs: no reproduction"
    )
    parser.add_argument("--data_dir", type=given, help="where tfds keeps its data")
    parser.add_argument("--runs", type=given, help="the folder of all runs (runs; runs/mini for the preset)")
    parser.add_argument(
        "--out",
        type=given,
        help="where files go (tables in the folder of the runs; a comparison is only printed without it)",
    )


def choice_of(known: argparse.Namespace) -> Choice:
    """Which cells the command line asks for.

    Raises:
      UsageError: a number makes no sense.
      OSError: the runs are in no folder.
    """
    if known.epochs is not None and known.epochs < 1:
        raise UsageError(f"--epochs={known.epochs}: must be at least 1")
    mini = known.preset == "mini"
    runs = command.folder_of(known.runs or ("runs/mini" if mini else "runs"), "--runs")
    if not next(place for place in (runs.absolute(), *runs.absolute().parents) if place.exists()).is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(runs))  # or all cells would be missing
    return Choice(
        table=known.table,
        datasets=values_of(known.datasets),
        backbones=values_of(known.backbones),
        variants=values_of(known.methods),
        seeds=tuple(seeds.parse(known.seeds)) if known.seeds else (),
        epochs=known.epochs,
        mini=mini,
        data_dir=known.data_dir,
        runs=runs,
    )


def folder_of(known: argparse.Namespace, choice: Choice) -> Path:
    """Where the table goes."""
    return command.folder_of(known.out, "--out") if known.out else choice.runs / "tables"


def make(folder: Path) -> None:
    """Makes a folder of `--runs` or `--out`, so that one that cannot be written is told before anything is trained.

    Raises:
      UsageError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write in {folder}; choose other folders with --runs and --out")


def exit_code_of(run: Callable[[], None]) -> int:
    """Like that of `cutnmix_jax.command`, for a command whose files lie in the folders of these arguments."""

    def blaming_folders() -> None:
        try:
            run()
        except OSError as error:
            if error.filename is None:  # no file: who reads what is printed has gone, for instance
                raise
            raise UsageError(
                f"cannot read or write {error.filename}: {error.strerror}; choose other folders with --runs and --out"
            ) from error

    return command.exit_code_of(blaming_folders)
