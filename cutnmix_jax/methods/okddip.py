"""OKDDip, online knowledge distillation with diverse peers (Chen et al. 2020): row `okddip`."""

import dataclasses

import jax
import jax.numpy as jnp

from cutnmix_jax import fields
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class OKDDip(Method):
    """L = sum_j CE_j + w(t) [ sum_{peers i} KD(i <- sum_j A_ij z_j) + KD(leader <- mean_j z_j) ].

    The last network is the group leader, the others are peers. A = softmax over the peers j of q_i . k_j, for each
    image, with q = W_q f and k = W_k f of d / 8 numbers. As released, the gradient goes through the targets, which is
    all that W_q and W_k learn from, and through them into the peers. w rises as `Row.ramp_up` says.
    """

    meanings = {
        "ce": _terms.CE,
        "kd": "what attention picks of the peers' logits (for the leader their mean)",
    }

    temperature: float = fields.field(3.0, fields.temperature, "tau of the KD; 3 in the original")

    def check(self, setup: Setup) -> None:
        _terms.need_peers(setup, 3, " (the last one is its leader)")

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        sizes = spec.feature_sizes[:-1]
        if len(set(sizes)) > 1:
            listed = ", ".join(map(str, sizes))
            raise UsageError(f"okddip compares the features of its peers, which must be of one size, not {listed}")
        query, reference = jax.random.split(key)
        narrow = max(1, sizes[0] // 8)
        return {
            "query": _terms.linear(query, sizes[0], narrow)["kernel"],
            "key": _terms.linear(reference, sizes[0], narrow)["kernel"],
        }, {}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        peers = self.students(outputs)
        logits = jnp.stack([out.logits for out in peers])
        of_others = [*jnp.einsum("nij,jnk->ink", attention(params, peers), logits), logits.mean(axis=0)]
        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "kd": _terms.distilled(outputs, of_others, self.temperature),
        }, state

    def students(self, outputs: tuple[Outputs, ...]) -> tuple[Outputs, ...]:
        return outputs[:-1]

    def heads(self, params: Tree, state: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
        return {"leader": outputs[-1].logits}


def attention(params: Tree, peers: tuple[Outputs, ...]) -> jax.Array:
    """A [n, peers, peers], how much peer i learns from peer j, itself included; rows sum to 1."""
    features = jnp.stack([out.features for out in peers], axis=1)
    products = jnp.einsum("nid,njd->nij", features @ params["query"], features @ params["key"])
    return jax.nn.softmax(products)


# Two peers and the leader, whose accuracy its authors report; share_trunk=false is the original's network-based form.
ROWS = {
    "okddip": Row(
        OKDDip(), {"ce": 1.0, "kd": 1.0}, num_peers=3, share_trunk=True, ramp_up=("kd",), headline="accuracy_leader"
    )
}
