"""What other programs may use: the public names, mixing and the objective for arrays, and a loop of somebody's own."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cutnmix_jax
from cutnmix_jax import methods
from cutnmix_jax.augment import BOX_READINGS
from cutnmix_jax.backbones import nnx_adapter
from cutnmix_jax.engine import batches
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError
from cutnmix_jax.settings import command_line
from cutnmix_jax.types import Outputs
from docs import own_loop
from tests.runs import Made
from tests.test_run import TINY

ROOT = Path(__file__).parent.parent
KEY = jax.random.key(3)
J, N, H, W, K, D = 2, 6, 8, 12, 3, 5
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.normal(size=(J, N, H, W, 3)), jnp.float32)
TARGETS = jax.nn.one_hot(jnp.asarray(RNG.integers(0, K, N)), K)


def test_every_public_name_is_there():
    for name in cutnmix_jax.__all__:
        assert getattr(cutnmix_jax, name) is not None and name in dir(cutnmix_jax)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        cutnmix_jax.nothing  # noqa: B018
    assert set(dir(cutnmix_jax)) == {*cutnmix_jax.__all__, "__version__"}  # what a notebook offers to complete


def test_what_is_no_setting_and_no_function_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(TypeError, match=r"settings are a str; cutnmix_jax\.configure makes Settings"):
        cutnmix_jax.train("quickstart", tmp_path / "run")
    settings = cutnmix_jax.configure("quickstart", {"epochs": 1, "optimizer.milestones": ()})
    with pytest.raises(TypeError, match="on_epoch is a int, not a function of a row"):
        cutnmix_jax.train(settings, tmp_path / "run", on_epoch=3)
    with pytest.raises(UsageError, match="force and extend: leave one of them out"):
        cutnmix_jax.train(settings, tmp_path / "run", force=True, extend=True)
    assert not (tmp_path / "run").exists()


def test_a_misspelled_field_is_one_error_and_not_a_chain_of_them():
    with pytest.raises(UsageError, match="no field 'epoch'; did you mean 'epochs'") as raised:
        cutnmix_jax.configure("quickstart", {"epoch": 2})
    assert raised.value.__cause__ is None and raised.value.__suppress_context__


def test_importing_it_is_quick_and_leaves_jax_alone():
    code = """
import os, sys, time
variables, begun = dict(os.environ), time.perf_counter()
import cutnmix_jax
took = time.perf_counter() - begun
print(took < 0.3, "jax" in sys.modules, "numpy" in sys.modules, variables == dict(os.environ))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "True"]


# Mixing.


def pasted(image, partner, box):
    """A box of another image in an image, in numpy; what leaves the image comes in at the other side."""
    top, left, height, width = map(int, box)
    mixed = np.array(image)
    for row in range(top, top + height):
        for column in range(left, left + width):
            mixed[row % H, column % W] = partner[row % H, column % W]
    return mixed


@pytest.mark.parametrize("box", BOX_READINGS)
def test_cutnmix_pastes_a_box_for_each_peer(box):
    mixed = cutnmix_jax.cutnmix(KEY, IMAGES, TARGETS, box=box)
    images, targets, how = np.asarray(mixed.images), np.asarray(mixed.targets), mixed.how
    own = np.asarray(TARGETS)
    for j in range(J):
        share = float(how.amount[j])
        for i, k in enumerate(np.asarray(how.partner)):
            np.testing.assert_array_equal(images[j, i], pasted(IMAGES[j, i], IMAGES[j, k], how.boxes[j]))
            np.testing.assert_allclose(targets[j, i], share * own[k] + (1 - share) * own[i], atol=1e-6)
    if box not in ("raw", "own"):
        assert how.amount[0] == how.amount[1] == how.boxes[0, 2] * how.boxes[0, 3] / (H * W)


def test_cutmix_has_one_box_for_all():
    mixed = cutnmix_jax.cutmix(KEY, IMAGES, TARGETS)
    np.testing.assert_array_equal(mixed.how.boxes[0], mixed.how.boxes[1])
    k = int(mixed.how.partner[1])
    np.testing.assert_array_equal(mixed.images[1, 1], pasted(IMAGES[1, 1], IMAGES[1, k], mixed.how.boxes[1]))


def test_mixup_is_the_weighted_mean():
    mixed = cutnmix_jax.mixup(KEY, IMAGES, TARGETS, alpha=0.4)
    share = float(mixed.how.amount[0])
    wanted = share * np.asarray(IMAGES)[:, np.asarray(mixed.how.partner)] + (1 - share) * np.asarray(IMAGES)
    np.testing.assert_allclose(mixed.images, wanted, atol=1e-6)
    assert 0 < share < 1


@pytest.mark.parametrize("function", [cutnmix_jax.cutnmix, cutnmix_jax.cutmix, cutnmix_jax.mixup])
def test_one_network_has_no_axis_of_peers(function):
    alone, among = function(KEY, IMAGES[0], TARGETS), function(KEY, IMAGES[:1], TARGETS)
    assert alone.images.shape == (N, H, W, 3) and alone.targets.shape == (N, K)
    assert alone.how.amount.shape == () and alone.how.boxes.shape == (4,)
    chex.assert_trees_all_equal(jax.tree.map(lambda x: x[0], among[:2]), alone[:2])
    compiled = jax.jit(function)(KEY, IMAGES[0], TARGETS)
    chex.assert_trees_all_close(compiled, alone, atol=1e-6)
    np.testing.assert_array_equal(function(KEY, IMAGES, TARGETS, prob=0).images, IMAGES)


def test_pixels_of_bytes_stay_bytes():
    pixels = jnp.asarray(RNG.integers(0, 256, (J, N, H, W, 3)), jnp.uint8)
    assert cutnmix_jax.cutnmix(KEY, pixels, TARGETS).images.dtype == jnp.uint8
    with pytest.raises(ValueError, match="images are uint8; a mean of two wants a floating type"):
        cutnmix_jax.mixup(KEY, pixels, TARGETS)


@pytest.mark.parametrize(
    ("images", "targets", "more", "message"),
    [
        (IMAGES[0, 0], TARGETS, {}, r"images are \[J, n, H, W, C\] or \[n, H, W, C\], not \[8, 12, 3\]"),
        (IMAGES, TARGETS[:4], {}, r"for each of the n = 6 images, not \[4, 3\]; jax.nn.one_hot"),
        (IMAGES, jnp.arange(N), {}, r"targets are \[n, K\].* not \[6\]"),
        (IMAGES, jnp.ones((N, K), int), {}, "targets are int32; distributions are of a floating type"),
        (IMAGES, TARGETS, {"alpha": 0}, "alpha=.*: must be a finite number, at least 0.001, at most 1e.06"),
        (IMAGES, TARGETS, {"alpha": float("nan")}, "alpha=.*: must be a finite number, at least 0.001, at most 1e.06"),
        (IMAGES, TARGETS, {"alpha": float("inf")}, "alpha=.*: must be a finite number, at least 0.001, at most 1e.06"),
        (IMAGES, TARGETS, {"prob": 1.5}, "prob=1.5: must be a finite number, at least 0, at most 1"),
        (IMAGES, TARGETS, {"box": "round"}, "box='round': not known; .*cutmix, inside, own"),
    ],
)
def test_wrong_arrays_are_a_value_error(images, targets, more, message):
    with pytest.raises(ValueError, match=message):
        cutnmix_jax.cutnmix(KEY, images, targets, **more)


@pytest.mark.parametrize(
    "call",
    [
        lambda: cutnmix_jax.losses.soft_cross_entropy(jnp.ones((4, 3)), jnp.ones(3)),
        lambda: cutnmix_jax.losses.tempered_kl(jnp.ones((4, 3)), jnp.ones((1, 3)), 3.0),
        lambda: cutnmix_jax.losses.mmd(jnp.ones((4, 3)), jnp.ones((4, 1))),
        lambda: cutnmix_jax.losses.mmd(jnp.ones(3), jnp.ones(3)),
    ],
)
def test_losses_broadcast_nothing(call):
    with pytest.raises(ValueError, match=r"\[.*\].*\[.*\]"):
        call()


# The objective.


def outputs_of(count=J, size=D, seed=0):
    rng = np.random.default_rng(seed)
    return [Outputs(*(jnp.asarray(rng.normal(size=(N, w)), jnp.float32) for w in (K, size))) for _ in range(count)]


def test_the_objective_of_the_paper_against_numpy():
    """Eq. 8 with the peer teacher: written out in numpy's float64."""
    objective = cutnmix_jax.objective_of("cutnmix", K, (D, D))
    params, state = objective.init(KEY)
    outputs = outputs_of()
    loss, (terms, after) = jax.jit(objective)(params, state, outputs, TARGETS)
    logits = [np.asarray(out.logits, np.float64) for out in outputs]
    features = [np.asarray(out.features, np.float64) for out in outputs]
    y, tau = np.asarray(TARGETS, np.float64), 3.0
    taught = np.concatenate(features, -1) @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"])

    def log_softmax(z):
        return z - np.log(np.exp(z).sum(-1, keepdims=True))

    def kl(student, target):
        p, q = log_softmax(student / tau), log_softmax(target / tau)
        return tau**2 * (np.exp(q) * (q - p)).sum(-1).mean()

    def ce(z):
        return -(y * log_softmax(z)).sum(-1).mean()

    distance = ((features[0].mean(0) - features[1].mean(0)) ** 2).sum()
    wanted = sum(ce(z) for z in logits) + 0.6 * (kl(*logits) + kl(*logits[::-1])) + 0.3 * 2 * distance
    wanted += 0.1 * sum(kl(z, taught) for z in logits) + ce(taught)
    np.testing.assert_allclose(loss, wanted, rtol=1e-5)
    assert set(terms) == {"ce", "dml", "mmd", "pt", "peer_teacher_ce"} and after == state


def test_no_gradient_flows_into_a_target():
    objective = cutnmix_jax.objective_of("dml", K, (D, D), weights={"ce": 0.0})
    outputs = outputs_of()

    def of_peer_0(logits):
        loss, (terms, _) = objective({}, {}, [outputs[0]._replace(logits=logits), outputs[1]], TARGETS)
        return terms["dml"][1]

    assert not np.any(jax.jit(jax.grad(of_peer_0))(outputs[0].logits))


def test_options_and_weights_are_those_of_a_row():
    plain = cutnmix_jax.objective_of("dml", K, (D, D))
    other = cutnmix_jax.objective_of("dml", K, (D, D), temperature=1.0, weights={"dml": 2.0})
    outputs = outputs_of()
    loss, (terms, _) = other({}, {}, outputs, TARGETS)
    np.testing.assert_allclose(loss, terms["ce"].sum() + 2 * terms["dml"].sum(), rtol=1e-6)
    assert other.method.temperature == 1.0 and plain.weights["dml"] == 1.0


def test_every_row_has_its_objective_or_a_reason():
    made = []
    for name, row in methods.rows_by_name().items():
        if row.share_trunk:
            with pytest.raises(ValueError, match="share a trunk"):
                cutnmix_jax.objective_of(name, K, (D, D))
            continue
        objective = cutnmix_jax.objective_of(name, K, (D,) * row.num_peers, num_train=N)
        params, state = objective.init(KEY)
        outputs = outputs_of(row.num_peers)
        views = outputs if len(row.method.views) == 1 else [outputs, outputs_of(row.num_peers, seed=1)]
        teachers = {name: [outputs_of(row.num_peers, seed=2)] for name in row.method.teachers}
        more = {"indices": jnp.arange(N)} if row.method.remembers else {}
        more |= {"epoch": 1, "epochs": 4} if row.method.counts_epochs else {}
        loss, (terms, _) = objective(params, state, views, TARGETS, teachers=teachers, **more)
        assert jnp.isfinite(loss) and set(terms) <= set(objective.weights)
        made.append(name)
    assert len(made) > 12


def of_more_images(objective):
    return dataclasses.replace(objective, spec=objective.spec._replace(num_train=N + 1)).init(KEY)[1]


def remembering(objective, indices):
    return objective(*objective.init(KEY), outputs_of(1), TARGETS, indices=indices, epoch=0, epochs=4)


@pytest.mark.parametrize(
    ("row", "call", "message"),
    [
        ("dml", lambda o: o({}, {}, outputs_of(3), TARGETS), "outputs are of 3 networks, not of 2"),
        ("dml", lambda o: o({}, {}, [], TARGETS), "outputs are of 0 networks, not of 2"),
        (
            "dml",
            lambda o: o({}, {}, [Outputs(jnp.float32(1), out.features) for out in outputs_of()], TARGETS),
            r"logits of network 0 are \[\], not \[0, 3\]",
        ),
        ("dml", lambda o: o({}, {}, outputs_of(size=4), TARGETS), r"features of network 0 are \[6, 4\], not \[6, 5\]"),
        ("dml", lambda o: o({}, {}, outputs_of(), TARGETS[:4]), r"targets are \[4, 3\], not \[6, 3\] or \[2, 6, 3\]"),
        ("dml", lambda o: o({}, {}, outputs_of(), TARGETS[None]), r"targets are \[1, 6, 3\]"),
        ("dml", lambda o: o({}, {}, [out.logits for out in outputs_of()], TARGETS), "must be `Outputs` of each"),
        ("ddgsd", lambda o: o({}, {}, outputs_of(1), TARGETS), "must be 2 views, each with"),
        ("kd", lambda o: o({}, {}, outputs_of(1), TARGETS), "no outputs of the 'frozen' one"),
        ("ps_kd", lambda o: o({}, {}, outputs_of(1), TARGETS), "indices are missing"),
        ("ps_kd", lambda o: o({}, {}, outputs_of(1), TARGETS, indices=jnp.arange(N), epoch=1), "or epochs are missing"),
        (
            "ps_kd",
            lambda o: remembering(o, jnp.arange(N) + 100),
            "indices are 100 to 105, not rows 0 to 5 of num_train",
        ),
        ("ps_kd", lambda o: remembering(o, jnp.arange(N) - 1), "indices are -1 to 4, not rows 0 to 5"),
        (
            "ps_kd",
            lambda o: o({}, of_more_images(o), outputs_of(1), TARGETS, indices=jnp.arange(N), epoch=0, epochs=4),
            r"state\['last'\] is given \[1, 7, 3\] and of this objective \[1, 6, 3\]; take what this objective's",
        ),
        (
            "dml",
            lambda o: o({"w": jnp.ones(2)}, {}, outputs_of(), TARGETS),
            r"params\['w'\] is given \[2\] and of this obj",
        ),
        (
            "cutnmix",
            lambda o: o({}, {}, outputs_of(), TARGETS),
            r"params\['.*'\] is given not there and of this objective \[",
        ),
    ],
)
def test_a_wrong_call_is_a_value_error(row, call, message):
    objective = cutnmix_jax.objective_of(row, K, (D,) * methods.row(row).num_peers, num_train=N)
    with pytest.raises(ValueError, match=message):
        call(objective)


@pytest.mark.parametrize(
    ("row", "more", "message"),
    [
        ("dmll", {}, "no method 'dmll'; did you mean 'dml'"),
        ("dml", {"temprature": 1}, "dml has no option 'temprature'; it has temperature"),
        ("dml", {"temperature": 0}, "temperature=0: must be a finite number"),
        ("dml", {"weights": {"mmd": 1}}, "dml has no term 'mmd'; it has ce, dml"),
        ("ps_kd", {}, "num_train is missing"),
        ("dml", {"weights": {"dml": float("nan")}}, "weights\\['dml'\\]=nan: must be a finite number"),
        ("dml", {"weights": {"dml": -1}}, "must be a finite number, 0, or at least"),
        ("dml", {"weights": {"ce": 0, "dml": 0}}, "weights: all of them are 0, so nothing would be learned"),
        ("dml", {"num_classes": 0}, "num_classes=0: at least 2"),
        ("tf_kd_reg", {"num_classes": 1, "correct": 1.0}, "num_classes=1: at least 2"),
        ("dml", {"feature_sizes": ()}, "feature_sizes=\\[\\]: give that of each"),
        ("dml", {"feature_sizes": (D, 0)}, "feature_sizes=\\[5, 0\\]: give that of each"),
        ("kdcl", {"target": "general"}, "weighs its peers by held-out images"),
    ],
)
def test_a_wrong_objective_is_a_value_error(row, more, message):
    with pytest.raises(ValueError, match=message):
        cutnmix_jax.objective_of(row, **{"num_classes": K, "feature_sizes": (D, D)} | more)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        (lambda batch, clock: batch.labels.sum(), "labels"),
        (lambda batch, clock: batch.images.mean(), "images"),
        (lambda batch, clock: clock.step * 2, "step"),
        (lambda batch, clock: clock.learning_rate + 1, "learning_rate"),
    ],
)
def test_a_loss_of_what_an_objective_does_not_know_is_refused(term, said, monkeypatch):
    """Each image was of class 0: a classifier that was always right had a loss of 6.67."""
    loss = lambda self, params, state, views, batch, clock: ({"ce": term(batch, clock) * 1.0}, state)  # noqa: E731
    monkeypatch.setattr(methods.find("supervised"), "loss", loss)
    with pytest.raises(
        ValueError,
        match=f"the loss of baseline looks at '{said}', which an objective does not know; train it with `train`",
    ):
        cutnmix_jax.objective_of("baseline", K, (D,))


def test_an_epoch_is_asked_for_where_the_loss_looks_at_it(monkeypatch):
    """It was 0 without a word: a loss that rises over the epochs stayed 0."""
    loss = lambda self, params, state, views, batch, clock: ({"ce": clock.epoch * 2.0}, state)  # noqa: E731
    monkeypatch.setattr(methods.find("supervised"), "loss", loss)
    objective = cutnmix_jax.objective_of("baseline", K, (D,))
    for given, said in (({}, "epoch is missing"), ({"epoch": -5}, "epoch=-5"), ({"epoch": 4, "epochs": 4}, "epoch=4")):
        with pytest.raises(ValueError, match=said):
            objective({}, {}, outputs_of(1), TARGETS, **given)
    assert objective({}, {}, outputs_of(1), TARGETS, epoch=3)[0] == 6


def test_a_row_whose_weights_rise_is_refused(monkeypatch):
    """One of somebody's own, without a trunk: at all times it would have had its full weights."""
    rising = dataclasses.replace(methods.row("dml"), ramp_up=("dml",))
    monkeypatch.setattr(methods, "row", lambda name: rising)
    with pytest.raises(ValueError, match="the weights of mine rise over the epochs; train it with `train`"):
        cutnmix_jax.objective_of("mine", K, (D, D))


@pytest.mark.parametrize(
    ("row", "sizes", "message"),
    [
        ("dml", (D,), "^feature_sizes: the method needs at least 2 networks, not 1$"),
        ("cutnmix", (D,), "weights.dml=0.6: a single peer has no such loss term, only ce, pt"),
        ("cutnmix", (D, 4), "weights.mmd=0.3: peers with features of 5, 4 have no such loss term"),
    ],
)
def test_no_term_is_lost_without_a_word(row, sizes, message):
    with pytest.raises(ValueError, match=message):
        cutnmix_jax.objective_of(row, K, sizes)


def test_an_ablated_term_is_measured():
    objective = cutnmix_jax.objective_of("cutnmix", K, (D, 4), weights={"mmd": 0})
    params, state = objective.init(KEY)
    outputs = [outputs_of(1)[0], outputs_of(1, 4)[0]]
    assert np.isfinite(objective(params, state, outputs, TARGETS)[0])


@pytest.mark.parametrize("made_by", [np.asarray, jnp.asarray])
def test_what_is_known_outside_may_be_closed_over(made_by):
    """JAX traces what is asked of its own arrays within a compiled function, and has no truth of it there."""
    objective = cutnmix_jax.objective_of("ps_kd", K, (D,), num_train=20)
    params, state = objective.init(KEY)
    indices, epoch = made_by(np.arange(len(TARGETS), dtype=np.int32)), made_by(np.int32(0))
    outputs = [Outputs(made_by(out.logits), made_by(out.features)) for out in outputs_of(1)]

    def loss(scale, indices, epoch):
        scaled = [out._replace(logits=scale * out.logits) for out in outputs]
        return objective(params, state, scaled, made_by(TARGETS), indices=indices, epoch=epoch, epochs=2)[0]

    within = jax.jit(lambda scale: loss(scale, indices, epoch))(1.0)
    np.testing.assert_allclose(within, jax.jit(loss)(1.0, indices, epoch), rtol=1e-6)
    for wrong, said in (((indices + 20, epoch), "indices are 20"), ((indices, epoch + 2), "epoch=2 of epochs=2")):
        with pytest.raises(ValueError, match=said):
            jax.jit(lambda scale, wrong=wrong: loss(scale, *wrong))(1.0)


@pytest.mark.parametrize("name", ["cutnmix", "cutmix", "mixup"])
def test_arrays_of_numpy_can_be_mixed_in_every_way(name):
    """An array of NumPy cannot be indexed by what JAX traces."""
    rng = np.random.default_rng(0)
    images, targets = rng.random((2, 4, 8, 8, 3), np.float32), np.eye(4, dtype=np.float32)
    mix, keys = getattr(cutnmix_jax, name), jax.random.split(KEY, 3)
    wanted = jnp.stack([mix(key, jnp.asarray(images), jnp.asarray(targets)).images for key in keys])
    for many in (
        jax.vmap(lambda key: mix(key, images, targets).images),
        jax.jit(lambda keys: jnp.stack([mix(key, images, targets).images for key in keys])),
        lambda keys: jax.lax.map(lambda key: mix(key, images, targets).images, keys),
    ):
        np.testing.assert_allclose(many(keys), wanted, atol=1e-6)


def test_epochs_may_be_arrays():
    objective = cutnmix_jax.objective_of("ps_kd", K, (D,), num_train=N)
    params, state = objective.init(KEY)

    def loss(epoch, epochs):
        return objective(params, state, outputs_of(1), TARGETS, indices=jnp.arange(N), epoch=epoch, epochs=epochs)[0]

    np.testing.assert_allclose(jax.jit(loss)(3, 10), loss(3, 10), rtol=1e-6)


def test_teachers_are_looked_at():
    objective = cutnmix_jax.objective_of("kd", K, (D,))
    for wrong in (
        outputs_of(1),
        [outputs_of(2)],
        [[outputs_of(1)[0].logits]],
        [[outputs_of(1)[0]._replace(logits=TARGETS[:4])]],
    ):
        with pytest.raises(ValueError, match="teachers\\['frozen'\\]"):
            objective({}, {}, outputs_of(1), TARGETS, teachers={"frozen": wrong})
    with pytest.raises(ValueError, match="teachers\\['mean'\\]: this method learns from no such teacher"):
        objective({}, {}, outputs_of(1), TARGETS, teachers={"frozen": [outputs_of(1)], "mean": [outputs_of(1)]})


# A loop of somebody's own.


def test_the_loop_in_docs_ends_at_our_numbers():
    """An epoch from the same weights, on the same crops, with the keys that the run mixes with."""
    made = Made("cutnmix", "--config.backbone.name=docs.own_loop:Net")
    plain = dataclasses.replace(made.settings, mix=dataclasses.replace(made.settings.mix, kind="none"))
    unmixed = jax.jit(batches.make_batch_maker(made.engine.dataset, plain))
    state, feed, sums = made.engine.init().state, made.engine.feed(0), made.engine.zero_totals()

    def joined(trees):
        return {str(j): tree for j, tree in enumerate(trees)}

    weights = {
        "peers": nnx_adapter.from_plain(own_loop.params, joined(state.params["peers"])),
        "teacher": jax.tree.map(jnp.copy, state.params["method"]),
    }
    statistics, momentum = own_loop.statistics, own_loop.optimizer.init(weights)
    for t in range(made.engine.steps_per_epoch):
        key = batches.step_keys(made.engine.key, t)[0]
        batch, _ = unmixed(key, feed.data, feed.rows[t])
        seen, targets = batch.images[0], jax.nn.one_hot(batch.labels, 10)
        mix_key = jax.random.split(key)[1]
        weights, statistics, momentum, terms = own_loop.step(weights, statistics, momentum, mix_key, seen, targets)
        before = sums
        state, sums = made.engine.train_steps(state, sums, feed, 1)
        for name, term in terms.items():
            np.testing.assert_allclose(sums.sums[name] - before.sums[name], term.mean(), rtol=1e-4, atol=1e-5)
    ours = joined(state.params["peers"])
    chex.assert_trees_all_close(nnx_adapter.to_plain(weights["peers"]), ours, atol=1e-5)
    chex.assert_trees_all_close(weights["teacher"], state.params["method"], atol=1e-5)
    started = joined(made.first.state.params["peers"])
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: float(abs(a - b).max()), ours, started))) > 1e-2


# The page.


@pytest.mark.parametrize("number", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_docs_show_runs(number, tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library.md").read_text(), re.DOTALL)
    assert len(blocks) == 4 and "wandb" in blocks[2]  # which is not installed here
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(blocks[number], "docs/library.md", "exec"), names)
    if number == 0:
        assert names["mixed"].images.shape == (2, 8, 32, 32, 3) and np.isfinite(names["loss"])
    else:
        assert names["results"] == cutnmix_jax.results("runs/mine")
        exec(compile(blocks[3], "docs/library.md", "exec"), names)
        assert len(names["student"].predict(names["images"]).names) == 3


def test_docs_name_everything():
    page = (ROOT / "docs" / "library.md").read_text()
    for name in set(cutnmix_jax.__all__) - {"Settings", "Objective", "Mixed"}:
        assert f"`{name}" in page, name


# Runs.


def test_a_run_from_python(tmp_path):
    fields = dict(flag.removeprefix("--config.").split("=") for flag in TINY[1:])
    settings = cutnmix_jax.configure("quickstart:digits,dml", fields | {"epochs": 2, "optimizer.milestones": (1,)})
    rows = []
    found = cutnmix_jax.train(settings, str(tmp_path / "run"), on_epoch=rows.append)
    assert cutnmix_jax.results(tmp_path / "run") == found
    assert cutnmix_jax.history(str(tmp_path / "run")) == rows and len(rows) == 2
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == found
    with pytest.raises(CheckpointError, match="no results of a finished run in"):
        cutnmix_jax.results(tmp_path / "other")
    with pytest.raises(FileNotFoundError, match="metrics.jsonl"):
        cutnmix_jax.history(tmp_path / "other")
    with pytest.raises(UsageError, match="optimizer.learning_rate"):
        cutnmix_jax.configure("quickstart", {"lr": 1})
    for empty, path in (({"typo": {}}, "typo"), ({"optimizer": {"milestones": {}}}, "optimizer.milestones")):
        with pytest.raises(UsageError, match=f"config.{path} is given no fields"):
            cutnmix_jax.configure("quickstart", empty)
    twice = {"optimizer": {"learning_rate": 0.2}, "optimizer.learning_rate": 0.1}
    with pytest.raises(UsageError, match="config.optimizer.learning_rate is given twice"):
        cutnmix_jax.configure("quickstart", twice)
    for read in (cutnmix_jax.results, cutnmix_jax.history, cutnmix_jax.load_student):
        with pytest.raises(UsageError, match="folder is empty; name a folder"):
            read("")


def test_a_group_of_fields_leaves_the_others_as_they_are():
    plain = cutnmix_jax.configure("quickstart")
    changed = cutnmix_jax.configure(
        Path("configs/quickstart.py"),
        {"mix": {"prob": 0.5}, "optimizer": {"learning_rate": np.float32(0.5), "milestones": (np.int64(3), 5)}},
    )
    assert changed.mix == dataclasses.replace(plain.mix, prob=0.5)
    wanted = dataclasses.replace(plain.optimizer, learning_rate=0.5, milestones=(3, 5))
    assert changed.optimizer == wanted
    assert cutnmix_jax.configure("quickstart:,dml", {"peers": ["resnet8", "resnet32"]}).peers == "resnet8,resnet32"
    with pytest.raises(UsageError, match="config.mix: must be set field by field, as --config.mix.alpha="):
        command_line.from_flags("quickstart", ["--config.mix={'prob': 0.5}"])


def test_an_interrupt_in_the_last_epoch_ends_the_loop_around(tmp_path):
    """The run is whole; but a loop over seeds must not begin the next one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests has turned it off
    fields = dict(flag.removeprefix("--config.").split("=") for flag in TINY[1:]) | {"epochs": 1}
    settings = cutnmix_jax.configure("quickstart:digits,baseline", fields | {"optimizer.milestones": ()})
    with pytest.raises(StoppedError, match="the run has ended, the same call returns its results"):
        cutnmix_jax.train(settings, tmp_path / "run", on_epoch=lambda row: signal.raise_signal(signal.SIGINT))
    assert cutnmix_jax.results(tmp_path / "run")["epochs"] == 1
