"""The engine: a whole step against numpy, loops against single steps, evaluation against a count."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import methods
from cutnmix_jax.engine import assemble, batches, terms
from cutnmix_jax.engine.companions import Trained
from cutnmix_jax.engine.terms import mixed_accuracy
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method, View
from cutnmix_jax.methods.cutnmix import CutnMix
from cutnmix_jax.settings import VIEWS, Mixing, Optimizer, command_line, recipe
from cutnmix_jax.types import Backbone, Clock, Dataset, Outputs, Split
from tests.runs import few

K, D, RATE = 4, 3, 0.1
RNG = np.random.default_rng(0)
DATASET = Dataset(
    name="made up",
    train_images=RNG.integers(0, 256, (40, 32, 32, 3), dtype=np.uint8),
    train_labels=RNG.integers(0, K, 40).astype(np.int32),
    test_images=RNG.integers(0, 256, (23, 32, 32, 3), dtype=np.uint8),
    test_labels=RNG.integers(0, K, 23).astype(np.int32),
    class_names=("a", "b", "c", "d"),
    mean=np.array([0.4, 0.5, 0.6], np.float32),
    std=np.array([0.2, 0.3, 0.4], np.float32),
    flip=True,
)
KEY = jax.random.key(95)


def linear_backbone():
    """Two linear layers on 12 numbers of the image, simple enough to differentiate on paper."""

    def init(key):
        body, head = jax.random.split(key)
        return {
            "params": {"body": jax.random.normal(body, (12, D)) / 3, "head": jax.random.normal(head, (D, K))},
            "batch_stats": {},
        }

    def apply(variables, images, train, key=None):
        maps, _ = trunk(variables, images, train)
        return tail(variables, maps, train)

    def trunk(variables, images, train, key=None):
        return (summaries(images) @ variables["params"]["body"])[:, None, None], {}

    def tail(variables, maps, train, key=None):
        return Outputs(maps[:, 0, 0] @ variables["params"]["head"], maps[:, 0, 0]), {}

    return Backbone("linear", init, apply, split=Split(lambda: frozenset({"body"}), trunk, tail))


def summaries(images):
    """[n, 32, 32, 3] -> [n, 12]: the mean colour of each quarter."""
    return images.reshape(-1, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(-1, 12)


def build(row, *, backbone=None, features=D, dataset=DATASET, loop=False, **fields):
    """An engine of the recipe on made-up data; `fields` are of its settings."""
    optimizer = Optimizer(learning_rate=RATE, milestones=())
    fields = {"batch_size": 10, "epochs": 3, "optimizer": optimizer} | fields
    settings = dataclasses.replace(recipe.of_row("linear", "digits", row), **fields)
    backbone, count = backbone or linear_backbone(), settings.num_peers
    trained = Trained(backbone, lambda: backbone.init(jax.random.key(0)), "made up", None, lambda: True)
    trunk = features if settings.share_trunk else None
    found = assemble.Networks((backbone,) * count, (features,) * count, trunk, trained)
    engine = assemble.engine(settings, dataset, found)
    return dataclasses.replace(engine, steps_per_call=50) if loop else engine


@functools.cache
def built(row, loop=False):
    """The same engine for all tests that need no other one, so that its step is compiled once."""
    return build(row, loop=loop)


FIRST = {}


def begun(engine):
    """The state before the first step, the totals, and the feed of the first epoch."""
    key = id(engine)
    if key not in FIRST:
        FIRST[key] = engine, jax.device_get(engine.init())  # with the engine, whose number is its own for as long
    saved = jax.tree.map(jnp.array, FIRST[key][1])  # a step takes over the memory of what it is given
    return saved.state, saved.totals, engine.feed(0)


def log_softmax64(z):
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def paper_step(params, images, targets):
    """The gradient of Eq. 8 and of the peer teacher, by the chain rule in float64; J = 2, tau = 3."""
    n, tau = images.shape[1], 3.0
    x = [np.asarray(summaries(images[j]), np.float64) for j in range(2)]
    body, head = ([np.asarray(p[name], np.float64) for p in params["peers"]] for name in ("body", "head"))
    f = [x[j] @ body[j] for j in range(2)]
    z = [f[j] @ head[j] for j in range(2)]
    g = {name: np.asarray(leaf, np.float64) for name, leaf in params["method"].items()}
    joined = np.concatenate(f, axis=1)
    z_teacher = joined @ g["kernel"] + g["bias"]
    hard = [np.exp(log_softmax64(v)) for v in (*z, z_teacher)]
    soft = [np.exp(log_softmax64(v / tau)) for v in (*z, z_teacher)]
    gradient = {"peers": [], "method": {}}
    loss = 0.0
    for j in range(2):
        k = 1 - j
        d_z = (hard[j] - targets[j]) / n  # cross-entropy
        d_z += 0.6 * tau * (soft[j] - soft[k]) / n  # Eq. 4: d tau^2 KL / dz = tau (p - q)
        d_z += 0.1 * tau * (soft[j] - soft[2]) / n  # Eq. 10
        d_f = d_z @ head[j].T + 0.3 * 2 * (f[j].mean(0) - f[k].mean(0)) / n  # Eq. 9
        gradient["peers"].append({"body": x[j].T @ d_f, "head": f[j].T @ d_z})
        loss -= (targets[j] * log_softmax64(z[j])).sum() / n
        for weight, other in ((0.6, k), (0.1, 2)):
            gap = np.log(soft[other]) - np.log(soft[j])
            loss += weight * tau**2 * (soft[other] * gap).sum() / n
        loss += 0.3 * ((f[j].mean(0) - f[k].mean(0)) ** 2).sum()
    d_teacher = (hard[2] - targets[0]) / n
    gradient["method"] = {"kernel": joined.T @ d_teacher, "bias": d_teacher.sum(0)}
    loss -= (targets[0] * log_softmax64(z_teacher)).sum() / n
    return loss, gradient


def test_two_steps_of_the_papers_method_against_numpy():
    engine = built("cutnmix")
    state, totals, feed = begun(engine)
    weight = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    buffer = jax.tree.map(np.zeros_like, weight)
    losses = []
    for number in range(2):
        batch, _ = engine.batch_at(number, feed)
        images, targets = np.asarray(batch.images[0], np.float64), np.asarray(batch.targets[0], np.float64)
        loss, gradient = paper_step(weight, images, targets)
        losses.append(loss)
        gradient["peers"] = tuple(gradient["peers"])
        decayed = jax.tree.map(lambda g, w: g + 5e-4 * w, gradient, weight)
        buffer = jax.tree.map(lambda b, g: 0.9 * b + g, buffer, decayed)
        weight = jax.tree.map(lambda w, g, b: w - RATE * (g + 0.9 * b), weight, decayed, buffer)
        state, totals = engine.train_steps(state, totals, feed, 1)
    assert int(state.step) == 2
    np.testing.assert_allclose(totals.sums["loss"], sum(losses), rtol=1e-5)
    chex.assert_trees_all_close(state.params, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", few(methods.rows_by_name(), ("cutnmix", "kdcl", "okddip", "ps_kd")))
def test_a_loop_of_steps_is_the_same_steps(row):
    one, many = built(row), built(row, loop=True)
    state, totals, feed = begun(one)
    looped_state, looped_totals, _ = begun(many)
    for _ in range(3):
        state, totals = one.train_steps(state, totals, feed, 1)
    for count in (2, 1):  # the shorter call at the end of an epoch runs the same program
        looped_state, looped_totals = many.train_steps(looped_state, looped_totals, feed, count)
    assert many.train_steps._cache_size() == 1
    chex.assert_trees_all_close((state, totals), (looped_state, looped_totals), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, totals)))


def test_learning_rate_is_data():
    engine = built("baseline")
    state, totals, feed = begun(engine)
    assert np.all(np.asarray(feed.rates) == np.float32(RATE))
    still = jax.tree.map(np.asarray, state.params)
    state, totals = engine.train_steps(state, totals, feed._replace(rates=0 * feed.rates), 1)
    chex.assert_trees_all_equal(state.params, still)
    state, totals = engine.train_steps(state, totals, feed._replace(rates=5 * feed.rates), 1)
    assert engine.train_steps._cache_size() == 1
    assert np.any(state.params["peers"][0]["head"] != still["peers"][0]["head"])


def test_the_rate_of_an_epoch_is_that_of_its_first_step():
    """Four steps an epoch, in a warm-up over eight."""
    engine = build("baseline", optimizer=Optimizer(learning_rate=RATE, milestones=(), warm_up_epochs=2.0))
    assert [engine.learning_rate(epoch) for epoch in (0, 1, 2)] == pytest.approx([RATE / 8, RATE * 5 / 8, RATE])


@dataclasses.dataclass(frozen=True)
class Exploding(CutnMix):
    """Its MMD overflows."""

    def loss(self, *arguments):
        terms, state = super().loss(*arguments)
        return terms | {"mmd": terms["mmd"] * jnp.inf}, state


def test_a_term_of_weight_zero_cannot_spread():
    weights = {"ce": 1.0, "dml": 0.0, "mmd": 0.0, "pt": 0.0, "peer_teacher_ce": 1.0}
    engine = build("cutnmix", loss=Exploding(), weights=weights)
    state, totals = engine.train_steps(*begun(engine), 1)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(totals.sums["loss"]) and not np.isfinite(totals.sums["mmd"])


@pytest.mark.parametrize("row", ["one", "okddip", "pcl"])
def test_weights_rise_over_eighty_epochs(row):
    """exp(-5 (1 - t / 80)^2) of the terms that the originals have it for; what is measured is the term without it."""
    engine = built(row)
    rising = {"one": {"kd"}, "okddip": {"kd"}, "pcl": {"pt", "mean_teacher"}}[row]
    for epoch, weight in ((0, 0.0067379), (40, 0.2865048), (80, 1.0), (200, 1.0)):
        state, totals, feed = begun(engine)
        _, found = engine.train_steps(state._replace(step=jnp.int32(4 * epoch)), totals, feed, 1)
        expected = 0.0
        for name in engine.terms:
            of_each = 1 if name in ("ensemble_ce", "peer_teacher_ce") else engine.settings.num_peers
            expected += (weight if name in rising else 1.0) * of_each * float(found.sums[name])
        np.testing.assert_allclose(found.sums["loss"], expected, rtol=1e-5)
        assert all(found.sums[name] > 0 for name in rising)


def test_weights_rise_over_as_many_epochs_as_are_asked_for():
    engine = build("one")
    ramp_up = dataclasses.replace(engine.settings.ramp_up, epochs=10)
    engine = dataclasses.replace(engine, settings=dataclasses.replace(engine.settings, ramp_up=ramp_up))
    for epoch, wanted in ((0, 0.0067379), (5, 0.2865048), (10, 1.0), (40, 1.0)):
        clock = Clock(jnp.int32(0), jnp.int32(epoch), jnp.int32(50), jnp.float32(0))
        np.testing.assert_allclose(terms.weight("kd", engine.settings, clock), wanted, rtol=1e-5)


def test_epochs_are_permutations_that_differ():
    orders = [np.asarray(batches.epoch_order(KEY, epoch, 40)) for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (np.asarray(batches.epoch_order(jax.random.key(96), 0, 40)) != orders[0]).any()
    np.testing.assert_array_equal(built("baseline").feed(2).rows.ravel(), orders[2])


def test_an_epoch_sees_each_image_once():
    engine = built("baseline")
    feed = engine.feed(1)
    rows = np.concatenate([engine.batch_at(step, feed)[0].indices for step in range(4, 8)])
    np.testing.assert_array_equal(rows, feed.rows.ravel())


def test_batches_are_a_function_of_seed_and_step():
    engine = built("cutnmix")
    feed = engine.feed(0)
    one, _ = engine.batch_at(3, feed)
    again, _ = engine.batch_at(jnp.int32(3), feed)
    chex.assert_trees_all_equal(one, again)
    same_rows = feed._replace(rows=jnp.tile(feed.rows[3], (4, 1)))
    here, there = (engine.batch_at(step, same_rows)[0] for step in (3, 2))
    np.testing.assert_array_equal(here.indices, there.indices)
    assert np.any(here.images != there.images)
    other = build("cutnmix", seed=96).feed(0)._replace(rows=feed.rows)
    assert np.any(engine.batch_at(3, other)[0].images != one.images)
    np.testing.assert_array_equal(one.targets[0, 0], one.targets[0, 1])
    np.testing.assert_array_equal(one.labels, DATASET.train_labels[feed.rows[3]])


@pytest.mark.parametrize("row", ["cutnmix", "cs_kd", "ddgsd", "mixup"])
def test_a_batch_drawn_with_its_epoch_is_the_one_drawn_alone(row):
    engine = built(row)
    feed = engine.feed(1)
    for step in (4, 6):
        key, forward_key = batches.step_keys(engine.key, step)
        together = engine.batch_at(step, feed)
        chex.assert_trees_all_equal(together, engine.make_batch(key, engine.train_data, feed.rows[step - 4]))
        assert feed.keys[step - 4] == forward_key


def test_each_peer_has_the_label_of_its_own_box():
    """By their areas, which are unlike."""
    engine = build("cutnmix", num_peers=3, views="shared", mix=Mixing("cutnmix", box="own"))
    batch, how = jax.jit(engine.make_batch)(KEY, engine.train_data, jnp.arange(10))
    own = np.eye(K)[DATASET.train_labels[:10]]
    shares = [height * width / 32**2 for _, _, height, width in np.asarray(how.boxes[0])]
    assert len(set(shares)) == 3
    for j, share in enumerate(shares):
        np.testing.assert_allclose(batch.targets[0, j], share * own[how.partner] + (1 - share) * own, atol=1e-6)


@pytest.mark.parametrize("kind", ["none", "cutnmix"])
@pytest.mark.parametrize("views", VIEWS)
def test_each_peer_has_its_own_view_or_all_share_one(views, kind):
    """One image of each, too, where all see the same: what they share is computed once."""
    engine = build("dml", views=views, mix=Mixing(kind, prob=0.0))
    batch, _ = engine.make_batch(KEY, engine.train_data, jnp.arange(20))
    assert batch.images.shape[:3] == (1, 1 if (views, kind) == ("shared", "none") else 2, 20)
    one, other = batch.images[0, 0], batch.images[0, -1]
    unlike = np.any(np.asarray(one != other), axis=(1, 2, 3)).mean()
    assert unlike > 0.9 if views == "per_peer" else unlike == 0


def test_batches_without_mixing_are_normalised_crops():
    engine = built("dml")
    batch, _ = engine.make_batch(KEY, engine.train_data, jnp.arange(5))
    pixels = np.asarray(batch.images) * DATASET.std + DATASET.mean
    for i in range(5):
        padded = np.pad(DATASET.train_images[i] / 255, ((4, 4), (4, 4), (0, 0)))
        views = [padded[t : t + 32, c : c + 32][:, ::m] for t in range(9) for c in range(9) for m in (1, -1)]
        assert min(np.abs(view - pixels[0, 0, i]).max() for view in views) < 1e-5


def test_a_view_without_a_crop_is_the_image_as_it_is():
    class Uncropped(Method):
        views = View(), View(crop=False)

    engine = build("dml", views="per_peer")
    settings = dataclasses.replace(engine.settings, loss=Uncropped())
    batch, _ = batches.make_batch_maker(DATASET, settings)(KEY, engine.train_data, jnp.arange(5))
    assert batch.images.shape == (2, 2, 5, 32, 32, 3)
    for seen in np.asarray(batch.images[1]) * DATASET.std + DATASET.mean:
        np.testing.assert_allclose(255 * seen, DATASET.train_images[:5], atol=1e-3)
    assert np.any(batch.images[0, 0] != batch.images[1, 0])


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_evaluation_is_an_exact_count(batch_size):
    state = begun(built("cutnmix"))[0]
    images = (DATASET.test_images / 255.0 - DATASET.mean) / DATASET.std
    features = [np.asarray(summaries(images)) @ np.asarray(p["body"], np.float64) for p in state.params["peers"]]
    logits = [f @ np.asarray(p["head"], np.float64) for f, p in zip(features, state.params["peers"], strict=True)]
    teacher = np.concatenate(features, axis=1) @ np.asarray(state.params["method"]["kernel"], np.float64)
    teacher += np.asarray(state.params["method"]["bias"], np.float64)
    # Image 0 stands in for what a last batch lacks; a class that peer 0 sees in it would be counted again and again.
    labels = np.where(np.arange(23) == 0, logits[0][0].argmax(), DATASET.test_labels)

    def share(scores):
        return pytest.approx((scores.argmax(1) == labels).sum() / 23, abs=1e-12)

    engine = build("cutnmix", eval_batch_size=batch_size)
    found = engine.evaluate(state, engine.test_data._replace(labels=jnp.array(labels, jnp.int32)))
    assert found.peers == (share(logits[0]), share(logits[1]))
    assert found.ensemble == share(sum(np.exp(log_softmax64(z)) for z in logits))
    assert found.heads == {"peer_teacher": share(teacher)}
    assert found.mean == pytest.approx(sum(found.peers) / 2, abs=1e-12)


def test_training_accuracy_is_on_the_larger_share_of_the_label():
    logits = jnp.eye(3)[jnp.array([0, 1, 2, 0])]
    targets = jnp.array([[0.7, 0.3, 0], [0.7, 0.3, 0], [0, 0, 1], [0.6, 0.4, 0]])
    outputs = (Outputs(logits, logits), Outputs(logits[::-1], logits))
    # peer 0 is right on rows 0, 2, 3; peer 1, reversed to classes 0, 2, 1, 0, on rows 0 and 3
    assert mixed_accuracy(outputs, jnp.stack([targets, targets])) == pytest.approx((3 / 4 + 2 / 4) / 2)


@pytest.mark.parametrize("loop", [False, True])
def test_training_accuracy_leaves_the_leader_out_as_evaluation_does(loop):
    """The classes are those of the leader's own answers, so that it alone is right of all images."""
    engine = built("okddip", loop)
    state, totals, feed = begun(engine)
    batch, _ = engine.batch_at(0, feed)
    outputs, _ = engine.peers.forward(state.params["peers"], state.batch_stats, batch.images[0], True, KEY)
    said = [np.asarray(out.logits).argmax(-1) for out in outputs]
    labels = np.asarray(feed.data.labels).copy()
    labels[np.asarray(batch.indices)] = said[-1]
    feed = feed._replace(data=feed.data._replace(labels=jnp.asarray(labels)))
    _, totals = engine.train_steps(state, totals, feed, 1)
    expected = np.mean([said[j] == said[-1] for j in range(2)])
    assert expected < 1 and float(totals.sums["accuracy"]) == pytest.approx(expected)


@pytest.mark.parametrize("row", ["cs_kd", "ddgsd"])
def test_training_accuracy_is_of_the_first_view(row):
    """The classes are those of the answers to the first view, so that all of them are right."""
    engine = built(row)
    state, totals, feed = begun(engine)
    images = engine.batch_at(0, feed)[0].images
    first, second = (
        np.asarray(
            engine.peers.forward(state.params["peers"], state.batch_stats, seen, True, KEY)[0][0].logits.argmax(-1)
        )
        for seen in images
    )
    labels = np.asarray(feed.data.labels).copy()
    labels[np.asarray(feed.rows[0])] = first
    feed = feed._replace(data=feed.data._replace(labels=jnp.asarray(labels)))
    batch, _ = engine.batch_at(0, feed)
    assert np.any(second != np.asarray(batch.targets[1, 0]).argmax(-1))
    _, totals = engine.train_steps(state, totals, feed, 1)
    assert float(totals.sums["accuracy"]) == 1


def test_pairs_are_of_the_same_class_and_uniform():
    labels = jnp.asarray(np.tile(np.arange(K), 500).astype(np.int32))
    rows = np.asarray(batches.same_class_rows(KEY, built("cs_kd").train_data, labels))
    assert (DATASET.train_labels[rows] == np.asarray(labels)).all()
    for label in range(K):
        members = np.flatnonzero(DATASET.train_labels == label)
        seen = np.bincount(rows[np.asarray(labels) == label], minlength=40)[members]
        assert (seen > 0).all()
        # 500 draws: five standard deviations of a count
        assert np.abs(seen - 500 / len(members)).max() < 5 * np.sqrt(500 / len(members))


def test_cs_kd_sees_an_image_and_another_of_its_class():
    engine = built("cs_kd")
    batch, _ = jax.jit(engine.make_batch)(KEY, engine.train_data, jnp.arange(10))
    assert batch.images.shape == (2, 1, 10, 32, 32, 3) and batch.targets.shape == (2, 1, 10, K)
    pixels = (np.asarray(batch.images) * DATASET.std + DATASET.mean) * 255
    padded = np.pad(DATASET.train_images, ((0, 0), (4, 4), (4, 4), (0, 0))).astype(np.float32)

    def rows_of_view(view):  # which training images a view may be a crop of, by its centre
        found = []
        for image in view:
            centre = {}
            for row in range(40):
                crops = [padded[row, t : t + 32, c : c + 32] for t in range(9) for c in range(9)]
                if any(np.abs(image - x[:, ::m]).max() < 0.1 for x in crops for m in (1, -1)):
                    centre[row] = True
            found.append(list(centre))
        return found

    first, second = rows_of_view(pixels[0, 0, :4]), rows_of_view(pixels[1, 0, :4])
    assert first == [[0], [1], [2], [3]]
    assert all(
        DATASET.train_labels[two] == DATASET.train_labels[one] for [one], [two] in zip(first, second, strict=True)
    )


def test_ddgsd_sees_two_views_of_an_image():
    engine = build("ddgsd", num_peers=2)
    batch, _ = jax.jit(engine.make_batch)(KEY, engine.train_data, jnp.arange(10))
    assert batch.images.shape == (2, 2, 10, 32, 32, 3) and batch.targets.shape == (2, 2, 10, K)
    assert len({seen.tobytes() for view in np.asarray(batch.images) for seen in view}) == 4


def counting_backbone():
    """Batch statistics that count the passes and keep the last image's mean: what went through, and in which order."""
    plain = linear_backbone()

    def init(key):
        return plain.init(key) | {"batch_stats": {"passes": jnp.zeros(()), "last": jnp.zeros(())}}

    def apply(variables, images, train, key=None):
        outputs, _ = plain.apply(variables, images, train)
        stats = variables["batch_stats"]
        return outputs, {"passes": stats["passes"] + 1, "last": images.mean()} if train else stats

    return Backbone("counting", init, apply)


def test_each_view_has_the_label_of_its_own_box():
    flags = ["--config.mix.kind=cutnmix", "--config.mix.box=own"]
    settings = command_line.from_flags("configs/quickstart.py:digits,ddgsd", flags)
    engine = build("ddgsd", mix=settings.mix)
    batch, how = jax.jit(engine.make_batch)(KEY, engine.train_data, jnp.arange(10))
    own = np.eye(K)[np.asarray(batch.labels)]
    assert how.amount[0, 0] != how.amount[1, 0]
    for view in range(2):
        share = float(how.amount[view, 0])
        wanted = share * own[np.asarray(how.partner)] + (1 - share) * own
        np.testing.assert_allclose(batch.targets[view, 0], wanted, atol=1e-6)


@pytest.mark.parametrize("row", ["cs_kd", "ddgsd"])
def test_each_view_is_a_pass_of_its_own(row):
    engine = build(row, backbone=counting_backbone())
    state, totals, feed = begun(engine)
    batch, _ = engine.batch_at(0, feed)
    state, _ = engine.train_steps(state, totals, feed, 1)
    assert state.batch_stats[0]["passes"] == 2
    np.testing.assert_allclose(state.batch_stats[0]["last"], batch.images[1].mean(), rtol=1e-5)


def test_cs_kd_s_second_view_gets_no_gradient():
    engine = built("cs_kd")
    state, totals, feed = begun(engine)
    batch, _ = engine.batch_at(0, feed)
    before = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["peers"][0])
    state, _ = engine.train_steps(state, totals, feed, 1)
    x, other = (np.asarray(summaries(images), np.float64) for images in batch.images[:, 0])
    z, z_other = (v @ before["body"] @ before["head"] for v in (x, other))
    d_z = (np.exp(log_softmax64(z)) - np.asarray(batch.targets[0, 0])) / 10
    d_z += 4 * (np.exp(log_softmax64(z / 4)) - np.exp(log_softmax64(z_other / 4))) / 10
    gradient = {"body": x.T @ (d_z @ before["head"].T), "head": (x @ before["body"]).T @ d_z}
    expected = {name: w - RATE * 1.9 * (gradient[name] + 5e-4 * w) for name, w in before.items()}
    chex.assert_trees_all_close(state.params["peers"][0], expected, rtol=1e-4, atol=1e-6)


def test_mean_teachers_follow_the_peers():
    engine = built("pcl")
    state, totals, feed = begun(engine)
    mean = None
    for number in range(3):
        state, totals = engine.train_steps(state, totals, feed, 1)
        now = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["peers"])
        alpha = min(1 - 1 / (number + 1), 0.999)
        mean = now if mean is None else jax.tree.map(lambda m, w, a=alpha: a * m + (1 - a) * w, mean, now)
        chex.assert_trees_all_close(state.teachers["mean"]["params"], mean, rtol=1e-5, atol=1e-6)


def test_a_frozen_teacher_is_a_network_and_its_weights():
    """A run begins with what its folder holds; one that has no teacher does not begin with random weights."""
    weights = jax.tree.map(jnp.ones_like, linear_backbone().init(KEY))
    engine = build("kd")
    frozen = dataclasses.replace(
        engine.companions.kinds["frozen"], trained=Trained(linear_backbone(), lambda: weights, "", None, None)
    )
    engine = dataclasses.replace(engine, companions=engine.companions._replace(kinds={"frozen": frozen}))
    held = engine.init().state.teachers["frozen"]
    chex.assert_trees_all_equal(held, {name: (tree,) for name, tree in weights.items()})
    alone = assemble.Networks((linear_backbone(),), (D,), None, None)
    with pytest.raises(UsageError, match="kd learns from a trained teacher, and there is none here"):
        assemble.engine(engine.settings, DATASET, alone)


def test_a_frozen_teacher_stays_and_sees_each_peer_s_images():
    engine = build("kd", num_peers=2, views="per_peer")
    state, totals, feed = begun(engine)
    before = jax.tree.map(np.asarray, state.teachers)
    for _ in range(2):
        state, totals = engine.train_steps(state, totals, feed, 1)
    chex.assert_trees_all_equal(state.teachers, before)
    images = jax.random.normal(KEY, (2, 5, 32, 32, 3))
    weights = before["frozen"]["params"][0]
    for seen in (images, images[:1]):  # of each peer, and of all
        outputs, _ = engine.companions.forward(before, state.params["peers"], seen, KEY)
        for j in range(2):
            expected = summaries(seen[j % len(seen)]) @ weights["body"] @ weights["head"]
            np.testing.assert_allclose(outputs["frozen"][j].logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ["okddip", "pcl", "one"])
def test_evaluation_of_branches_and_heads(row):
    engine = build(row, eval_batch_size=8)
    state = begun(built(row))[0]
    found = engine.evaluate(state)
    heads = {"one": ["gated_ensemble"], "okddip": ["leader"]}.get(row)
    heads = heads or ["peer_teacher", "mean_teacher_0", "mean_teacher_1", "mean_teacher_2"]
    assert set(found.heads) == set(heads)
    assert len(found.peers) == {"one": 2, "okddip": 2, "pcl": 3}[row]
    images = (DATASET.test_images / 255.0 - DATASET.mean) / DATASET.std
    features = np.asarray(summaries(images)) @ np.asarray(state.params["peers"][0]["body"], np.float64)
    for j, tree in enumerate(state.params["peers"]):
        right = (features @ np.asarray(tree["head"], np.float64)).argmax(1) == DATASET.test_labels
        said = found.heads["leader"] if row == "okddip" and j == 2 else found.peers[j]
        assert said == pytest.approx(right.mean())
        assert ("body" in tree) == (j == 0)
    # Together the networks that count as peers, without a leader: the logarithm of the mean of their probabilities.
    z = np.stack([features @ np.asarray(tree["head"], np.float64) for tree in state.params["peers"]])
    shares = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    together = np.log(shares[: len(found.peers)].mean(axis=0))
    said = engine._evaluator.answers(state, engine.test_data).ensemble
    np.testing.assert_allclose(said, together, rtol=1e-4, atol=1e-5)
    assert found.ensemble == pytest.approx((together.argmax(axis=1) == DATASET.test_labels).mean())
