"""DDGSD, data-distortion guided self-distillation (Xu and Liu 2019): row `ddgsd`."""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Method, Outputs, Terms


def make(temperature: float) -> Method:
    """L^j = CE_a + CE_b + lambda [KD(a <- b) + KD(b <- a)] + mu ||mean f_a - mean f_b||^2 of two views a and b.

    Both views go through the same network, one after the other, each with its own crop and flip. Temperature squared
    stands in the KD (Eq. 1), which sums over classes, and MMD is that of the features (Eq. 9).

    Args:
      temperature: tau; 3 in the original.
    """

    def terms(outputs: tuple[Outputs, ...], batch: Batch) -> Terms:
        first = tuple(Outputs(out.logits[0], out.features[0]) for out in outputs)
        second = tuple(Outputs(out.logits[1], out.features[1]) for out in outputs)

        def guided(views: tuple[Outputs, ...], by: tuple[Outputs, ...]) -> jax.Array:
            return _terms.distilled(views, [stop_gradient(view.logits) for view in by], temperature)

        pairs = zip(first, second, strict=True)
        return {
            "ce": _terms.cross_entropy(first, batch.targets) + _terms.cross_entropy(second, batch.targets),
            "kd": guided(first, second) + guided(second, first),
            "mmd": jnp.stack([losses.mmd(a.features, b.features) for a, b in pairs]),
        }

    return _terms.stateless(("ce", "kd", "mmd"), terms, views=2)
