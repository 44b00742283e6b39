"""What a person sees while a run goes on: a summary, progress, a table."""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

PLAIN_SECONDS = 10.0  # between lines where there is no terminal
REFRESH_SECONDS = 0.5
# What `Display.update` prints where there is no terminal: the epoch, the step of all steps, and the time left.
PROGRESS = re.compile(r"epoch (\d+)/\d+ (step \d+/\d+) .*? left ((?:\d+ days?, )?[\d:]+)")


def summary(lines: Mapping[str, str]) -> None:
    """Prints what is about to be trained, a name and a value on each line."""
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}", flush=True)


def warn(message: str) -> None:
    """One line that training can go on without."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


class InTerminal:
    """What is shown live in a terminal, and not elsewhere, while entered."""

    _console: Console
    _live: Live

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()


class Display(InTerminal):
    """Progress over all steps of a run: a bar in a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int, done_steps: int, images_per_step: int, devices: int = 1):
        """Starts to count at `done_steps`."""
        self._devices = devices
        self._console = Console()
        self._images_per_step, self._total, self._first = images_per_step, total_steps, done_steps
        self._started = self._shown = time.monotonic()
        self.has_started = False
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("compiling", total=total_steps, completed=done_steps, speed="")
        self._terms = Text(no_wrap=True, overflow="ellipsis")
        # The bar is taken away at the end; the epochs' lines, printed above it, stay.
        self._live = Live(Group(self._progress, self._terms), console=self._console, transient=True)

    @property
    def due(self) -> bool:
        """Whether it is time to show something again."""
        return time.monotonic() - self._shown > (REFRESH_SECONDS if self._console.is_terminal else PLAIN_SECONDS)

    def started(self, compiling: float, since_start: float) -> None:
        """Says how long it took until a first step was trained.

        Args:
          compiling: seconds that the first weights and the first call took, which are nearly all compiling.
          since_start: seconds since the command was given.
        """
        self.has_started = True
        self._console.print(
            f"compiled in {compiling:.1f} s; trained the first step {since_start:.1f} s after the start",
            highlight=False,
            soft_wrap=True,
        )

    def measure(self, step: int) -> None:
        """Begins to measure the speed, at this step."""
        self._first, self._started = step, time.monotonic()

    def update(self, epoch: int, epochs: int, step: int, averages: Mapping[str, float]) -> None:
        """Shows where training stands: the 0-based epoch, steps done in all, and means over the epoch so far."""
        self._shown = time.monotonic()
        rate = (step - self._first) / max(self._shown - self._started, 1e-9)
        counted, speed = f"epoch {epoch + 1}/{epochs}", self._speed(rate * self._images_per_step)
        terms = _trained(averages)
        self._terms.plain = terms
        self._progress.update(self._task, completed=step, description=counted, speed=speed)
        if not self._console.is_terminal and rate > 0:
            left = timedelta(seconds=round((self._total - step) / rate))
            print(f"{counted} step {step}/{self._total} {speed} left {left} {terms}", flush=True)  # see `PROGRESS`

    def epoch_done(self, row: Mapping[str, Any], epochs: int) -> None:
        """Prints the two lines of a finished epoch."""
        tested = _values({name: 100 * value for name, value in _named(row, "test/accuracy_").items()}, ".2f")
        trained = _trained(_named(row, "train/"))
        first = f"epoch {row['epoch']}/{epochs}"
        for images in ("validation", "test"):
            if (accuracy := row.get(f"{images}/accuracy")) is not None:
                first += f"  {images} accuracy {100 * accuracy:.2f} %"
        first += f"  {tested}" if tested else ""
        second = f"learning rate {row['learning_rate']:g}  {self._speed(row['images_per_second'])}"
        second += f"  {row['seconds']:.1f} s"
        self._console.print(f"{first}\n    train {trained}  {second}", highlight=False, soft_wrap=True)

    def _speed(self, rate: float) -> str:
        each = f" ({rate / self._devices:,.0f} per device)" if self._devices > 1 else ""
        return f"{rate:,.0f} images/s{each}"


def _named(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)}


def _trained(means: Mapping[str, float]) -> str:
    """Losses as they are, the accuracy as all accuracies that a person reads: in %."""
    losses = {name: value for name, value in means.items() if name != "accuracy"}
    return _values(losses, ".3f") + (f" accuracy {100 * means['accuracy']:.2f} %" if "accuracy" in means else "")


def _values(values: Mapping[str, float], form: str) -> str:
    return " ".join(f"{name} {value:{form}}" for name, value in values.items())


def table(results: Mapping[str, Any]) -> None:
    """Prints the accuracies of the last and of the best epoch."""
    title = f"{results['dataset']} {results['backbone']} {results['method']} seed {results['seed']}: test accuracy, %"
    caption = f"the best epoch is chosen on the {results.get('best_by', 'test')} set"
    shown = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column, justify in (("", "left"), ("epoch", "right"), ("mean of peers", "right")):
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
