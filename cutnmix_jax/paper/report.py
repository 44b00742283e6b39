"""Writes a table from the folders of its runs: Markdown, CSV, LaTeX and pictures."""

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import files
from cutnmix_jax.command import CommandLine
from cutnmix_jax.paper import figures, grids, launch, options
from cutnmix_jax.paper.cells import TABLES, Choice, Key, cells_of, columns_of, datasets_of, rows_of, title
from cutnmix_jax.paper.grids import Grid

# What has a meaning of its own in LaTeX, and how it is written.
_LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
}  # fmt: skip

EXAMPLES = """  {command} table1                        from runs/, into runs/tables/
  {command} table1 --preset=mini
  {command} fig1 --runs=DIR --out=DIR

Whatever runs are there: missing cells stay empty."""


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
    if others := launch.left_out(cells_of(choice)):
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
    text = grids.spread(getattr(found, which))
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
         "paper_mean", "paper_std", "difference", "epochs", "seconds_mean"]
    ]  # fmt: skip
    for (dataset, backbone, variant), found in grid.items():
        paper = list(found.paper) if found.paper else ["", ""]
        difference = round(found.mean - found.paper[0], 4) if found.paper and found.last else ""
        epochs = " ".join(sorted({str(one["epochs"]) for one in found.results}))
        seconds = round(statistics.fmean(one["seconds"] for one in found.results), 1) if found.results else ""
        lines.append(
            [dataset, backbone, variant, len(found.last), " ".join(map(str, found.seeds)), *_pair(found.last),
             *_pair(found.best), *paper, difference, epochs, seconds]
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
        return "---"
    text = grids.spread(found.last).replace(" ± ", " \\pm ")
    if (place := grids.rank(grid, key)) is not None:
        text = (f"\\mathbf{{{text}}}", f"\\underline{{{text}}}")[place]
    return f"${text}$" + grids.fewer(grid, found).replace("n = ", "$n$ = ")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def main() -> None:
    """Writes the table that the command line names."""
    parser = CommandLine("scripts/report", "Writes a table of the paper from its runs.", EXAMPLES)
    options.add(parser)
    known = parser.parse_args()
    choice = options.choice_of(known)
    write(choice, options.folder_of(known, choice))


if __name__ == "__main__":
    sys.exit(options.exit_code_of(main))
