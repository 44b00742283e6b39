"""CS-KD, class-wise self-knowledge distillation (Yun et al. 2020): row `cs_kd`."""

import dataclasses

from jax.lax import stop_gradient

from cutnmix_jax import fields
from cutnmix_jax.method import Method, Row, Setup, View
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class CSKD(Method):
    """L^j = CE(z(x), y) + lambda KL_tau(z(x') || z(x)), x' an image drawn from the same class, which is not trained on.

    As released, x' goes through the network in training mode after x, without a gradient: its batch has batch
    statistics of its own, and the running ones see both.
    """

    meanings = {
        "ce": _terms.CE,
        "kd": "its own logits of another image of the class",
    }

    views = (View(), View(same_class=True))

    temperature: float = fields.field(4.0, fields.temperature, "tau; 4 in the original")

    def check(self, setup: Setup) -> None:
        _terms.need_unmixed(setup)

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        first, second = views
        return {
            "ce": _terms.cross_entropy(first, batch.targets[0]),
            "kd": _terms.distilled(first, [stop_gradient(out.logits) for out in second], self.temperature),
        }, state


ROWS = {"cs_kd": Row(CSKD(), {"ce": 1.0, "kd": 1.0}, num_peers=1)}
