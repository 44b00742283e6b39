"""The methods that the paper compares itself with, each against float64 numpy, and what each of them remembers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import methods
from cutnmix_jax.errors import UsageError
from cutnmix_jax.methods import kdcl as kdcl_module
from cutnmix_jax.names import term_names
from cutnmix_jax.types import Outputs, Spec
from tests.oracles import (
    CLOCK,
    C,
    K,
    N,
    batch_of,
    ce64,
    kl64,
    log_softmax64,
    made,
    method_of,
    mmd64,
    others_of,
    outputs_of,
    seen_by,
    setup_of,
    spec_of,
)
from tests.test_methods import PAPER


def array64(x):
    return np.asarray(x, np.float64)


def ces(outputs, targets):
    return [ce64(out.logits, targets[j]) for j, out in enumerate(outputs)]


def cs_kd(params, views, batch, temperature=4):
    first, second = views
    return {
        "ce": ces(first, batch.targets[0]),
        "kd": [kl64(one.logits, other.logits, temperature) for one, other in zip(first, second, strict=True)],
    }


def ps_kd(params, views, batch, last_share=None):  # of images that were never seen
    return {"ce": ces(views[0], batch.targets[0])}


def tf_kd_reg(params, views, batch, correct=0.99, temperature=20):
    kd = []
    for j, out in enumerate(views[0]):
        total = 0.0
        for logits, target in zip(array64(out.logits), array64(batch.targets[0, j]), strict=True):
            # A mixed label's virtual teacher is the mixture of its classes' ones.
            u = sum(target[c] * np.where(np.arange(K) == c, correct, (1 - correct) / (K - 1)) for c in range(K))
            u = u / temperature
            q = np.exp(u) / np.exp(u).sum()
            total += (q * (np.log(q) - log_softmax64(logits))).sum()
        kd.append(total / N)
    return {"ce": ces(views[0], batch.targets[0]), "kd": kd}


def kd(tau):
    def terms(params, views, batch, temperature=tau):
        pairs = zip(views[0], batch.teachers["frozen"][0], strict=True)
        kd = [kl64(out.logits, teacher.logits, temperature) for out, teacher in pairs]
        return {"ce": ces(views[0], batch.targets[0]), "kd": kd}

    return terms


def ddgsd(params, views, batch, temperature=3):
    pairs = list(zip(*views, strict=True))
    return {
        "ce": [sum(both) for both in zip(*map(ces, views, batch.targets), strict=True)],
        "kd": [kl64(a.logits, b.logits, temperature) + kl64(b.logits, a.logits, temperature) for a, b in pairs],
        "mmd": [mmd64(a.features, b.features) for a, b in pairs],
    }


def kdcl(params, views, batch, temperature=4):
    mean = sum(array64(out.logits) for out in views[0]) / len(views[0])
    return {"ce": ces(views[0], batch.targets[0]), "kd": [kl64(out.logits, mean, temperature) for out in views[0]]}


def gate64(params, trunk, mean, var):
    raw = array64(trunk) @ array64(params["kernel"]) + array64(params["bias"])
    mean, var = (raw.mean(axis=0), raw.var(axis=0)) if mean is None else (mean, var)
    positive = np.maximum((raw - mean) / np.sqrt(var + 1e-5) * array64(params["scale"]) + array64(params["offset"]), 0)
    return np.exp(positive) / np.exp(positive).sum(axis=1, keepdims=True)


def one(params, views, batch, temperature=3):
    [outputs], [targets] = views, batch.targets
    gate = gate64(params, outputs[0].trunk, None, None)
    ensemble = sum(gate[:, b, None] * array64(out.logits) for b, out in enumerate(outputs))
    return {
        "ce": ces(outputs, targets),
        "ensemble_ce": ce64(ensemble, targets[0]),  # all see the same images
        "kd": [kl64(out.logits, ensemble, temperature) for out in outputs],
    }


def okddip(params, views, batch, temperature=3):
    [(*peers, leader)] = views
    query = [array64(out.features) @ array64(params["query"]) for out in peers]
    key = [array64(out.features) @ array64(params["key"]) for out in peers]
    targets = []
    for i in range(len(peers)):
        weight = np.exp([[query[i][n] @ key[j][n] for j in range(len(peers))] for n in range(N)])
        weight /= weight.sum(axis=1, keepdims=True)
        targets.append(sum(weight[:, j, None] * array64(out.logits) for j, out in enumerate(peers)))
    targets.append(sum(array64(out.logits) for out in peers) / len(peers))
    return {
        "ce": ces(views[0], batch.targets[0]),
        "kd": [kl64(out.logits, target, temperature) for out, target in zip([*peers, leader], targets, strict=True)],
    }


def pcl(params, views, batch, temperature=3):
    [outputs], [targets] = views, batch.targets
    joined = np.concatenate([array64(out.features) for out in outputs], axis=1)
    teacher = joined @ array64(params["kernel"]) + array64(params["bias"])
    means = batch.teachers["mean"][0]
    others = [
        np.mean([kl64(out.logits, mean.logits, temperature) for k, mean in enumerate(means) if k != j])
        for j, out in enumerate(outputs)
    ]
    return {
        "ce": ces(outputs, targets),
        "pt": [kl64(out.logits, teacher, temperature) for out in outputs],
        "mean_teacher": others,
        "peer_teacher_ce": np.mean([ce64(teacher, target) for target in targets]),
    }


ORACLES = {
    "cs_kd": cs_kd,
    "ps_kd": ps_kd,
    "tf_kd_reg": tf_kd_reg,
    "tf_kd_self": kd(6),
    "kd": kd(4),
    "ddgsd": ddgsd,
    "kdcl": kdcl,
    "one": one,
    "okddip": okddip,
    "pcl": pcl,
}


def test_every_row_has_an_oracle():
    assert set(ORACLES) | set(PAPER) == set(methods.rows_by_name())


LEAST = {"kdcl": 2, "one": 2, "pcl": 2, "okddip": 3}  # networks


@pytest.mark.parametrize("num_peers", [1, 2, 3])
@pytest.mark.parametrize("row", ORACLES)
def test_terms_against_numpy(row, num_peers):
    if num_peers < LEAST.get(row, 1):
        with pytest.raises(UsageError, match=f"{row} needs at least {LEAST[row]} networks"):
            method_of(row).check(setup_of(row, num_peers))
        return
    method_of(row).check(setup_of(row, num_peers))
    views = seen_by(row, num_peers)
    batch = batch_of(num_peers, views=len(views))
    for options in ({}, others_of(row)):
        method, params, state = made(row, views[0], **options)
        params = jax.tree.map(lambda leaf: leaf + 0.3, params)  # so that not all scales are 1, and not all offsets 0
        terms, _ = method.loss(params, state, views, batch, CLOCK)
        expected = ORACLES[row](params, views, batch, **options)
        assert set(terms) == set(expected) == set(methods.row(row).weights)
        assert tuple(terms) == term_names(method, spec_of(views[0]))
        for name, values in expected.items():
            np.testing.assert_allclose(terms[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("last_share", [0.8, 0.3])
def test_ps_kd_softens_the_label_by_what_was_said_before(last_share):
    outputs, batch = outputs_of(2), batch_of(2)
    method, params, state = made("ps_kd", outputs, last_share=last_share)
    rows = np.asarray(batch.indices)
    _, state = method.loss(params, state, (outputs,), batch, CLOCK)
    said = [np.exp(log_softmax64(out.logits)) for out in outputs]
    np.testing.assert_allclose(state["last"][:, rows], said, rtol=1e-5)
    unseen = np.setdiff1d(np.arange(N + 2), rows)
    assert not np.any(np.asarray(state["last"])[:, unseen])
    again = outputs_of(2, seed=5)
    for epoch, share in ((1, last_share / 2), (3, last_share)):  # of 4 epochs: 2/4, and all in the last
        terms, _ = method.loss(params, state, (again,), batch, CLOCK._replace(epoch=jnp.int32(epoch)))
        soft = [(1 - share) * array64(batch.targets[0, j]) + share * said[j] for j in range(2)]
        np.testing.assert_allclose(terms["ce"], [ce64(again[j].logits, soft[j]) for j in range(2)], rtol=1e-5)
    # An image that is new in the last epoch has its label alone.
    other = batch._replace(indices=batch.indices.at[0].set(int(unseen[0])))
    terms, _ = method.loss(params, state, (again,), other, CLOCK._replace(epoch=jnp.int32(3)))
    soft[0][0] = array64(batch.targets[0, 0, 0])
    np.testing.assert_allclose(terms["ce"][0], ce64(again[0].logits, soft[0]), rtol=1e-5)


def test_one_s_gate_remembers_its_statistics():
    outputs, batch = outputs_of(3), batch_of(3)
    method, params, state = made("one", outputs)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == C * 3 + 3 + 2 * 3
    _, after = method.loss(params, state, (outputs,), batch, CLOCK)
    raw = array64(outputs[0].trunk) @ array64(params["kernel"]) + array64(params["bias"])
    np.testing.assert_allclose(after["mean"], 0.1 * raw.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["var"], 0.9 + 0.1 * raw.var(axis=0), rtol=1e-5)
    gate = gate64(params, outputs[0].trunk, array64(after["mean"]), array64(after["var"]))
    expected = sum(gate[:, b, None] * array64(out.logits) for b, out in enumerate(outputs))
    found = method.heads(params, after, outputs)["gated_ensemble"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_okddip_s_attention_learns_and_its_leader_is_a_head():
    outputs, batch = outputs_of(3, sizes=[16] * 3), batch_of(3)
    method, params, state = made("okddip", outputs)
    assert {name: leaf.shape for name, leaf in params.items()} == {"query": (16, 2), "key": (16, 2)}
    assert np.abs(params["query"] - params["key"]).min() > 1e-6  # or a peer would attend most to those like itself
    gradient = jax.jit(jax.grad(lambda p: method.loss(p, state, (outputs,), batch, CLOCK)[0]["kd"].sum()))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    assert method.students(outputs) == outputs[:2]
    assert method.heads(params, state, outputs)["leader"] is outputs[-1].logits
    with pytest.raises(UsageError, match="of one size, not 4, 5"):
        method.init(jax.random.key(0), Spec(K, (4, 5, 4), N))
    method.init(jax.random.key(0), Spec(K, (4, 4, 5), N))  # a leader of another size


def combined(target, logits, targets):
    outputs = tuple(Outputs(jnp.array(z), jnp.zeros((len(z), 2))) for z in logits)
    batch = batch_of(len(logits))._replace(targets=jnp.array(targets)[None])
    method, params, state = made("kdcl", outputs, target=target)
    terms, _ = method.loss(params, state, (outputs,), batch, CLOCK)
    return np.asarray(terms["kd"])


@pytest.mark.parametrize("num_peers", [2, 3])
def test_kdcl_s_targets(num_peers):
    rng = np.random.default_rng(3)
    logits = 2 * rng.normal(size=(num_peers, N, K))
    labels = rng.integers(0, K, N)
    targets = np.tile(np.eye(K)[labels], (num_peers, 1, 1))
    logp = log_softmax64(logits)
    best = [max(range(num_peers), key=lambda j: logp[j, n, labels[n]]) for n in range(N)]
    naive = np.array([logits[best[n], n] for n in range(N)])
    minlogit = np.array([[min(z[n, c] - z[n, labels[n]] for z in logits) for c in range(K)] for n in range(N)])
    for target, expected in {"naive": naive, "minlogit": minlogit, "mean": logits.mean(axis=0)}.items():
        np.testing.assert_allclose(combined(target, logits, targets), [kl64(z, expected, 4) for z in logits], rtol=1e-4)


@pytest.mark.parametrize("scale", [0.1, 2.0, 8.0])
def test_kdcl_s_linear_target_is_the_best_combination(scale):
    rng = np.random.default_rng(4)
    logits = scale * rng.normal(size=(2, 40, K))
    targets = np.eye(K)[rng.integers(0, K, 40)]
    grid = np.linspace(0, 1, 2001)
    found = np.asarray(jax.jit(kdcl_module.linear)(jnp.array(logits), jnp.array(np.tile(targets, (2, 1, 1)))))
    for n in range(40):
        losses = [-(targets[n] * log_softmax64(w * logits[0, n] + (1 - w) * logits[1, n])).sum() for w in grid]
        mine = -(targets[n] * log_softmax64(found[n])).sum()
        assert mine <= min(losses) + 0.01 * max(scale, 1), (n, mine, min(losses))


def test_kdcl_s_general_weights_minimise_the_squared_error():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, K, 200)
    # Peers that know something of the label, each more than the one before.
    logits = rng.normal(size=(3, 200, K)) + np.array([0.5, 1.0, 2.0])[:, None, None] * np.eye(K)[labels]
    weights = array64(kdcl_module.general(jnp.array(logits), jnp.array(labels)))
    probabilities = np.exp(log_softmax64(logits))

    def error(w):
        return (((w[:, None, None] * probabilities).sum(0) - np.eye(K)[labels]) ** 2).sum(-1).mean()

    assert weights.sum() == pytest.approx(1, abs=1e-5) and weights[2] == weights.max()
    best = error(weights)
    for direction in rng.normal(size=(50, 3)):
        assert best <= error(weights + 0.05 * (direction - direction.mean())) + 1e-7
    outputs, batch = outputs_of(3), batch_of(3)
    method, params, state = made("kdcl", outputs, target="general")
    np.testing.assert_allclose(state["weights"], [1 / 3] * 3)
    state = method.calibrate(state, jnp.array(logits), jnp.array(labels))
    terms, after = method.loss(params, state, (outputs,), batch, CLOCK)
    taught = sum(w * array64(out.logits) for w, out in zip(weights, outputs, strict=True))
    np.testing.assert_allclose(terms["kd"], [kl64(out.logits, taught, 4) for out in outputs], rtol=1e-4)
    np.testing.assert_allclose(after["weights"], weights, rtol=1e-4)


def test_kdcl_s_general_weights_do_not_depend_on_how_large_the_errors_are():
    """What keeps the system solvable is a share of them: nearly right peers are weighed, too."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, K, 60)
    logits = 9 * np.eye(K)[labels] + rng.normal(size=(3, 60, K)) * np.array([0.5, 1.0, 2.0])[:, None, None]
    errors = np.exp(log_softmax64(logits)) - np.eye(K)[labels]
    products = np.einsum("imk,jmk->ij", errors, errors) / 60
    raw = np.linalg.solve(products / np.trace(products) + 1e-4 * np.eye(3), np.ones(3))
    found = kdcl_module.general(jnp.array(logits, jnp.float32), jnp.array(labels))
    np.testing.assert_allclose(found, raw / raw.sum(), rtol=1e-2)
    assert np.ptp(raw / raw.sum()) > 0.1 and np.trace(products) < 0.01


@pytest.mark.parametrize("scale", [0, 1e-3, 1, 60, 1e4])
def test_kdcl_s_general_weights_where_peers_agree(scale):
    """From undecided to surely right, where no error is left to weigh them by, and surely wrong."""
    labels = jnp.arange(20) % K
    for sign in (1, -1):
        logits = jnp.tile(sign * scale * jax.nn.one_hot(labels, K), (3, 1, 1))
        np.testing.assert_allclose(kdcl_module.general(logits, labels), [1 / 3] * 3, rtol=1e-2)


def test_self_training_wants_a_teacher_like_its_student():
    alike = setup_of("tf_kd_self", 2)
    method_of("tf_kd_self").check(alike)
    with pytest.raises(UsageError, match="is a other; tf_kd_self wants the network of its student"):
        method_of("tf_kd_self").check(alike._replace(teacher="other"))
    method_of("kd").check(alike._replace(teacher="other"))
