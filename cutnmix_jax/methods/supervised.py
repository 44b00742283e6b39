"""Hard labels alone: rows `baseline`, `mixup` and `cutmix`, which differ in how the batch is mixed."""

import dataclasses

from cutnmix_jax.method import Method, Row
from cutnmix_jax.methods import _terms
from cutnmix_jax.types import Batch, Clock, Terms, Tree, Views


@dataclasses.dataclass(frozen=True)
class Supervised(Method):
    """L^j = L_CE^j; several peers are trained side by side and never see one another."""

    meanings = {"ce": _terms.CE}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        (outputs,), (targets,) = views, batch.targets
        return {"ce": _terms.cross_entropy(outputs, targets)}, state


ROWS = {
    name: Row(Supervised(), {"ce": 1.0}, num_peers=1, mix=mix)
    for name, mix in (("baseline", "none"), ("mixup", "mixup"), ("cutmix", "cutmix"))
}
