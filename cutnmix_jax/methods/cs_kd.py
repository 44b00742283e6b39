"""CS-KD, class-wise self-knowledge distillation (Yun et al. 2020): row `cs_kd`."""

from jax.lax import stop_gradient

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Method, Outputs, Terms


def make(temperature: float) -> Method:
    """L^j = CE(z(x), y) + lambda KL_tau(z(x') || z(x)), x' an image drawn from the same class, which is not trained on.

    As released, x' goes through the network in training mode after x, without a gradient: its batch has batch
    statistics of its own, and the running ones see both.

    Args:
      temperature: tau, 4 in the original.
    """

    def terms(outputs: tuple[Outputs, ...], batch: Batch) -> Terms:
        images = tuple(Outputs(out.logits[0], out.features[0]) for out in outputs)
        return {
            "ce": _terms.cross_entropy(images, batch.targets),
            "kd": _terms.distilled(images, [stop_gradient(out.logits[1]) for out in outputs], temperature),
        }

    return _terms.stateless(("ce", "kd"), terms, views=2, same_class=True, unmixed=True)
