"""The paper's framework (section 2.3): rows `cutnmix` and, with weights of 0, the ablations of Table 2."""

import dataclasses

import jax
from jax.lax import stop_gradient

from cutnmix_jax import fields, losses
from cutnmix_jax.method import Method, Row
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class CutnMix(Method):
    """L^j = L_CE^j + alpha L_DML^j + beta L_MMD^j + gamma L_PT^j (Eq. 8), and the peer teacher's own L_CE.

    The peer teacher g is one linear layer on the joined features of all peers, as in PCL (Wu and Gong 2021), which the
    paper takes it from. A single peer has no L_DML and no L_MMD, peers whose features differ in size have no L_MMD.
    """

    meanings = {
        "ce": _terms.CE,
        "dml": "the other peers' logits",
        "mmd": "their mean features",
        "pt": "the peer teacher's logits",
        "peer_teacher_ce": "the peer teacher's own cross-entropy",
    }

    temperature: float = fields.field(3.0, fields.temperature, "tau of Eq. 4 and Eq. 10; section 3.1")
    teacher_moves_peers: bool = fields.field(
        False,
        fields.truth,
        "whether the cross-entropy of the peer teacher also moves the peers' features, as in PCL; the paper updates "
        "peers and teacher apart (Algorithm 1, lines 11 and 12)",
    )

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        return _terms.peer_teacher_init(key, spec), {}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        terms = {"ce": _terms.cross_entropy(outputs, targets)}
        if len(outputs) > 1:
            terms["dml"] = _terms.mutual_logits(outputs, self.temperature)
            if len({out.features.shape[-1] for out in outputs}) == 1:
                terms["mmd"] = _terms.mutual_features(outputs)
        seen = outputs if self.teacher_moves_peers else stop_gradient(outputs)
        logits = _terms.peer_teacher(params, seen)
        # L_PT^j of Eq. 10
        terms["pt"] = _terms.distilled(outputs, [stop_gradient(logits)] * len(outputs), self.temperature)
        # Wherever Eq. 7 holds the targets are equal over peers; the mean serves the readings in which it does not.
        terms["peer_teacher_ce"] = losses.soft_cross_entropy(logits, targets.mean(axis=0)).mean()
        return terms, state

    def heads(self, params: Tree, state: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
        return {"peer_teacher": _terms.peer_teacher(params, outputs)}


def _row(mmd: float, pt: float) -> Row:
    """A row of Table 2: the framework with beta = mmd and gamma = pt. `cutnmix_dml`, its first one, has L_DML alone."""
    weights = {
        "ce": 1.0,
        "dml": 0.6,  # alpha, section 3.1
        "mmd": mmd,
        "pt": pt,
        "peer_teacher_ce": 1.0,  # "trained by a standard cross-entropy loss", section 2.3
    }
    # Section 2.2: each network has its own distortion of the raw images.
    return Row(CutnMix(), weights, views="per_peer", mix="cutnmix")


ROWS = {
    "cutnmix_dml": _row(mmd=0.0, pt=0.0),
    "cutnmix_mmd": _row(mmd=0.3, pt=0.0),
    "cutnmix_pt": _row(mmd=0.0, pt=0.1),
    "cutnmix": _row(mmd=0.3, pt=0.1),  # beta and gamma: section 3.1
}
