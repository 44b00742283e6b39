"""The training step, one compiled program, made from keyword parts.

Everything random is a pure function of (seed, purpose, step or epoch), so the state's step number is all there is to
know about where in the data a run stands.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cutnmix_jax import optim
from cutnmix_jax.batches import INIT, STEP, BatchMaker, Data
from cutnmix_jax.compiler import compiled
from cutnmix_jax.peers import Peers, Teachers, no_teachers
from cutnmix_jax.types import (
    NEVER,
    Batch,
    Clock,
    Method,
    Outputs,
    Spec,
    Terms,
    Totals,
    TrainState,
    Tree,
)

TEACHERS = 1000  # folded into the key of a forward pass for the teachers' own
NO_TEACHERS = no_teachers()

Trainer = jax.stages.Wrapped  # a program that can be compiled before it is called
Seen = tuple[Terms, tuple[Outputs, ...], tuple[Tree, ...], Tree]


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of one training step."""
    return jax.random.fold_in(jax.random.fold_in(key, STEP), step)


def init_state(
    key: jax.Array,
    *,
    peers: Peers,
    method: Method,
    optimizer: optax.GradientTransformation,
    spec: Spec,
    teachers: Teachers = NO_TEACHERS,
) -> TrainState:
    """The state before the first step."""
    peer_key, method_key = jax.random.split(jax.random.fold_in(key, INIT))
    peer_params, batch_stats = peers.init(peer_key)
    method_params, method_state = method.init(method_key, spec)
    params = {"peers": peer_params, "method": method_params}
    taught_by = teachers.init(peer_params, batch_stats)
    opt_state = optimizer.init(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, opt_state, taught_by)
    # A number of Python's among them has a weak type, and with it the step is another program than with what was saved.
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)


def metric_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """What is summed up in training, in the order in which it is shown."""
    return ("loss", *method.terms(spec.feature_sizes), "accuracy")


def zero_totals(method: Method, spec: Spec) -> Totals:
    """The metrics' sums at the start of an epoch."""
    names = metric_names(method, spec)
    return Totals({name: jnp.zeros(()) for name in names}, {name: jnp.int32(NEVER) for name in names})


def add(totals: Totals, seen: Mapping[str, jax.Array], step: jax.Array) -> Totals:
    """The totals after step number `step`, counted from 1, in which `seen` was measured."""
    sums = {name: total + seen[name] for name, total in totals.sums.items()}
    broken = {
        name: jnp.minimum(first, jnp.where(jnp.isfinite(seen[name]), NEVER, step))
        for name, first in totals.broken.items()
    }
    return Totals(sums, broken)


def make_trainer(
    *,
    peers: Peers,
    method: Method,
    weights: Mapping[str, float],
    optimizer: optax.GradientTransformation,
    make_batch: BatchMaker,
    batch_size: int,
    steps_per_epoch: int,
    epochs: int,
    loop: bool,
    same_images: bool = False,
    teachers: Teachers = NO_TEACHERS,
) -> Trainer:
    """Makes the training program.

    Args:
      peers: the networks.
      method: the method.
      weights: of its loss terms; the objective is sum over names of weight * sum over peers of the term (Eq. 8).
      optimizer: gradients to updates; the learning rate is applied to them here.
      make_batch: from `make_batch_maker`.
      batch_size: n.
      steps_per_epoch: how many batches an epoch has; what remains of its order after them is left out.
      epochs: how many the run has.
      loop: whether one call can do many steps. On a CPU the gradients of convolutions inside a loop are compiled to
        something far slower, so there it is false and each call is one step.
      same_images: whether all peers see the same images, so that what they share need be computed only once.
      teachers: the networks that are not trained.

    Returns:
      `train(state, totals, data, order, learning_rate, count, key) -> (state, totals)`, compiled, which does the next
      `count` steps, or fewer where something is no longer finite, and takes over the memory of `state`.
    """

    def objective(
        params: Tree, state: TrainState, batch: Batch, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, Seen]:
        seen = batch.images[:: len(state.batch_stats)] if same_images else batch.images
        outputs, stats = forward_views(peers, method.views, params["peers"], state.batch_stats, seen, key)
        terms, method_state = method.loss(params["method"], state.method_state, outputs, batch, clock)
        # A term of weight 0 is left out, not multiplied by it: an ablated term that overflows must not spread.
        loss = sum((weights[name] * term.sum() for name, term in terms.items() if weights[name] != 0), jnp.zeros(()))
        return loss, (terms, outputs, stats, method_state)

    def one_step(
        state: TrainState, totals: Totals, data: Data, order: jax.Array, learning_rate: jax.Array, key: jax.Array
    ) -> tuple[TrainState, Totals]:
        clock = Clock(state.step, state.step // steps_per_epoch, jnp.int32(epochs), learning_rate)
        index = jax.lax.dynamic_slice(order, (state.step % steps_per_epoch * batch_size,), (batch_size,))
        batch_key, forward_key = jax.random.split(step_key(key, state.step))
        batch, _ = make_batch(batch_key, data, index)
        looked_at = batch.images[0] if same_images else batch.images
        teacher_key = jax.random.fold_in(forward_key, TEACHERS)
        told, taught_by = teachers.forward(state.teachers, state.params["peers"], looked_at, teacher_key)
        batch = batch._replace(teachers=told)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, outputs, stats, method_state)), grads = gradient(state.params, state, batch, clock, forward_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, learning_rate)
        taught_by = teachers.follow(taught_by, params["peers"], state.step)
        seen = {name: term.mean() for name, term in terms.items()}
        seen |= {"loss": loss, "accuracy": mixed_accuracy(outputs, batch.targets)}
        after = TrainState(state.step + 1, params, stats, method_state, opt_state, taught_by)
        return after, add(totals, seen, after.step)

    def train(
        state: TrainState, totals: Totals, data: Data, order: jax.Array, learning_rate: jax.Array, count: Any, key: Any
    ) -> tuple[TrainState, Totals]:
        if not loop:
            return one_step(state, totals, data, order, learning_rate, key)

        return repeat(
            lambda state, totals: one_step(state, totals, data, order, learning_rate, key), state, totals, count
        )

    return compiled(train, donate=0)


def repeat(
    one_step: Callable[[TrainState, Totals], tuple[TrainState, Totals]], state: TrainState, totals: Totals, count: Any
) -> tuple[TrainState, Totals]:
    """Does `count` steps, or fewer where something is no longer finite.

    The bound is data, so that the shorter call at the end of an epoch runs the same program.
    """
    end = state.step + count

    def goes_on(carry: tuple[TrainState, Totals]) -> jax.Array:
        state, totals = carry
        return (state.step < end) & (jnp.stack(list(totals.broken.values())).min() == NEVER)

    return jax.lax.while_loop(goes_on, lambda carry: one_step(*carry), (state, totals))


def forward_views(
    peers: Peers,
    views: int,
    params: tuple[Tree, ...],
    batch_stats: tuple[Tree, ...],
    images: jax.Array,
    key: jax.Array,
) -> tuple[tuple[Outputs, ...], tuple[Tree, ...]]:
    """Each view in a training pass of its own, with batch statistics of its own.

    Args:
      peers: the networks.
      views: how many views each of them sees.
      params: of the peers.
      batch_stats: likewise.
      images: [views J, n, 32, 32, 3], or [views, n, 32, 32, 3] for all peers alike.
      key: of the forward passes.

    Returns:
      `Outputs` per peer, [views, n, ...] where there are several views, and the batch statistics after all passes.
    """
    num_peers, passes = len(images) // views, []
    for view in range(views):
        seen = images[view] if num_peers == 1 else images[view * num_peers : (view + 1) * num_peers]
        view_key = jax.random.fold_in(key, TEACHERS + view) if view else key
        outputs, batch_stats = peers.forward(params, batch_stats, seen, True, view_key)
        passes.append(outputs)
    return outputs if views == 1 else jax.tree.map(lambda *each: jnp.stack(each), *passes), batch_stats


def mixed_accuracy(outputs: tuple[Outputs, ...], targets: jax.Array) -> jax.Array:
    """Mean over peers and images of how often the likeliest class is the larger share of the mixed label; a scalar."""
    firsts = [out.logits if out.logits.ndim == 2 else out.logits[0] for out in outputs]
    hits = [(logits.argmax(-1) == targets[j].argmax(-1)).mean() for j, logits in enumerate(firsts)]
    return jnp.stack(hits).mean()
