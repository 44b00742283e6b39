"""A run that was stopped or killed anywhere ends, after the same command again, bit for bit as if nothing had been."""

import dataclasses
import random
import subprocess
import sys
import time

import chex
import pytest

from cutnmix_jax import files, main
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.engine.evaluation import Accuracies
from cutnmix_jax.engine.feeding import Epochs
from cutnmix_jax.errors import CheckpointError
from tests.runs import (
    TEN_EPOCHS,
    Made,
    Stop,
    assert_same,
    few,
    hooked,
    killed_at_random,
    leaves,
    made,
    rows_in,
    steps_in,
    stopped_after,
    untimed_results,
    whole,
)
from tests.test_run import ROOT


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return whole("cutnmix", tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.rounds(4, 40)
def test_stopped_at_every_step(number, undisturbed, tmp_path):
    step = 1 + number * 27 % 40  # each of 1 to 40 once; the last one is the end
    if step == 40:
        made().train(tmp_path, Stop(), hooked(made().engine, lambda *_: None))
    else:
        stopped_after(made(), tmp_path, step)
        assert steps_in(tmp_path)[-1] == step
        assert made().train(tmp_path) == step
    assert_same(made(), tmp_path, undisturbed)


def test_stopped_again_and_again(undisturbed, tmp_path):
    for steps in (3, 1, 4, 1, 5, 9, 2, 6):
        stopped_after(made(), tmp_path, steps)
    assert made().train(tmp_path) == 31
    assert_same(made(), tmp_path, undisturbed)


def test_saving_more_often_changes_nothing(undisturbed, tmp_path, monkeypatch):
    """And draws no epoch anew: ten of them, once each."""
    drawn, feed = [], Epochs.feed
    monkeypatch.setattr(Epochs, "feed", lambda epochs, epoch: drawn.append(epoch) or feed(epochs, epoch))
    often = Made("cutnmix", "--config.checkpoint.every_steps=3", "--config.checkpoint.every_minutes=1e-9")
    often.train(tmp_path)
    assert_same(made(), tmp_path, undisturbed)
    assert drawn == list(range(10))


def steps_saved_by(tmp_path, *fields):
    Made("cutnmix", *fields, "--config.checkpoint.keep=100").train(tmp_path)
    return steps_in(tmp_path), rows_in(tmp_path)


def test_by_steps_and_by_epochs(tmp_path):
    seen, rows = steps_saved_by(tmp_path, "--config.checkpoint.every_steps=6", "--config.checkpoint.every_epochs=5")
    before = [max([0.0, *(row["test/accuracy"] for row in rows[:n])]) for n in range(10)]
    records = [row["step"] for row, best in zip(rows, before, strict=True) if row["test/accuracy"] > best]
    assert seen == sorted({6, 12, 18, 24, 30, 36, 20, 40, *records})


def test_by_time(tmp_path):
    run = Made("cutnmix", "--config.checkpoint.every_minutes=0.01", "--config.checkpoint.keep=100")
    run.train(tmp_path, engine=hooked(run.engine, lambda number, *_: time.sleep(0.7) if number in (10, 30) else None))
    assert {10, 30} <= set(steps_in(tmp_path))


def test_the_newest_and_the_best_are_kept(undisturbed, tmp_path):
    rows = rows_in(undisturbed)
    best = max(rows, key=lambda row: (row["test/accuracy"], -row["epoch"]))["step"]
    assert steps_in(undisturbed) == sorted({best, 32, 36, 40})
    # A best epoch long ago, with other numbers of what is kept besides.
    for keep in (1, 2):
        folder = tmp_path / str(keep)
        made().train(folder, engine=scoring([0.2, 0.9, 0.3, 0.9, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1], keep))
        assert steps_in(folder) == [8, *[36, 40][-keep:]]


def test_the_best_of_what_is_saved_is_kept(tmp_path, monkeypatch):
    """Where a better one could not be saved, the best one that could."""
    begin = Checkpoints._begin

    def fails_once(self, step, *rest):
        if step == 16:
            raise OSError(28, "No space left on device")
        begin(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "_begin", fails_once)
    made().train(tmp_path, engine=scoring([0.2, 0.8, 0.3, 0.9, 0.1, 0.1, 0.1, 0.7, 0.1, 0.1], keep=1))
    assert steps_in(tmp_path) == [8, 40]


def scoring(accuracies, keep):
    """An engine that is said to have an accuracy after each epoch, and keeps so many checkpoints."""
    engine, left = made().engine, iter(accuracies)
    checkpoint = dataclasses.replace(engine.settings.checkpoint, keep=keep)
    other = dataclasses.replace(engine, settings=dataclasses.replace(engine.settings, checkpoint=checkpoint))

    def evaluate(state):
        said = next(left)
        return Accuracies((said, said), said, {})

    vars(other).update(train_steps=engine.train_steps, evaluate=evaluate)
    return other


def test_rows_that_cannot_be_written_hold_back_no_checkpoint(tmp_path, monkeypatch, capsys):
    """They are saved with each; the file is written again as soon as it can be, and one line tells of it till then."""
    often = Made("cutnmix", "--config.checkpoint.every_steps=1")
    real, full = files.write, [True]

    def write(path, content):
        if full[0] and path.name == "metrics.jsonl" and '"epoch": 3' in content:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(files, "write", write)
    seen = {}

    def before(number, *_):
        seen[number] = (steps_in(tmp_path), len(rows_in(tmp_path)))
        full[0] = number < 15

    often.train(tmp_path, engine=hooked(often.engine, before))
    assert seen[15][1] == 2 and seen[15][0][-1] >= 13  # of the third epoch there is no row, and there are checkpoints
    assert seen[18][1] >= 3 and len(rows_in(tmp_path)) == 10
    assert capsys.readouterr().err.count("metrics.jsonl") == 1


@pytest.mark.parametrize(
    "what", few(["gone", "emptied", "cut", "a line too few", "a line too many"], ("gone", "cut", "a line too many"))
)
def test_rows_are_written_again_from_the_checkpoint(what, undisturbed, tmp_path, capsys):
    """A file that lacks some, or has some of the time after it, is no other run's: not a word is lost about it."""
    stopped_after(made(), tmp_path, 26)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    if what == "gone":
        file.unlink()
    else:
        later = (undisturbed / "metrics.jsonl").read_text().splitlines(keepends=True)[6]
        text = {"emptied": [], "cut": [*lines[:3], lines[3][:-20]], "a line too few": lines[:-1],
                "a line too many": [*lines, later]}[what]  # fmt: skip
        file.write_text("".join(text))
    capsys.readouterr()
    assert made().train(tmp_path) == 26
    assert capsys.readouterr().err == ""
    assert_same(made(), tmp_path, undisturbed)
    assert file.read_text().splitlines(keepends=True)[:6] == lines
    assert not list(tmp_path.glob("metrics-before-*"))


def test_rows_of_another_run_are_put_aside(undisturbed, tmp_path, capsys):
    stopped_after(made(), tmp_path, 26)
    file = tmp_path / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    other = "".join([lines[0], lines[1].replace('"step": ', '"stop": '), *lines[2:]])
    file.write_text(other)
    capsys.readouterr()
    assert made().train(tmp_path) == 26
    [warning] = capsys.readouterr().err.splitlines()
    [aside] = tmp_path.glob("metrics-before-*.jsonl")
    assert warning == f"warning: {file} had other rows than the run; it is made again, those are in {aside.name}"
    assert aside.read_text() == other
    assert_same(made(), tmp_path, undisturbed)


def test_another_program_s_state_is_refused_and_left(undisturbed, tmp_path):
    subprocess.run(["cp", "-r", undisturbed, tmp_path / "run"], check=True)
    other = Made("cutnmix", "--config.backbone.name=tests.tiny:wide")
    with pytest.raises(CheckpointError, match=r"of other fields .* is float32\[.*\] there and float32\[.*\] here"):
        other.train(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints-damaged").exists()
    assert_same(made(), tmp_path / "run", undisturbed)


# The command itself, killed at random moments while it saves after every step.
ROWS = ("cutnmix", "ps_kd", "okddip")
KILLED = ["--config.checkpoint.every_steps=1", "--config.checkpoint.keep=2", "--config.epochs=5"]
KILLED += ["--config.optimizer.milestones=(2,4)"]


def command_of(row, workdir):
    more = ["--config.ramp_up.epochs=2"] if row == "okddip" else []
    return [f"--config=configs/quickstart.py:digits,{row}", *TEN_EPOCHS, *KILLED, *more, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """An undisturbed run of a row by the command."""
    folder = tmp_path_factory.mktemp("references")

    def of(row):
        if not (folder / row).exists():
            command = [sys.executable, "-m", "cutnmix_jax.main", *command_of(row, folder / row)]
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return folder / row

    return of


@pytest.mark.rounds(1, 50)
def test_killed_at_a_random_moment(number, references, tmp_path):
    row, chance = ROWS[number % 3], random.Random(number)
    reference = references(row)
    killed_at_random(command_of(row, tmp_path), tmp_path, chance, steps=20)
    assert main.main(command_of(row, tmp_path)) == 0
    run = made(row)
    chex.assert_trees_all_equal(leaves(run.saved(tmp_path)), leaves(run.saved(reference)))
    assert rows_in(tmp_path) == rows_in(reference)
    assert untimed_results(tmp_path) == untimed_results(reference)
