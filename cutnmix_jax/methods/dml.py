"""Deep Mutual Learning (Zhang et al. 2018), Eq. 4 of the paper: rows `dml` and `dml_cutmix`."""

import dataclasses

from cutnmix_jax import fields
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class DML(Method):
    """L^j = L_CE^j + alpha L_DML^j, every peer on the same images.

    Of more than two peers each learns from every other one, and the terms' mean counts (Eq. 4).
    """

    meanings = {
        "ce": _terms.CE,
        "dml": "the other peers' logits",
    }

    temperature: float = fields.field(
        3.0, fields.temperature, "tau: 1 in the original; Eq. 4 has a tau, and its code lineage this value"
    )

    def check(self, setup: Setup) -> None:
        _terms.need_peers(setup, 2)

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "dml": _terms.mutual_logits(outputs, self.temperature),
        }, state


_WEIGHTS = {"ce": 1.0, "dml": 1.0}  # alpha = 1, as the paper says of DML (section 2.1)
ROWS = {
    "dml": Row(DML(), _WEIGHTS),
    # Fig. 1: "identically the same batch of images after mixed operation to each network" (section 2.1)
    "dml_cutmix": Row(DML(), _WEIGHTS, mix="cutmix"),
}
