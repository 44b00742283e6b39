"""Every method: its terms against float64 numpy, where its gradients go, and its contract."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from cutnmix_jax import methods, step
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import Batch, Clock, Outputs, Spec

N, K = 6, 5
CLOCK = Clock(jnp.int32(3), jnp.int32(1), jnp.int32(4), jnp.float32(0.05))


def outputs_of(num_peers, seed=0, sizes=None):
    rng = np.random.default_rng(seed)
    sizes = sizes or [4] * num_peers
    return tuple(
        Outputs(jnp.array(2 * rng.normal(size=(N, K))), jnp.array(rng.normal(size=(N, size)))) for size in sizes
    )


def batch_of(num_peers, seed=1):
    rng = np.random.default_rng(seed)
    targets = jnp.array(np.tile(rng.dirichlet(np.ones(K), size=N), (num_peers, 1, 1)))
    return Batch(jnp.zeros((num_peers, N, 32, 32, 3)), targets, jnp.zeros(N, jnp.int32), jnp.arange(N))


def made(row, num_peers, outputs):
    options = dict(common.ROWS[row]["loss"])
    method = methods.load(options.pop("name"), **options)
    spec = Spec(K, tuple(out.features.shape[1] for out in outputs), N)
    return method, *method.init(jax.random.key(0), spec)


def log_softmax64(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def ce64(logits, targets):
    return np.mean(
        [-(np.asarray(t, np.float64) * p).sum() for t, p in zip(targets, log_softmax64(logits), strict=True)]
    )


def kl64(student, teacher, tau):
    p, q = log_softmax64(np.asarray(student) / tau), log_softmax64(np.asarray(teacher) / tau)
    return tau * tau * np.mean([(np.exp(b) * (b - a)).sum() for a, b in zip(p, q, strict=True)])


def mmd64(one, other):
    return sum((a - b) ** 2 for a, b in zip(np.mean(one, axis=0), np.mean(other, axis=0), strict=True))


def expected_terms(row, params, outputs, batch):
    """Eq. 4, 8, 9 and 10 written out peer by peer."""
    peers = range(len(outputs))
    terms = {"ce": [ce64(outputs[j].logits, batch.targets[j]) for j in peers]}

    def over_others(pair):
        return [sum(pair(outputs[j], outputs[k]) for k in peers if k != j) / (len(outputs) - 1) for j in peers]

    if row.startswith("dml") or (row.startswith("cutnmix") and len(outputs) > 1):
        terms["dml"] = over_others(lambda mine, theirs: kl64(mine.logits, theirs.logits, 3))
    if row.startswith("cutnmix"):
        if len(outputs) > 1:
            terms["mmd"] = over_others(lambda mine, theirs: mmd64(mine.features, theirs.features))
        joined = np.concatenate([np.asarray(out.features, np.float64) for out in outputs], axis=1)
        teacher = joined @ np.asarray(params["kernel"], np.float64) + np.asarray(params["bias"], np.float64)
        terms["pt"] = [kl64(out.logits, teacher, 3) for out in outputs]
        terms["peer_teacher_ce"] = ce64(teacher, batch.targets[0])
    return terms


@pytest.mark.parametrize("num_peers", [1, 2, 3])
@pytest.mark.parametrize("row", common.ROWS)
def test_terms_against_numpy(row, num_peers):
    outputs, batch = outputs_of(num_peers), batch_of(num_peers)
    method, params, state = made(row, num_peers, outputs)
    if num_peers < method.min_peers:
        pytest.skip(f"{row} has no meaning for one network")
    terms, _ = method.loss(params, state, outputs, batch, CLOCK)
    expected = expected_terms(row, params, outputs, batch)
    assert set(terms) == set(expected) == set(method.terms((4,) * num_peers))
    for name, values in expected.items():
        np.testing.assert_allclose(terms[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("row", common.ROWS)
def test_a_peers_terms_move_no_other_peer(row):
    num_peers = 3
    outputs, batch = outputs_of(num_peers), batch_of(num_peers)
    method, params, state = made(row, num_peers, outputs)

    def terms(outputs):
        return {name: t for name, t in method.loss(params, state, outputs, batch, CLOCK)[0].items() if t.ndim == 1}

    jacobian = jax.jacrev(terms)(outputs)
    for name, per_peer in jacobian.items():
        for k in range(num_peers):
            for leaf in jax.tree.leaves(per_peer[k]):
                for j in range(num_peers):
                    if j != k:
                        assert not np.any(leaf[j]), f"{name} of peer {j} moves peer {k}"
        # and it does move its own
        assert all(any(np.any(leaf[j]) for leaf in jax.tree.leaves(per_peer[j])) for j in range(num_peers)), name


def test_peer_teacher_learns_without_moving_the_peers_by_default():
    outputs, batch = outputs_of(2), batch_of(2)
    for moves in (False, True):
        method = methods.load("cutnmix", temperature=3.0, teacher_moves_peers=moves)
        params, state = method.init(jax.random.key(0), Spec(K, (4, 4), N))

        def own(params, outputs, method=method, state=state):
            return method.loss(params, state, outputs, batch, CLOCK)[0]["peer_teacher_ce"]

        to_teacher, to_peers = jax.grad(own, argnums=(0, 1))(params, outputs)
        assert all(np.any(leaf) for leaf in jax.tree.leaves(to_teacher))
        assert all(bool(np.any(out.features)) == moves for out in to_peers)
        assert not any(np.any(out.logits) for out in to_peers)


def test_peer_teacher_is_moved_by_its_own_term_alone():
    outputs, batch = outputs_of(2), batch_of(2)
    method, params, state = made("cutnmix", 2, outputs)
    jacobian = jax.jacrev(lambda p: method.loss(p, state, outputs, batch, CLOCK)[0])(params)
    moved = {name for name, tree in jacobian.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))}
    assert moved == {"peer_teacher_ce"}


def test_peer_teacher_starts_as_a_pytorch_linear_layer():
    params, _ = methods.load("cutnmix", temperature=3.0, teacher_moves_peers=False).init(
        jax.random.key(0), Spec(100, (256, 256), 1)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 512 * 100 + 100
    bound = 1 / np.sqrt(512)
    for leaf in jax.tree.leaves(params):
        assert bound * 0.9 < np.abs(leaf).max() <= bound
    np.testing.assert_allclose(params["kernel"].std(), bound / np.sqrt(3), rtol=0.02)


def test_peer_teacher_head_reads_the_joined_features():
    outputs = outputs_of(2, sizes=[3, 4])
    method, params, _ = made("cutnmix", 2, outputs)
    logits = method.heads(params, outputs)["peer_teacher"]
    changed = (outputs[0], Outputs(outputs[1].logits, outputs[1].features.at[2].add(1.0)))
    rows = np.any(np.asarray(method.heads(params, changed)["peer_teacher"] != logits), axis=1)
    assert rows.tolist() == [i == 2 for i in range(N)]


def test_table_2_is_a_matter_of_weights():
    full = common.ROWS["cutnmix"]
    for row, zero in {"cutnmix_dml": {"mmd", "pt"}, "cutnmix_mmd": {"pt"}, "cutnmix_pt": {"mmd"}}.items():
        assert {n for n, w in common.ROWS[row]["weights"].items() if w == 0} == zero
        assert {k: v for k, v in common.ROWS[row].items() if k != "weights"} == {
            k: v for k, v in full.items() if k != "weights"
        }
    assert full["weights"] == {"ce": 1.0, "dml": 0.6, "mmd": 0.3, "pt": 0.1, "peer_teacher_ce": 1.0}


def test_weights_and_terms_must_match():
    method = methods.load("cutnmix", temperature=3.0, teacher_moves_peers=False)
    weights, pair = common.ROWS["cutnmix"]["weights"], Spec(K, (4, 4), N)
    step.check_weights(weights, method, pair)
    with pytest.raises(UsageError, match="no weight for the loss term 'pt'"):
        step.check_weights({name: w for name, w in weights.items() if name != "pt"}, method, pair)
    with pytest.raises(UsageError, match="weights.extra"):
        step.check_weights(weights | {"extra": 0.5}, method, pair)
    with pytest.raises(UsageError, match="weights.dml"):
        step.check_weights(weights, method, Spec(K, (4,), N))
    step.check_weights(weights | {"dml": 0.0, "mmd": 0.0}, method, Spec(K, (4,), N))
    with pytest.raises(UsageError, match="weights.mmd=0.3: peers with features of 4, 5"):
        step.check_weights(weights, method, Spec(K, (4, 5), N))
    step.check_weights(weights | {"mmd": 0.0}, method, Spec(K, (4, 5), N))


@pytest.mark.parametrize("name", methods.names())
def test_every_module_is_a_method_with_a_row(name):
    module = __import__(f"cutnmix_jax.methods.{name}", fromlist=["make"])
    assert inspect.getdoc(module.make)
    assert name in {row["loss"]["name"] for row in common.ROWS.values()}


def test_unknown_methods_and_options_are_told():
    with pytest.raises(UsageError, match="did you mean 'cutnmix'"):
        methods.load("cutmix")
    with pytest.raises(UsageError, match="does not take these options"):
        methods.load("supervised", temperature=1.0)
