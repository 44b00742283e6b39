"""Tf-KD with a virtual teacher (Yuan et al. 2020), label smoothing as distillation: row `tf_kd_reg`."""

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Method, Outputs, Terms


def make(correct: float, temperature: float) -> Method:
    """L^j = (1 - a) CE(z^j, y) + a KL(softmax(u / tau) || softmax(z^j)); a and 1 - a are the weights of the terms.

    u is the virtual teacher: `correct` on the class, the rest shared by the others. As released, the softmax is taken
    of these probabilities, so that the teacher is nearly uniform, and the student has a temperature of 1. The released
    code takes the mean over the K classes, times 100; here it is the sum, which is the same with 100 classes.

    Args:
      correct: u of the image's class; 0.99 in the original.
      temperature: tau of the teacher; 20 in the original.
    """

    def terms(outputs: tuple[Outputs, ...], batch: Batch) -> Terms:
        others = (1 - correct) / (batch.targets.shape[-1] - 1)
        teacher = others + (correct - others) * batch.targets  # mixed labels give mixed teachers
        return {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "kd": _terms.distilled(outputs, list(teacher / temperature), 1.0),
        }

    return _terms.stateless(("ce", "kd"), terms)
