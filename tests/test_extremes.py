"""Both ends of every range: what is accepted trains, and what is beyond them is refused."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from cutnmix_jax import augment, fields, methods
from cutnmix_jax.settings import recipe
from tests.runs import Made, few

# The least and the most of every field that is no whole number. A `correct` below 1 / K is refused by the method.
ENDS = {
    "loss.temperature": (1e-3, 1e6),
    "loss.last_share": (0.0, 1.0),
    "loss.correct": (0.1, 1.0),
    "mix.prob": (0.0, 1.0),
    "mix.alpha": (1e-3, 1e6),
    "jitter.brightness": (0.0, 100.0),
    "jitter.contrast": (0.0, 100.0),
    "jitter.saturation": (0.0, 100.0),
    "optimizer.learning_rate": (1e-12, 1e6),
    "optimizer.warm_up_epochs": (0.0, math.inf),
    "optimizer.decay": (1e-6, 1.0),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.weight_decay": (0.0, 1.0),
    "optimizer.beta_1": (0.0, 0.9999),
    "optimizer.beta_2": (0.0, 0.999999),
    "optimizer.epsilon": (1e-12, 1.0),
    "optimizer.trust": (1e-6, 1.0),
    "checkpoint.every_minutes": (1e-9, math.inf),
}
WEIGHT_ENDS = 1e-12, 1e6
ROWS = sorted(methods.rows_by_name())


def checks_of(settings, path=""):
    """Of each field that is a number with a fraction, by its path."""
    found = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            found |= checks_of(value, f"{path}{field.name}.")
        elif isinstance(value, float):
            found[path + field.name] = field.metadata["check"]
    return found


def settings_of(row):
    return recipe.of_row("tests.tiny:Tiny", "digits", row)


CHECKS = {name: check for row in ROWS for name, check in checks_of(settings_of(row)).items()}


def test_every_number_of_every_row_has_its_ends_here():
    assert set(CHECKS) == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_beyond_an_end_is_refused(name):
    check, (low, high) = CHECKS[name], ENDS[name]
    assert not check(low) and not check(min(high, 1e300))
    assert check(math.nextafter(high, math.inf)) and (name == "loss.correct" or check(math.nextafter(low, -math.inf)))


def test_a_weight_or_a_decay_is_none_or_one_that_counts():
    for check, (low, high) in ((fields.weight, WEIGHT_ENDS), (CHECKS["optimizer.weight_decay"], (1e-12, 1.0))):
        assert not check(0.0) and not check(low) and not check(high)
        assert check(low / 2) and check(2 * high) and check(-low)


@pytest.mark.parametrize("alpha", [1e-3, 0.5, 30.0, 1e6])
def test_the_mixing_ratio_has_its_law_at_both_ends(alpha):
    ratios = np.asarray(
        jax.vmap(lambda key: augment.draw_ratio(key, alpha))(jax.random.split(jax.random.key(0), 20_000))
    )
    deviation = (8 * alpha + 4) ** -0.5  # of Beta(alpha, alpha)
    assert ((ratios >= 0) & (ratios <= 1)).all()
    assert abs(ratios.mean() - 0.5) < 4 * deviation / 20_000**0.5
    np.testing.assert_allclose(ratios.std(), deviation, rtol=0.03)
    if alpha == 1e-3:  # as `Mix` says: 0 or 1 to a pixel in 99 of 100 batches
        assert np.mean(np.abs(ratios - 0.5) < 0.5 - 1 / 1024) < 0.01


OFTEN = [("cutnmix", "sgd"), ("okddip", "sgd"), ("baseline", "adamw"), ("baseline", "lars")]
CASES = [*OFTEN, ("mixup", "sgd"), ("ps_kd", "sgd"), ("tf_kd_reg", "sgd"), ("pcl", "sgd")]


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("case", few(CASES, OFTEN), ids=" ".join)
def test_the_first_step_is_finite_at_both_ends(case, end):
    """Terms, parameters and momenta; that training goes well with a learning rate of a million is not promised."""
    row, optimizer = case
    settings = settings_of(row)
    ends = {name: ENDS[name][end] for name in checks_of(settings) if ENDS[name][1] < math.inf}
    ends |= {f"weights.{name}": WEIGHT_ENDS[end] for name in settings.weights}
    ends |= {"ramp_up.epochs": 1, "optimizer.name": optimizer}
    engine = Made(row, *(f"--config.{name}={value}" for name, value in ends.items())).engine
    saved = engine.init()
    state, totals = engine.train_steps(saved.state, saved.totals, engine.feed(0), 1)
    assert all(np.isfinite(total) for total in totals.sums.values()), totals.sums
    assert totals.sums["loss"] > 0
    for part in (state.params, state.opt_state, state.batch_stats, state.method_state):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part))
