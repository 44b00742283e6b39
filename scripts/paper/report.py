"""Writes a table from the folders of its runs: Markdown, CSV, LaTeX and pictures.

  scripts/report table1                        from runs/, into runs/tables/
  scripts/report table1 --preset=mini
  scripts/report fig1 --runs=DIR --out=DIR

Whatever runs are there: missing cells stay empty.
"""

import csv
import io
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cutnmix_jax import files, metrics
from cutnmix_jax.errors import CommandLine
from scripts.paper import figures, launch, options
from scripts.paper.cells import (
    HEADLINE,
    TABLES,
    Cell,
    Choice,
    Key,
    cells_of,
    columns_of,
    datasets_of,
    paper_number,
    rows_of,
    title,
)

MISSING = "—"
# What has a meaning of its own in LaTeX, and how it is written.
_LATEX = {character: f"\\{character}" for character in "_%&#${}"} | {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "\n": " ", "\r": " ",
}  # fmt: skip


class Found(NamedTuple):
    """What the finished seeds of a cell of a table came to, accuracies in %.

    Attributes:
      cell: one of its runs, for the names.
      seeds: that are finished.
      last: accuracy of the last epoch, per seed.
      best: of the best epoch of each.
      paper: mean and deviation in the paper, if it has them.
      results: the `results.json` of each seed.
    """

    cell: Cell
    seeds: tuple[int, ...]
    last: tuple[float, ...]
    best: tuple[float, ...]
    paper: tuple[float, float] | None
    results: tuple[dict[str, Any], ...]

    @property
    def mean(self) -> float:
        """Of the last epoch."""
        return statistics.fmean(self.last)


Grid = dict[Key, Found]  # what was found, in the table's order


def gather(choice: Choice) -> Grid:
    """Reads every run of a table that is finished."""
    grouped: dict[Key, list[Cell]] = {}
    for cell in cells_of(choice):
        grouped.setdefault((cell.dataset, cell.backbone, cell.variant), []).append(cell)
    return {key: _found(choice, cells) for key, cells in grouped.items()}


def _found(choice: Choice, cells: Sequence[Cell]) -> Found:
    pairs = [(cell, results) for cell in cells if (results := launch.results_of(cell))]
    head = HEADLINE.get(cells[0].row, "accuracy")
    return Found(
        cell=cells[0],
        seeds=tuple(cell.seed for cell, _ in pairs),
        last=tuple(100 * results["last"][head] for _, results in pairs),
        best=tuple(100 * _best(cell, results, head) for cell, results in pairs),
        paper=None if choice.mini else paper_number(choice, cells[0]),
        results=tuple(results for _, results in pairs),
    )


def _best(cell: Cell, results: dict[str, Any], head: str) -> float:
    """Of all epochs; the best one in `results.json` is that of the peers' mean, and another head's is another."""
    if head == "accuracy":
        return results["best"][head]
    return max(row[f"test/{head}"] for row in metrics.read_rows(cell.workdir / "metrics.jsonl"))


def write(choice: Choice, folder: Path) -> None:
    """Writes the files of a table and says where they are."""
    grid = gather(choice)
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
    if missing := _missing(grid):
        print(missing)
    print("written: " + ", ".join(map(str, written)), flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation (n - 1), the latter where there are two values."""
    if not values:
        return MISSING
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def fewer(grid: Grid, found: Found) -> str:
    """`n = 1` in brackets for a cell that has fewer seeds than another cell of the table, else nothing."""
    n, most = len(found.last), max(len(other.last) for other in grid.values())
    return f" (n = {n})" if 0 < n < most else ""


def rank(grid: Grid, key: Key) -> int | None:
    """0 for the best mean of a column, 1 for the second best, None for any other.

    Only cells of two seeds or more are compared: how far another seed would have moved a single run nobody knows.
    """
    means = {
        variant: round(found.mean, 2)
        for (*where, variant), found in grid.items()
        if tuple(where) == key[:2] and len(found.last) > 1
    }
    order = sorted(set(means.values()), reverse=True)
    place = order.index(means[key[2]]) if key[2] in means else len(order)
    return place if place < 2 <= len(order) else None


def markdown(choice: Choice, grid: Grid) -> str:
    """The table in Markdown: the last epoch and the paper beside it, then the best epoch."""
    parts = [f"# {TABLES[choice.table].title}\n", *_notes(choice, grid)]
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
    text = spread(getattr(found, which))
    if which == "best":
        return text + fewer(grid, found)
    if (place := rank(grid, key)) is not None:
        mark = ("**", "_")[place]
        text = f"{mark}{text}{mark}"
    text += fewer(grid, found)
    if found.paper:
        mean, std = found.paper
        text += f"<br>paper {mean:.2f} ± {std:.2f}" + (f", {found.mean - mean:+.2f}" if found.last else "")
    return text


def _missing(grid: Grid) -> str:
    """How many cells have no finished run; empty where all have one."""
    count = sum(not found.last for found in grid.values())
    return f"{count} of {len(grid)} cells have no finished run" if count else ""


def _notes(choice: Choice, grid: Grid) -> list[str]:
    """What the numbers are, so that the table can stand alone."""
    results = [one for found in grid.values() for one in found.results]
    counts = sorted({len(found.last) for found in grid.values() if found.last})
    notes = []
    if choice.mini:
        notes.append(
            "**No reproduction of the paper**: embedded digits, a tiny network, few epochs; the machinery alone.\n"
        )
    notes.append(
        "Top-1 test accuracy in %, mean over seeds ± standard deviation (n - 1), "
        f"n = {' or '.join(map(str, counts)) or '0'}; mean of the peers, of OKDDip the leader. " + _marks(grid)
    )
    if any(found.paper for found in grid.values()):
        notes.append("Below each number the paper's own, and ours minus it.")
    if missing := _missing(grid):
        notes.append(f"{missing} ({MISSING}).")
    if results:
        kinds = {
            "epochs": sorted({str(one["epochs"]) for one in results}),
            "training images": sorted({str(one["train_examples"]) for one in results}),
            "device": sorted({one["device"] for one in results}),
            "jax": sorted({one["versions"]["jax"] for one in results}),
        }
        notes.append("; ".join(f"{name} {' or '.join(map(_plain, values))}" for name, values in kinds.items()) + ".")
    return notes


def _plain(text: str) -> str:
    """A text out of a run's folder, without what would begin a line, a cell or markup of a table's own."""
    return "".join(character if character.isalnum() or character in " .,+-()/@" else "?" for character in text[:100])


def _marks(grid: Grid) -> str:
    """What the marks of a table say, or why there are none."""
    if all(rank(grid, key) is None for key in grid):
        return "No best one is marked: there are no two to compare of two seeds or more."
    among = " among the cells of two seeds or more" if any(len(found.last) == 1 for found in grid.values()) else ""
    return f"**Best** and _second best_ of a column{among} are marked."


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
        f"% {note.replace('**', '').replace('_', '').strip()}".replace("±", "+-") for note in _notes(choice, grid)
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
    text = spread(found.last).replace(" ± ", " \\pm ")
    if (place := rank(grid, key)) is not None:
        text = (f"\\mathbf{{{text}}}", f"\\underline{{{text}}}")[place]
    return f"${text}$" + fewer(grid, found).replace("n = ", "$n$ = ")


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def main() -> None:
    """Writes the table that the command line names."""
    parser = CommandLine("scripts.paper.report", "Writes a table of the paper from its runs.", __doc__ or "")
    parser.prog = "scripts/report"
    options.add(parser)
    known = parser.parse_args()
    choice = options.choice_of(known)
    write(choice, options.folder_of(known, choice))


if __name__ == "__main__":
    sys.exit(options.exit_code_of(main))
