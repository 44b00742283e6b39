"""What was measured as a table, a line of JSON and a picture."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cutnmix_jax.pictures import COLOURS

Found = dict[str, Any]

# A column's title, and what it shows of one measurement.
COLUMNS = {
    "device": ("device", "s"),
    "images in": ("images_in", "s"),  # where not on the device
    "ms per step": ("step_ms", ".1f"),
    "std": ("step_ms_std", ".1f"),
    "peer-images/s": ("peer_images_per_second", ",.0f"),
    "compile s": ("compile_cold_s", ".1f"),
    "cached s": ("compile_cached_s", ".1f"),
    "memory MiB": ("memory_mib", ",.0f"),
    "peak MiB": ("peak_memory_mib", ",.0f"),
    "TFLOP/s": ("tflops", ".3f"),
    "% of peak": ("percent_of_peak", ".1f"),
    "kernels": ("kernels_per_step", "d"),
    "launch floor, ms": ("launch_floor_ms", ".2f"),
    "start s": ("start_cold_s", ".1f"),
    "again s": ("start_cached_s", ".1f"),
}


def timing(seconds: Sequence[float], steps: int) -> Found:
    """Median, mean and deviation (n - 1) of windows of some steps, in milliseconds per step."""
    each = [1000 * value / steps for value in seconds]
    return {
        "step_ms": statistics.median(each),
        "step_ms_mean": statistics.fmean(each),
        "step_ms_std": statistics.stdev(each) if len(each) > 1 else None,
        "windows": len(each),
        "steps_per_window": steps,
    }


def table(found: Mapping[str, Found], title: str) -> None:
    """Prints the measurements one below the other, with those columns that have anything to show."""
    columns = {
        name: field for name, field in COLUMNS.items() if any(one.get(field[0]) is not None for one in found.values())
    }
    failed = any("error" in one for one in found.values())
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for name in columns:
        shown.add_column(name, justify="right")
    if failed:
        shown.add_column("not measured", overflow="fold")
    for name, one in found.items():
        cells = ["" if one.get(key) is None else format(one[key], form) for key, form in columns.values()]
        shown.add_row(name, *cells, *([escape(one.get("error", ""))] if failed else []))
    Console(width=max(100, Console().width)).print(shown)


def side_by_side(found: Mapping[str, Found], rows: Mapping[str, tuple[str, str]], title: str) -> None:
    """Prints the measurements one beside the other; `rows` are as `COLUMNS`."""
    shown = Table("", title=title, title_justify="left")
    for name in found:
        shown.add_column(name, justify="right", overflow="fold")
    for name, (key, form) in rows.items():
        shown.add_row(name, *("" if one.get(key) is None else format(one[key], form) for one in found.values()))
    if any("error" in one for one in found.values()):
        shown.add_row("not counted", *(escape(one.get("error", "")) for one in found.values()))
    Console(width=max(100, Console().width)).print(shown)


def ratios(found: Mapping[str, Found], ours: str) -> dict[str, Found]:
    """How many times as fast ours is as the others on the same device, window by window: median, least and most."""
    mine = found[ours].get("window_ms", [])
    against = {}
    for name, one in found.items():
        if name != ours and one.get("window_ms") and mine and one.get("device") == found[ours].get("device"):
            each = [other / own for own, other in zip(mine, one["window_ms"], strict=True)]
            against[name] = {"median": statistics.median(each), "least": min(each), "most": max(each)}
    return against


def line(what: Mapping[str, Any]) -> str:
    """One line of JSON, numbers to five digits."""
    return json.dumps(json.loads(json.dumps(what), parse_float=lambda text: float(f"{float(text):.5g}")))


def _short(value: float) -> str:
    """A number of ticks that may lie close: 20000 is 20k."""
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def growth_picture(path: Path, sweeps: Mapping[str, Mapping[float, Found]], title: str) -> None:
    """Draws step time and memory over each swept value, with the line that is proportional from the smallest on.

    Args:
      path: of the .png file.
      sweeps: what was swept -> its values -> what was measured.
      title: above all.
    """
    figure = Figure(figsize=(3.2 * len(sweeps), 5.4), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, len(sweeps), squeeze=False)
    for column, (name, found) in enumerate(sweeps.items()):
        values = sorted(value for value, one in found.items() if "error" not in one)
        if not values:
            continue
        for row, (key, label) in enumerate((("step_ms", "ms per step"), ("memory_mib", "memory, MiB"))):
            axis, measured = axes[row][column], [found[value][key] for value in values]
            axis.plot(values, measured, "o-", color=COLOURS[0], label="measured")
            proportional = [measured[0] * value / values[0] for value in values]
            axis.plot(values, proportional, "--", color=COLOURS[1], label="proportional")
            axis.set(xlabel=name, ylabel=label, xscale="log", yscale="log")
            axis.set_xticks(values, [_short(value) for value in values], fontsize=8, rotation=45)
            axis.minorticks_off()
            axis.grid(alpha=0.3, which="both")
    axes[0][0].legend()
    figure.savefig(path, dpi=110)
