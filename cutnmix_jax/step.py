"""The training step, one compiled program, made from keyword parts.

Everything random is a pure function of (seed, purpose, step or epoch), so the state's step number is all there is to
know about where in the data a run stands.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutnmix_jax import augment, optim
from cutnmix_jax.errors import UsageError
from cutnmix_jax.peers import Peers, Teachers, no_teachers
from cutnmix_jax.types import Batch, Clock, Dataset, Method, Mix, Outputs, Spec, Terms, Totals, TrainState, Tree

INIT, ORDER, STEP = range(3)  # what a key is for; folded into the seed's key first
TEACHERS = 1000  # folded into the key of a forward pass for the teachers' own
VIEWS = ("shared", "per_peer")
NO_TEACHERS = no_teachers()


class Data(NamedTuple):
    """A labelled set of images on the device.

    Attributes:
      images: [N, 32, 32, 3] uint8.
      labels: [N] int32.
      by_class: [N] int32, the rows sorted by their class, and
      starts: [K + 1] int32, where each class begins in them; for methods that pair images of one class.
    """

    images: jax.Array
    labels: jax.Array
    by_class: jax.Array | None = None
    starts: jax.Array | None = None


BatchMaker = Callable[[jax.Array, Data, jax.Array], tuple[Batch, Mix]]
Trainer = Callable[..., tuple[TrainState, Totals]]
Seen = tuple[Terms, tuple[Outputs, ...], tuple[Tree, ...], Tree]


def make_batch_maker(
    dataset: Dataset,
    *,
    num_peers: int,
    views: str,
    mix: Mapping[str, Any],
    views_per_peer: int = 1,
    same_class: bool = False,
) -> BatchMaker:
    """Makes the function from a key, the training set and n row numbers to the batch that the peers see.

    Gather, one view per peer (or one for all), mix, normalise.

    Args:
      dataset: for its classes, its mean and deviation and whether its images may be mirrored.
      num_peers: J.
      views: `per_peer` (each peer its own crop and flip, section 2.2) or `shared`.
      mix: the keyword arguments of `augment.mix`.
      views_per_peer: how many views of an image each peer sees.
      same_class: whether views after the first are of another image of the same class.
    """
    mean, std = jnp.asarray(dataset.mean), jnp.asarray(dataset.std)

    def seen_by_peers(key: jax.Array, images: jax.Array) -> jax.Array:
        if views == "per_peer":
            keys = [jax.random.fold_in(key, j) for j in range(num_peers)]
            return jnp.stack([augment.crop_flip(peer_key, images, dataset.flip) for peer_key in keys])
        seen = augment.crop_flip(key, images, dataset.flip)
        return jnp.broadcast_to(seen, (num_peers, *seen.shape))

    def make_batch(key: jax.Array, data: Data, index: jax.Array) -> tuple[Batch, Mix]:
        view_key, mix_key = jax.random.split(key)
        images, labels = data.images[index], data.labels[index]
        seen = [seen_by_peers(view_key, images)]
        for view in range(1, views_per_peer):
            pair_key, other_key = jax.random.split(jax.random.fold_in(view_key, num_peers + view))
            others = data.images[same_class_rows(pair_key, data, labels)] if same_class else images
            seen.append(seen_by_peers(other_key, others))
        mixed, how = augment.mix(mix_key, jnp.concatenate(seen).astype(jnp.float32) / 255, **mix)
        targets = augment.mixed_targets(labels, how, dataset.num_classes)[:num_peers]
        return Batch((mixed - mean) / std, targets, labels, index), how

    return make_batch


def same_class_rows(key: jax.Array, data: Data, labels: jax.Array) -> jax.Array:
    """For each label the row of a training image of that class, uniformly drawn: [n] int32 -> [n] int32."""
    assert data.by_class is not None and data.starts is not None
    first, end = data.starts[labels], data.starts[labels + 1]
    return data.by_class[jax.random.randint(key, labels.shape, first, end)]


def with_classes(data: Data, num_classes: int) -> Data:
    """`data` with the rows of each class beside it."""
    labels = np.asarray(data.labels)
    starts = np.searchsorted(np.sort(labels), np.arange(num_classes + 1))
    by_class = np.argsort(labels, kind="stable")
    return data._replace(by_class=jnp.asarray(by_class, jnp.int32), starts=jnp.asarray(starts, jnp.int32))


def epoch_order(key: jax.Array, epoch: int, num_train: int) -> jax.Array:
    """The order in which an epoch sees the training set: a permutation, [N] int32."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, ORDER), epoch), num_train)


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
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, optimizer.init(params), taught_by)


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
      `count` steps and takes over the memory of `state`.
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
        told, taught_by = teachers.forward(state.teachers, looked_at, jax.random.fold_in(forward_key, TEACHERS))
        batch = batch._replace(teachers=told)
        gradient = jax.value_and_grad(objective, has_aux=True)
        (loss, (terms, outputs, stats, method_state)), grads = gradient(state.params, state, batch, clock, forward_key)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, learning_rate)
        taught_by = teachers.follow(taught_by, params["peers"], state.step)
        seen = {name: term.mean() for name, term in terms.items()}
        seen |= {"loss": loss, "accuracy": mixed_accuracy(outputs, batch.targets)}
        totals = {name: total + seen[name] for name, total in totals.items()}
        return TrainState(state.step + 1, params, stats, method_state, opt_state, taught_by), totals

    def train(
        state: TrainState, totals: Totals, data: Data, order: jax.Array, learning_rate: jax.Array, count: Any, key: Any
    ) -> tuple[TrainState, Totals]:
        if not loop:
            return one_step(state, totals, data, order, learning_rate, key)

        def body(_: jax.Array, carry: tuple[TrainState, Totals]) -> tuple[TrainState, Totals]:
            return one_step(*carry, data, order, learning_rate, key)

        # The bound is data, so that the shorter call at the end of an epoch runs the same program.
        return jax.lax.fori_loop(0, count, body, (state, totals))

    return jax.jit(train, donate_argnums=0)


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
