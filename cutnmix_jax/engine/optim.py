"""The optimizer: gradients to updates, and the learning rate of each step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutnmix_jax import stack
from cutnmix_jax.engine.devices import ONE, Devices
from cutnmix_jax.settings import Optimizer
from cutnmix_jax.types import Tree

Schedule = Callable[[np.ndarray], np.ndarray]  # from steps to the learning rate of each, float32; on the host


def make(
    settings: Optimizer, steps_per_epoch: int, total_steps: int, devices: Devices = ONE
) -> tuple[optax.GradientTransformation, Schedule]:
    """The optimizer and the learning rate of each step.

    `sgd` is PyTorch's, as section 3.1 has it, with L2 regularisation that goes through the momentum:
      g <- grad + weight_decay * w;  v <- momentum * v + g;  update = g + momentum * v (Nesterov) or v.
    `adamw` (Loshchilov and Hutter 2019): update = m / (sqrt(v) + epsilon) + weight_decay * w, of corrected moments.
    `lars` (You et al. 2017): as sgd, but g of each array is first scaled to `trust` times the norm of the array. Arrays
    of one axis, which are biases and scales of norms, are neither scaled nor decayed, as its users have it.

    All of it is float32, whatever the type of a parameter. v is a sum over 1 / (1 - momentum) steps: bfloat16 keeps 8
    bits of it, would lose a gradient 256 times smaller than the sum, and from a momentum of .998 on could not even
    decay. It costs 4 bytes a parameter instead of 2. The weights alone are rounded to their own type, so an update
    smaller than half of their last bit is lost: who chooses bfloat16 weights chooses that.

    Args:
      settings: of the run.
      steps_per_epoch: steps in an epoch.
      total_steps: of the run.
      devices: of the run; `lars` has all gradients and weights sent to all of them.

    Returns:
      A transformation of gradients to updates, on every parameter, and the schedule. The learning rate is applied by
      `apply`.
    """
    of_arrays = settings.name == "lars"  # which looks at the norms of each array of one network
    decayed = optax.add_decayed_weights(settings.weight_decay)
    momentum = optax.trace(settings.momentum, settings.nesterov, jnp.float32)
    scaled = optax.chain(decayed, optax.scale_by_trust_ratio(trust_coefficient=settings.trust))
    transformation = {
        "sgd": optax.chain(decayed, momentum),
        "adamw": optax.chain(optax.scale_by_adam(settings.beta_1, settings.beta_2, settings.epsilon), decayed),
        "lars": optax.chain(optax.masked(scaled, _several_axes), momentum),
    }[settings.name]

    def seen(tree: Tree) -> Tree:
        return as_float32(stack.apart(devices.split(tree)) if of_arrays else tree)

    def init(params: Tree) -> Tree:
        return transformation.init(seen(params))

    def update(grads: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = transformation.update(seen(_whole(grads)), state, seen(params))
        return stack.together(updates, params) if of_arrays else updates, state

    return optax.GradientTransformation(init, update), _schedule(settings, steps_per_epoch, total_steps)


def _several_axes(params: Tree) -> Tree:
    return jax.tree.map(lambda array: array.ndim > 1, params)


def _schedule(settings: Optimizer, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The learning rate falls `stepwise` or as a `cosine` to 0, after a linear warm-up."""
    rising = round(settings.warm_up_epochs * steps_per_epoch)

    def at(steps: np.ndarray) -> np.ndarray:
        if settings.schedule == "cosine":
            done = (steps - rising) / max(total_steps - rising, 1)
            rates = settings.learning_rate * (1 + np.cos(np.pi * np.clip(done, 0, 1))) / 2
        else:
            rates = _stepwise(settings, steps // steps_per_epoch)
        return np.where(steps < rising, settings.learning_rate * (steps + 1) / max(rising, 1), rates).astype(np.float32)

    return at


def _stepwise(settings: Optimizer, epochs: np.ndarray) -> np.ndarray:
    """The learning rate multiplied by `decay` from each milestone on, in float32.

    The paper says that it decays "by 10%"; its code lineage multiplies by 0.1 (SSKD, RepDistiller, DLB).
    """
    rates = [np.float32(settings.learning_rate)]
    for _ in settings.milestones:
        rates.append(rates[-1] * np.float32(settings.decay))
    return np.asarray(rates)[np.searchsorted(settings.milestones, epochs, side="right")]


def apply(params: Tree, updates: Tree, learning_rate: jax.Array) -> Tree:
    """Takes the step w <- w - learning_rate * update in float32; each w keeps its type."""
    rate = _read_by_all(learning_rate)
    moved = jax.tree.map(lambda weight, update: weight - rate() * update, as_float32(params), updates)
    return as_types_of(params, moved)


def _read_by_all(number: jax.Array) -> Callable[[], jax.Array]:
    """What returns the number; on a GPU out of an array, which makes fewer kernels.

    XLA updates all weights of one size in one kernel where all of them read an array, and does not where it is one
    number. The barrier keeps it from taking the number out of the array first.
    """
    if jax.default_backend() != "gpu":
        return lambda: number
    pair = jax.lax.optimization_barrier(jnp.stack([number, number]))
    return lambda: pair[0]


def _whole(grads: Tree) -> Tree:
    """Gradients as they are; on a GPU XLA adds nothing to that of a product while it computes it.

    It would add the decayed weight, which another kernel has to bring. What has fewer than three axes, as the scales of
    batch norm of J networks, is computed together with its update.
    """

    def whole(leaf: jax.Array) -> jax.Array:
        is_of_product = leaf.ndim > 2 and not stack.is_kernel(leaf)
        return jax.lax.optimization_barrier(leaf) if is_of_product else leaf

    return jax.tree.map(whole, grads) if jax.default_backend() == "gpu" else grads


def ramp_up(epoch: jax.Array, epochs: int) -> jax.Array:
    """exp(-5 (1 - epoch / epochs)^2), and 1 from `epochs` on (Laine and Aila 2017); epoch is 0-based."""
    return jnp.exp(-5 * (1 - jnp.minimum(epoch / epochs, 1)) ** 2)


def as_float32(tree: Tree) -> Tree:
    """A tree of arrays with each of them float32."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def as_types_of(like: Tree, tree: Tree) -> Tree:
    """A tree with the types that the arrays of `like`, of the same structure, have."""
    return jax.tree.map(lambda model, leaf: jnp.asarray(leaf, model.dtype), like, tree)
