"""Hard labels alone: rows `baseline`, `mixup` and `cutmix`, which differ in how the batch is mixed."""

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Method


def make() -> Method:
    """L^j = L_CE^j; several peers are trained side by side and never see one another."""
    return Method(
        min_peers=1,
        terms=lambda feature_sizes: ("ce",),
        init=_terms.nothing,
        loss=_terms.stateless(lambda outputs, batch: {"ce": _terms.cross_entropy(outputs, batch.targets)}),
        heads=_terms.no_heads,
    )
