"""Trains every cell of a table of the paper, as many at once as asked for, and then writes the table."""

import argparse
import contextlib
import sys

from cutnmix_jax.command import CommandLine
from cutnmix_jax.errors import UsageError
from cutnmix_jax.paper import cluster, devices, elsewhere, here, launch, options, ran, report
from cutnmix_jax.paper.cells import TABLES, Cell, cells_of, no_reproduction
from cutnmix_jax.paper.progress import NOT_KNOWN, clock, rows_of, seconds_per_epoch

EXAMPLES = """  {command} table1                                    9 methods x 6 backbones x 2 data sets x 3 seeds
  {command} table2|fig1|ablations
  {command} table1 --dry-run                          what is done, and how long the rest will take
  {command} table1 --datasets=cifar100 --backbones=resnet32 --methods=baseline,cutnmix --seeds=95
  {command} table1 --methods=all                      every row that there is
  {command} table1 --jobs=4 --devices=0,1             four runs at once on two GPUs
  {command} table1 --on=ray --address=auto --gpus-per-cell=0.25      as tasks of Ray, four on a GPU
  {command} table1 --on=slurm --slurm partition=gpu --slurm time=8:00:00      as arrays of Slurm
  {command} table1 --preset=mini                      the machinery on embedded data: no reproduction

The same command again goes on: finished cells are left alone, half-finished ones continue. Ctrl-C stops and saves. A
cell that fails is named at the end and the others are trained. --cell=K trains the K-th alone; scripts/reproduce.sbatch
uses it for Slurm. docs/clusters.md has more of --on."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("scripts/reproduce", "Trains every cell of a table of the paper.", EXAMPLES)
    parser.add_argument("table", choices=tuple(TABLES))
    options.add(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the cells and an estimate, and train nothing")
    parser.add_argument("--jobs", type=int, help="how many cells at once (1, or one on each of --devices; of --on all)")
    parser.add_argument("--devices", metavar="0,1", help="GPUs that the jobs are spread over, by nvidia-smi's numbers")
    parser.add_argument("--cell", type=int, metavar="K", help="train the K-th cell of --dry-run alone")
    cluster.add(parser)
    return parser.parse_args()


def main() -> None:
    """Trains what the command line says."""
    known = arguments()
    choice = options.choice_of(known)
    cells = cells_of(choice)
    if known.jobs is not None and known.jobs < 1:
        raise UsageError(f"--jobs={known.jobs}: must be at least 1")
    if known.cell is not None:
        if not 1 <= known.cell <= len(cells):
            raise UsageError(f"--cell={known.cell}: there are cells 1 to {len(cells)}")
        cells = cells[known.cell - 1 : known.cell]
    cluster.check(known)
    gpus = devices.chosen(known.devices)
    jobs = known.jobs or (len(cells) if known.on else len(gpus) or 1)
    if choice.mini:
        print(f"preset mini: {no_reproduction(cells)}")
    if known.dry_run:
        show(cells, jobs)
        return
    options.make(choice.runs)
    if known.cell is None:
        options.make(options.folder_of(known, choice))
    with contextlib.ExitStack() as stack:
        # Entered here, so that a cluster that is none is refused before a table is written.
        place = stack.enter_context(cluster.opened(known, choice, cells, jobs) if known.on else here.opened(gpus))
        entered = stack.pop_all()
    try:
        with entered:
            launch.run(cells, jobs, place, elsewhere.HELD_SECONDS if known.on else launch.HELD_SECONDS)
    finally:
        if known.cell is None:  # cells of an array would write the same files at the same time
            report.write(choice, options.folder_of(known, choice))


def show(cells: list[Cell], jobs: int) -> None:
    """Prints every cell with what is done of it, and how long the rest will take by what was measured."""
    unfinished: list[float | None] = []  # seconds that each will take, where known
    measured = [(cell, seconds) for cell in cells if (seconds := seconds_per_epoch(rows_of(cell))) is not None]
    for number, cell in enumerate(cells, start=1):
        done = ran.epochs_done(cell)
        if done == cell.epochs:
            print(f"{number:4}  {cell.name}: done")
            continue
        near = [(other, s) for other, s in measured if (other.dataset, other.backbone) == (cell.dataset, cell.backbone)]
        alike = [s for other, s in near if other.row == cell.row] or [s for _, s in near]
        left = sum(alike) / len(alike) * (cell.epochs - done) if alike else None
        unfinished.append(left)
        about = f"about {clock(left)} left" if left is not None else NOT_KNOWN
        print(f"{number:4}  {cell.name}: {done}/{cell.epochs} epochs, {about}")
    if others := ran.left_out(cells):
        print(others)
    print(f"{len(cells) - len(unfinished)} of {len(cells)} cells done" + _time_left(unfinished, jobs))


def _time_left(unfinished: list[float | None], jobs: int) -> str:
    """What is said of the time that all cells that are not done will take together."""
    known = [seconds for seconds in unfinished if seconds is not None]
    unknown = len(unfinished) - len(known)
    if not unfinished:
        return ""
    if not known:
        return f"; the time left is not known: nothing like {'it' if unknown == 1 else 'them'} was run yet"
    # No cell is shared among jobs, so the longest one is the least that all take.
    about = f"; about {clock(max(sum(known) / jobs, *known))} left with {jobs} at once"
    return about + (f", not counting {unknown} cell{'s'[unknown == 1 :]} whose like was never run" if unknown else "")


if __name__ == "__main__":
    sys.exit(options.exit_code_of(main))
