"""What is not finite is noticed within fifty steps, named, and never saved."""

import dataclasses
import random
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import main
from cutnmix_jax.errors import DivergedError
from cutnmix_jax.methods.cutnmix import CutnMix
from tests.runs import TEN_EPOCHS, Made, few, hooked, leaves, made, rows_in, steps_in, whole, with_train_steps

# 100 steps an epoch, and nothing is saved or evaluated between.
LONG = ["--config.train_examples=400", "--config.batch_size=4", "--config.epochs=2", "--config.optimizer.milestones=()"]


def poisoned(tree, value, chance):
    """A tree with one number of one of its arrays of floats replaced, and the name of that array."""
    named = [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    name, leaf = chance.choice([pair for pair in named if pair[1].dtype.kind == "f" and pair[1].size])
    place = np.unravel_index(chance.randrange(leaf.size), leaf.shape)
    changed = jnp.array(leaf).at[place].set(value)
    return jax.tree_util.tree_map_with_path(lambda path, x: changed if jax.tree_util.keystr(path) == name else x, tree)


@pytest.fixture(scope="module")
def long():
    return Made("cutnmix", *LONG)


@pytest.mark.rounds(6, 20)
def test_injected(number, long, tmp_path):
    chance = random.Random(number)
    value, step = chance.choice([np.nan, np.inf, -np.inf]), chance.randrange(2, 190)
    part = ("params", "opt_state", "params", "rate")[number % 4]
    calls = []

    def before(count, state, totals):
        calls.append(count)
        if count == step and part != "rate":
            return state._replace(**{part: poisoned(getattr(state, part), value, chance)}), totals
        return None

    run = hooked(long.engine, before)
    if part == "rate":
        train = run.train_steps
        run = with_train_steps(
            run,
            lambda state, totals, feed, count: train(
                state, totals, feed._replace(rates=jnp.where(len(calls) == step - 1, value, feed.rates)), count
            ),
        )
    with pytest.raises(DivergedError) as diverged:
        long.train(tmp_path, engine=run)
    found = re.search(r"at step (\d+), in epoch (\d): ([\w, ]+) not finite", str(diverged.value))
    assert found, diverged.value
    # A parameter shows in the terms of its own step, a momentum or a rate in those of the next.
    assert step <= int(found[1]) <= step + 1 and int(found[2]) == 1 + (int(found[1]) > 100)
    assert set(found[3].split(", ")) <= {"loss", "ce", "dml", "mmd", "pt", "peer_teacher_ce", "accuracy"}
    assert calls[-1] - step < 50
    if step > 100:  # what the first epoch saved is left, and whole
        assert steps_in(tmp_path) == [100]
        assert all(np.isfinite(leaf).all() for leaf in leaves(long.saved(tmp_path)).values())
    else:
        assert not steps_in(tmp_path)
    assert all(np.isfinite(value) for row in rows_in(tmp_path) for value in row.values())


@pytest.mark.parametrize("term", few(["ce", "dml", "mmd", "pt", "peer_teacher_ce"], ("mmd",)))
def test_the_term_and_the_step_are_named(term, tmp_path, monkeypatch):
    run, given = made(), CutnMix.loss

    def loss(self, params, state, views, batch, clock):
        terms, state = given(self, params, state, views, batch, clock)
        return terms | {term: jnp.where(clock.step == 13, jnp.inf, terms[term])}, state

    monkeypatch.setattr(CutnMix, "loss", loss)
    broken = dataclasses.replace(run.engine)  # which has traced nothing yet
    with pytest.raises(DivergedError, match=rf"at step 14, in epoch 4: loss, (?:\w+, )*{term}"):
        run.train(tmp_path, engine=broken)
    assert steps_in(tmp_path)[-1] == 12
    assert len(rows_in(tmp_path)) == 3


@pytest.mark.parametrize("part", ["params", "batch_stats", "opt_state"])
def test_of_the_very_last_step(part, tmp_path):
    """After it no loss is computed that could tell."""
    run, chance = made(), random.Random(3)

    def train(state, *rest):
        state, totals = run.engine.train_steps(state, *rest)
        if int(state.step) == 40:
            state = state._replace(**{part: poisoned(getattr(state, part), np.nan, chance)})
        return state, totals

    with pytest.raises(DivergedError, match=rf"by step 40: state\.{part}\..* is not finite"):
        run.train(tmp_path, engine=with_train_steps(run.engine, train))
    reference = whole("cutnmix", tmp_path / "whole")
    assert steps_in(tmp_path) == [step for step in steps_in(tmp_path) if step < 40] != []
    rows, whole_rows = rows_in(tmp_path), rows_in(reference)  # the last was written first; a next start drops it
    tested = [name for name in rows[-1] if name.startswith("test/")]  # with NaN among the weights
    assert rows[:-1] == whole_rows[:-1]
    assert rows[-1] | dict.fromkeys(tested) == whole_rows[-1] | dict.fromkeys(tested)


def test_the_best_and_the_last_finite_one_are_left(tmp_path):
    run, chance = made(), random.Random(4)

    def before(count, state, totals):
        return (state._replace(params=poisoned(state.params, np.nan, chance)), totals) if count == 30 else None

    with pytest.raises(DivergedError):
        run.train(tmp_path, engine=hooked(run.engine, before))
    rows = rows_in(tmp_path)
    best = max(rows, key=lambda row: (row["test/accuracy"], -row["epoch"]))["step"]
    assert set(steps_in(tmp_path)) == {best, 20, 24, 28}


def test_a_loop_ends_at_the_broken_step(monkeypatch, tmp_path):
    """Where many steps are one call, as on a GPU, the call stops at the step."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    run = Made("baseline", *LONG, "--config.steps_per_call=100", "--config.optimizer.learning_rate=1e6")
    reached = []

    def train(*arguments):
        state, totals = run.engine.train_steps(*arguments)
        reached.append(int(state.step))
        return state, totals

    with pytest.raises(DivergedError) as diverged:
        run.train(tmp_path, engine=with_train_steps(run.engine, train))
    assert f"at step {reached[-1]}," in str(diverged.value) and reached[-1] < 100 and len(reached) == 1


def test_the_command_says_so(tmp_path, capsys):
    # Sixteen steps before anything is saved: some versions of XLA need more than four for a loss that is not finite.
    fields = ["--config.batch_size=4", "--config.optimizer.learning_rate=1e6"]
    command = ["--config=configs/quickstart.py", *TEN_EPOCHS, *fields]
    assert main.main([*command, f"--workdir={tmp_path}"]) == 5
    [error] = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: training diverged at step \d+, in epoch 1: loss, .* not finite; lower .* left", error)
