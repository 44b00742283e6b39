"""Made-up outputs for the methods' terms, and the pieces of their formulas in float64 numpy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import methods
from cutnmix_jax.method import Setup
from cutnmix_jax.types import Batch, Clock, Outputs, Spec

N, K, C = 6, 5, 7
CLOCK = Clock(jnp.int32(3), jnp.int32(1), jnp.int32(4), jnp.float32(0.05))


def outputs_of(num_peers, seed=0, sizes=None):
    """Of one view, with a trunk's output."""
    rng = np.random.default_rng(seed)
    trunk = jnp.array(rng.normal(size=(N, C)))
    return tuple(
        Outputs(jnp.array(2 * rng.normal(size=(N, K))), jnp.array(rng.normal(size=(N, size))), trunk)
        for size in sizes or [4] * num_peers
    )


def seen_by(row, num_peers, seed=0):
    """The outputs for each view of a row."""
    return tuple(outputs_of(num_peers, seed + 100 * view) for view in range(len(method_of(row).views)))


def batch_of(num_peers, seed=1, views=1):
    """Labels that are others for each peer and view; teachers of two kinds that are not alike."""
    targets = jnp.array(np.random.default_rng(seed).dirichlet(np.ones(K), size=(views, num_peers, N)))
    teachers = {kind: (outputs_of(num_peers, seed=number),) * views for number, kind in ((2, "frozen"), (3, "mean"))}
    labels = jnp.zeros(N, jnp.int32)
    return Batch(jnp.zeros((views, num_peers, N, 32, 32, 3)), targets, labels, jnp.arange(N)[::-1] + 2, teachers)


def others_of(row):
    """Other values than the row's own of each option that is a number."""
    others = {"temperature": 1.7, "correct": 0.7, "last_share": 0.3}
    return {name: others[name] for name in dataclasses.asdict(method_of(row)) if name in others}


def method_of(row, **options):
    return dataclasses.replace(methods.row(row).method, **options)


def spec_of(outputs):
    return Spec(K, tuple(out.features.shape[-1] for out in outputs), N + 2, C)


def made(row, outputs, **options):
    method = method_of(row, **options)
    return method, *method.init(jax.random.key(0), spec_of(outputs))


def setup_of(row, num_peers, **fields):
    """What suits every method, but for their number."""
    setup = Setup(row, K, ("net",) * num_peers, True, "none", True, 0, "net")
    return setup._replace(**fields)


def log_softmax64(logits):
    logits = np.asarray(logits, np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def ce64(logits, targets):
    return np.mean(
        [-(np.asarray(t, np.float64) * p).sum() for t, p in zip(targets, log_softmax64(logits), strict=True)]
    )


def kl64(student, teacher, tau):
    p, q = log_softmax64(np.asarray(student, np.float64) / tau), log_softmax64(np.asarray(teacher, np.float64) / tau)
    return tau * tau * np.mean([(np.exp(b) * (b - a)).sum() for a, b in zip(p, q, strict=True)])


def mmd64(one, other):
    return sum((a - b) ** 2 for a, b in zip(np.mean(one, axis=0), np.mean(other, axis=0), strict=True))
