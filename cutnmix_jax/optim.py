"""The optimizer of section 3.1 of the paper: SGD with Nesterov momentum and a stepwise learning rate."""

from collections.abc import Callable, Sequence

import jax
import optax

from cutnmix_jax.types import Tree


def schedule(learning_rate: float, milestones: Sequence[int], decay: float) -> Callable[[int], float]:
    """The learning rate of an epoch: multiplied by `decay` from each milestone on.

    The paper says that it decays "by 10%"; its code lineage multiplies by 0.1 (SSKD, RepDistiller, DLB).

    Args:
      learning_rate: of epoch 0.
      milestones: increasing 0-based epochs.
      decay: the factor.

    Returns:
      A function from a 0-based epoch to its learning rate.
    """
    rate = optax.piecewise_constant_schedule(learning_rate, dict.fromkeys(milestones, decay))
    return lambda epoch: float(rate(epoch))


def sgd(momentum: float, weight_decay: float, nesterov: bool) -> optax.GradientTransformation:
    """SGD as PyTorch's: coupled L2 on every parameter, then momentum. The learning rate is applied by `apply`.

    g <- grad + weight_decay * w;  v <- momentum * v + g;  update = g + momentum * v (Nesterov) or v.
    """
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum, nesterov))


def apply(params: Tree, updates: Tree, learning_rate: jax.Array) -> Tree:
    """Takes the step w <- w - learning_rate * update; the rate is an argument, so none compiles anew."""
    return jax.tree.map(lambda weight, update: weight - learning_rate * update, params, updates)
