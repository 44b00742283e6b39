"""J networks as one: unrolled equals vmapped equals each alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, peers

IMAGES = jax.random.normal(jax.random.key(7), (2, 8, 32, 32, 3))
KEY = jax.random.key(1)


def networks(*names):
    return [backbones.load(name, 10) for name in names]


def loss_and_gradient(joined, params, stats, images):
    def loss(params):
        outputs, new_stats = joined.forward(params, stats, images, True, KEY)
        return sum((out.logits**2).mean() + out.features.sum() for out in outputs), (outputs, new_stats)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("name", ["tests.tiny:Tiny", "resnet8"])
def test_unroll_equals_vmap_equals_separate_networks(name):
    pair = networks(name, name)
    unrolled, vmapped = peers.make(pair, "unroll"), peers.make(pair, "vmap")
    params, stats = jax.jit(unrolled.init)(KEY)
    one = loss_and_gradient(unrolled, params, stats, IMAGES)
    other = loss_and_gradient(vmapped, params, stats, IMAGES)
    chex.assert_trees_all_close(one, other, rtol=2e-3, atol=2e-4)
    (_, (outputs, new_stats)), _ = one
    for j in range(2):
        alone, alone_stats = jax.jit(pair[j].apply, static_argnums=2)(
            {"params": params[j], "batch_stats": stats[j]}, IMAGES[j], True
        )
        chex.assert_trees_all_close((outputs[j], new_stats[j]), (alone, alone_stats), rtol=1e-4, atol=1e-5)


def test_vmap_in_evaluation_with_one_set_of_images():
    pair = networks("tests.tiny:Tiny", "tests.tiny:Tiny")
    params, stats = peers.make(pair, "unroll").init(KEY)
    found = [peers.make(pair, m).forward(params, stats, IMAGES[0], False, KEY) for m in peers.MAPPINGS]
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0][0][0].logits - found[0][0][1].logits).max() > 1e-3


def test_peers_start_unlike_and_share_nothing():
    joined = peers.make(networks("tests.tiny:Tiny", "tests.tiny:Tiny"), "unroll")
    params, stats = joined.init(KEY)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, params), strict=True) if np.ptp(np.asarray(a)) > 0)

    def second(params):
        return joined.forward(params, stats, IMAGES, True, KEY)[0][1].logits.sum()

    gradient = jax.grad(second)(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[0]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient[1]))


def test_peers_may_be_unlike_networks():
    joined = peers.make(networks("tests.tiny:Tiny", "tests.tiny:wide"), "unroll")
    params, stats = joined.init(KEY)
    outputs, _ = joined.forward(params, stats, jnp.array(IMAGES), True, KEY)
    assert [out.features.shape for out in outputs] == [(8, 6), (8, 9)]
