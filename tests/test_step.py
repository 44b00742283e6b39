"""The compiled steps: a whole step against numpy, loops against single steps, evaluation against a count."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from cutnmix_jax import batches, evaluate, methods, optim, peers, step
from cutnmix_jax.types import Backbone, Dataset, Outputs, Spec, Split
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
TRAIN = batches.with_classes(batches.Data(jnp.array(DATASET.train_images), jnp.array(DATASET.train_labels)), K)
TEST = batches.Data(jnp.array(DATASET.test_images), jnp.array(DATASET.test_labels))
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

    return Backbone("linear", init, apply, Split(lambda: frozenset({"body"}), trunk, tail))


def summaries(images):
    """[n, 32, 32, 3] -> [n, 12]: the mean colour of each quarter."""
    return images.reshape(-1, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(-1, 12)


def build(
    row,
    *,
    loop=False,
    batch_size=10,
    num_peers=None,
    backbone=None,
    features=D,
    mapping="unroll",
    make=lambda f: jax.jit(f)(),
    dataset=DATASET,
    options=None,
    weight_decay=5e-4,
):
    fields = common.ROWS[row]
    num_peers = num_peers or fields["num_peers"]
    options = dict(options or fields["loss"])
    method = methods.load(options.pop("name"), **options)
    backbone, num_train = backbone or linear_backbone(), len(dataset.train_labels)
    joined = peers.make([backbone] * num_peers, mapping, fields["share_trunk"])
    taught_by = {"mean": peers.mean_teachers(joined), "": peers.no_teachers()}
    teachers = taught_by.get(method.teacher) or peers.frozen_teacher(backbone, num_peers)
    optimizer = optim.sgd(0.9, weight_decay, True)
    mix = {"kind": fields["mix"], "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    make_batch = batches.make_batch_maker(
        dataset,
        num_peers=num_peers,
        views=fields["views"],
        mix=mix,
        views_per_peer=method.views,
        same_class=method.same_class,
    )
    spec = Spec(dataset.num_classes, (features,) * num_peers, num_train, features)
    state = make(
        lambda: step.init_state(KEY, peers=joined, method=method, optimizer=optimizer, spec=spec, teachers=teachers)
    )
    trainer = step.make_trainer(
        peers=joined,
        method=method,
        weights=fields["weights"],
        optimizer=optimizer,
        make_batch=make_batch,
        batch_size=batch_size,
        steps_per_epoch=num_train // batch_size,
        epochs=3,
        loop=loop,
        same_images=fields["views"] == "shared" and fields["mix"] != "cutnmix",
        teachers=teachers,
    )
    return joined, method, make_batch, state, step.zero_totals(method, spec), trainer


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
    _, _, make_batch, state, totals, trainer = build("cutnmix")
    order = batches.epoch_order(KEY, 0, 40)
    weight = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params)
    buffer = jax.tree.map(np.zeros_like, weight)
    losses = []
    for number in range(2):
        batch_key, _ = jax.random.split(step.step_key(KEY, number))
        batch, _ = make_batch(batch_key, TRAIN, order[10 * number : 10 * number + 10])
        loss, gradient = paper_step(weight, np.asarray(batch.images, np.float64), np.asarray(batch.targets, np.float64))
        losses.append(loss)
        gradient["peers"] = tuple(gradient["peers"])
        decayed = jax.tree.map(lambda g, w: g + 5e-4 * w, gradient, weight)
        buffer = jax.tree.map(lambda b, g: 0.9 * b + g, buffer, decayed)
        weight = jax.tree.map(lambda w, g, b: w - RATE * (g + 0.9 * b), weight, decayed, buffer)
        state, totals = trainer(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
    assert int(state.step) == 2
    np.testing.assert_allclose(totals.sums["loss"], sum(losses), rtol=1e-5)
    chex.assert_trees_all_close(state.params, weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row", few(common.ROWS, ("baseline", "cutnmix", "kdcl", "okddip", "ps_kd")))
def test_a_loop_of_steps_is_the_same_steps(row):
    *_, state, totals, one = build(row)
    *_, looped_state, looped_totals, many = build(row, loop=True)
    order = batches.epoch_order(KEY, 0, 40)
    for _ in range(3):
        state, totals = one(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
    for count in (2, 1):  # the shorter call at the end of an epoch runs the same program
        looped_state, looped_totals = many(looped_state, looped_totals, TRAIN, order, jnp.float32(RATE), count, KEY)
    assert many._cache_size() == 1
    chex.assert_trees_all_close((state, totals), (looped_state, looped_totals), rtol=1e-5, atol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state, totals)))


def test_learning_rate_is_data():
    *_, state, totals, trainer = build("baseline")
    order = batches.epoch_order(KEY, 0, 40)
    still = jax.tree.map(np.asarray, state.params)
    state, totals = trainer(state, totals, TRAIN, order, jnp.float32(0), 1, KEY)
    chex.assert_trees_all_equal(state.params, still)
    trainer(state, totals, TRAIN, order, jnp.float32(0.5), 1, KEY)
    assert trainer._cache_size() == 1


def test_a_term_of_weight_zero_cannot_spread():
    joined, method, make_batch, state, totals, _ = build("cutnmix")
    weights = {"ce": 1.0, "dml": 0.0, "mmd": 0.0, "pt": 0.0, "peer_teacher_ce": 1.0}
    exploding = method._replace(
        loss=lambda *a: ((t := method.loss(*a)[0]) | {"mmd": t["mmd"] * jnp.inf}, method.loss(*a)[1])
    )
    trainer = step.make_trainer(
        peers=joined,
        method=exploding,
        weights=weights,
        optimizer=optim.sgd(0.9, 5e-4, True),
        make_batch=make_batch,
        batch_size=10,
        steps_per_epoch=4,
        epochs=1,
        loop=False,
    )
    state, totals = trainer(state, totals, TRAIN, batches.epoch_order(KEY, 0, 40), jnp.float32(RATE), 1, KEY)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(totals.sums["loss"])


def test_epochs_are_permutations_that_differ():
    orders = [np.asarray(batches.epoch_order(KEY, epoch, 40)) for epoch in range(3)]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert (orders[0] != orders[1]).any()
    assert (np.asarray(batches.epoch_order(jax.random.key(96), 0, 40)) != orders[0]).any()


def test_batches_are_a_function_of_seed_and_step():
    make_batch = batches.make_batch_maker(
        DATASET, num_peers=2, views="per_peer", mix={"kind": "cutnmix", "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    )
    rows = jnp.arange(8)
    one, how = make_batch(step.step_key(KEY, 3), TRAIN, rows)
    again, _ = make_batch(step.step_key(KEY, 3), TRAIN, rows)
    other, _ = make_batch(step.step_key(KEY, 4), TRAIN, rows)
    chex.assert_trees_all_equal(one, again)
    assert np.any(one.images != other.images)
    np.testing.assert_array_equal(one.targets[0], one.targets[1])
    np.testing.assert_array_equal(one.labels, DATASET.train_labels[:8])


@pytest.mark.parametrize("views", batches.VIEWS)
def test_each_peer_has_its_own_view_or_all_share_one(views):
    mix = {"kind": "none", "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    make_batch = batches.make_batch_maker(DATASET, num_peers=2, views=views, mix=mix)
    batch, _ = make_batch(KEY, TRAIN, jnp.arange(20))
    unlike = np.any(np.asarray(batch.images[0] != batch.images[1]), axis=(1, 2, 3)).mean()
    assert unlike > 0.9 if views == "per_peer" else unlike == 0


def test_batches_without_mixing_are_normalised_crops():
    make_batch = batches.make_batch_maker(
        DATASET, num_peers=2, views="shared", mix={"kind": "none", "prob": 1.0, "alpha": 1.0, "box": "cutmix"}
    )
    batch, _ = make_batch(KEY, TRAIN, jnp.arange(5))
    np.testing.assert_array_equal(batch.images[0], batch.images[1])
    pixels = np.asarray(batch.images) * DATASET.std + DATASET.mean
    for i in range(5):
        padded = np.pad(DATASET.train_images[i] / 255, ((4, 4), (4, 4), (0, 0)))
        views = [padded[t : t + 32, c : c + 32][:, ::m] for t in range(9) for c in range(9) for m in (1, -1)]
        assert min(np.abs(view - pixels[0, i]).max() for view in views) < 1e-5


@pytest.mark.parametrize("batch_size", [1, 7, 23, 64])
def test_evaluation_is_an_exact_count(batch_size):
    joined, method, _, state, *_ = build("cutnmix")
    images = (DATASET.test_images / 255.0 - DATASET.mean) / DATASET.std
    features = [np.asarray(summaries(images)) @ np.asarray(p["body"], np.float64) for p in state.params["peers"]]
    logits = [f @ np.asarray(p["head"], np.float64) for f, p in zip(features, state.params["peers"], strict=True)]
    teacher = np.concatenate(features, axis=1) @ np.asarray(state.params["method"]["kernel"], np.float64)
    teacher += np.asarray(state.params["method"]["bias"], np.float64)
    scores = {"peer_0": logits[0], "peer_1": logits[1], "peer_teacher": teacher}
    scores["ensemble"] = sum(np.exp(log_softmax64(z)) for z in logits)
    # Image 0 stands in for what a last batch lacks; a class that peer 0 sees in it would be counted again and again.
    labels = np.where(np.arange(23) == 0, logits[0][0].argmax(), DATASET.test_labels)
    expected = {name: (score.argmax(1) == labels).sum() / 23 for name, score in scores.items()}
    expected["accuracy"] = (expected["peer_0"] + expected["peer_1"]) / 2
    evaluator = evaluate.make_evaluator(peers=joined, method=method, dataset=DATASET, batch_size=batch_size)
    found = evaluate.accuracies(evaluator, state, TEST._replace(labels=jnp.array(labels)), batch_size)
    assert found == pytest.approx(expected, abs=1e-12)


def test_training_accuracy_is_on_the_larger_share_of_the_label():
    logits = jnp.eye(3)[jnp.array([0, 1, 2, 0])]
    targets = jnp.array([[0.7, 0.3, 0], [0.7, 0.3, 0], [0, 0, 1], [0.6, 0.4, 0]])
    outputs = (Outputs(logits, logits), Outputs(logits[::-1], logits))
    # peer 0 is right on rows 0, 2, 3; peer 1, reversed to classes 0, 2, 1, 0, on rows 0 and 3
    assert step.mixed_accuracy(outputs, jnp.stack([targets, targets])) == pytest.approx((3 / 4 + 2 / 4) / 2)


def batch_of_step(make_batch, number, order):
    batch_key, _ = jax.random.split(step.step_key(KEY, number))
    return make_batch(batch_key, TRAIN, order[10 * number : 10 * number + 10])[0]


def test_pairs_are_of_the_same_class_and_uniform():
    labels = jnp.asarray(np.tile(np.arange(K), 500).astype(np.int32))
    rows = np.asarray(batches.same_class_rows(KEY, TRAIN, labels))
    assert (DATASET.train_labels[rows] == np.asarray(labels)).all()
    for label in range(K):
        members = np.flatnonzero(DATASET.train_labels == label)
        seen = np.bincount(rows[np.asarray(labels) == label], minlength=40)[members]
        assert (seen > 0).all()
        # 500 draws: five standard deviations of a count
        assert np.abs(seen - 500 / len(members)).max() < 5 * np.sqrt(500 / len(members))


def test_cs_kd_sees_an_image_and_another_of_its_class():
    _, _, make_batch, *_ = build("cs_kd")
    index = jnp.arange(10)
    batch, _ = jax.jit(make_batch)(KEY, TRAIN, index)
    assert batch.images.shape == (2, 10, 32, 32, 3) and batch.targets.shape == (1, 10, K)
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

    first, second = rows_of_view(pixels[0, :4]), rows_of_view(pixels[1, :4])
    assert first == [[0], [1], [2], [3]]
    assert all(
        DATASET.train_labels[two] == DATASET.train_labels[one] for [one], [two] in zip(first, second, strict=True)
    )


def test_ddgsd_sees_two_views_of_an_image():
    _, _, make_batch, *_ = build("ddgsd", num_peers=2)
    batch, _ = jax.jit(make_batch)(KEY, TRAIN, jnp.arange(10))
    assert batch.images.shape == (4, 10, 32, 32, 3) and batch.targets.shape == (2, 10, K)
    assert len({view.tobytes() for view in np.asarray(batch.images)}) == 4


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


@pytest.mark.parametrize("row", ["cs_kd", "ddgsd"])
def test_each_view_is_a_pass_of_its_own(row):
    _, _, make_batch, state, totals, trainer = build(row, backbone=counting_backbone())
    order = batches.epoch_order(KEY, 0, 40)
    batch = batch_of_step(make_batch, 0, order)
    state, _ = trainer(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
    assert state.batch_stats[0]["passes"] == 2
    np.testing.assert_allclose(state.batch_stats[0]["last"], batch.images[1].mean(), rtol=1e-5)


def test_cs_kd_s_second_view_gets_no_gradient():
    _, _, make_batch, state, totals, trainer = build("cs_kd")
    order = batches.epoch_order(KEY, 0, 40)
    batch = batch_of_step(make_batch, 0, order)
    before = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["peers"][0])
    state, _ = trainer(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
    x, other = (np.asarray(summaries(images), np.float64) for images in batch.images)
    z, z_other = (v @ before["body"] @ before["head"] for v in (x, other))
    d_z = (np.exp(log_softmax64(z)) - np.asarray(batch.targets[0])) / 10
    d_z += 4 * (np.exp(log_softmax64(z / 4)) - np.exp(log_softmax64(z_other / 4))) / 10
    gradient = {"body": x.T @ (d_z @ before["head"].T), "head": (x @ before["body"]).T @ d_z}
    expected = {name: w - RATE * 1.9 * (gradient[name] + 5e-4 * w) for name, w in before.items()}
    chex.assert_trees_all_close(state.params["peers"][0], expected, rtol=1e-4, atol=1e-6)


def test_mean_teachers_follow_the_peers():
    _, _, _, state, totals, trainer = build("pcl")
    order = batches.epoch_order(KEY, 0, 40)
    mean = None
    for number in range(3):
        state, totals = trainer(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
        now = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.params["peers"])
        alpha = min(1 - 1 / (number + 1), 0.999)
        mean = now if mean is None else jax.tree.map(lambda m, w, a=alpha: a * m + (1 - a) * w, mean, now)
        chex.assert_trees_all_close(state.teachers["params"], mean, rtol=1e-5, atol=1e-6)


def test_a_frozen_teacher_stays_and_sees_each_peer_s_images():
    _, _, _, state, totals, trainer = build("kd", num_peers=2)
    before = jax.tree.map(np.asarray, state.teachers)
    order = batches.epoch_order(KEY, 0, 40)
    for _ in range(2):
        state, totals = trainer(state, totals, TRAIN, order, jnp.float32(RATE), 1, KEY)
    chex.assert_trees_all_equal(state.teachers, before)
    teacher = peers.frozen_teacher(linear_backbone(), 2)
    images = jax.random.normal(KEY, (2, 5, 32, 32, 3))
    outputs, _ = teacher.forward(before, state.params["peers"], images, KEY)
    weights = before["params"][0]
    for j in range(2):
        expected = summaries(images[j]) @ weights["body"] @ weights["head"]
        np.testing.assert_allclose(outputs[j].logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ["okddip", "pcl", "one"])
def test_evaluation_of_branches_and_heads(row):
    joined, method, _, state, *_ = build(row)
    teachers = peers.mean_teachers(joined) if row == "pcl" else peers.no_teachers()
    evaluator = evaluate.make_evaluator(peers=joined, method=method, dataset=DATASET, batch_size=8, teachers=teachers)
    found = evaluate.accuracies(evaluator, state, TEST, 8)
    heads = {"one": ["gated_ensemble"], "okddip": ["leader"]}.get(row)
    heads = heads or ["peer_teacher", "mean_teacher_0", "mean_teacher_1", "mean_teacher_2"]
    students = {"one": 2, "okddip": 2, "pcl": 3}[row]
    assert set(found) == {"accuracy", *(f"peer_{j}" for j in range(students)), "ensemble", *heads}
    images = (DATASET.test_images / 255.0 - DATASET.mean) / DATASET.std
    features = np.asarray(summaries(images)) @ np.asarray(state.params["peers"][0]["body"], np.float64)
    for j, tree in enumerate(state.params["peers"]):
        right = (features @ np.asarray(tree["head"], np.float64)).argmax(1) == DATASET.test_labels
        name = "leader" if row == "okddip" and j == 2 else f"peer_{j}"
        assert found[name] == pytest.approx(right.mean())
        assert ("body" in tree) == (j == 0)
