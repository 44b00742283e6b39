"""Made-up outputs for the methods' terms, and the pieces of their formulas in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from cutnmix_jax import methods
from cutnmix_jax.types import Batch, Clock, Outputs, Spec

N, K, C = 6, 5, 7
CLOCK = Clock(jnp.int32(3), jnp.int32(1), jnp.int32(4), jnp.float32(0.05))


def outputs_of(num_peers, seed=0, sizes=None, views=1):
    """With a trunk's output, and with a leading axis where there are several views."""
    rng = np.random.default_rng(seed)
    sizes = sizes or [4] * num_peers
    shape = (N,) if views == 1 else (views, N)
    trunk = jnp.array(rng.normal(size=(*shape, C)))
    return tuple(
        Outputs(jnp.array(2 * rng.normal(size=(*shape, K))), jnp.array(rng.normal(size=(*shape, size))), trunk)
        for size in sizes
    )


def batch_of(num_peers, seed=1):
    rng = np.random.default_rng(seed)
    targets = jnp.array(np.tile(rng.dirichlet(np.ones(K), size=N), (num_peers, 1, 1)))
    teachers = outputs_of(num_peers, seed=2)
    labels = jnp.zeros(N, jnp.int32)
    return Batch(jnp.zeros((num_peers, N, 32, 32, 3)), targets, labels, jnp.arange(N)[::-1] + 2, teachers)


def method_of(row, **options):
    options = common.ROWS[row]["loss"] | options
    return methods.load(options.pop("name"), **options)


def made(row, num_peers, outputs, **options):
    method = method_of(row, **options)
    spec = Spec(K, tuple(out.features.shape[-1] for out in outputs), N + 2, C)
    return method, *method.init(jax.random.key(0), spec)


def views_of(row):
    return method_of(row).views


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
