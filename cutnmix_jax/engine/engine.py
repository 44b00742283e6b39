"""What trains and evaluates the networks of a run: one object that owns all of it, so that no two parts can disagree.

Everything random is a pure function of (seed, purpose, step or epoch), so the step number in the state is all there is
to know about where in the data a run stands.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutnmix_jax.compiler import compiled
from cutnmix_jax.engine import batches, optim, totals
from cutnmix_jax.engine.batches import Data
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.engine.teachers import Teachers
from cutnmix_jax.settings import Settings
from cutnmix_jax.types import (
    Batch,
    Clock,
    Dataset,
    Method,
    Mix,
    Outputs,
    Spec,
    Terms,
    Totals,
    TrainState,
    Tree,
    Views,
)

# Folded into the key of a step's forward passes: with its number for each view after the first, alone for the teachers.
VIEWS = 1000


class Saved(NamedTuple):
    """What a checkpoint holds: all that is needed to go on as if nothing had happened."""

    state: TrainState
    totals: Totals
    seconds: jax.Array  # that the unfinished epoch has taken so far
    wall_seconds: jax.Array  # that all starts together have taken up to this save, whatever they did


class Feed(NamedTuple):
    """What all steps of an epoch are made of; arguments, so that another seed or learning rate compiles nothing anew.

    Attributes:
      data: the training set.
      order: in which the epoch sees it, [N] int32.
      rates: the learning rate of each step of the epoch, float32.
      key: of the run.
    """

    data: Data
    order: jax.Array
    rates: jax.Array
    key: jax.Array


class Right(NamedTuple):
    """How many images each classifier gets right, int32; see `Accuracies`."""

    peers: tuple[jax.Array, ...]
    ensemble: jax.Array
    heads: dict[str, jax.Array]


class Accuracies(NamedTuple):
    """The share of exactly the test images that each classifier gets right.

    Attributes:
      peers: of each peer, leaders left out.
      ensemble: of the mean of the peers' probabilities.
      heads: of what else the method and its teachers report.
    """

    peers: tuple[float, ...]
    ensemble: float
    heads: dict[str, float]

    @property
    def mean(self) -> float:
        """Over the peers: the headline."""
        return sum(self.peers) / len(self.peers)


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """The networks, the method, the optimizer and the data of a run.

    Attributes:
      settings: of the run.
      dataset: its training set without what is held out.
      spec: what the method knows of them.
      peers: the networks.
      teachers: those that are not trained by a gradient.
      make_batch: from rows of the training set to what the networks see.
      train_data: on the device.
      test_data: likewise.
      held_out: images that are not trained on, for a method that asks; else None.
      load_frozen: reads the variables of the trained teacher; None where there is none.
      steps_per_call: training steps in each compiled call.
    """

    settings: Settings
    dataset: Dataset
    spec: Spec
    peers: Peers
    teachers: Teachers
    make_batch: batches.BatchMaker
    train_data: Data
    test_data: Data
    held_out: Data | None
    load_frozen: Callable[[], dict[str, Tree]] | None
    steps_per_call: int

    def __post_init__(self) -> None:
        """Draws the key and makes the optimizer: first asked for within a compiled function, they would be tracers."""
        assert self.key is not None and self._optimizer

    @property
    def method(self) -> Method:
        """The method with its options."""
        return self.settings.loss

    @functools.cached_property
    def key(self) -> jax.Array:
        """From which all that is random is drawn."""
        return jax.random.key(self.settings.seed)

    @property
    def steps_per_epoch(self) -> int:
        """As many whole batches as fit."""
        return len(self.train_data.labels) // self.settings.batch_size

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.settings.epochs * self.steps_per_epoch

    @functools.cached_property
    def _optimizer(self) -> tuple[optax.GradientTransformation, optim.Schedule]:
        return optim.make(self.settings.optimizer, self.steps_per_epoch, self.total_steps)

    def learning_rate(self, epoch: int) -> float:
        """The one at the start of an epoch, 0-based."""
        return float(self._optimizer[1](np.array([epoch * self.steps_per_epoch]))[0])

    # The state.

    def init(self) -> Saved:
        """The state before the first step."""
        saved = compiled(self._fresh, once=True)()
        if self.load_frozen is None:
            return saved
        frozen = {name: (tree,) for name, tree in self.load_frozen().items()}
        return saved._replace(state=saved.state._replace(teachers=saved.state.teachers | {"frozen": frozen}))

    def shapes(self) -> Saved:
        """Shapes and types of what `init` returns."""
        return jax.eval_shape(self._fresh)

    def _fresh(self) -> Saved:
        peer_key, method_key = jax.random.split(jax.random.fold_in(self.key, batches.INIT))
        peer_params, batch_stats = self.peers.init(peer_key)
        method_params, method_state = self.method.init(method_key, self.spec)
        params = {"peers": peer_params, "method": method_params}
        taught = self.teachers.init(peer_params, batch_stats)
        optimizer = self._optimizer[0].init(params)
        state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, optimizer, taught)
        # A Python number among them has a weak type, and with it the step is another program than with what was saved.
        state = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state)
        return Saved(state, self.zero_totals(), jnp.zeros(()), jnp.zeros(()))

    # What is measured.

    @functools.cached_property
    def terms(self) -> tuple[str, ...]:
        """The names of the method's terms, in its order."""
        return term_names(self.method, self.spec)

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of what is summed up in training, in the order in which it is shown."""
        return ("loss", *self.terms, "accuracy")

    def zero_totals(self) -> Totals:
        """What is measured, at the start of an epoch."""
        return totals.zero(self.metrics)

    # Training.

    def feed(self, epoch: int) -> Feed:
        """What the steps of an epoch, 0-based, are made of."""
        order = batches.epoch_order(self.key, epoch, len(self.train_data.labels))
        steps = epoch * self.steps_per_epoch + np.arange(self.steps_per_epoch)
        return Feed(self.train_data, order, jnp.asarray(self._optimizer[1](steps)), self.key)

    def batch_at(self, step: jax.Array | int, feed: Feed) -> tuple[Batch, Mix]:
        """The batch of a step, counted from 0, out of the feed of its epoch."""
        index = batches.rows_at(feed.order, step, self.settings.batch_size, self.steps_per_epoch)
        return self.make_batch(batches.step_keys(feed.key, step)[0], feed.data, index)

    def objective(
        self, params: Tree, state: TrainState, batch: Batch, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, tuple[Terms, Views, tuple[Tree, ...], Tree]]:
        """The sum over terms of weight times the sum over peers (Eq. 8).

        Returns:
          The loss; and the terms, the outputs of the networks, their next batch statistics and the method's next state.
        """
        views, stats = self._forward(params["peers"], state.batch_stats, batch.images, key)
        terms, method_state = self.method.loss(params["method"], state.method_state, views, batch, clock)
        # A term of weight 0 is left out, not multiplied by it: an ablated term that overflows must not spread.
        loss = jnp.zeros(())
        for name, term in terms.items():
            if self.settings.weights[name] != 0:
                loss += self._weight(name, clock) * term.sum()
        return loss, (terms, views, stats, method_state)

    def _weight(self, name: str, clock: Clock) -> jax.Array | float:
        """Of a term in a step."""
        rising = self.settings.ramp_up
        weight = self.settings.weights[name]
        return weight * optim.ramp_up(clock.epoch, rising.epochs) if name in rising.terms else weight

    def _forward(
        self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[Views, tuple[Tree, ...]]:
        """Each view in a training pass of its own, with batch statistics of its own."""
        views = []
        for view, seen in enumerate(images):
            view_key = jax.random.fold_in(key, VIEWS + view) if view else key
            outputs, batch_stats = self.peers.forward(params, batch_stats, seen, True, view_key)
            views.append(outputs)
        return tuple(views), batch_stats

    def _taught(self, state: TrainState, batch: Batch, key: jax.Array) -> tuple[Mapping[str, Views], Tree]:
        """What the teachers say to every view, and their next variables."""
        own, views = state.teachers, []
        for view, seen in enumerate(batch.images):
            view_key = jax.random.fold_in(key, VIEWS + view) if view else key
            outputs, own = self.teachers.forward(own, state.params["peers"], seen, view_key)
            views.append(outputs)
        return {name: tuple(outputs[name] for outputs in views) for name in self.teachers.kinds}, own

    def step(self, state: TrainState, sums: Totals, feed: Feed) -> tuple[TrainState, Totals]:
        """One step of training, not compiled."""
        rate = feed.rates[state.step % self.steps_per_epoch]
        clock = Clock(state.step, state.step // self.steps_per_epoch, jnp.int32(self.settings.epochs), rate)
        forward_key = batches.step_keys(feed.key, state.step)[1]
        batch, _ = self.batch_at(state.step, feed)
        by_teachers, teachers = self._taught(state, batch, jax.random.fold_in(forward_key, VIEWS))
        batch = batch._replace(teachers=by_teachers)
        gradient = jax.value_and_grad(self.objective, has_aux=True)
        (loss, (terms, views, stats, method_state)), grads = gradient(state.params, state, batch, clock, forward_key)
        updates, optimizer = self._optimizer[0].update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, rate)
        teachers = self.teachers.follow(teachers, params["peers"], state.step)
        values = {name: term.mean() for name, term in terms.items()}
        values |= {"loss": loss, "accuracy": mixed_accuracy(self.method.students(views[0]), batch.targets[0])}
        after = TrainState(state.step + 1, params, stats, method_state, optimizer, teachers)
        return after, totals.add(sums, values, after.step)

    @functools.cached_property
    def train_steps(self) -> jax.stages.Wrapped:
        """`train_steps(state, totals, feed, count) -> (state, totals)`, compiled.

        Does the next `count` steps, or fewer where something is no longer finite, and takes over the memory of `state`.
        Where `steps_per_call` is 1 it does one: for a CPU, XLA compiles the gradient of a convolution inside a loop to
        something some 20 times slower.
        """

        def train(state: TrainState, sums: Totals, feed: Feed, count: jax.Array) -> tuple[TrainState, Totals]:
            if self.steps_per_call == 1:
                return self.step(state, sums, feed)
            end = state.step + count  # data, so that the shorter call at the end of an epoch runs the same program

            def goes_on(carry: tuple[TrainState, Totals]) -> jax.Array:
                return (carry[0].step < end) & totals.finite(carry[1])

            return jax.lax.while_loop(goes_on, lambda carry: self.step(*carry, feed), (state, sums))

        return compiled(train, donate=0)

    def first_batch(self) -> tuple[Batch, Mix]:
        """The batch of step 0 as training sees it."""
        return compiled(functools.partial(self.batch_at, 0), once=True)(self.feed(0))

    # Evaluation.

    @functools.cached_property
    def _count(self) -> jax.stages.Wrapped:
        def count(state: TrainState, data: Data, start: jax.Array) -> Right:
            index = start + jnp.arange(self.settings.eval_batch_size)
            valid = index < len(data.labels)
            rows = jnp.where(valid, index, 0)
            images, labels = batches.normalised(data.images[rows], self.dataset), data.labels[rows]

            def right(scores: jax.Array) -> jax.Array:
                return jnp.sum((scores.argmax(-1) == labels) & valid)

            outputs = self._evaluated(state, images)
            students = self.method.students(outputs)
            ensemble = jnp.mean(jnp.stack([jax.nn.softmax(out.logits) for out in students]), axis=0)
            heads = self.method.heads(state.params["method"], state.method_state, outputs)
            heads |= self.teachers.heads(state.teachers, state.params["peers"], images)
            return Right(
                tuple(right(out.logits) for out in students),
                right(ensemble),
                {name: right(logits) for name, logits in heads.items()},
            )

        return compiled(count)

    def _evaluated(self, state: TrainState, images: jax.Array) -> tuple[Outputs, ...]:
        """What the networks say to images [n, H, W, C] that are not trained on."""
        key = jax.random.key(0)  # nothing is drawn in evaluation
        outputs, _ = self.peers.forward(state.params["peers"], state.batch_stats, images[None], False, key)
        return outputs

    def evaluate(self, state: TrainState, data: Data | None = None) -> Accuracies:
        """Exact accuracies: every image counts once, whatever their number and the size of the batches.

        Args:
          state: whose networks to evaluate.
          data: M images; the test set where there are none.
        """
        data = self.test_data if data is None else data
        size = len(data.labels)
        counts = [self._count(state, data, start) for start in range(0, size, self.settings.eval_batch_size)]
        counts = jax.device_get(counts)  # one wait for all of them
        return Accuracies(*jax.tree.map(lambda *of_batches: sum(map(int, of_batches)) / size, *counts))

    def calibrate(self, state: TrainState) -> TrainState:
        """Shows a method that asks for it what its peers say of the images that are held out."""
        if not self.method.calibrates:
            return state
        assert self.held_out
        size, most = len(self.held_out.labels), self.settings.eval_batch_size
        logits = [self._logits(state, self.held_out, start) for start in range(0, size, most)]
        joined = jnp.concatenate(logits, axis=1)[:, :size]
        return state._replace(method_state=self._calibrated(state.method_state, joined, self.held_out.labels))

    @functools.cached_property
    def _logits(self) -> jax.stages.Wrapped:
        def logits(state: TrainState, data: Data, start: jax.Array) -> jax.Array:
            rows = jnp.minimum(start + jnp.arange(self.settings.eval_batch_size), len(data.labels) - 1)
            outputs = self._evaluated(state, batches.normalised(data.images[rows], self.dataset))
            return jnp.stack([out.logits for out in outputs])

        return compiled(logits)

    @functools.cached_property
    def _calibrated(self) -> jax.stages.Wrapped:
        return compiled(self.method.calibrate)


def mixed_accuracy(outputs: tuple[Outputs, ...], targets: jax.Array) -> jax.Array:
    """Mean over peers and images of how often the likeliest class is the larger share of the mixed label; a scalar."""
    hits = [(out.logits.argmax(-1) == targets[j].argmax(-1)).mean() for j, out in enumerate(outputs)]
    return jnp.stack(hits).mean()


def term_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """The names of a method's terms for peers of these sizes, in its order; nothing is computed."""
    shape: Any = jax.ShapeDtypeStruct
    n = 2

    def outputs(size: int) -> Outputs:
        trunk = shape((n, spec.trunk_size), jnp.float32) if spec.trunk_size else None
        return Outputs(shape((n, spec.num_classes), jnp.float32), shape((n, size), jnp.float32), trunk)

    views: Views = (tuple(map(outputs, spec.feature_sizes)),) * len(method.views)
    targets = shape((len(views), len(spec.feature_sizes), n, spec.num_classes), jnp.float32)
    rows = shape((n,), jnp.int32)
    batch = Batch(shape((), jnp.float32), targets, rows, rows, dict.fromkeys(method.teachers, views))
    whole = shape((), jnp.int32)
    clock = Clock(whole, whole, whole, shape((), jnp.float32))
    params, state = jax.eval_shape(lambda key: method.init(key, spec), jax.eval_shape(jax.random.key, 0))
    names: list[str] = []

    def loss(*arguments: Tree) -> tuple[Terms, Tree]:
        terms, after = method.loss(*arguments)
        names.extend(terms)  # here, because a tree's own order is that of the names
        return terms, after

    jax.eval_shape(loss, params, state, views, batch, clock)
    return tuple(names)
