"""Deep Mutual Learning (Zhang et al. 2018), Eq. 4 of the paper: rows `dml` and `dml_cutmix`."""

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Method, Outputs, Terms


def make(temperature: float) -> Method:
    """L^j = L_CE^j + alpha L_DML^j, every peer on the same images.

    Of more than two peers each learns from every other one, and the terms' mean counts (Eq. 4).

    Args:
      temperature: tau. The original has 1; the paper's Eq. 4 and its code lineage have a tau, 3 there.
    """

    def terms(outputs: tuple[Outputs, ...], batch: Batch) -> Terms:
        return {
            "ce": _terms.cross_entropy(outputs, batch.targets),
            "dml": _terms.mutual_logits(outputs, temperature),
        }

    return _terms.stateless(("ce", "dml"), terms, min_peers=2)
