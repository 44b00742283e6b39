"""The state of a run before its first step."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from cutnmix_jax.engine import batches
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.peers import Peers, begun
from cutnmix_jax.engine.state import Saved
from cutnmix_jax.method import Method
from cutnmix_jax.types import Spec, Totals, TrainState


def state(
    key: jax.Array,
    peers: Peers,
    method: Method,
    companions: Companions,
    spec: Spec,
    optimizer: optax.GradientTransformation,
    totals: Totals,
    start: Mapping[str, jax.Array],
) -> Saved:
    """Draws it.

    Args:
      key: of the run.
      peers: the networks.
      method: with its options.
      companions: the networks beside the peers.
      spec: what the method knows of the networks.
      optimizer: of the run.
      totals: of an epoch in which nothing was measured yet.
      start: what the peers begin as, see `peers.begun`.
    """
    peer_key, method_key = jax.random.split(jax.random.fold_in(key, batches.INIT))
    peer_params, batch_stats = begun(peers.init(peer_key), start)
    method_params, method_state = method.init(method_key, spec)
    params = {"peers": peer_params, "method": method_params}
    taught = companions.init(peer_params, batch_stats)
    made = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, optimizer.init(params), taught)
    # A Python number among them has a weak type, and with it the step is another program than with what was saved.
    made = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), made)
    return Saved(made, totals, jnp.zeros(()), jnp.zeros(()))
