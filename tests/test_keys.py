"""No key gives the numbers of two draws, as JAX's own checker of keys sees it, and what is drawn is independent."""

import dataclasses
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cutnmix_jax import augment, backbones, crops
from cutnmix_jax.backbones import layers
from cutnmix_jax.engine import assemble, batches, fresh, mappings, peers
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


def test_no_key_is_of_two_purposes_or_makes_one_of_another(monkeypatch):
    """Crops and dropout, say: `split` gives what `fold_in` gives, so a key and one that is made of it collide."""
    parent = {}

    def noted(make):
        def noting(key, *arguments):
            made = make(key, *arguments)
            each = jnp.atleast_2d(jax.random.key_data(made))
            parent.update((tuple(one), tuple(jax.random.key_data(key).tolist())) for one in each.tolist())
            return made

        return noting

    for name in ("fold_in", "split"):
        monkeypatch.setattr(jax.random, name, noted(getattr(jax.random, name)))
    taken = {}

    def take(purpose, key):
        taken[purpose] = tuple(jax.random.key_data(key).tolist())

    def network(j):
        return backbones.load("resnet8", 10)._replace(
            init=lambda key: take(("weights", j), key) or {"params": {}, "batch_stats": {}}
        )

    method = types.SimpleNamespace(init=lambda key, spec: take("method", key) or ({}, {}))
    asked = types.SimpleNamespace(
        peers=peers.make([network(0), network(1)], "unroll"), method=method, spec=None, zero_totals=dict,
        companions=types.SimpleNamespace(init=lambda *trees: {}),
    )  # fmt: skip
    fresh.state(asked, optax.identity(), jax.random.key(95), {})
    monkeypatch.setattr(jax.random, "permutation", lambda key, count: take(("order", count), key))
    for number in range(3):
        batches.epoch_order(jax.random.key(95), number, number)
        batch_key, forward_key = batches.step_keys(jax.random.key(95), number)
        take(("batch", number), batch_key)
        for view, of in itertools.product(range(3), (batches.view_key, batches.teachers_key)):
            for j, key in enumerate(mappings.keys(of(forward_key, view), 2)):
                take((of.__name__, number, view, j), key)
    assert len(taken) == 3 + 3 + 3 + 3 * 3 * 2 * 3 == len(set(taken.values()))
    for purpose, key in taken.items():
        while key := parent.get(key):
            assert key not in taken.values(), purpose


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
