"""Wherever the images of a run lie, it is the same run; and little of them is in memory at a time."""

import dataclasses
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from cutnmix_jax import data, main, together, training
from cutnmix_jax.data.__main__ import main as prepare
from cutnmix_jax.engine import assemble, feeding, placement
from cutnmix_jax.errors import DataError, UsageError
from cutnmix_jax.method import View
from cutnmix_jax.settings import command_line
from tests.runs import TEN_EPOCHS, Made, Stop, killed_at_random, rows_in, stopped_after, untimed_results
from tests.test_run import saved_in

SMALL = [*TEN_EPOCHS, "--config.train_examples=70", "--config.epochs=2", "--config.optimizer.milestones=()"]


def mapped(array, folder, name):
    np.save(folder / f"{name}.npy", array)
    return np.load(folder / f"{name}.npy", mmap_mode="r")


class Placed(Made):
    """A run whose images lie somewhere."""

    def __init__(self, folder, row, where, *more, per_call=None):
        self.settings = command_line.from_flags(
            f"configs/quickstart.py:digits,{row}", [*SMALL, f"--config.images_in={where}", *more]
        )
        dataset = data.load("digits", None, self.settings.train_examples, self.settings.test_examples)
        dataset = dataset._replace(
            train_images=mapped(dataset.train_images, folder, "train"),
            test_images=mapped(dataset.test_images, folder, "test"),
        )
        self.engine = assemble.engine(self.settings, dataset, training.plan(self.settings))
        if per_call:
            self.engine = dataclasses.replace(self.engine, steps_per_call=per_call)


# Views of one image and of another one of its class; images that weigh peers; images that choose an epoch.
HELD_OUT = ["--config.loss.target=general", "--config.held_out_examples=6"]


@pytest.mark.parametrize(
    ("row", "more"),
    [
        ("cutnmix", ["--config.validation_examples=5"]),
        ("cs_kd", []),
        pytest.param("ddgsd", [], marks=pytest.mark.slow),
        pytest.param("kdcl", HELD_OUT, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_wherever_its_images_lie(row, more, tmp_path):
    found = {}
    for where in ("device", "memory", "disk"):
        made = Placed(tmp_path, row, where, *more)
        assert isinstance(made.engine.train_data, placement.OnHost) == (where != "device")
        made.train(tmp_path / where)
        rows = [
            {k: v for k, v in one.items() if not k.startswith(("seconds", "images"))}
            for one in rows_in(tmp_path / where)
        ]
        found[where] = rows, made.saved(tmp_path / where)
    for where in ("memory", "disk"):
        assert found[where][0] == found["device"][0]
        chex.assert_trees_all_equal(found[where][1], found["device"][1])


def test_calls_of_several_steps_that_begin_anywhere(tmp_path):
    """As after a kill, and where it is saved after a number of steps that is none of calls."""
    made = Placed(tmp_path, "cs_kd", "disk", per_call=3)
    on_device = Placed(tmp_path, "cs_kd", "device").engine
    steps, feeds = made.engine.steps_per_epoch, made.engine.feeds()
    assert steps == 4
    batch = jax.jit(on_device.batch_at)
    for first in (0, 3, 4, 6, 1, 7, 7):
        feed = feeds.at(first)
        chex.assert_trees_all_equal_shapes_and_dtypes(feed, feeds.shapes())
        for step in range(first, min(first + 3, (first // steps + 1) * steps)):
            chex.assert_trees_all_equal(batch(step, feed), batch(step, on_device.feed(first // steps)))
            place = (step - first) % 3
            assert feed.rates[place] == on_device.feed(first // steps).rates[step % steps]
            assert feed.keys[place] == on_device.feed(first // steps).keys[step % steps]


def test_a_long_call_ends_where_single_steps_do(tmp_path):
    one, many = (Placed(tmp_path, "baseline", "disk", per_call=count) for count in (1, 3))
    saved, feeds = many.engine.init(), many.engine.feeds()
    state, totals = many.engine.train_steps(saved.state, saved.totals, feeds.at(0), 3)
    state, totals = many.engine.train_steps(state, totals, feeds.at(3), 1)  # the last one of the epoch
    single, feeds = one.engine.init(), one.engine.feeds()
    other = single.state, single.totals
    for step in range(4):
        other = one.engine.train_steps(*other, feeds.at(step), 1)
    chex.assert_trees_all_close((state, totals), other, atol=1e-6)
    assert int(state.step) == 4


def test_stopped_while_streaming_and_continued(tmp_path):
    made = Placed(tmp_path, "baseline", "disk")
    made.train(tmp_path / "undisturbed")
    for _ in range(3):
        stopped_after(made, tmp_path / "stopped", 2)
    made.train(tmp_path / "stopped")
    chex.assert_trees_all_equal(made.saved(tmp_path / "stopped"), made.saved(tmp_path / "undisturbed"))
    assert len(rows_in(tmp_path / "stopped")) == 2


# The command itself, killed at random moments while it reads a prepared set from the disk.


@pytest.fixture(scope="module")
def streamed(tmp_path_factory):
    """The flags of a run of digits that were prepared as a folder of pictures, and one that nobody disturbed."""
    folder = tmp_path_factory.mktemp("streamed")
    read = data.load("digits", None, 80, 30)
    for split in ("train", "test"):
        images, labels = getattr(read, f"{split}_images"), getattr(read, f"{split}_labels")
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "pictures" / split / str(label) / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    place = [f"--dataset=folder:{folder / 'pictures'}", f"--data_dir={folder / 'prepared'}"]
    assert prepare(["prepare", *place, "--size=32"]) == 0
    row = f"--config=configs/quickstart.py:folder:{folder / 'pictures'},ps_kd"
    tiny = [field for field in TEN_EPOCHS if "examples" not in field]
    fields = ["epochs=4", "optimizer.milestones=()", "checkpoint.every_steps=1", "checkpoint.keep=2", "images_in=disk"]
    flags = [row, *tiny, *(f"--config.{field}" for field in fields), f"--config.data_dir={folder / 'prepared'}"]
    assert main.main([*flags, f"--workdir={folder / 'run'}"]) == 0
    return flags, folder / "run"


@pytest.mark.rounds(1, 10)
def test_killed_while_streaming_and_continued(number, streamed, tmp_path):
    flags, undisturbed = streamed
    killed_at_random([*flags, f"--workdir={tmp_path}"], tmp_path, random.Random(number), steps=20)
    assert main.main([*flags, f"--workdir={tmp_path}"]) == 0
    chex.assert_trees_all_equal(saved_in(tmp_path, flags), saved_in(undisturbed, flags))
    assert rows_in(tmp_path) == rows_in(undisturbed)
    assert untimed_results(tmp_path) == untimed_results(undisturbed)


def test_readers_do_not_pile_up(tmp_path):
    feeds = Placed(tmp_path, "baseline", "disk").engine.feeds()
    feeds.at(0)
    before = threading.active_count()
    for _ in range(20):
        feeds.at(0)
    assert threading.active_count() <= before + 2 * placement.READERS


def test_parts_come_in_their_order():
    assert list(placement.ahead(lambda number: number * number, 50)) == [number * number for number in range(50)]


def test_a_file_that_ends_early_is_one_line(tmp_path):
    images = np.arange(10 * 4 * 4 * 3, dtype=np.uint8).reshape(10, 4, 4, 3)
    found = placement.placed(mapped(images, tmp_path, "images"), np.zeros(10, np.int32), "disk", np.arange(2, 10))
    rows = np.array([7, 0, 7])
    expected = np.concatenate([images[[9, 2, 9]], np.zeros((2, 4, 4, 3), np.uint8)])
    np.testing.assert_array_equal(found.read(rows, 5), expected)
    part = np.load(tmp_path / "images.npy", mmap_mode="r")[3:8]
    np.testing.assert_array_equal(placement.Stored(part)[np.array([4, 0])], images[[7, 3]])
    os.truncate(tmp_path / "images.npy", 300)
    with pytest.raises(DataError, match="cannot be read any more.*ends before image 9"):
        found.read(rows, 3)


def test_what_of_a_file_is_read_by_rows(tmp_path):
    images = np.arange(6 * 2 * 3 * 3, dtype=np.uint8).reshape(6, 2, 3, 3)
    found = mapped(images, tmp_path, "images")
    own = np.load(tmp_path / "images.npy", mmap_mode="c")
    own[1] = 7  # on no disk
    for made in (found.copy(), found[::2], found.transpose(0, 2, 1, 3), own, images):
        held = placement.held(made, "disk")
        assert held is made
        np.testing.assert_array_equal(
            placement.placed(made, np.zeros(len(made), np.int32), "disk").read([1], 1), made[[1]]
        )
    assert isinstance(placement.held(found, "disk"), placement.Stored)
    assert type(placement.held(found, "memory")) is np.ndarray


def test_the_parts_of_a_set_share_its_images(tmp_path):
    engine = Placed(tmp_path, "baseline", "memory", "--config.validation_examples=5").engine
    assert engine.train_data.images is engine.validation_data.images


def test_what_a_reader_raises_reaches_the_loop():
    def read(number):
        if number == 2:
            raise DataError("gone")
        return number

    parts = placement.ahead(read, 5)
    assert [next(parts), next(parts)] == [0, 1]
    with pytest.raises(DataError, match="gone"):
        next(parts)


@pytest.mark.parametrize(
    ("pages", "wanted", "expected"),
    [(10**7, None, "device"), (40, None, "device"), (39, None, "memory"), (20, None, "memory"), (19, None, "disk")]
    + [(10**7, "disk", "disk")],
)
def test_where_images_lie(pages, wanted, expected, monkeypatch):
    """They are 10,000 bytes, and the machine has so many pages of 1,000."""
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 1000, "SC_PHYS_PAGES": pages}.get)
    digits = data.load("digits")
    images = np.zeros((10, 10, 50, 2), np.uint8)
    assert images.nbytes == 10_000
    dataset = digits._replace(train_images=images[:6], test_images=images[6:])
    assert placement.choose(dataset, wanted) == expected


@pytest.mark.parametrize(
    ("size", "views", "expected"),
    [(3072, [View()], 50), (224 * 224 * 3, [View()], 6), (224 * 224 * 3, [View(), View(same_class=True)], 3)]
    + [(224 * 224 * 3, [View(), View()], 6), (2**27, [View()], 1)],
)
def test_how_many_steps_a_call_has(size, views, expected):
    assert feeding.steps_per_call(size, 64, views, 50) == expected


def test_a_set_of_twenty_gigabytes_takes_little_memory(tmp_path):
    """In a process of its own, whose largest memory is looked at; the file has holes in the place of its images."""
    code = f"""
import re, numpy as np
from pathlib import Path
def most():  # of this program: `getrusage` counts what was forked for it, too
    return int(re.search("VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
from cutnmix_jax.engine import placement
shape = (140_000, 224, 224, 3)
np.lib.format.open_memmap({str(tmp_path / "large.npy")!r}, "w+", np.uint8, shape)
images = np.load({str(tmp_path / "large.npy")!r}, mmap_mode="r")
assert images.nbytes > 20e9
held = placement.placed(images, np.zeros(len(images), np.int32), "disk")
rows = np.random.default_rng(0).integers(0, len(images), (60, 128))
before = most()
for part in placement.ahead(lambda number: held.read(rows[number], 128), len(rows)):
    assert part.shape == (128, 224, 224, 3)
print(before, most())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd())
    before, after = (int(text) / 2**20 for text in done.stdout.split())
    assert after < 1, "GiB"
    assert after - before < 0.4  # 1.1 GiB were read


@pytest.mark.parametrize("places", ["memory", None])
def test_seeds_together_whose_images_lie_elsewhere(places, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(placement, "choose", lambda dataset, wanted: wanted or "disk")
    settings = dataclasses.replace(Placed(tmp_path, "baseline", "memory").settings, images_in=places)
    with pytest.raises(UsageError, match="images_in" if places else "exit code 2"):
        together.run({1: settings}, {1: tmp_path / "1"}, Stop(), False, False, 0.0)
    assert places or "config.images_in=device" in capsys.readouterr().out
