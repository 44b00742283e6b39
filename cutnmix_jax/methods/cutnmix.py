"""The paper's framework (section 2.3): rows `cutnmix` and, with weights of 0, the ablations of Table 2."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Method, Outputs, Spec, Terms, Tree


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
        teacher_logits = peer_teacher(params, taught)
        # Wherever Eq. 7 holds the targets are equal over peers; the mean serves the readings in which it does not.
        teacher_targets = batch.targets.mean(axis=0)
        terms = {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "pt": from_teacher(outputs, stop_gradient(teacher_logits), temperature),
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
        init=init,
        loss=loss,
        heads=lambda params, outputs: {"peer_teacher": peer_teacher(params, outputs)},
    )


def mutual_terms(feature_sizes: tuple[int, ...]) -> tuple[str, ...]:
    """Which terms between peers make sense: none for a single peer, no MMD between features of different size."""
    if len(feature_sizes) == 1:
        return ()
    return ("dml", "mmd") if len(set(feature_sizes)) == 1 else ("dml",)


def init(key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
    """Kernel [sum of D, K] and bias [K], both uniform in +-1/sqrt(sum of D): PyTorch's default for a linear layer."""
    joined = sum(spec.feature_sizes)
    bound = joined**-0.5
    kernel_key, bias_key = jax.random.split(key)
    kernel = jax.random.uniform(kernel_key, (joined, spec.num_classes), minval=-bound, maxval=bound)
    bias = jax.random.uniform(bias_key, (spec.num_classes,), minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": bias}, {}


def peer_teacher(params: Tree, outputs: Sequence[Outputs]) -> jax.Array:
    """z^PT = g(f^1, ..., f^J) -> [n, K]."""
    return jnp.concatenate([out.features for out in outputs], axis=-1) @ params["kernel"] + params["bias"]


def from_teacher(outputs: Sequence[Outputs], teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """L_PT^j of Eq. 10 -> [J]."""
    return jnp.stack([losses.tempered_kl(out.logits, teacher_logits, temperature).mean() for out in outputs])
