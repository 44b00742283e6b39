"""PCL, peer collaborative learning (Wu and Gong 2021), where the paper's peer teacher comes from: row `pcl`."""

import jax
from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Method, Outputs, Terms, Tree


def make(temperature: float, rampup_epochs: int) -> Method:
    """L = CE(g) + sum_i [ CE_i + w(t) KD(i <- g) + w(t) mean_{j != i} KD(i <- mean teacher j) ].

    g is a linear layer on the joined features and its CE moves them; as a target it is stopped. Mean teacher j is the
    running mean of peer j on the images of peer j. w is `_terms.ramp_up`.

    Args:
      temperature: tau of both KDs; 3 in the original.
      rampup_epochs: until w is 1; 80 of 300 in the original.
    """

    def loss(params: Tree, state: Tree, outputs: tuple[Outputs, ...], batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        weight = _terms.ramp_up(clock, rampup_epochs)
        joined = _terms.peer_teacher(params, outputs)

        def taught(mine: Outputs, mean: Outputs) -> jax.Array:
            return losses.tempered_kl(mine.logits, mean.logits, temperature).mean()

        terms = {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "pt": weight * _terms.distilled(outputs, [stop_gradient(joined)] * len(outputs), temperature),
            "mean_teacher": weight * _terms.from_all_but(outputs, batch.teachers, taught),
            "peer_teacher_ce": losses.soft_cross_entropy(joined, batch.targets.mean(axis=0)).mean(),
        }
        return terms, state

    return Method(
        min_peers=2,
        terms=lambda feature_sizes: ("ce", "pt", "mean_teacher", "peer_teacher_ce"),
        init=_terms.peer_teacher_init,
        loss=loss,
        heads=lambda params, state, outputs: {"peer_teacher": _terms.peer_teacher(params, outputs)},
        teacher="mean",
    )
