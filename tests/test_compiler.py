"""What the compiler makes of a whole training step, against the same step done op by op."""

import dataclasses
import functools
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, compiler, methods
from cutnmix_jax.errors import UsageError
from cutnmix_jax.methods import kdcl
from cutnmix_jax.settings import Optimizer
from cutnmix_jax.types import Dataset
from tests.runs import few, leaves
from tests.test_step import build

K = 100
BATCH = {1: 400, 2: 256, 3: 128}  # J -> n, so that J n K is above 32,768, where a release of JAX went wrong
NOISE = 3e-7  # of each pixel, a few units in the last place
CASES = {row: {} for row in methods.rows_by_name()}
CASES |= {f"kdcl {target}": {"target": target} for target in (*kdcl._COMBINE, "general") if target != "mean"}


@functools.cache
def noise_for_images():
    """A data set of noise, the size of one batch of the largest kind."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (max(BATCH.values()), 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, K, len(pixels)).astype(np.int32)
    third = np.full(3, 1 / 3, np.float32)
    names = tuple(map(str, range(K)))
    return Dataset("noise", pixels, labels, pixels[:2], labels[:2], names, third, third, True)


@functools.cache
def step_of(case):
    """The engine, and its state before a step."""
    row = methods.row(case.split()[0])
    engine = build(
        case.split()[0],
        dataset=noise_for_images(),
        backbone=backbones.load("tests.tiny:unbiased", K),
        features=6,
        loss=dataclasses.replace(row.method, **CASES[case]),
        batch_size=BATCH[row.num_peers],
        optimizer=Optimizer(weight_decay=0.0),
    )
    return engine, engine.init()


def terms_and_gradients(case, noise=0):
    """Of one step: each metric, and the optimizer's memory, which is the gradient after a first step without decay."""
    engine, saved = step_of(case)
    feed = engine.feed(0)
    moved = np.random.default_rng(noise).normal(1, NOISE if noise else 0, feed.data.images.shape)
    data = feed.data._replace(images=jnp.float32(feed.data.images * moved))
    state = jax.tree.map(jnp.array, saved.state)  # the step takes over its memory
    after, sums = engine.train_steps(state, saved.totals, feed._replace(data=data), 1)
    return jax.device_get(sums.sums), jax.device_get(after.opt_state)


# The one that was wrong.
OFTEN = ("kdcl minlogit",)


@pytest.mark.parametrize("case", few(CASES, OFTEN))
def test_a_compiled_step_is_the_same_step_op_by_op(case):
    compiled_terms, compiled_gradients = terms_and_gradients(case)
    with jax.disable_jit():
        terms, gradients = terms_and_gradients(case)
    for name, value in terms.items():
        np.testing.assert_allclose(compiled_terms[name], value, rtol=1e-4, atol=1e-7, err_msg=name)
    disturbed = [leaves(terms_and_gradients(case, noise)[1]) for noise in (1, 2, 3)]
    found, expected = leaves(compiled_gradients), leaves(gradients)
    whole = max(np.abs(leaf).max() for leaf in expected.values())
    for name, leaf in expected.items():
        by_noise = max(np.abs(other[name] - found[name]).max() for other in disturbed)
        # The noise; or, of sums of 25,600 numbers, the order in which they are added up.
        most = max(2 * by_noise, 3e-5 * np.abs(leaf).max(), 1e-6 * whole)
        assert np.abs(found[name] - leaf).max() <= most, name


def test_a_compiler_that_gives_wrong_numbers_is_refused(monkeypatch):
    compiler.check.__wrapped__()  # this one gives the right ones
    right = compiler.compiled

    def wrong(function):
        return lambda *arguments: [
            found.at[...].add(number == 1) for number, found in enumerate(right(function)(*arguments))
        ]

    monkeypatch.setattr(compiler, "compiled", wrong)
    with pytest.raises(UsageError, match="wrong numbers on this cpu .a sum is off by 1.; install another release"):
        compiler.check.__wrapped__()


def test_releases_that_sum_wrongly_are_kept_from_it():
    """What they need is an option that this release knows, too."""
    assert not compiler._options("0.10.1") and not compiler._options("0.12.0.1")
    for release in ("0.10.2", "0.11.0"):
        arguments, expected = compiler._example()
        program = jax.jit(compiler._sums, compiler_options=compiler._options(release)).lower(*arguments).compile()
        assert compiler._options(release) and "ynn" not in program.as_text()
        for found, right in zip(program(*arguments), expected, strict=True):
            np.testing.assert_array_equal(found, right)


def test_the_expected_sums_are_right():
    arguments, expected = compiler._example()
    with jax.disable_jit():
        for found, right in zip(compiler._sums(*arguments), expected, strict=True):
            np.testing.assert_array_equal(found, right)


class Slow:
    """A program that is compiled for as long as somebody wants."""

    def __init__(self):
        self.end = threading.Event()

    def lower(self):
        return self

    def compile(self):
        self.end.wait(60)


def test_an_error_beside_compiling_is_not_kept_waiting():
    slow, started = Slow(), time.monotonic()
    with pytest.raises(KeyboardInterrupt), compiler.compiled_beside(slow):
        raise KeyboardInterrupt
    assert time.monotonic() - started < 30
    slow.end.set()


def test_nothing_is_compiled_where_jax_is_told_to_compile_nothing():
    with jax.disable_jit(), compiler.compiled_beside(None):
        pass
