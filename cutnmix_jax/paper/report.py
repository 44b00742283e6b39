"""Writes a table from the folders of its runs, as Markdown, CSV, LaTeX and pictures; or compares any runs."""

import argparse
import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import command, files
from cutnmix_jax.command import CommandLine, given
from cutnmix_jax.errors import UsageError, nearest, printable
from cutnmix_jax.paper import compare, figures, grids, options, ran, runs
from cutnmix_jax.paper.cells import TABLES, Choice, Key, cells_of, columns_of, datasets_of, rows_of, title
from cutnmix_jax.paper.grids import Grid

# What has a meaning of its own in LaTeX, and how it is written.
_LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
}  # fmt: skip

EXAMPLES = """  {command} table1                        from runs/, into runs/tables/
  {command} table1 --preset=mini
  {command} fig1 --runs=DIR --out=DIR
  {command} runs/digits/resnet8            compares all runs below a folder
  {command} runs/one runs/two --out=DIR    likewise, with comparison.csv, .md and .png in DIR

Of a table whatever runs are there: cells without a finished one stay empty, or say how far it is. Of other runs those
that differ in nothing but the seed are a group, with mean and deviation; runs that are not finished are in no mean. A
folder with the name of a table is ./NAME."""


def write(choice: Choice, folder: Path) -> None:
    """Writes the files of a table and says where they are."""
    grid = grids.gather(choice)
    options.make(folder)
    name = choice.table + ("_mini" if choice.mini else "")
    written = [folder / f"{name}.md", folder / f"{name}.csv", folder / f"{name}.tex"]
    values = io.StringIO()
    csv.writer(values).writerows(rows_of_csv(grid))
    for path, text in zip(written, (markdown(choice, grid), values.getvalue(), latex(choice, grid)), strict=True):
        files.write(path, text)
    heading = TABLES[choice.table].title + (" (mini: no reproduction)" if choice.mini else "")
    if any(found.last for found in grid.values()):
        picture = folder / f"{name}.png"
        if choice.table == "fig1":
            figures.curves(picture, heading, grid)
            picture = folder / f"{name}_accuracy.png"
            written.append(folder / f"{name}.png")
        figures.accuracies(picture, heading, grid)
        written.append(picture)
    if others := ran.left_out(cells_of(choice)):
        print(others)
    if missing := grids.missing(grid):
        print(missing)
    print("written: " + ", ".join(map(str, written)), flush=True)


def markdown(choice: Choice, grid: Grid) -> str:
    """The table in Markdown: the last epoch and the paper beside it, then the best epoch."""
    parts = [f"# {TABLES[choice.table].title}\n", *grids.notes(choice, grid)]
    for dataset in datasets_of(grid):
        backbones = columns_of(grid, dataset)
        for which in ("last", "best"):
            parts.append(f"\n## {title(dataset)}, {which} epoch\n")
            parts.append("| method | " + " | ".join(map(title, backbones)) + " |")
            parts.append("|---|" + "---|" * len(backbones))
            for variant in rows_of(grid):
                cells = [_markdown_cell(grid, (dataset, backbone, variant), which) for backbone in backbones]
                parts.append(f"| {title(variant)} | " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def _markdown_cell(grid: Grid, key: Key, which: str) -> str:
    found = grid[key]
    text = grids.accuracy(found) if which == "last" else grids.spread(found.best)
    if which == "best":
        return text + grids.fewer(grid, found)
    if (place := grids.rank(grid, key)) is not None:
        mark = ("**", "_")[place]
        text = f"{mark}{text}{mark}"
    text += grids.fewer(grid, found)
    if found.paper:
        mean, std = found.paper
        text += f"<br>paper {mean:.2f} ± {std:.2f}" + (f", {found.mean - mean:+.2f}" if found.last else "")
    return text


def rows_of_csv(grid: Grid) -> list[list[Any]]:
    """A header and a line per cell; what is missing is empty."""
    lines: list[list[Any]] = [
        ["dataset", "backbone", "method", "n", "seeds", "last_mean", "last_std", "best_mean", "best_std",
         "paper_mean", "paper_std", "difference", "epochs", "seconds_mean", "epochs_so_far"]
    ]  # fmt: skip
    for (dataset, backbone, variant), found in grid.items():
        paper = list(found.paper) if found.paper else ["", ""]
        difference = round(found.mean - found.paper[0], 4) if found.paper and found.last else ""
        epochs = " ".join(sorted({str(one["epochs"]) for one in found.results}))
        seconds = round(statistics.fmean(one["seconds"] for one in found.results), 1) if found.results else ""
        lines.append(
            [dataset, backbone, variant, len(found.last), " ".join(map(str, found.seeds)), *_pair(found.last),
             *_pair(found.best), *paper, difference, epochs, seconds, " ".join(map(str, found.begun))]
        )  # fmt: skip
    return lines


def _pair(values: Sequence[float]) -> list[Any]:
    mean = round(statistics.fmean(values), 4) if values else ""
    return [mean, round(statistics.stdev(values), 4) if len(values) > 1 else ""]


def latex(choice: Choice, grid: Grid) -> str:
    """One tabular of booktabs per data set, the last epoch; bold the best, underlined the second best."""
    parts = [f"% {TABLES[choice.table].title}; needs \\usepackage{{booktabs}}"]
    parts += [
        f"% {note.replace('**', '').replace('_', '').strip()}".replace("±", "+-") for note in grids.notes(choice, grid)
    ]
    for dataset in datasets_of(grid):
        backbones = columns_of(grid, dataset)
        parts += [f"\\begin{{tabular}}{{l{'c' * len(backbones)}}}", "\\toprule"]
        parts += [" & ".join([_escaped(title(dataset)), *map(_escaped, map(title, backbones))]) + r" \\", "\\midrule"]
        for variant in rows_of(grid):
            cells = [_latex_cell(grid, (dataset, backbone, variant)) for backbone in backbones]
            parts.append(" & ".join([_escaped(title(variant)), *cells]) + r" \\")
        parts += ["\\bottomrule", "\\end{tabular}"]
    return "\n".join(parts) + "\n"


def _latex_cell(grid: Grid, key: Key) -> str:
    found = grid[key]
    if not found.last:
        return grids.accuracy(found) if found.begun else "---"
    text = grids.spread(found.last).replace(" ± ", " \\pm ")
    if (place := grids.rank(grid, key)) is not None:
        text = (f"\\mathbf{{{text}}}", f"\\underline{{{text}}}")[place]
    return f"${text}$" + grids.fewer(grid, found).replace("n = ", "$n$ = ")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def main() -> None:
    """Writes the table that the command line names, or compares the runs in its folders."""
    what = "Writes a table of the paper from its runs, or compares any runs."
    parser = CommandLine("scripts/report", what, EXAMPLES)
    parser.add_argument(
        "names", nargs="+", type=given, metavar="TABLE|RUN", help=f"{', '.join(TABLES)}, or folders of runs"
    )
    options.add(parser)
    known = parser.parse_intermixed_args()
    known.table, *more = known.names
    if known.table not in TABLES:
        _compare(known, parser)
        return
    if more:
        raise UsageError(f"{known.table} is a table, and stands alone; a folder of that name is ./{known.table}")
    choice = options.choice_of(known)
    write(choice, options.folder_of(known, choice))


def _compare(known: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    for name, value in vars(known).items():
        if name not in ("names", "table", "out") and value != parser.get_default(name):
            raise UsageError(
                f"--{name} chooses cells of a table, and has no meaning with folders of runs; leave it out"
            )
    folders = [command.folder_of(name, "RUN") for name in known.names]
    for folder in folders:
        _check_folder(folder)
    gathered = runs.gather(folders)
    if not gathered.groups:
        raise UsageError(f"no run to compare: {'; '.join(compare.left_out(gathered)[:3])}; give folders of runs")
    compare.show(gathered)
    if known.out:
        compare.write(gathered, command.folder_of(known.out, "--out"))


def _check_folder(folder: Path) -> None:
    name = printable(str(folder))
    if folder.is_dir():
        return
    if folder.exists():
        raise UsageError(f"{name} is no folder; give the folder of a run, or one with runs below it")
    tables = f", and no table of that name; {nearest(name, TABLES)}" if folder.name == str(folder) else ""
    raise UsageError(f"there is no folder {name}{tables or '; give folders of runs, or the name of a table'}")


if __name__ == "__main__":
    sys.exit(options.exit_code_of(main))
