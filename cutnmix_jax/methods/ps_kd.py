"""PS-KD, progressive self-knowledge distillation (Kim et al. 2021): row `ps_kd`."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from cutnmix_jax import fields
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Spec, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class PSKD(Method):
    """L^j = CE(z^j, (1 - alpha_t) y + alpha_t P), alpha_t = last_share (t + 1) / epochs in epoch t, from 0.

    P are the probabilities that the network itself gave the image when it was last trained on it, in its augmented view
    and training mode. They are kept for every training image, [J, N, K]; an image never seen has its label alone.
    """

    meanings = {"ce": "cross-entropy with the labels, softened by what the network said before"}

    remembers: ClassVar[bool] = True
    counts_epochs: ClassVar[bool] = True

    last_share: float = fields.field(
        0.8, fields.number(0, 1), "alpha_T, the share of P in the last epoch; 0.8 in the original"
    )

    def check(self, setup: Setup) -> None:
        _terms.need_unmixed(setup)

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        del key
        return {}, {"last": jnp.zeros((len(spec.feature_sizes), spec.num_train, spec.num_classes))}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        last = state["last"][:, batch.indices]
        # Probabilities sum to 1; a row of zeros is an image that was never seen.
        share = self.last_share * (clock.epoch + 1) / clock.epochs * (last.sum(axis=-1, keepdims=True) > 0)
        terms = {"ce": _terms.cross_entropy(outputs, (1 - share) * targets + share * last)}
        # Kept as state, which no gradient goes through.
        probabilities = jnp.stack([jax.nn.softmax(out.logits) for out in outputs])
        return terms, {"last": state["last"].at[:, batch.indices].set(probabilities)}


ROWS = {"ps_kd": Row(PSKD(), {"ce": 1.0}, num_peers=1)}
