"""The optimizer of section 3.1 of the paper: SGD with Nesterov momentum and a stepwise learning rate."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
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

    All of it is float32, whatever the type of a parameter. v is a sum over 1 / (1 - momentum) steps: bfloat16 keeps 8
    bits of it, would lose a gradient 256 times smaller than the sum, and from a momentum of .998 on could not even
    decay. It costs 4 bytes a parameter instead of 2. The weights alone are rounded to their own type, so an update
    smaller than half of their last bit is lost: who chooses bfloat16 weights chooses that.
    """
    steps = optax.chain(optax.add_decayed_weights(weight_decay), optax.trace(momentum, nesterov, jnp.float32))

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return steps.update(as_float32(grads), state, as_float32(params))

    return optax.GradientTransformation(steps.init, update)


def apply(params: Tree, updates: Tree, learning_rate: jax.Array) -> Tree:
    """Takes the step w <- w - learning_rate * update in float32; each w keeps its type.

    The rate is an argument, so none compiles anew.
    """
    moved = jax.tree.map(lambda weight, update: weight - learning_rate * update, as_float32(params), updates)
    return as_types_of(params, moved)


def as_float32(tree: Tree) -> Tree:
    """A tree of arrays with each of them float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def as_types_of(like: Tree, tree: Tree) -> Tree:
    """A tree with the types that the arrays of `like`, of the same structure, have."""
    return jax.tree.map(lambda model, leaf: jnp.asarray(leaf, model.dtype), like, tree)
