"""Every view of a batch through the networks, in a pass of its own."""

from collections.abc import Mapping

import jax

from cutnmix_jax.engine import batches
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.types import TrainState, Tree, Views


def of_peers(peers: Peers, params: Tree, batch_stats: Tree, images: jax.Array, key: jax.Array) -> tuple[Views, Tree]:
    """Training passes of images [views, J, n, H, W, C], each with batch statistics of its own; and the next ones."""
    by_view = []
    for view, seen in enumerate(images):
        outputs, batch_stats = peers.forward(params, batch_stats, seen, True, batches.view_key(key, view))
        by_view.append(outputs)
    return tuple(by_view), batch_stats


def of_companions(
    companions: Companions, state: TrainState, images: jax.Array, key: jax.Array
) -> tuple[Mapping[str, Views], Tree]:
    """What the teachers say to every view, and their next variables; `key` is that of the peers' passes."""
    own, by_view = state.teachers, []
    for view, seen in enumerate(images):
        outputs, own = companions.forward(own, state.params["peers"], seen, batches.teachers_key(key, view))
        by_view.append(outputs)
    return {name: tuple(outputs[name] for outputs in by_view) for name in companions.kinds}, own
