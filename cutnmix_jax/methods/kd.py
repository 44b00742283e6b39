"""Distillation from a trained teacher (Hinton et al. 2015), Eq. 1 of the paper: rows `kd` and `tf_kd_self`."""

import dataclasses

from cutnmix_jax import fields
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class KD(Method):
    """L^j = (1 - a) CE(z^j, y) + a L_KD(z^j, z^T), the teacher frozen and in evaluation mode, on the peer's images.

    With a teacher of the student's own architecture this is Tf-KD's self-training (Yuan et al. 2020).
    """

    meanings = {
        "ce": _terms.CE,
        "kd": "a teacher's logits",
    }

    teachers = ("frozen",)

    temperature: float = fields.field(4.0, fields.temperature, "tau of Eq. 1; 4 in RepDistiller, the paper is silent")
    teacher_is_like_peers: bool = fields.field(
        False, fields.truth, "whether the teacher must be of the peers' architecture"
    )

    def check(self, setup: Setup) -> None:
        if self.teacher_is_like_peers and set(setup.backbones) != {setup.teacher}:
            raise UsageError(f"config.teacher is a {setup.teacher}; {setup.row} wants the network of its student")

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        teacher_logits = [teacher.logits for teacher in batch.teachers["frozen"][0]]
        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "kd": _terms.distilled(outputs, teacher_logits, self.temperature),
        }, state


ROWS = {
    # Eq. 1 with any finished run for a teacher; 0.1 and 0.9 as RepDistiller has them
    "kd": Row(KD(), {"ce": 0.1, "kd": 0.9}, num_peers=1),
    # a = 0.95, tau = 6 for ResNet-18; the released KL, a mean over K = 100 classes times 50, is half of the sum. The
    # teacher is a finished run of the same backbone's baseline: --config.teacher=DIR
    "tf_kd_self": Row(KD(temperature=6.0, teacher_is_like_peers=True), {"ce": 0.05, "kd": 0.475}, num_peers=1),
}
