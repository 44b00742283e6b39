"""Tf-KD with a virtual teacher (Yuan et al. 2020), label smoothing as distillation: row `tf_kd_reg`."""

import dataclasses

from cutnmix_jax import fields
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class TfKDReg(Method):
    """L^j = (1 - a) CE(z^j, y) + a KL(softmax(u / tau) || softmax(z^j)); a and 1 - a are the weights of the terms.

    u is the virtual teacher: `correct` on the class, the rest shared by the others. As released, the softmax is taken
    of these probabilities, so that the teacher is nearly uniform, and the student has a temperature of 1. The released
    code takes the mean over the K classes, times 100; here it is the sum, which is the same with 100 classes.
    """

    meanings = {
        "ce": _terms.CE,
        "kd": "a virtual teacher's probabilities, which are smoothed labels",
    }

    correct: float = fields.field(0.99, fields.number(0, 1), "u of the image's class; 0.99 in the original")
    temperature: float = fields.field(20.0, fields.temperature, "tau of the teacher; 20 in the original")

    def check(self, setup: Setup) -> None:
        least = 1 / setup.num_classes
        if self.correct < least:
            raise UsageError(
                f"config.loss.correct={self.correct}: with less than 1 / {setup.num_classes} the teacher denies the "
                f"image's class; give {least:g} to 1"
            )

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        others = (1 - self.correct) / (targets.shape[-1] - 1)
        teacher = others + (self.correct - others) * targets  # mixed labels give mixed teachers
        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "kd": _terms.distilled(outputs, list(teacher / self.temperature), 1.0),
        }, state


# a = 0.1, the original's value for ResNet-18 on CIFAR-100
ROWS = {"tf_kd_reg": Row(TfKDReg(), {"ce": 0.9, "kd": 0.1}, num_peers=1)}
