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

from cutnmix_jax import metrics
from cutnmix_jax.errors import CommandLine, UsageError
from scripts.paper import launch, options, report
from scripts.paper.cells import Cell, cells_of


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("scripts.paper.reproduce", "Trains every cell of a table of the paper.", __doc__ or "")
    parser.prog = "scripts/reproduce"
    options.add(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and an estimate, and train nothing")
    parser.add_argument("--jobs", type=int, default=1, help="how many cells at once")
    parser.add_argument("--devices", help="numbers of the GPUs that the jobs take turns on, as 0,1")
    parser.add_argument("--cell", type=int, metavar="K", help="train the K-th cell of --dry-run alone")
    return parser.parse_args()


def main() -> None:
    """Trains what the command line says."""
    known = arguments()
    choice = options.choice_of(known)
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
    options.make(choice.runs)
    if known.cell is None:
        options.make(options.folder_of(known, choice))
    try:
        launch.run(cells, known.jobs, options.parse(known.devices))
    finally:
        if known.cell is None:  # cells of an array would write the same files at the same time
            report.write(choice, options.folder_of(known, choice))


def show(cells: list[Cell], jobs: int) -> None:
    """Prints every cell with what is done of it, and how long the rest will take by what was measured."""
    rest, unknown, finished = 0.0, 0, 0
    measured = [(cell, seconds) for cell in cells if (seconds := seconds_per_epoch(cell)) is not None]
    for number, cell in enumerate(cells, start=1):
        done = epochs_done(cell)
        if done == cell.epochs:
            finished += 1
            print(f"{number:4}  {cell.name}: done")
            continue
        near = [(other, s) for other, s in measured if (other.dataset, other.backbone) == (cell.dataset, cell.backbone)]
        alike = [s for other, s in near if other.row == cell.row] or [s for _, s in near]
        left = sum(alike) / len(alike) * (cell.epochs - done) if alike else None
        rest, unknown = rest + (left or 0), unknown + (left is None)
        about = f", about {clock(left)} left" if left is not None else ""
        print(f"{number:4}  {cell.name}: {done}/{cell.epochs} epochs{about}")
    if others := launch.left_out(cells):
        print(others)
    print(f"{finished} of {len(cells)} cells done; about {clock(rest / jobs)} left with {jobs} at once", end="")
    print(f", not counting {unknown} cells whose like was never run" if unknown else "")


def epochs_done(cell: Cell) -> int:
    """How many; all of them only where the results are there too."""
    if launch.results_of(cell):
        return cell.epochs
    return min(len(metrics.read_rows(cell.workdir / "metrics.jsonl")), cell.epochs - 1)


def seconds_per_epoch(cell: Cell) -> float | None:
    """What an epoch of it took, the first one, which compiles, left out where there are more."""
    rows = metrics.read_rows(cell.workdir / "metrics.jsonl")
    seconds = [row["seconds"] for row in rows[1:] or rows]
    return sum(seconds) / len(seconds) if seconds else None


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


if __name__ == "__main__":
    sys.exit(options.exit_code_of(main))
