"""The training step and the evaluation step, each one compiled program, made from keyword parts.

Everything random is a pure function of (seed, purpose, step or epoch), so the state's step number is all there is to
know about where in the data a run stands.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from cutnmix_jax import augment, optim
from cutnmix_jax.errors import UsageError
from cutnmix_jax.peers import Peers
from cutnmix_jax.types import Batch, Clock, Dataset, Method, Mix, Outputs, Spec, Terms, Totals, TrainState, Tree

INIT, ORDER, STEP = range(3)  # what a key is for; folded into the seed's key first
VIEWS = ("shared", "per_peer")


class Data(NamedTuple):
    """A labelled set of images on the device: [N, 32, 32, 3] uint8 and [N] int32."""

    images: jax.Array
    labels: jax.Array


BatchMaker = Callable[[jax.Array, Data, jax.Array], tuple[Batch, Mix]]
Trainer = Callable[..., tuple[TrainState, Totals]]
Evaluator = Callable[..., dict[str, jax.Array]]


def make_batch_maker(dataset: Dataset, *, num_peers: int, views: str, mix: Mapping[str, Any]) -> BatchMaker:
    """Makes the function from a key, the training set and n row numbers to the batch that the peers see.

    Gather, one view per peer (or one for all), mix, normalise.

    Args:
      dataset: for its classes, its mean and deviation and whether its images may be mirrored.
      num_peers: J.
      views: `per_peer` (each peer its own crop and flip, section 2.2) or `shared`.
      mix: the keyword arguments of `augment.mix`.
    """
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)

    def make_batch(key: jax.Array, data: Data, index: jax.Array) -> tuple[Batch, Mix]:
        view_key, mix_key = jax.random.split(key)
        images, labels = data.images[index], data.labels[index]
        if views == "per_peer":
            keys = [jax.random.fold_in(view_key, j) for j in range(num_peers)]
            seen = jnp.stack([augment.crop_flip(peer_key, images, dataset.flip) for peer_key in keys])
        else:
            seen = augment.crop_flip(view_key, images, dataset.flip)
            seen = jnp.broadcast_to(seen, (num_peers, *seen.shape))
        mixed, how = augment.mix(mix_key, seen.astype(jnp.float32) / 255, **mix)
        targets = augment.mixed_targets(labels, how, dataset.num_classes)
        return Batch((mixed - mean) / std, targets, labels, index), how

    return make_batch


def epoch_order(key: jax.Array, epoch: int, num_train: int) -> jax.Array:
    """The order in which an epoch sees the training set: a permutation, [N] int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), num_train)


def step_key(key: jax.Array, step: jax.Array | int) -> jax.Array:
    """The key of one training step."""
    return jax.random.fold_in(jax.random.fold_in(key, STEP), step)


def init_state(
    key: jax.Array, *, peers: Peers, method: Method, optimizer: optax.GradientTransformation, spec: Spec
) -> TrainState:
    """The state before the first step."""
    peer_key, method_key = jax.random.split(jax.random.fold_in(key, INIT))
    peer_params, batch_stats = peers.init(peer_key)
    method_params, method_state = method.init(method_key, spec)
    params = {"peers": peer_params, "method": method_params}
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, optimizer.init(params))


def check_weights(weights: Mapping[str, float], method: Method, spec: Spec) -> None:
    """Raises UsageError unless each loss term has a weight and each weight other than 0 has a term."""
    terms = method.terms(spec.feature_sizes)
    if missing := sorted(set(terms) - set(weights)):
        raise UsageError(f"config.weights: no weight for the loss term {missing[0]!r}")
    if excess := sorted(name for name in set(weights) - set(terms) if weights[name] != 0):
        sizes = ", ".join(map(str, spec.feature_sizes))
        who = f"peers with features of {sizes} have" if len(spec.feature_sizes) > 1 else "a single peer has"
        raise UsageError(
            f"config.weights.{excess[0]}={weights[excess[0]]:g}: {who} no such loss term, only {', '.join(terms)}; "
            "set it to 0 or choose other peers"
        )
    if not any(weights[name] for name in terms):
        raise UsageError("config.weights: all of them are 0, so nothing would be learned")


def metric_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """What is summed up in training, in the order in which it is shown."""
    return ("loss", *method.terms(spec.feature_sizes), "accuracy")


def zero_totals(method: Method, spec: Spec) -> Totals:
    """The metrics' sums at the start of an epoch."""
    return {name: jnp.zeros(()) for name in metric_names(method, spec)}


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

    Returns:
      `train(state, totals, data, order, learning_rate, count, key) -> (state, totals)`, compiled, which does the next
      `count` steps and takes over the memory of `state`.
    """

    def objective(
        params: Tree, state: TrainState, batch: Batch, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, tuple[Terms, tuple[Outputs, ...], tuple[Tree, ...], Tree]]:
        outputs, stats = peers.forward(params["peers"], state.batch_stats, batch.images, True, key)
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
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, outputs, stats, method_state)), grads = gradient(state.params, state, batch, clock, forward_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, learning_rate)
        seen = {"loss": loss, "accuracy": mixed_accuracy(outputs, batch.targets)}
        seen |= {name: term.mean() for name, term in terms.items()}
        totals = {name: total + seen[name] for name, total in totals.items()}
        return TrainState(state.step + 1, params, stats, method_state, opt_state), totals

    def train(
        state: TrainState,
        totals: Totals,
        data: Data,
        order: jax.Array,
        learning_rate: jax.Array,
        count: jax.Array,
        key: jax.Array,
    ) -> tuple[TrainState, Totals]:
        if not loop:
            return one_step(state, totals, data, order, learning_rate, key)

        def body(_: jax.Array, carry: tuple[TrainState, Totals]) -> tuple[TrainState, Totals]:
            return one_step(*carry, data, order, learning_rate, key)

        # The bound is data, so that the shorter call at the end of an epoch runs the same program.
        return jax.lax.fori_loop(0, count, body, (state, totals))

    return jax.jit(train, donate_argnums=0)


def mixed_accuracy(outputs: tuple[Outputs, ...], targets: jax.Array) -> jax.Array:
    """Mean over peers and images of how often the likeliest class is the larger share of the mixed label; a scalar."""
    hits = [(out.logits.argmax(-1) == targets[j].argmax(-1)).mean() for j, out in enumerate(outputs)]
    return jnp.stack(hits).mean()


def make_evaluator(*, peers: Peers, method: Method, dataset: Dataset, batch_size: int) -> Evaluator:
    """Makes the evaluation program.

    Returns:
      `count(params, batch_stats, data, start) -> {name: int32}`, compiled: how many of the test images from row `start`
      on, at most `batch_size`, each classifier gets right. The classifiers are `peer_0`, ..., `ensemble` (the mean of
      the peers' probabilities) and the method's heads.
    """
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)

    def count(params: Tree, batch_stats: tuple[Tree, ...], data: Data, start: jax.Array) -> dict[str, jax.Array]:
        index = start + jnp.arange(batch_size)
        valid = index < len(data.labels)
        rows = jnp.where(valid, index, 0)
        images = (data.images[rows].astype(jnp.float32) / 255 - mean) / std
        outputs, _ = peers.forward(params["peers"], batch_stats, images, False, jax.random.key(0))
        scores = {f"peer_{j}": out.logits for j, out in enumerate(outputs)}
        scores["ensemble"] = jnp.mean(jnp.stack([jax.nn.softmax(out.logits) for out in outputs]), axis=0)
        scores |= method.heads(params["method"], outputs)
        labels = data.labels[rows]
        return {name: jnp.sum((score.argmax(-1) == labels) & valid) for name, score in scores.items()}

    return jax.jit(count)
