"""Both ends of every range: what is accepted trains, and what is beyond them is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from cutnmix_jax import augment, batches, schema
from tests.runs import Made, few
from tests.test_config import leaves

# The least and the most of every field that is no whole number. A `correct` below 1 / K is refused by `config.check`.
ENDS = {
    "loss.temperature": (1e-3, 1e6),
    "loss.last_share": (0.0, 1.0),
    "loss.correct": (0.1, 1.0),
    "mix.prob": (0.0, 1.0),
    "mix.alpha": (1e-3, 1e6),
    "optimizer.learning_rate": (1e-12, 1e6),
    "optimizer.decay": (1e-6, 1.0),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.weight_decay": (0.0, 1.0),
    "checkpoint.every_minutes": (0.0, math.inf),
}
WEIGHT_ENDS = 1e-12, 1e6


def fields_of(row):
    return dict(leaves(common.make("tests.tiny:Tiny", f"digits,{row}").to_dict()))


def test_every_number_of_every_row_has_its_ends_here():
    found = {name for row in common.ROWS for name, value in fields_of(row).items() if isinstance(value, float)}
    assert {name for name in found if not name.startswith("weights.")} == set(ENDS)


@pytest.mark.parametrize("name", ENDS)
def test_beyond_an_end_is_refused(name):
    check, (low, high) = schema.RANGES[name], ENDS[name]
    assert not check(low) and not check(min(high, 1e300))
    assert check(math.nextafter(high, math.inf)) and (name == "loss.correct" or check(math.nextafter(low, -math.inf)))


def test_a_weight_or_a_decay_is_none_or_one_that_counts():
    for check, (low, high) in ((schema.WEIGHT, WEIGHT_ENDS), (schema.RANGES["optimizer.weight_decay"], (1e-12, 1.0))):
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
    if alpha == 1e-3:  # as `schema` says: 0 or 1 to a pixel in 99 of 100 batches
        assert np.mean(np.abs(ratios - 0.5) < 0.5 - 1 / 1024) < 0.01


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("row", few(["cutnmix", "mixup", "ps_kd", "tf_kd_reg", "okddip", "pcl"], ("cutnmix", "okddip")))
def test_the_first_step_is_finite_at_both_ends(row, end):
    """Terms, parameters and momenta; that training goes well with a learning rate of a million is not promised."""
    ends = {name: values[end] for name, values in ENDS.items() if name in fields_of(row) and values[1] < math.inf}
    ends |= {name: WEIGHT_ENDS[end] for name in fields_of(row) if name.startswith("weights.")}
    ends |= {"loss.rampup_epochs": 1} if "loss.rampup_epochs" in fields_of(row) else {}
    run = Made(row, *(f"--config.{name}={value}" for name, value in ends.items())).program
    saved = run.init()
    order = batches.epoch_order(run.key, 0, len(run.train_data.labels))
    rate = jnp.float32(run.learning_rate(0))
    state, totals = run.train(saved.state, saved.totals, run.train_data, order, rate, 1, run.key)
    assert all(np.isfinite(total) for total in totals.sums.values()), totals.sums
    assert totals.sums["loss"] > 0
    for part in (state.params, state.opt_state, state.batch_stats, state.method_state):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part))
