"""The state of a run before its first step."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax

from cutnmix_jax.engine import batches
from cutnmix_jax.engine.peers import begun
from cutnmix_jax.engine.state import Saved
from cutnmix_jax.types import TrainState

if TYPE_CHECKING:
    from cutnmix_jax.engine.engine import Engine


def state(
    engine: "Engine", optimizer: optax.GradientTransformation, key: jax.Array, start: Mapping[str, jax.Array]
) -> Saved:
    """Draws the state.

    Args:
      engine: of the run.
      optimizer: of the run.
      key: of the run.
      start: what the peers begin as, see `peers.begun`.
    """
    peer_key, method_key = jax.random.split(jax.random.fold_in(key, batches.INIT))
    peer_params, batch_stats = begun(engine.peers.init(peer_key), start)
    method_params, method_state = engine.method.init(method_key, engine.spec)
    params = {"peers": peer_params, "method": method_params}
    taught = engine.companions.init(peer_params, batch_stats)
    step = jnp.zeros((), jnp.int32)
    made = TrainState(step, params, batch_stats, method_state, optimizer.init(params), taught)
    # A Python number among them has a weak type, and with it the step is another program than with what was saved.
    made = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), made)
    return Saved(made, engine.zero_totals(), jnp.zeros(()), jnp.zeros(()))
