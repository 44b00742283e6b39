"""PS-KD, progressive self-knowledge distillation (Kim et al. 2021): row `ps_kd`."""

import jax
import jax.numpy as jnp

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Method, Outputs, Spec, Terms, Tree


def make(last_share: float) -> Method:
    """L^j = CE(z^j, (1 - alpha_t) y + alpha_t P), alpha_t = last_share (t + 1) / epochs in epoch t, from 0.

    P is what the network itself said of the image when it was last trained on it, in its augmented view and training
    mode. It is kept for every training image, [J, N, K]; an image that was never seen has its label alone.

    Args:
      last_share: alpha_T, the share of P in the last epoch; 0.8 in the original.
    """

    def init(key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        del key
        return {}, {"said": jnp.zeros((len(spec.feature_sizes), spec.num_train, spec.num_classes))}

    def loss(params: Tree, state: Tree, outputs: tuple[Outputs, ...], batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        del params
        said = state["said"][:, batch.indices]
        # Probabilities sum to 1; a row of zeros is an image that was never seen.
        share = last_share * (clock.epoch + 1) / clock.epochs * (said.sum(axis=-1, keepdims=True) > 0)
        terms = {"ce": _terms.cross_entropy(outputs, (1 - share) * batch.targets + share * said)}
        # Kept as state, which no gradient goes through.
        says = jnp.stack([jax.nn.softmax(out.logits) for out in outputs])
        return terms, {"said": state["said"].at[:, batch.indices].set(says)}

    return Method(
        min_peers=1,
        terms=lambda feature_sizes: ("ce",),
        init=init,
        loss=loss,
        heads=_terms.no_heads,
        unmixed=True,
    )
