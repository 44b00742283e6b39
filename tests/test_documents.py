"""What README.md and the pages in docs/ say of rows and networks, against the configurations."""

import dataclasses
import re
from pathlib import Path

import pytest

from cutnmix_jax import backbones, methods
from cutnmix_jax.settings import MOST_PEERS
from tests.test_backbones import PINNED

ROOT = Path(__file__).parent.parent
BY_NAME = methods.rows_by_name()
README, TRAIN = ((ROOT / name).read_text() for name in ("README.md", "docs/train.md"))


def table(text, head):
    """The rows below a table's head, each as the names in its first cell and its other cells."""
    rows = text.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(re.findall(r"`(\w+)`", first), others) for first, *others in cells]


ROWS = [(name, cells) for names, cells in table(TRAIN, "methods") for name in names]


def test_every_row_is_told_of_once():
    assert sorted(name for name, _ in ROWS) == sorted(BY_NAME)


@pytest.mark.parametrize(("name", "cells"), ROWS, ids=[name for name, _ in ROWS])
def test_what_a_row_sees(name, cells):
    row, (networks, images, _) = BY_NAME[name], cells
    assert int(networks.split()[0]) + ("leader" in networks) == row.num_peers
    assert ("branches" in networks) == row.share_trunk
    if images == "CutnMix":  # as the row above it, which says what that is
        images = dict(ROWS)["cutnmix_dml"][1]
    kinds = {"none": "plain|view", "mixup": "MixUp", "cutmix": "CutMix", "cutnmix": "CutnMix"}
    assert re.search(kinds[row.mix], images)
    assert ("own view" in images) == (row.views == "per_peer" and row.num_peers > 1)
    assert ("two views" in images or "one drawn" in images) == (len(row.method.views) == 2)


def test_backbones_have_the_sizes_that_are_told():
    told = {}
    for names, (sizes, _) in table(TRAIN, "backbones"):
        told |= dict(zip(names, re.findall(r"[\d.]+", sizes), strict=True))
    assert set(told) == set(backbones.names())
    for name, size in told.items():
        assert f"{PINNED[name][0] / 1e6:.{len(size.partition('.')[2])}f}" == size


def test_how_many_networks_there_can_be():
    most = int(re.search(r"Up to (\d+) networks", TRAIN)[1])
    assert most == MOST_PEERS


def pages():
    """The page of each row: its text."""
    found = {}
    for path in [*sorted((ROOT / "docs" / "methods").glob("*.md")), ROOT / "docs" / "method.md"]:
        [names] = re.findall(r"```{rows} (.*)", text := path.read_text())
        assert not set(found) & set(names.split()), path
        found |= dict.fromkeys(names.split(), text)
    return found


def test_every_row_has_one_page_and_stands_in_the_readme():
    assert sorted(pages()) == sorted(BY_NAME)
    listed = README.partition("| methods | ")[2].partition(":")[0]
    assert sorted(re.findall(r"`(\w+)`", listed)) == sorted(BY_NAME)


COMPARED = [name for name, row in BY_NAME.items() if methods.name_of(row.method) not in ("supervised", "cutnmix")]


# How a page tells of each option that a row has.
OPTIONS = {
    "temperature": r"\b(?:tau|temperature|temperature is) {:g}\b",
    "last_share": r"\balpha {}\b",
    "target": r"\| `{}` \(default\)",
    "correct": r" {} & c = y\b",
}


@pytest.mark.parametrize("name", COMPARED)
def test_options_are_those_that_are_told(name):
    options, text = dataclasses.asdict(BY_NAME[name].method), " ".join(pages()[name].split())
    if options.pop("teacher_is_like_peers", None):
        assert re.search(f"teacher of the student's own architecture [^`]*`{name}`", text)
    else:
        assert not re.search(f"own architecture [^`]*`{name}`", text)
    if f"`{name}`: " in text:  # a page of several rows
        text = re.split(r"`\w+`: ", text.partition(f"`{name}`: ")[2])[0]
    for option, value in options.items():
        assert re.search(OPTIONS[option].format(value), text), option
    assert ("ramp-up" in text) == bool(BY_NAME[name].ramp_up)


def test_every_test_says_what_it_covers():
    """The page in `tests/` names every file of tests, and no other."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    assert named == {path.stem for path in (ROOT / "tests").glob("test_*.py")}
