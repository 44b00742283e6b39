"""What README.md and docs/methods.md say of rows and networks, against the configurations."""

import dataclasses
import re
from pathlib import Path

import pytest

from cutnmix_jax import backbones, methods
from cutnmix_jax.settings import MOST_PEERS
from tests.test_backbones import PINNED

ROOT = Path(__file__).parent.parent
BY_NAME = methods.rows_by_name()
README, METHODS = ((ROOT / name).read_text() for name in ("README.md", "docs/methods.md"))


def table(text, head):
    """The rows below a table's head, each as the names in its first cell and its other cells."""
    rows = text.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    return [(re.findall(r"`(\w+)`", first), others) for first, *others in cells]


ROWS = [(name, cells) for names, cells in table(README, "methods") for name in names]


def test_every_row_stands_in_the_readme_once():
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
    for names, (sizes, _) in table(README, "backbones"):
        told |= dict(zip(names, re.findall(r"[\d.]+", sizes), strict=True))
    assert set(told) == set(backbones.names()) - {"resnet8"}  # which stands below the table
    for name, size in told.items():
        assert f"{PINNED[name][0] / 1e6:.{len(size.partition('.')[2])}f}" == size


def test_how_many_networks_there_can_be():
    most = int(re.search(r"Up to (\d+) networks", README)[1])
    assert most == MOST_PEERS


COMPARED = [(name, " ".join(cells)) for names, cells in table(METHODS, "row") for name in names]


def test_every_compared_method_is_described_once():
    compared = {name for name, row in BY_NAME.items() if methods.name_of(row.method) not in ("supervised", "cutnmix")}
    assert sorted(name for name, _ in COMPARED) == sorted(compared)


@pytest.mark.parametrize(("name", "text"), COMPARED, ids=[name for name, _ in COMPARED])
def test_options_are_those_that_are_told(name, text):
    options = dataclasses.asdict(BY_NAME[name].method)
    if "temperature" in options:
        assert re.search(rf"\b(tau|temperature) {options['temperature']:g}\b", text)
    if "last_share" in options:
        assert f"alpha {options['last_share']}" in text
    assert ("ramp-up" in text) == bool(BY_NAME[name].ramp_up)


def test_every_test_says_what_it_covers():
    """The page in `tests/` names every file of tests, and no other."""
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "tests" / "README.md").read_text()))
    assert named == {path.stem for path in (ROOT / "tests").glob("test_*.py")}
