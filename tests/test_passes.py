"""In which mode a network is passed in a step, what random numbers it draws there, and whose statistics are kept."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cutnmix_jax import methods, stack
from cutnmix_jax.backbones.nnx_adapter import nnx_backbone
from cutnmix_jax.engine import mappings, passes
from cutnmix_jax.types import CIFAR, Backbone, Split
from tests.test_step import KEY, RATE, D, K, begun, build, linear_backbone, summaries


def drawing_backbone():
    """A number drawn in training is added to the logits, and the last two are kept among the batch statistics."""
    plain = linear_backbone()

    def init(key):
        return plain.init(key) | {"batch_stats": {"drawn": jnp.zeros(2)}}

    def drawn(outputs, stats, train, key):
        if not train:
            return outputs, stats
        number = 1 + jax.random.uniform(key)
        outputs = outputs + number if isinstance(outputs, jax.Array) else outputs._replace(logits=outputs[0] + number)
        return outputs, {"drawn": jnp.stack([stats["drawn"][1], number])}

    def apply(variables, images, train, key=None):
        return drawn(plain.apply(variables, images, train)[0], variables["batch_stats"], train, key)

    def tail(variables, maps, train, key=None):
        return drawn(plain.split.tail(variables, maps, train)[0], variables["batch_stats"], train, key)

    return Backbone("drawing", init, apply, split=Split(plain.split.names, plain.split.trunk, tail))


class DrawingNnx(nnx.Module):
    """The same in NNX, where the state of the random numbers is a part of the network."""

    def __init__(self, num_classes, rngs):
        self.body, self.head = nnx.Linear(12, D, rngs=rngs), nnx.Linear(D, num_classes, rngs=rngs)
        self.dropout, self.drawn = nnx.Dropout(0.5, rngs=rngs), nnx.BatchStat(jnp.zeros(2))

    def __call__(self, images):
        features = self.body(summaries(images))
        logits = self.head(features)
        if not self.dropout.deterministic:  # which of 23 units are kept, as a number from 1 to 2
            kept = self.dropout(jnp.ones(23)) > 0
            number = 1 + jnp.sum(kept * 0.5 ** jnp.arange(1, 24))
            logits = logits + number
            self.drawn.set_value(jnp.stack([self.drawn.get_value()[1], number]))
        return logits, features


BACKBONES = {"keys": drawing_backbone(), "nnx": nnx_backbone("drawing", functools.partial(DrawingNnx, K), CIFAR)}


def drawn_in_steps(engine, count):
    """The state after each of some steps."""
    state, totals, feed = begun(engine)
    states = []
    for _ in range(count):
        state, totals = engine.train_steps(state, totals, feed, 1)
        states.append(jax.device_get(state))
    return states


def three_of(backbone):
    """The parameters and the batch statistics of three networks."""
    made = [backbone.init(key) for key in jax.random.split(KEY, 3)]
    return (tuple(one[part] for one in made) for part in ("params", "batch_stats"))


def all_differ(numbers):
    numbers = np.asarray(numbers).ravel()
    return np.all(numbers >= 1) and all(abs(a - b) > 1e-6 for a, b in itertools.combinations(numbers, 2))


@pytest.mark.parametrize("kind", BACKBONES)
def test_each_step_and_each_peer_draws_other_numbers(kind):
    states = drawn_in_steps(build("dml", backbone=BACKBONES[kind]), 3)
    assert all_differ([stats["drawn"][1] for state in states for stats in state.batch_stats])


@pytest.mark.parametrize("kind", BACKBONES)
def test_each_view_draws_other_numbers(kind):
    [state] = drawn_in_steps(build("ddgsd", backbone=BACKBONES[kind]), 1)
    assert all_differ(state.batch_stats[0]["drawn"])


@pytest.mark.parametrize("kind", BACKBONES)
def test_running_means_are_passed_as_in_training_and_draw_other_numbers_than_the_peers(kind):
    [state] = drawn_in_steps(build("pcl", backbone=BACKBONES[kind], share_trunk=False), 1)
    of_all = *state.batch_stats, *state.teachers["mean"]["batch_stats"]
    assert len(of_all) == 6 and all_differ([stats["drawn"][1] for stats in of_all])


def test_each_layer_of_an_nnx_network_drops_other_units():
    """Whose keys are all drawn from that of the pass."""

    class Two(nnx.Module):
        def __init__(self, num_classes, rngs):
            self.one, self.other = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(2, num_classes, rngs=rngs)
            self.kept = nnx.BatchStat(jnp.zeros((2, 64)))

        def __call__(self, images):
            self.kept.set_value(jnp.stack([self.one(jnp.ones(64)), self.other(jnp.ones(64))]))
            features = images.mean((1, 2))[:, :2]
            return self.head(features), features

    network = nnx_backbone("two", functools.partial(Two, K), CIFAR)
    images = jnp.zeros((1, 32, 32, 3))
    one, other = np.asarray(network.apply(network.init(KEY), images, True, KEY)[1]["kept"]) > 0
    assert 0 < (one == other).sum() < 64 and 0 < one.sum() < 64


def test_each_branch_passes_on_what_its_own_images_become():
    """Of J sets of images, that go through the trunk as one."""
    backbone = linear_backbone()
    params, stats = three_of(backbone)
    images = jax.random.normal(KEY, (3, 5, 32, 32, 3))
    outputs, _ = mappings.branched(backbone.split, 3)(params, stats, images, True, KEY)
    for j, out in enumerate(outputs):
        trunk = np.asarray(summaries(images[j])) @ np.asarray(params[0]["body"])
        np.testing.assert_allclose(out.trunk, trunk, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out.logits, trunk @ np.asarray(params[j]["head"]), rtol=1e-4, atol=1e-5)


def test_each_branch_draws_other_numbers():
    backbone = drawing_backbone()
    params, stats = three_of(backbone)
    images = jax.random.normal(KEY, (1, 5, 32, 32, 3))
    _, after = mappings.branched(backbone.split, 3)(params, stats, images, True, KEY)
    assert all_differ([own["drawn"][1] for own in after])


def test_stacked_networks_draw_what_they_draw_one_after_the_other():
    backbone = drawing_backbone()
    params, stats = three_of(backbone)
    images = jax.random.normal(KEY, (3, 5, 32, 32, 3))
    _, alone = mappings.unrolled([backbone] * 3)(params, stats, images, True, KEY)
    stacked = (stack.of_arrays(jax.tree.map(lambda *leaves: jnp.stack(leaves), *tree), 3) for tree in (params, stats))
    _, at_once = mappings.vmapped([backbone] * 3)(*stacked, images, True, KEY)
    found = [own["drawn"][1] for own in stack.apart(at_once)]
    assert all_differ(found)
    np.testing.assert_allclose(found, [own["drawn"][1] for own in alone], rtol=1e-6)


def test_teachers_see_each_view_and_draw_other_numbers_there():
    """Made of a recorder: no row has both a teacher and two views."""
    passed = []

    class Recorder:
        kinds = ("frozen",)

        def forward(self, own, params, images, key):
            passed.append((images, float(jax.random.uniform(key))))
            return {"frozen": (len(passed),)}, own + 1

    engine = build("ddgsd")
    state = begun(engine)[0]._replace(teachers=0)
    images = jnp.arange(2)
    by_teachers, own = passes.of_companions(Recorder(), state, images, KEY)
    assert by_teachers == {"frozen": ((1,), (2,))} and own == 2
    assert [int(seen) for seen, _ in passed] == [0, 1]
    assert all_differ([1 + number for _, number in passed])


def test_three_views_are_cropped_apart(monkeypatch):
    row = methods.find("ddgsd")
    monkeypatch.setattr(row, "views", (*row.views, row.views[-1]))
    engine = build("ddgsd")
    draws = engine.make_batch.draw(KEY, engine.train_data, jnp.arange(10))
    seen = [crops.offsets.tobytes() for crops in jax.device_get(draws.crops)]
    assert len(set(seen)) == len(seen) == 3


def test_a_loss_is_told_what_time_it_is(monkeypatch):
    def loss(self, params, state, views, batch, clock):
        hands = clock.step * 1e4 + clock.epoch * 1e2 + clock.epochs + clock.learning_rate
        return {"ce": hands + 0 * views[0][0].logits.sum()}, state

    monkeypatch.setattr(methods.find("supervised"), "loss", loss)
    monkeypatch.setattr(methods.find("supervised"), "counts_epochs", True)
    engine = build("baseline")
    state, totals, feed = begun(engine)
    _, totals = engine.train_steps(state._replace(step=jnp.int32(6)), totals, engine.feed(1), 1)
    np.testing.assert_allclose(totals.sums["ce"], 6e4 + 1e2 + 3 + RATE, rtol=1e-6)


def test_an_average_follows_the_statistics_that_the_step_has_left():
    [state] = drawn_in_steps(build("baseline", backbone=drawing_backbone(), average=0.9), 1)
    kept = 2 / 11  # min(.9, (1 + t) / (10 + t)) after one step
    [average] = state.teachers["average"]["batch_stats"]
    np.testing.assert_allclose(average["drawn"], (1 - kept) * state.batch_stats[0]["drawn"], rtol=1e-6)
    assert average["drawn"][1] > 0.5


def test_a_frozen_teacher_is_passed_as_in_evaluation():
    engine = build("kd", backbone=drawing_backbone())
    state, _, _ = begun(engine)
    images = jax.random.normal(KEY, (1, 5, 32, 32, 3))
    outputs, own = engine.companions.forward(state.teachers, state.params["peers"], images, KEY)
    weights = state.teachers["frozen"]["params"][0]
    expected = summaries(images[0]) @ weights["body"] @ weights["head"]
    np.testing.assert_allclose(outputs["frozen"][0].logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(own["frozen"]["batch_stats"][0]["drawn"], 0)
