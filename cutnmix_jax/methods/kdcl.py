"""KDCL, knowledge distillation via collaborative learning (Guo et al. 2020): row `kdcl`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import fields, losses
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Spec, Terms, Tree, Views

_ROUNDS, _RATE = 300, 2.0  # of the search for the best combination; its step in units of 1 / span^2


@dataclasses.dataclass(frozen=True)
class KDCL(Method):
    """L^j = (1 - a) CE(z^j, y) + a KD(z^j <- z^t), one target z^t for all; a and 1 - a are the weights of the terms."""

    meanings = {"ce": _terms.CE, "kd": "one combination of all peers' logits"}

    temperature: float = fields.field(
        4.0, fields.temperature, "tau of the KD, as the port whose training loop the paper's lineage took over"
    )
    target: str = fields.field(
        "mean",
        fields.one_of(("mean", "naive", "linear", "minlogit", "general")),
        "how z^t comes from the peers' logits, for each image: mean, as that port; or the original's naive (the peer "
        "with the least cross-entropy), linear (the convex combination with the least), minlogit (the least over peers "
        "of z_c - z_y) or general (weights from images that are not trained on, found anew after each epoch)",
        fields.Change.NEVER,
    )

    @property
    def calibrates(self) -> bool:
        return self.target == "general"

    def check(self, setup: Setup) -> None:
        _terms.need_peers(setup, 2)

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        del key
        num_peers = len(spec.feature_sizes)
        return {}, {"weights": jnp.full(num_peers, 1 / num_peers, jnp.float32)} if self.calibrates else {}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        logits = stop_gradient(jnp.stack([out.logits for out in outputs]))
        if self.calibrates:
            target = jnp.einsum("j,jnk->nk", state["weights"], logits)
        else:
            target = _COMBINE[self.target](logits, targets)
        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "kd": _terms.distilled(outputs, [target] * len(outputs), self.temperature),
        }, state

    def calibrate(self, state: Tree, logits: jax.Array, labels: jax.Array) -> Tree:
        return {"weights": general(logits, labels)}


def general(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """[J, M, K] logits and [M] labels of images not trained on -> [J] weights that sum to 1.

    They minimise the squared error of the weighted mean of the peers' probabilities p: w = C^-1 1 / (1^T C^-1 1) with
    C_ij = mean over images of (p_i - y) . (p_j - y). A weight can be negative.
    """
    errors = jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])
    products = jnp.einsum("imk,jmk->ij", errors, errors) / len(labels)
    size = jnp.trace(products)
    # Peers that agree in everything would make it singular, and nothing is left of it where all are surely right.
    steady = products / jnp.where(size > 0, size, 1) + 1e-4 * jnp.eye(len(logits))
    raw = jnp.linalg.solve(steady, jnp.ones(len(logits)))
    return raw / raw.sum()


def naive(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[J, n, K] -> [n, K], the logits of the peer with the least cross-entropy on the image."""
    best = jnp.argmin(losses.soft_cross_entropy(logits, targets), axis=0)
    return jnp.take_along_axis(logits, best[None, :, None], axis=0)[0]


def linear(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[J, n, K] -> [n, K], about argmin over the simplex of CE(sum_j w_j z_j, y), which is convex, by entropic descent.

    span^2, of the largest distance of a logit from the peers' mean, bounds the curvature.
    """
    target = targets.mean(axis=0)
    span = jnp.maximum(jnp.max(jnp.abs(logits - logits.mean(axis=0)), axis=(0, 2)), 1e-3)

    def better(_: jax.Array, log_weights: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(log_weights, axis=0)
        combined = jnp.einsum("jn,jnk->nk", weights, logits)
        gradient = jnp.einsum("jnk,nk->jn", logits, jax.nn.softmax(combined) - target)
        return log_weights - _RATE / span**2 * gradient

    found = jax.lax.fori_loop(0, _ROUNDS, better, jnp.zeros(logits.shape[:2]))
    return jnp.einsum("jn,jnk->nk", jax.nn.softmax(found, axis=0), logits)


def minlogit(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[J, n, K] -> [n, K], min over peers of z_c - z_y; of a mixed label y, z_y is the mean over its classes."""
    of_class = jnp.sum(targets * logits, axis=-1, keepdims=True)
    return jnp.min(logits - of_class, axis=0)


_COMBINE = {
    "mean": lambda logits, targets: logits.mean(axis=0),
    "naive": naive,
    "linear": linear,
    "minlogit": minlogit,
}

# a = 0.5, as that port
ROWS = {"kdcl": Row(KDCL(), {"ce": 0.5, "kd": 0.5}, views="per_peer")}
