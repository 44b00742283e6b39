"""The optimizer: gradients to updates, and the learning rate of each step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutnmix_jax.settings import Optimizer
from cutnmix_jax.types import Tree

Schedule = Callable[[jax.Array], jax.Array]  # from a step, int32, to the learning rate that is used in it, float32


def make(settings: Optimizer, steps_per_epoch: int) -> tuple[optax.GradientTransformation, Schedule]:
    """SGD as PyTorch's with the stepwise learning rate of section 3.1.

    g <- grad + weight_decay * w;  v <- momentum * v + g;  update = g + momentum * v (Nesterov) or v.

    All of it is float32, whatever the type of a parameter. v is a sum over 1 / (1 - momentum) steps: bfloat16 keeps 8
    bits of it, would lose a gradient 256 times smaller than the sum, and from a momentum of .998 on could not even
    decay. It costs 4 bytes a parameter instead of 2. The weights alone are rounded to their own type, so an update
    smaller than half of their last bit is lost: who chooses bfloat16 weights chooses that.

    Args:
      settings: of the run.
      steps_per_epoch: what an epoch counts.

    Returns:
      A transformation of gradients to updates, coupled L2 on every parameter included, and the schedule. The learning
      rate is applied by `apply`.
    """
    steps = optax.chain(
        optax.add_decayed_weights(settings.weight_decay),
        optax.trace(settings.momentum, settings.nesterov, jnp.float32),
    )

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        return steps.update(as_float32(grads), state, as_float32(params))

    return optax.GradientTransformation(steps.init, update), _stepwise(settings, steps_per_epoch)


def _stepwise(settings: Optimizer, steps_per_epoch: int) -> Schedule:
    """The learning rate multiplied by `decay` from each milestone on.

    The paper says that it decays "by 10%"; its code lineage multiplies by 0.1 (SSKD, RepDistiller, DLB).
    """
    rate = optax.piecewise_constant_schedule(settings.learning_rate, dict.fromkeys(settings.milestones, settings.decay))
    rates = np.asarray([float(rate(epoch)) for epoch in (0, *settings.milestones)], np.float32)
    starts = np.asarray(settings.milestones, np.int32)

    def at(step: jax.Array) -> jax.Array:
        return jnp.asarray(rates)[jnp.sum(step // steps_per_epoch >= starts)]

    return at


def apply(params: Tree, updates: Tree, learning_rate: jax.Array) -> Tree:
    """Takes the step w <- w - learning_rate * update in float32; each w keeps its type."""
    moved = jax.tree.map(lambda weight, update: weight - learning_rate * update, as_float32(params), updates)
    return as_types_of(params, moved)


def ramp_up(epoch: jax.Array, epochs: int) -> jax.Array:
    """exp(-5 (1 - epoch / epochs)^2), and 1 from `epochs` on (Laine and Aila 2017); epoch is 0-based."""
    return jnp.exp(-5 * (1 - jnp.minimum(epoch / epochs, 1)) ** 2)


def as_float32(tree: Tree) -> Tree:
    """A tree of arrays with each of them float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def as_types_of(like: Tree, tree: Tree) -> Tree:
    """A tree with the types that the arrays of `like`, of the same structure, have."""
    return jax.tree.map(lambda model, leaf: jnp.asarray(leaf, model.dtype), like, tree)
