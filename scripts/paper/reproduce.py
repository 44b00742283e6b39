"""Trains every cell of a table of the paper, as many at once as asked for, and then writes the table.

  scripts/reproduce table1                                    9 methods x 6 backbones x 2 data sets x 3 seeds
  scripts/reproduce table2|fig1|ablations
  scripts/reproduce table1 --dry-run                          what is done, and how long the rest will take
  scripts/reproduce table1 --datasets=cifar100 --backbones=resnet32 --methods=baseline,cutnmix --seeds=95
  scripts/reproduce table1 --methods=all                      every row that there is
  scripts/reproduce table1 --jobs=4 --devices=0,1             four runs at once on two GPUs
  scripts/reproduce table1 --preset=mini                      the machinery on embedded data: no reproduction

The same command again goes on: finished cells are left alone, half-finished ones continue. Ctrl-C stops and saves. A
cell that fails is named at the end and the others are trained. --cell=K trains the K-th alone; scripts/reproduce.sbatch
uses it for Slurm.
"""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from cutnmix_jax import metrics
from cutnmix_jax.errors import CommandLine, UsageError, exit_code_of
from scripts.paper import launch, report
from scripts.paper.cells import TABLES, Cell, Choice, cells_of, parse, seeds_of


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("scripts.paper.reproduce", "Trains every cell of a table of the paper.", __doc__ or "")
    parser.prog = "scripts/reproduce"
    add_choice(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and an estimate, and train nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many cells at once")
    parser.add_argument("--devices", help="numbers of the GPUs that the jobs take turns on, as 0,1")
    parser.add_argument("--cell", type=int, metavar="K", help="train the K-th cell of --dry-run alone")
    return parser.parse_args()


def add_choice(parser: argparse.ArgumentParser) -> None:
    """The arguments that say which cells."""
    parser.add_argument("table", choices=tuple(TABLES))
    parser.add_argument("--datasets", metavar="A,B")
    parser.add_argument("--backbones", metavar="A,B")
    parser.add_argument("--methods", metavar="A,B", help="rows of configs/common.py, or ablations; all: every row")
    parser.add_argument("--seeds", metavar="95,96,97")
    parser.add_argument("--epochs", type=int, default=0, help="instead of 240; milestones and ramp-ups in proportion")
    parser.add_argument(
        "--preset", choices=("mini",), help="embedded data, a tiny network, few epochs: no reproduction"
    )
    parser.add_argument("--data_dir", default="", help="where tfds keeps its data")
    parser.add_argument("--runs", help="the folder of all runs (runs; runs/mini for the preset)")
    parser.add_argument("--out", help="where the table goes (tables in the folder of the runs)")


def choice_of(known: argparse.Namespace) -> Choice:
    """Which cells the command line asks for.

    Raises:
      UsageError: a number makes no sense.
    """
    if known.epochs < 0:
        raise UsageError(f"--epochs={known.epochs}: must be at least 1")
    mini = known.preset == "mini"
    return Choice(
        table=known.table,
        datasets=parse(known.datasets),
        backbones=parse(known.backbones),
        variants=parse(known.methods),
        seeds=seeds_of(parse(known.seeds)),
        epochs=known.epochs,
        mini=mini,
        data_dir=known.data_dir,
        runs=Path(known.runs or ("runs/mini" if mini else "runs")),
    )


def main() -> None:
    """Trains what the command line says."""
    known = arguments()
    choice = choice_of(known)
    cells = cells_of(choice)
    if known.jobs < 1:
        raise UsageError(f"--jobs={known.jobs}: must be at least 1")
    if known.cell is not None:
        if not 1 <= known.cell <= len(cells):
            raise UsageError(f"--cell={known.cell}: there are cells 1 to {len(cells)}")
        cells = cells[known.cell - 1 : known.cell]
    if choice.mini:
        print("preset mini: a tiny network on embedded digits, to see the machinery; no reproduction of the paper")
    if known.dry_run:
        show(cells, known.jobs)
        return
    try:
        launch.run(cells, known.jobs, parse(known.devices))
    finally:
        if known.cell is None:  # cells of an array would write the same files at the same time
            report.write(choice, Path(known.out) if known.out else choice.runs / "tables")


def show(cells: list[Cell], jobs: int) -> None:
    """Prints every cell with what is done of it, and how long the rest will take by what was measured."""
    rest, unknown = 0.0, 0
    measured = [(cell, seconds) for cell in cells if (seconds := seconds_per_epoch(cell)) is not None]
    for number, cell in enumerate(cells, start=1):
        done, epochs = progress(cell)
        alike = [
            s
            for other, s in measured
            if (other.dataset, other.backbone, other.row) == (cell.dataset, cell.backbone, cell.row)
        ]
        alike = alike or [
            s for other, s in measured if (other.dataset, other.backbone) == (cell.dataset, cell.backbone)
        ]
        left = sum(alike) / len(alike) * (epochs - done) if alike else None
        if done < epochs:
            rest, unknown = rest + (left or 0), unknown + (left is None)
        state = "done" if done == epochs else f"{done}/{epochs} epochs"
        about = "" if done == epochs else f", about {clock(left)} left" if left is not None else ""
        print(f"{number:4}  {cell.name}: {state}{about}")
    finished = sum(progress(cell)[0] == progress(cell)[1] for cell in cells)
    print(f"{finished} of {len(cells)} cells done; about {clock(rest / jobs)} left with {jobs} at once", end="")
    print(f", not counting {unknown} cells whose like was never run" if unknown else "")


def progress(cell: Cell) -> tuple[int, int]:
    """Epochs done and epochs in all."""
    if launch.results_of(cell):
        return cell.epochs, cell.epochs
    return min(len(metrics.read_rows(cell.workdir / "metrics.jsonl")), cell.epochs - 1), cell.epochs


def seconds_per_epoch(cell: Cell) -> float | None:
    """What an epoch of it took, the first one, which compiles, left out where there are more."""
    rows = metrics.read_rows(cell.workdir / "metrics.jsonl")
    seconds = [row["seconds"] for row in rows[1:] or rows]
    return sum(seconds) / len(seconds) if seconds else None


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
