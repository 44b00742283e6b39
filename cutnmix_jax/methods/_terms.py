"""Loss terms that several methods share; each gives one value per peer, and a peer's value moves that peer alone."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.types import Clock, Outputs, Spec, Terms, Tree


def cross_entropy(outputs: Sequence[Outputs], targets: jax.Array) -> jax.Array:
    """L_CE^j of Eq. 8: mean over the batch against the peer's own targets [J, n, K] -> [J]."""
    return jnp.stack([losses.soft_cross_entropy(out.logits, targets[j]).mean() for j, out in enumerate(outputs)])


def from_others(outputs: Sequence[Outputs], pair: Callable[[Outputs, Outputs], jax.Array]) -> jax.Array:
    """1/(J-1) sum_{k != j} pair(j, k), the outer sum of Eq. 4 and Eq. 9, with no gradient into peer k.

    Args:
      outputs: of J >= 2 peers.
      pair: from the outputs of peer j and of peer k to a scalar.

    Returns:
      [J] float.
    """
    others = len(outputs) - 1
    return jnp.stack(
        [
            sum((pair(mine, stop_gradient(theirs)) for k, theirs in enumerate(outputs) if k != j), jnp.zeros(()))
            / others
            for j, mine in enumerate(outputs)
        ]
    )


def mutual_logits(outputs: Sequence[Outputs], temperature: float) -> jax.Array:
    """L_DML^j of Eq. 4 with tau^2 inside, as in Eq. 1 and 10 (Eq. 4 writes it in front, Eq. 8 drops it) -> [J]."""
    return from_others(outputs, lambda mine, theirs: losses.tempered_kl(mine.logits, theirs.logits, temperature).mean())


def mutual_features(outputs: Sequence[Outputs]) -> jax.Array:
    """L_MMD^j of Eq. 9 -> [J]."""
    return from_others(outputs, lambda mine, theirs: losses.mmd(mine.features, theirs.features))


def nothing(key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
    """`init` of a method without parameters or state of its own."""
    del key, spec
    return {}, {}


def no_heads(params: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
    """`heads` of a method that has no classifier besides the peers."""
    del params, outputs
    return {}


def stateless(terms: Callable[..., Terms]) -> Callable[..., tuple[Terms, Tree]]:
    """A method's `loss` from a function (outputs, batch) -> terms that needs neither parameters, state nor clock."""

    def loss(
        params: Tree, state: Tree, outputs: tuple[Outputs, ...], batch: object, clock: Clock
    ) -> tuple[Terms, Tree]:
        del params, clock
        return terms(outputs, batch), state

    return loss
