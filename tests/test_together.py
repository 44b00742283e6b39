"""Several seeds in one program are, within rounding, the runs that they are alone; nothing of one touches another."""

import dataclasses
import itertools
import json
import shutil
import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import command, digests, main, storage, streams, together
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.engine import joint
from cutnmix_jax.errors import CheckpointError, DivergedError, StoppedError
from cutnmix_jax.settings import command_line
from tests.runs import TEN_EPOCHS, Made, steps_in
from tests.test_run import TINY, rows_of
from tests.test_seeds import stopped

SEEDS = (1, 2, 3)


def engines(made, **more):
    return [
        dataclasses.replace(made.engine, settings=dataclasses.replace(made.settings, seed=seed), **more)
        for seed in SEEDS
    ]


def begun(each):
    saved = [engine.init() for engine in each]
    return tuple(one.state for one in saved), tuple(one.totals for one in saved), [engine.feed(0) for engine in each]


def scaled(state, by):
    return state._replace(params=jax.tree.map(lambda leaf: leaf * by, state.params))


# Stacked networks; a state of the method's own; a shared trunk and running means.
@pytest.mark.parametrize(
    ("row", "mapping"),
    [
        ("cutnmix", "vmap"),
        ("ps_kd", "unroll"),
        pytest.param("pcl", "unroll", marks=pytest.mark.slow),
        pytest.param("okddip", "unroll", marks=pytest.mark.slow),
    ],
)
def test_steps_together_are_those_alone(row, mapping):
    each = engines(Made(row, f"--config.mapping={mapping}"))
    states, totals, feeds = begun(each)
    alone = list(zip(states, totals, strict=True))
    data, rest = feeds[0].data, tuple(feed[1:] for feed in feeds)
    states, totals = jax.tree.map(jnp.copy, (states, totals))
    program = joint.train_steps(each[0])
    for _ in range(4):
        states, totals = program(states, totals, data, rest, 1)
    for number, feed in enumerate(feeds):
        for _ in range(4):
            alone[number] = each[0].train_steps(*alone[number], feed, 1)
        chex.assert_trees_all_close((states[number], totals[number]), alone[number], atol=2e-6, rtol=2e-5)
    kernels = [np.asarray(jax.tree.leaves(state.params)[0]) for state in states]
    assert all(np.abs(a - b).max() > 0.01 for a, b in itertools.combinations(kernels, 2))


def test_a_run_that_diverges_in_a_long_call_leaves_the_others():
    each = engines(Made("baseline"), steps_per_call=3)
    program = joint.train_steps(each[0])

    def after(poison):
        states, totals, feeds = begun(each)
        states = tuple(scaled(state, by) for state, by in zip(states, poison, strict=True))
        return program(states, totals, feeds[0].data, tuple(feed[1:] for feed in feeds), 3)

    (states, totals), (others, _) = after([1, np.nan, 1]), after([1, 1, 1])
    for number in (0, 2):
        chex.assert_trees_all_equal(states[number], others[number])
    assert [int(one.broken["loss"]) for one in totals] == [2**31 - 1, 1, 2**31 - 1]
    assert [int(state.step) for state in after([np.nan] * 3)[0]] == [1, 1, 1]  # nothing is left to go on for


def test_a_call_waits_for_every_run_that_has_not_left():
    made = Made("baseline")
    runs = joint.Joint(3)
    each = [runs.engine(number, engine.settings, lambda: made.engine) for number, engine in enumerate(engines(made))]
    assert each[0].runs_in_program == 3 and made.engine.runs_in_program == 1
    states, totals, feeds = begun(each)
    expected = [
        made.engine.train_steps(*jax.tree.map(jnp.copy, (states[number], totals[number])), feeds[number], 1)
        for number in (0, 1)
    ]
    answers = {}

    def ask(number):
        answers[number] = each[number].train_steps(states[number], totals[number], feeds[number], 1)

    threads = [threading.Thread(target=ask, args=(number,)) for number in (1, 0)]
    for thread in threads:
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()  # the third one may still come
    runs.leave()
    for thread in threads:
        thread.join(60)
    for number in (0, 1):
        chex.assert_trees_all_close(answers[number], expected[number], atol=2e-6, rtol=2e-5)


def test_what_fails_in_the_program_reaches_every_run():
    made = Made("baseline")
    runs = joint.Joint(1)
    engine = runs.engine(0, made.settings, lambda: made.engine)
    with pytest.raises(AttributeError, match="'step'"):
        engine.train_steps(None, None, engine.feed(0), 1)


def test_saves_that_begin_at_once_end(tmp_path):
    def save(folder):
        checkpoints = Checkpoints(folder, 2)
        for step in range(1, 13):
            at_once.wait(60)
            checkpoints.save(step, {str(name): np.full(10, step, np.float32) for name in range(20)})
        checkpoints.close()

    at_once = threading.Barrier(3)
    folders = [tmp_path / str(number) for number in range(3)]
    threads = [threading.Thread(target=save, args=(folder,), daemon=True) for folder in folders]
    with storage.hush():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert [digests.steps_in(folder) for folder in folders] == [[11, 12]] * 3


# Whole runs.


class After:
    """A request to stop that comes after so many calls."""

    def __init__(self, calls=10**9):
        self.calls = calls

    @property
    def requested(self):
        self.calls -= 1
        return self.calls < 0

    def defer(self):
        pass


def settings_of():
    arguments = [*TEN_EPOCHS, "--config.epochs=4", "--config.optimizer.milestones=(2,)"]
    return {
        seed: command_line.from_flags("configs/quickstart.py:digits,baseline", [*arguments, f"--config.seed={seed}"])
        for seed in SEEDS
    }


def trained(folder, stop=None):
    settings = settings_of()
    workdirs = {seed: folder / f"seed{seed}" for seed in settings}
    together.run(settings, workdirs, stop or After(), False, False, 0.0)
    return workdirs


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("undisturbed"))


def same(one, other):
    assert rows_of(one, timings=False) == rows_of(other, timings=False)
    found = [json.loads((folder / "results.json").read_text())["weights_sha256"] for folder in (one, other)]
    assert found[0] == found[1]


def test_stopped_and_continued(undisturbed, tmp_path, capsys):
    with pytest.raises(StoppedError, match="seeds 1, 2, 3"):
        trained(tmp_path, After(6))
    folders = [tmp_path / f"seed{seed}" for seed in SEEDS]
    assert {max(steps_in(folder)) for folder in folders} == {7}
    capsys.readouterr()
    for seed, folder in trained(tmp_path).items():
        same(folder, undisturbed[seed])
    assert capsys.readouterr().out.count("| continued from step 7") == 3


def test_one_that_is_behind_the_others(undisturbed, tmp_path):
    """As a kill between two saves leaves them; and one that had ended before."""
    shutil.copytree(undisturbed[1], tmp_path / "seed1")
    with pytest.raises(StoppedError):
        trained(tmp_path, After(10))
    shutil.rmtree(tmp_path / "seed2" / "checkpoints" / str(max(steps_in(tmp_path / "seed2"))))
    for seed, folder in trained(tmp_path).items():
        same(folder, undisturbed[seed])


def test_a_damaged_folder_leaves_the_others(undisturbed, tmp_path, capsys):
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "config.json").write_text("{")
    assert command.exit_code_of_part(lambda: trained(tmp_path)) == CheckpointError.exit_code
    assert "seed 1 | error: " in capsys.readouterr().out
    for seed in (2, 3):
        same(tmp_path / f"seed{seed}", undisturbed[seed])


def test_one_that_diverges(undisturbed, tmp_path, capsys, monkeypatch):
    step = joint.Joint.train_steps

    def poisoned(runs, number, state, totals, feed, count):
        if number == 1 and int(state.step) == 5:
            state = scaled(state, np.nan)
        return step(runs, number, state, totals, feed, count)

    monkeypatch.setattr(joint.Joint, "train_steps", poisoned)
    assert command.exit_code_of_part(lambda: trained(tmp_path)) == DivergedError.exit_code
    assert "seed 2 | error: training diverged at step 6" in capsys.readouterr().out
    assert max(steps_in(tmp_path / "seed2")) == 4
    for seed in (1, 3):
        same(tmp_path / f"seed{seed}", undisturbed[seed])


def test_it_is_noted_that_the_bits_are_those_of_three(undisturbed):
    assert json.loads((undisturbed[1] / "environment.json").read_text())["runs_in_program"] == 3


def test_through_the_command_with_a_signal(tmp_path):
    out, folders = stopped(tmp_path, "--together")
    assert len({max(steps_in(folder)) for folder in folders}) == 1
    assert {line[:8] for line in out.splitlines()} == {"seed 1 |", "seed 2 |"}


@pytest.mark.parametrize(
    "more", ["", "--config.validation_examples=8", "--config.devices=2", "--config.images_in=disk"], ids=str
)
def test_what_cannot_be_one_program(more, capsys, tmp_path):
    seeds = ["--seeds=1,2", more] if more else []
    assert main.main([*TINY, "--together", *seeds, f"--workdir={tmp_path}"]) == 2
    assert "--together" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labels_are_put_before_whole_lines(capsys):
    with streams.labelled() as label:
        print("before")
        with label("a | "):
            print("one", end="")
            print(" line\nanother")
    assert capsys.readouterr().out == "before\na | one line\na | another\n"
