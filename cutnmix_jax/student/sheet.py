"""A contact sheet: pictures as a network saw them, with its best classes."""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font

from cutnmix_jax.pictures import save

MOST = 100  # pictures on a sheet
CLASSES = 3  # shown of each

_FONT = "DejaVu Sans"  # which comes with matplotlib
_WIDTH, _SIDE, _TEXT, _MARGIN = 1.7, 1.4, 0.9, 0.15  # inches: a cell, a picture's longer side, its text, the border
_BELOW = 0.3  # inches below the grid, for what is not shown


def draw(path: Path, shown: Sequence[tuple[str, np.ndarray, Sequence[tuple[str, float]]]], more: int) -> None:
    """Draws pictures in a grid, each with the name of its file and up to three classes.

    Args:
      path: of the PNG.
      shown: of each picture: the name of its file; [H, W, 3] uint8, as the network saw it; its classes, best first,
        each with its probability in [0, 1]. What goes beyond `MOST` pictures is counted with `more`.
      more: how many other pictures there are; said below the grid.

    Raises:
      OSError: the sheet cannot be written.
    """
    more += max(0, len(shown) - MOST)
    shown = shown[:MOST]
    columns = max(2 if more else 1, math.ceil(math.sqrt(len(shown))))  # the line below needs two
    rows = math.ceil(len(shown) / columns)
    step = max((_sides(picture)[0] for _, picture, _ in shown), default=0.0) + _TEXT
    width, height = columns * _WIDTH + 2 * _MARGIN, rows * step + 2 * _MARGIN + _BELOW * bool(more)
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))  # one for all: a hundred take ten seconds
    axes.set_axis_off()
    for i, (name, picture, classes) in enumerate(shown):
        left, top = _MARGIN + i % columns * _WIDTH, _MARGIN + i // columns * step
        _cell(axes, left, top, name, picture, classes)
    if more:
        says = f"and {more:,} more that {'is' if more == 1 else 'are'} not shown"
        _text(axes, width / 2, height - _MARGIN - _BELOW / 2, says, 8)
    axes.set(xlim=(0, width), ylim=(height, 0))  # `imshow` has moved them
    save(figure, path)


def _cell(
    axes: Axes, left: float, top: float, name: str, picture: np.ndarray, classes: Sequence[tuple[str, float]]
) -> None:
    """A picture, its name above and its classes below, from a corner in inches."""
    middle, (high, wide) = left + _WIDTH / 2, _sides(picture)
    extent = (middle - wide / 2, middle + wide / 2, top + 0.2 + high, top + 0.2)
    axes.imshow(picture, extent=extent, aspect="auto", interpolation="antialiased")
    _text(axes, middle, top + 0.1, cut(name, 23), 7.5)
    for line, (label, share) in enumerate(classes[:CLASSES]):
        says = f"{100 * share:.1f} %  {cut(label, 17)}"
        _text(axes, middle, top + 0.3 + high + 0.15 * line, says, 7.5, bold=line == 0)


def _sides(picture: np.ndarray) -> tuple[float, float]:
    """Height and width of a picture [H, W, 3] on the sheet, in inches."""
    high, wide = picture.shape[:2]
    return _SIDE * high / max(high, wide), _SIDE * wide / max(high, wide)


def _text(axes: Axes, x: float, y: float, says: str, size: float, bold: bool = False) -> None:
    """Writes one line around a point; nothing in it is a formula, whatever the user's matplotlib is set to."""
    weight = "bold" if bold else "normal"
    axes.text(
        x, y, says, ha="center", va="center", fontsize=size, fontfamily=_FONT, weight=weight, parse_math=False,
        usetex=False,
    )  # fmt: skip


def cut(name: str, most: int) -> str:
    """A name of at most so many letters, cut in the middle, in one line and in letters that the font has."""
    name = unicodedata.normalize("NFC", name)
    letters = "".join(_letter(one) for one in name if unicodedata.category(one) not in ("Mn", "Me", "Cf"))
    if len(letters) <= most:
        return letters
    before = (most - 1) // 2
    return f"{letters[:before]}…{letters[len(letters) - (most - 1 - before) :]}"


def _letter(letter: str) -> str:
    if letter.isspace():
        return " "
    return letter if letter.isprintable() and _font().get_char_index(ord(letter)) else "□"


@cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties(family=_FONT, weight="bold")))
