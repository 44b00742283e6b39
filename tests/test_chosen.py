"""When a run is evaluated, which images choose its best epoch, and what a program that trains one is told."""

import dataclasses
import json
import re
from collections import Counter

import numpy as np
import pytest

from cutnmix_jax import data, finished, metrics, training
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import check, command_line
from tests.runs import TEN_EPOCHS, Made, assert_same, rows_in, steps_in, stopped_after

pytestmark = pytest.mark.usefixtures("programs_kept")

EVERY_FOURTH = ("--config.eval_every_epochs=4", "--config.validation_examples=16", "--config.checkpoint.keep=1")


@pytest.fixture(scope="module")
def made():
    return Made("cutnmix", *EVERY_FOURTH)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run from Python: its folder, what was returned, and the rows that were told."""
    folder, told = tmp_path_factory.mktemp("chosen") / "run", []
    settings = command_line.from_flags("configs/quickstart.py", [*TEN_EPOCHS, *EVERY_FOURTH])
    return folder, training.train(settings, folder, on_epoch=told.append), told


def test_evaluated_after_the_first_each_fourth_and_the_last_epoch(trained):
    _, _, told = trained
    assert [row["epoch"] for row in told] == list(range(1, 11))
    for name in ("test/accuracy", "test/accuracy_peer_1", "validation/accuracy", "validation/accuracy_ensemble"):
        assert [row["epoch"] for row in told if name in row] == [1, 4, 8, 10], name
    assert all("train/loss" in row for row in told)


def test_a_caller_is_told_the_rows_and_the_results(trained, capsys):
    folder, results, told = trained
    assert told == metrics.read_rows(folder / "metrics.jsonl")
    assert results == json.loads((folder / "results.json").read_text()) == finished.read(folder)
    settings, again = command_line.from_flags("configs/quickstart.py", [*TEN_EPOCHS, *EVERY_FOURTH]), []
    assert training.train(settings, folder, on_epoch=again.append) == results and not again
    assert "chosen on the validation set" in capsys.readouterr().out


def test_the_validation_set_chooses_the_best_epoch(trained):
    folder, results, told = trained
    tested = [row for row in told if "validation/accuracy" in row]
    best = max(row["validation/accuracy"] for row in tested)
    first = next(row for row in tested if row["validation/accuracy"] == best)
    assert results["best_by"] == "validation"
    assert results["best"]["epoch"] == first["epoch"] and results["best"]["accuracy"] == first["test/accuracy"]
    assert set(steps_in(folder)) == {first["step"], told[-1]["step"]}  # the best one is kept beside the newest


def test_what_raises_after_an_epoch_leaves_the_call_and_the_next_one_goes_on(tmp_path, trained):
    """It comes out as it is, an OSError too; no epoch is trained, or told, twice, however seldom a run is saved."""
    seldom = "--config.checkpoint.every_epochs=100"
    settings = command_line.from_flags("configs/quickstart.py", [*TEN_EPOCHS, *EVERY_FOURTH, seldom])
    told, errors = [], {3: ConnectionError("no logger"), 10: OSError(28, "no room", "x")}

    def on_epoch(row):
        told.append(row["epoch"])
        if row["epoch"] in errors:
            raise errors[row["epoch"]]

    for error in errors.values():
        with pytest.raises(type(error)) as raised:
            training.train(settings, tmp_path / "run", on_epoch=on_epoch)
        assert raised.value is error
    results = training.train(settings, tmp_path / "run", on_epoch=on_epoch)
    assert told == list(range(1, 11))
    assert rows_in(tmp_path / "run") == rows_in(trained[0]) and results["last"] == trained[1]["last"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch_size": 128}, "config.batch_size=128 is more than the 64 images"),
        ({"epochs": 0}, "config.epochs=0: must be a whole number"),
        ({"eval_every_epochs": 0}, "config.eval_every_epochs=0: must be a whole number"),
        ({"average": 1.5}, "config.average=1.5: must be a finite number"),
        ({"weights": {"ce": float("nan")}}, "config.weights.ce=nan: must be a finite number"),
        ({"peers": ""}, "config.peers='': must be text, or none"),
    ],
)
def test_settings_that_a_caller_changes_are_checked(changes, said, tmp_path):
    settings = dataclasses.replace(command_line.from_flags("configs/quickstart.py", TEN_EPOCHS), **changes)
    with pytest.raises(UsageError, match=re.escape(said)):
        training.train(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_number_of_peers_follows_their_names_for_a_caller_too():
    settings = command_line.from_flags("configs/quickstart.py", TEN_EPOCHS)
    other = dataclasses.replace(settings, peers="resnet8,resnet8,resnet8")
    assert check.checked(other).num_peers == 3 and check.checked(settings) == settings


@pytest.mark.slow
def test_stopped_in_an_epoch_that_is_not_evaluated(made, tmp_path):
    made.train(tmp_path / "one")
    stopped_after(made, tmp_path / "other", 7)
    made.train(tmp_path / "other")
    assert_same(made, tmp_path / "one", tmp_path / "other")


def test_no_image_is_in_two_sets():
    """Those to weigh the peers by, those to choose an epoch by and those that are trained on are the training set."""
    engine = Made("kdcl", "--config.loss.target=general", "--config.held_out_examples=20", *EVERY_FOURTH).engine
    parts = [engine.train_data, engine.held_out, engine.validation_data]
    assert [len(part.labels) for part in parts] == [28, 20, 16] and engine.spec.num_train == 28
    whole = data.load("digits", None, 64, 30)

    def counted(images, labels):
        return Counter((np.asarray(image).tobytes(), int(label)) for image, label in zip(images, labels, strict=True))

    found = sum((counted(part.images, part.labels) for part in parts), Counter())
    assert found == counted(whole.train_images, whole.train_labels)


def test_ranked_by_hand():
    rows = [
        {"epoch": 1, "test/accuracy": 0.5, "test/accuracy_leader": 0.9},
        {"epoch": 2},
        {"epoch": 3, "test/accuracy": 0.7, "test/accuracy_leader": 0.2},
        {"epoch": 4, "test/accuracy": 0.7, "test/accuracy_leader": 0.9},
    ]
    assert [row["epoch"] for row in metrics.ranked(rows)] == [3, 4, 1]
    assert [row["epoch"] for row in metrics.ranked(rows, "accuracy_leader")] == [1, 4, 3]
    assert metrics.chosen_by(rows) == "test"
    chosen = [row | {"validation/accuracy": value} for row, value in zip(rows, (0.1, 0.2, 0.0, 0.1), strict=True)]
    assert [row["epoch"] for row in metrics.ranked(chosen)] == [2, 1, 4, 3]
    assert metrics.chosen_by(chosen) == "validation"


def test_rows_without_an_accuracy_where_one_belongs_are_not_of_a_finished_run(trained):
    _, _, told = trained
    untested = {name: value for name, value in told[-1].items() if not name.startswith("test/")}
    for broken in ([*told[:-1], untested], [{**told[0], "test/x": 1.0}, *told[1:]]):
        assert not finished.are_whole(broken)
    assert finished.are_whole(told)
