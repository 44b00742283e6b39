"""DDGSD, data-distortion guided self-distillation (Xu and Liu 2019): row `ddgsd`."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import fields, losses
from cutnmix_jax.method import Method, Row, View
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Outputs, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class DDGSD(Method):
    """L^j = CE_a + CE_b + lambda [KD(a <- b) + KD(b <- a)] + mu ||mean f_a - mean f_b||^2 of two views a and b.

    Both views go through the same network, one after the other, each with its own crop and flip. Temperature squared
    stands in the KD (Eq. 1), which sums over classes, and MMD is that of the features (Eq. 9).
    """

    meanings = {
        "ce": f"{_terms.CE}, of both views together",
        "kd": "its own logits of the other view",
        "mmd": "its own mean features of the other view",
    }

    views = (View(), View())

    temperature: float = fields.field(3.0, fields.temperature, "tau; 3 in the original")

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        first, second = views

        def guided(outputs: tuple[Outputs, ...], by: tuple[Outputs, ...]) -> jax.Array:
            return _terms.distilled(outputs, [stop_gradient(out.logits) for out in by], self.temperature)

        pairs = zip(first, second, strict=True)
        return {
            "ce": _terms.cross_entropy(first, batch.targets[0]) + _terms.cross_entropy(second, batch.targets[1]),
            "kd": guided(first, second) + guided(second, first),
            "mmd": jnp.stack([losses.mmd(a.features, b.features) for a, b in pairs]),
        }, state


# lambda = 1, mu = 5e-4 as the port that says it follows the original
ROWS = {"ddgsd": Row(DDGSD(), {"ce": 1.0, "kd": 1.0, "mmd": 5e-4}, num_peers=1, views="per_peer")}
