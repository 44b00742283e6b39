"""Hard labels alone: rows `baseline`, `mixup` and `cutmix`, which differ in how the batch is mixed."""

from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Method


def make() -> Method:
    """L^j = L_CE^j; several peers are trained side by side and never see one another."""
    return _terms.stateless(("ce",), lambda outputs, batch: {"ce": _terms.cross_entropy(outputs, batch.targets)})
