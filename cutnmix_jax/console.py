"""What a person sees while a run goes on: a summary, progress, a table."""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 10.0  # between lines where there is no terminal
REFRESH_SECONDS = 0.5


def summary(lines: Mapping[str, str]) -> None:
    """Prints what is about to be trained, a name and a value on each line."""
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}", flush=True)


def warn(message: str) -> None:
    """One line that training can go on without."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class Display:
    """Progress over all steps of a run: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, done_steps: int, images_per_step: int):
        """Starts to count at `done_steps`."""
        console = Console()
        self._live = console.is_terminal
        self._images_per_step, self._total, self._first = images_per_step, total_steps, done_steps
        self._started = self._shown = time.monotonic()
        self._compiled = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[terms]}"),
            console=console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("compiling", total=total_steps, completed=done_steps, speed="", terms="")

    def __enter__(self) -> "Display":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show something again."""
        return time.monotonic() - self._shown > (REFRESH_SECONDS if self._live else PLAIN_SECONDS)

    def started(self, step: int) -> None:
        """Begins to measure the speed at this step, once what compiles has compiled."""
        if not self._compiled:
            self._compiled, self._first, self._started = True, step, time.monotonic()

    def update(self, epoch: int, epochs: int, step: int, averages: Mapping[str, float]) -> None:
        """Shows where training stands: the 0-based epoch, steps done in all, and means over the epoch so far."""
        self._shown = time.monotonic()
        counted = f"epoch {epoch + 1}/{epochs}"
        speed = (step - self._first) * self._images_per_step / max(self._shown - self._started, 1e-9)
        terms = " ".join(f"{name} {value:.3f}" for name, value in averages.items())
        if self._live:
            self._progress.update(
                self._task, completed=step, description=counted, speed=f"{speed:,.0f} images/s", terms=terms
            )
        elif speed > 0:
            left = (self._total - step) * self._images_per_step / speed
            print(f"{counted} step {step}/{self._total} {speed:,.0f} images/s left {_clock(left)} {terms}", flush=True)

    def epoch_done(self, row: Mapping[str, Any], epochs: int) -> None:
        """Prints the line of a finished epoch."""
        terms = " ".join(f"{name.removeprefix('train/')} {row[name]:.3f}" for name in row if name.startswith("train/"))
        tested = " ".join(
            f"{name.removeprefix('test/accuracy_')} {row[name]:.4f}"
            for name in row
            if name.startswith("test/accuracy_")
        )
        line = (
            f"epoch {row['epoch']}/{epochs}  train: {terms}  test: accuracy {row['test/accuracy']:.4f} ({tested})  "
            f"lr {row['learning_rate']:g}  {row['images_per_second']:,.0f} images/s  {row['seconds']:.1f} s"
        )
        self._progress.console.print(line, highlight=False, soft_wrap=True)


def table(results: Mapping[str, Any]) -> None:
    """Prints the accuracies of the last and of the best epoch."""
    title = f"{results['dataset']} {results['backbone']} {results['method']} seed {results['seed']}: test accuracy, %"
    shown = Table(title=title, title_justify="left")
    for column, justify in (("epoch", "left"), ("", "right"), ("mean of peers", "right")):
        shown.add_column(column, justify=justify)  # type: ignore[arg-type]
    last = results["last"]
    peers = [f"peer {j}" for j in range(len(last["accuracy_per_peer"]))]
    heads = sorted(name for name in last if name.startswith("accuracy_") and name != "accuracy_per_peer")
    for name in [*peers, *(head.removeprefix("accuracy_").replace("_", " ") for head in heads)]:
        shown.add_column(name, justify="right")
    for which in ("last", "best"):
        found = results[which]
        values: Sequence[float] = [found["accuracy"], *found["accuracy_per_peer"], *(found[head] for head in heads)]
        shown.add_row(which, str(found["epoch"]), *(f"{100 * value:.2f}" for value in values))
    Console().print(shown)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
