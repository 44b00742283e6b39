"""OKDDip, online knowledge distillation with diverse peers (Chen et al. 2020): row `okddip`."""

import jax
import jax.numpy as jnp

from cutnmix_jax.errors import UsageError
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Method, Outputs, Spec, Terms, Tree


def make(temperature: float, rampup_epochs: int) -> Method:
    """L = sum_j CE_j + w(t) [ sum_{peers i} KD(i <- sum_j A_ij z_j) + KD(leader <- mean_j z_j) ].

    The last network is the group leader, the others are peers. A = softmax over the peers j of q_i . k_j, for each
    image, with q = W_q f and k = W_k f of d / 8 numbers. As released, the gradient goes through the targets, which is
    all that W_q and W_k learn from, and through them into the peers. w is `_terms.ramp_up`.

    Args:
      temperature: tau of the KD; 3 in the original.
      rampup_epochs: until w is 1; 80 of 300 in the original.
    """

    def init(key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        size = spec.feature_sizes[0]
        if len(set(spec.feature_sizes[:-1])) > 1:
            sizes = ", ".join(map(str, spec.feature_sizes[:-1]))
            raise UsageError(f"okddip compares the features of its peers, which must be of one size, not {sizes}")
        query, reference = jax.random.split(key)
        narrow = max(1, size // 8)
        return {
            "query": _terms.linear(query, size, narrow)["kernel"],
            "key": _terms.linear(reference, size, narrow)["kernel"],
        }, {}

    def loss(params: Tree, state: Tree, outputs: tuple[Outputs, ...], batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        peers = outputs[:-1]
        logits = jnp.stack([out.logits for out in peers])
        targets = [*jnp.einsum("nij,jnk->ink", attention(params, peers), logits), logits.mean(axis=0)]
        weight = _terms.ramp_up(clock, rampup_epochs)
        terms = {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "kd": weight * _terms.distilled(outputs, targets, temperature),
        }
        return terms, state

    return Method(
        min_peers=3,
        terms=lambda feature_sizes: ("ce", "kd"),
        init=init,
        loss=loss,
        heads=lambda params, state, outputs: {"leader": outputs[-1].logits},
        leaders=1,
    )


def attention(params: Tree, peers: tuple[Outputs, ...]) -> jax.Array:
    """A [n, peers, peers], how much peer i learns from peer j, itself included; rows sum to 1."""
    features = jnp.stack([out.features for out in peers], axis=1)
    products = jnp.einsum("nid,njd->nij", features @ params["query"], features @ params["key"])
    return jax.nn.softmax(products)
