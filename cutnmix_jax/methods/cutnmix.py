"""The paper's framework (section 2.3): rows `cutnmix` and, with weights of 0, the ablations of Table 2."""

from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Method, Outputs, Terms, Tree


def make(temperature: float, teacher_moves_peers: bool) -> Method:
    """L^j = L_CE^j + alpha L_DML^j + beta L_MMD^j + gamma L_PT^j (Eq. 8), and the peer teacher's own L_CE.

    The peer teacher g is one linear layer on the joined features of all peers, as in PCL (Wu and Gong 2021), which the
    paper takes it from.

    Args:
      temperature: tau of Eq. 4 and Eq. 10.
      teacher_moves_peers: whether the peer teacher's cross-entropy also moves the peers' features, as in PCL. The paper
        updates peers and teacher apart (Algorithm 1, lines 11 and 12), so by default it does not.
    """

    def loss(params: Tree, state: Tree, outputs: tuple[Outputs, ...], batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        del clock
        taught = outputs if teacher_moves_peers else stop_gradient(outputs)
        teacher_logits = _terms.peer_teacher(params, taught)
        # Wherever Eq. 7 holds the targets are equal over peers; the mean serves the readings in which it does not.
        teacher_targets = batch.targets.mean(axis=0)
        terms = {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            # L_PT^j of Eq. 10
            "pt": _terms.distilled(outputs, [stop_gradient(teacher_logits)] * len(outputs), temperature),
            "peer_teacher_ce": losses.soft_cross_entropy(teacher_logits, teacher_targets).mean(),
        }
        others = mutual_terms(tuple(out.features.shape[-1] for out in outputs))
        if "dml" in others:
            terms["dml"] = _terms.mutual_logits(outputs, temperature)
        if "mmd" in others:
            terms["mmd"] = _terms.mutual_features(outputs)
        return terms, state

    return Method(
        min_peers=1,
        terms=lambda feature_sizes: ("ce", *mutual_terms(feature_sizes), "pt", "peer_teacher_ce"),
        init=_terms.peer_teacher_init,
        loss=loss,
        heads=lambda params, state, outputs: {"peer_teacher": _terms.peer_teacher(params, outputs)},
    )


def mutual_terms(feature_sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Which terms between peers make sense: none for a single peer, no MMD between features of different size."""
    if len(feature_sizes) == 1:
        return ()
    return ("dml", "mmd") if len(set(feature_sizes)) == 1 else ("dml",)
