"""Distillation from a trained teacher (Hinton et al. 2015), Eq. 1 of the paper: rows `kd` and `tf_kd_self`."""

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Method, Outputs, Terms


def make(temperature: float, teacher_is_like_peers: bool) -> Method:
    """L^j = (1 - a) CE(z^j, y) + a L_KD(z^j, z^T), the teacher frozen and in evaluation mode, on the peer's images.

    With a teacher of the student's own architecture this is Tf-KD's self-training (Yuan et al. 2020).

    Args:
      temperature: tau of Eq. 1.
      teacher_is_like_peers: whether the teacher must be of the peers' architecture.
    """

    def terms(outputs: tuple[Outputs, ...], batch: Batch) -> Terms:
        return {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "kd": _terms.distilled(outputs, [teacher.logits for teacher in batch.teachers], temperature),
        }

    return _terms.stateless(("ce", "kd"), terms, teacher="frozen_self" if teacher_is_like_peers else "frozen")
