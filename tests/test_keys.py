"""No key gives the numbers of two draws, as JAX's own checker of keys sees it, and what is drawn is independent."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import augment, backbones, crops
from cutnmix_jax.backbones import layers
from cutnmix_jax.engine import assemble
from tests.test_step import KEY, built

KEYS = jax.random.split(KEY, 4000)


def check(draw):
    """Raises KeyReuseError where a function of a key uses one twice."""
    with jax.debug_key_reuse(True):
        jax.jit(draw)(jax.random.key(95))


def test_the_checker_finds_a_key_that_is_used_twice():
    with pytest.raises(jax.errors.KeyReuseError):
        check(lambda key: jax.random.uniform(key) + jax.random.normal(key))


@pytest.mark.parametrize(
    ("kind", "box"),
    [("mixup", "own"), ("cutmix", "own"), *(("cutnmix", box) for box in augment.BOX_READINGS)],
)
def test_mixing(kind, box):
    check(lambda key: augment.draw_mix(key, 2, 5, (32, 32), kind=kind, prob=0.5, alpha=0.7, box=box))


@pytest.mark.parametrize("kind", ["pad", "resized"])
def test_crops(kind):
    check(lambda key: crops.draw_crops(key, 5, (48, 40), kind=kind, flip=True, jitter=(0.4, 0.4, 0.4)))


@pytest.mark.parametrize("row", ["cutnmix", "dml_cutmix", "mixup", "cs_kd", "ddgsd"])
def test_batches(row):
    engine = built(row)
    check(lambda key: engine.make_batch.draw(key, engine.train_data, jnp.arange(10)))


@pytest.mark.parametrize("row", ["cutnmix", "okddip", "one", "pcl"])
def test_first_weights_of_a_method(row):
    engine = built(row)
    check(lambda key: engine.method.init(key, engine.spec))


def test_weights_of_a_network():
    with layers.shapes_only():
        network = backbones.load("resnet8", 10, jnp.float32, (32, 32, 3))
    check(network.init)


def test_whether_and_how_much_is_mixed_are_independent():
    """Half of the batches are mixed, and each of those by any share."""
    for kind in ("mixup", "cutnmix"):
        draw = jax.vmap(lambda key, kind=kind: augment.draw_mix(
            key, 2, 4, (32, 32), kind=kind, prob=0.5, alpha=1.0, box="inside").amount[0])  # fmt: skip
        amounts = np.asarray(jax.jit(draw)(KEYS))
        mixed = amounts[amounts > 0]
        assert abs(len(mixed) / len(KEYS) - 0.5) < 0.04
        np.testing.assert_allclose([mixed.mean(), mixed.var()], [0.5, 1 / 12], atol=0.02)


@pytest.mark.parametrize("alpha", [0.5, 8.0])
def test_alpha_is_that_of_what_a_batch_is_mixed_by(alpha):
    """Var Beta(a, a) = 1 / (4 (2 a + 1)); a box inside the image has the share that was drawn, but for whole pixels."""
    for kind in ("mixup", "cutnmix"):
        draw = jax.vmap(lambda key, kind=kind: augment.draw_mix(
            key, 2, 4, (32, 32), kind=kind, prob=1.0, alpha=alpha, box="inside").amount[0])  # fmt: skip
        amounts = np.asarray(jax.jit(draw)(KEYS))
        np.testing.assert_allclose(amounts.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.12)


def test_the_order_of_colours_does_not_depend_on_how_far_they_change():
    found = jax.jit(lambda key: crops.draw_colours(key, 4000, (0.4, 0.4, 0.4)))(KEY)
    factors, order = np.asarray(found.factors), np.asarray(found.order)
    for which, place in itertools.product(range(3), repeat=2):
        at_place = order[:, place] == which
        for other in range(3):
            assert abs(np.corrcoef(at_place, factors[:, other])[0, 1]) < 5 / 4000**0.5


def test_images_that_are_kept_back_are_drawn_by_the_seed():
    engine = built("baseline")
    kept = {}
    for seed in (95, 96):
        settings = dataclasses.replace(engine.settings, seed=seed, validation_examples=10)
        train, held_out, validation = assemble._split(40, settings)
        assert sorted([*train, *validation]) == list(range(40)) and not len(held_out)
        assert len(validation) == 10 and list(validation) not in (list(range(10)), list(range(30, 40)))
        kept[seed] = set(validation)
    assert kept[95] != kept[96]
