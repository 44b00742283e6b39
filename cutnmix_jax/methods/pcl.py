"""PCL, peer collaborative learning (Wu and Gong 2021), where the paper's peer teacher comes from: row `pcl`."""

import dataclasses

import jax
from jax.lax import stop_gradient

from cutnmix_jax import fields, losses
from cutnmix_jax.method import Method, Row, Setup
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class PCL(Method):
    """L = CE(g) + sum_i [ CE_i + w(t) KD(i <- g) + w(t) mean_{j != i} KD(i <- mean teacher j) ].

    g is a linear layer on the joined features and its CE moves them; as a target it is stopped. Mean teacher j is the
    running mean of peer j on the images of peer j. w rises as `Row.ramp_up` says.
    """

    meanings = {
        "ce": _terms.CE,
        "pt": "the peer teacher's logits",
        "mean_teacher": "the running means of the others",
        "peer_teacher_ce": "the peer teacher's own cross-entropy",
    }

    teachers = ("mean",)

    temperature: float = fields.field(3.0, fields.temperature, "tau of both KDs; 3 in the original")

    def check(self, setup: Setup) -> None:
        _terms.need_peers(setup, 2)

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        return _terms.peer_teacher_init(key, spec), {}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        joined = _terms.peer_teacher(params, outputs)

        def pair(mine: Outputs, mean: Outputs) -> jax.Array:
            return losses.tempered_kl(mine.logits, mean.logits, self.temperature).mean()

        return {
            "ce": _terms.cross_entropy(outputs, targets),
            "pt": _terms.distilled(outputs, [stop_gradient(joined)] * len(outputs), self.temperature),
            "mean_teacher": _terms.from_all_but(outputs, batch.teachers["mean"][0], pair),
            "peer_teacher_ce": losses.soft_cross_entropy(joined, targets.mean(axis=0)).mean(),
        }, state

    def heads(self, params: Tree, state: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
        return {"peer_teacher": _terms.peer_teacher(params, outputs)}


_WEIGHTS = {"ce": 1.0, "pt": 1.0, "mean_teacher": 1.0, "peer_teacher_ce": 1.0}
ROWS = {
    # Three peers as the original; the paper does not compare itself with it.
    "pcl": Row(PCL(), _WEIGHTS, num_peers=3, views="per_peer", share_trunk=True, ramp_up=("pt", "mean_teacher"))
}
