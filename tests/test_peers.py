"""J networks as one: unrolled equals vmapped equals each alone."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import backbones, methods, stack
from cutnmix_jax.backbones.adapters import linen_backbone
from cutnmix_jax.engine import companions, mappings, peers
from cutnmix_jax.settings import MAPPINGS
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Spec
from tests.runs import few
from tests.test_backbones import TINY

IMAGES = jax.random.normal(jax.random.key(7), (2, 8, 32, 32, 3))
KEY = jax.random.key(1)


def networks(*names):
    return [linen_backbone(name, TINY[name]) if name in TINY else backbones.load(name, 10) for name in names]


def loss_and_gradient(joined, params, stats, images):
    def loss(params):
        outputs, new_stats = joined.forward(params, stats, images, True, KEY)
        return sum((out.logits**2).mean() + out.features.sum() for out in outputs), (outputs, new_stats)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)


@pytest.mark.parametrize("name", few(["tests.tiny:unbiased", "resnet8", "mobilenet"], ("tests.tiny:unbiased",)))
def test_unroll_equals_vmap_equals_separate_networks(name):
    pair = networks(name, name)
    unrolled, vmapped = peers.make(pair, "unroll"), peers.make(pair, "vmap")
    params, stats = jax.jit(unrolled.init)(KEY)
    stacked = jax.jit(vmapped.init)(KEY)
    assert all(isinstance(one, Stack) for one in stacked)
    chex.assert_trees_all_equal(stack.apart(stacked), (params, stats))
    one = loss_and_gradient(unrolled, params, stats, IMAGES)
    other = stack.apart(loss_and_gradient(vmapped, *stacked, IMAGES))
    chex.assert_trees_all_close(one, other, rtol=1e-4, atol=1e-5)
    (_, (outputs, new_stats)), _ = one
    apply = jax.jit(pair[0].apply, static_argnums=2)
    for j, key in enumerate(mappings.keys(KEY, 2)[:2]):
        alone, alone_stats = apply({"params": params[j], "batch_stats": stats[j]}, IMAGES[j], True, key)
        chex.assert_trees_all_close((outputs[j], new_stats[j]), (alone, alone_stats), rtol=1e-4, atol=1e-5)


def test_vmap_in_evaluation_with_one_set_of_images():
    pair = networks("tests.tiny:Tiny", "tests.tiny:Tiny")
    joined = [peers.make(pair, mapping) for mapping in MAPPINGS]
    found = [stack.apart(one.forward(*one.init(KEY), IMAGES[:1], False, KEY)) for one in joined]
    chex.assert_trees_all_close(*found, rtol=1e-5, atol=1e-6)
    assert np.abs(found[0][0][0].logits - found[0][0][1].logits).max() > 1e-3


def test_peers_start_unlike_and_share_nothing():
    joined = peers.make(networks("tests.tiny:Tiny", "tests.tiny:Tiny"), "unroll")
    params, stats = jax.jit(joined.init)(KEY)
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, params), strict=True) if np.ptp(np.asarray(a)) > 0)

    def second(params):
        return joined.forward(params, stats, IMAGES, True, KEY)[0][1].logits.sum()

    gradient = jax.jit(jax.grad(second))(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient[0]))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient[1]))


def test_peers_may_be_unlike_networks():
    joined = peers.make(networks("tests.tiny:Tiny", "tests.tiny:wide"), "unroll")
    params, stats = joined.init(KEY)
    outputs, _ = joined.forward(params, stats, jnp.array(IMAGES), True, KEY)
    assert [out.features.shape for out in outputs] == [(8, 6), (8, 9)]


@pytest.mark.parametrize("how", ["unroll", "vmap", "branched", "frozen"])
def test_images_are_for_all_or_for_each(how):
    """Two sets for three networks: an index beyond an axis is no error in JAX."""
    three = networks("tests.tiny:Tiny") * 3
    images = jax.ShapeDtypeStruct((2, 8, 32, 32, 3), jnp.float32)
    if how == "frozen":
        frozen = companions.Frozen(companions.Trained(three[0], None, "", None, None), 3)
        variables = (jax.eval_shape(frozen.init, (), ()),)
    else:
        joined = peers.make(three, "vmap" if how == "vmap" else "unroll", share_trunk=how == "branched")
        variables = jax.eval_shape(joined.init, KEY)

    def forward(images, *variables):
        if how == "frozen":
            return frozen.forward(*variables, (), images, KEY)[0]
        return joined.forward(*variables, images, True, KEY)[0]

    with pytest.raises(ValueError, match="for 3 networks their first axis must be 1 or 3"):
        jax.eval_shape(forward, images, *variables)


SPLIT = backbones.names()


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", few(SPLIT, ("resnet8", "vgg16")))
def test_trunk_and_tail_are_the_whole_network(name):
    [network] = networks(name)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(network.init, KEY)
    split = network.split

    def part(variables, trunk):
        return {k: {n: v for n, v in tree.items() if (n in split.names()) == trunk} for k, tree in variables.items()}

    # The shapes and the program: one jaxpr for the whole, and for the two parts one after the other.
    def in_parts(variables, images, train):
        maps, first = split.trunk(part(variables, True), images, train, KEY)
        outputs, second = split.tail(part(variables, False), maps, train, KEY)
        return outputs, first | second

    for train in (False, True):
        one = jax.make_jaxpr(lambda v, x, t=train: network.apply(v, x, t, KEY))(variables, images)
        two = jax.make_jaxpr(lambda v, x, t=train: in_parts(v, x, t))(variables, images)
        assert [e.primitive for e in one.eqns] == [e.primitive for e in two.eqns]
        assert [v.aval.shape for v in one.jaxpr.outvars] == [v.aval.shape for v in two.jaxpr.outvars]
    trunk, tail = part(variables, True), part(variables, False)
    assert count(trunk) + count(tail) == count(variables)
    assert trunk["params"] and tail["params"]


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("name", few(["tests.tiny:Tiny", "resnet8"], ("tests.tiny:Tiny",)))
def test_trunk_and_tail_compute_the_same_numbers(name, train):
    [network] = networks(name)
    variables = jax.jit(network.init)(KEY)
    single = peers.make([network], "unroll", share_trunk=True)
    found = jax.jit(single.forward, static_argnums=3)(
        (variables["params"],), (variables["batch_stats"],), IMAGES[:1], train, KEY
    )
    expected = jax.jit(network.apply, static_argnums=2)(variables, IMAGES[0], train)
    chex.assert_trees_all_close(found[0][0]._replace(trunk=None), expected[0], rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(found[1][0], expected[1], rtol=1e-5, atol=1e-6)


# Parameters with 100 classes of ONE and OKDDip with 2 and 3 branches, counted in OKDDip's released networks.
BRANCHED = {
    "resnet32": {2: (832_990, 833_944), 3: (1_193_189, 1_194_108)},
    "resnet110": {2: (2_066_718, 2_082_840), 3: (2_962_437, 2_978_428)},
    "wrn20_8": {2: (12_112_926, 12_129_048), 3: (17_354_501, 17_370_492)},
    # By hand, as of no released network: see "Trunk and branches" in docs/methods.md.
    "densenet40_12": {2: (260_462, 264_560), 3: (332_769, 336_804)},
    "vgg16": {2: (22_959_886, 23_024_392)},
    "vgg19": {2: (30_632_974, 30_697_480)},
}


@pytest.mark.parametrize("name", few(BRANCHED, ("resnet32", "densenet40_12", "vgg16")))
def test_sizes_of_branched_networks(name):
    for branches, (one, okddip) in BRANCHED[name].items():
        network = backbones.load(name, 100)
        joined = peers.make([network] * branches, "unroll", share_trunk=True)
        params, _ = jax.eval_shape(joined.init, KEY)
        image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
        variables = jax.eval_shape(network.init, KEY)
        outputs, _ = jax.eval_shape(lambda v, x, n=network: n.apply(v, x, False), variables, image)
        maps, _ = jax.eval_shape(lambda v, x, n=network: n.split.trunk(v, x, False), variables, image)
        sizes = (outputs.features.shape[1],) * branches
        spec = Spec(100, sizes, 10, maps.shape[-1])
        for row, expected in {"one": one, "okddip": okddip}.items():
            method = methods.row(row).method
            own, _ = jax.eval_shape(lambda k, m=method, s=spec: m.init(k, s), KEY)
            assert count(params) + count(own) == expected, (row, branches)


def test_a_shared_trunk_is_one_and_sees_all_images():
    pair = networks("tests.tiny:Tiny", "tests.tiny:Tiny")
    joined = peers.make(pair, "unroll", share_trunk=True)
    params, stats = jax.jit(joined.init)(KEY)
    assert set(params[0]) == {"Conv_0", "BatchNorm_0", "Dense_0"} and set(params[1]) == {"Dense_0"}
    assert set(stats[0]) == {"BatchNorm_0"} and not stats[1]
    (_, (_, after)), gradient = loss_and_gradient(joined, params, stats, IMAGES)
    # Apart: each peer's images through the network with the trunk of peer 0, in evaluation, where no batch matters.
    outputs, _ = jax.jit(joined.forward, static_argnums=3)(params, stats, IMAGES, False, KEY)
    apply = jax.jit(pair[0].apply, static_argnums=2)
    for j in range(2):
        whole = {"params": params[0] | params[j], "batch_stats": stats[0]}
        alone, _ = apply(whole, IMAGES[j], False)
        chex.assert_trees_all_close(outputs[j]._replace(trunk=None), alone, rtol=1e-5, atol=1e-6)
    # In training its batch norm is over all images.
    conv = jax.lax.conv_general_dilated(
        IMAGES.reshape(-1, 32, 32, 3), params[0]["Conv_0"]["kernel"], (4, 4), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) + params[0]["Conv_0"]["bias"]  # fmt: skip
    np.testing.assert_allclose(after[0]["BatchNorm_0"]["mean"], 0.1 * conv.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    assert np.any(gradient[0]["Conv_0"]["kernel"])


@pytest.mark.parametrize("mapping", ["unroll", "vmap"])
def test_networks_of_two_kinds_each_begin_as_their_own(mapping):
    """Ours, whose first weights are drawn together where they are alike."""
    pair = [backbones.load(name, 10) for name in ("resnet8", "wrn20_8")]
    if mapping == "vmap":
        pair[1] = pair[0]
    params, _ = jax.eval_shape(lambda: stack.apart(peers.make(pair, mapping).init(jax.random.key(0))))
    wanted = [jax.eval_shape(network.init, jax.random.key(0))["params"] for network in pair]
    assert len(params) == 2
    for found, own in zip(params, wanted, strict=True):
        chex.assert_trees_all_equal_shapes_and_dtypes(found, own)


def test_a_tuple_of_somebody_s_own_is_no_kernel_of_each_network():
    """Linen takes any tree of arrays for a parameter."""
    trees = tuple(
        {"pair": (jnp.full(3, j), jnp.full((2, 2, 1, 1), j)), "kernel": jnp.full((1, 1, 2, 2), j)} for j in (1, 2)
    )
    stacked = stack.of(trees)
    chex.assert_trees_all_equal(stack.apart(stacked), trees)
    found = stack.arrays(stacked)
    assert jax.tree.structure(found) == jax.tree.structure(trees[0])
    chex.assert_trees_all_equal(stack.apart(stack.of_arrays(found, 2)), trees)
