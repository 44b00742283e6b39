"""What trains and evaluates the networks of a run: one object that has all of it, put together by `assemble.engine`.

Everything random is a pure function of (seed, purpose, step or epoch), so the step number in the state is all there is
to know about where in the data a run stands.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from cutnmix_jax.compiler import compiled, compiled_beside
from cutnmix_jax.engine import batches, calls, feeding, fresh, optim, passes
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.devices import Devices
from cutnmix_jax.engine.evaluation import Accuracies, Evaluator
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.engine.placement import Placed
from cutnmix_jax.engine.state import Feed, Saved
from cutnmix_jax.engine.terms import added, mixed_accuracy, weight, zero_totals
from cutnmix_jax.method import Method
from cutnmix_jax.names import term_names
from cutnmix_jax.objective import weighted
from cutnmix_jax.settings import Settings
from cutnmix_jax.types import Batch, Clock, Dataset, Mix, Spec, Terms, Totals, TrainState, Tree, Views


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """The networks, the method, the optimizer and the data of a run.

    Attributes:
      settings: of the run.
      dataset: all of its images.
      spec: what the method knows of them.
      peers: the networks.
      companions: those beside them, which no gradient trains.
      devices: on which it is trained.
      make_batch: from rows of the training set to what the networks see.
      train_data: without what is held out.
      test_data: that it is tested on.
      held_out: images that are not trained on, for a method that asks; else None.
      validation_data: images that are not trained on, to choose the best epoch by; None where the test set does.
      load_start: reads what the peers begin as, see `peers.begun`; None where they begin at random.
      steps_per_call: training steps in each compiled call.
    """

    settings: Settings
    dataset: Dataset
    spec: Spec
    peers: Peers
    companions: Companions
    devices: Devices
    make_batch: batches.BatchMaker
    train_data: Placed
    test_data: Placed
    held_out: Placed | None
    validation_data: Placed | None
    load_start: Callable[[], Mapping[str, jax.Array]] | None
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
    def runs_in_program(self) -> int:
        """How many runs are trained by one program, see `joint`."""
        return 1

    @property
    def total_steps(self) -> int:
        """Of the whole run."""
        return self.settings.epochs * self.steps_per_epoch

    @functools.cached_property
    def _optimizer(self) -> tuple[optax.GradientTransformation, optim.Schedule]:
        return optim.make(self.settings.optimizer, self.steps_per_epoch, self.total_steps, self.devices)

    def learning_rate(self, epoch: int) -> float:
        """The one at the start of an epoch, 0-based."""
        return float(self._epochs.rates(epoch)[0])

    def init(self) -> Saved:
        """The state before the first step."""
        return self.placed(self.drawn())

    def drawn(self) -> Saved:
        """The state before the first step, whole on one device."""
        saved = compiled(self._fresh, once=True)(self.key, self.load_start() if self.load_start else {})
        teachers = self.companions.with_loaded(saved.state.teachers)
        return saved._replace(state=saved.state._replace(teachers=teachers))

    @functools.cached_property  # to trace it takes a tenth of a second and more
    def shapes(self) -> Saved:
        """Shapes and types of what `init` returns."""
        return jax.eval_shape(self._fresh, self.key, {})

    def _fresh(self, key: jax.Array, start: Mapping[str, jax.Array]) -> Saved:
        return fresh.state(self, self._optimizer[0], key, start)

    def begin(self) -> Saved:
        """`init`, with the step and what draws an epoch compiled meanwhile."""
        with self.compiled_beside():
            saved = jax.block_until_ready(self.init())
            jax.block_until_ready(self.feed(0))
        return saved

    def placed(self, saved: Saved) -> Saved:
        """A state that is whole on one device, as the steps take it."""
        return self.devices.put_state(saved)

    def collected(self, saved: Saved) -> Saved:
        """A state as it is saved: whole on one device."""
        return self.devices.collected(saved)

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
        return zero_totals(self.metrics)

    # Training.

    def feed(self, epoch: int) -> Feed:
        """What the steps of an epoch, 0-based, are made of; without images where they are on the host."""
        return self._epochs.feed(epoch)

    @functools.cached_property
    def _epochs(self) -> feeding.Epochs:
        sizes = self.steps_per_epoch, self.settings.batch_size
        return feeding.Epochs(self.key, self.train_data, self.make_batch, *sizes, self._optimizer[1], self.devices)

    def feeds(self) -> feeding.Feeds:
        """What the calls of a run are made of, one after the other."""
        return feeding.make(self._epochs, self.steps_per_call, self.method.views)

    @functools.cached_property
    def feed_shapes(self) -> Feed:
        """What the feed of a call looks like, with nothing drawn."""
        return self.feeds().shapes()

    def batch_at(self, step: jax.Array | int, feed: Feed) -> tuple[Batch, Mix]:
        """The batch of a step, counted from 0, out of the feed of its epoch or call."""
        place = (step - feed.first) % len(feed.rows)
        rows, draws = jax.tree.map(lambda leaf: leaf[place], (feed.rows, feed.draws))
        return self.make_batch.make(feed.data, rows, draws)

    def objective(
        self, params: Tree, state: TrainState, batch: Batch, clock: Clock, key: jax.Array
    ) -> tuple[jax.Array, tuple[Terms, Views, Tree, Tree]]:
        """The sum over terms of weight times the sum over peers (Eq. 8).

        Returns:
          The loss; and the terms, the outputs of the networks, their next batch statistics and the method's next state.
        """
        by_view, stats = passes.of_peers(self.peers, params["peers"], state.batch_stats, batch.images, key)
        terms, method_state = self.method.loss(params["method"], state.method_state, by_view, batch, clock)
        loss = weighted(terms, lambda name: weight(name, self.settings, clock))
        return loss, (terms, by_view, stats, method_state)

    def step(self, state: TrainState, sums: Totals, feed: Feed) -> tuple[TrainState, Totals]:
        """One step of training, not compiled."""
        place = (state.step - feed.first) % len(feed.rows)
        rate, forward_key = feed.rates[place], feed.keys[place]
        clock = Clock(state.step, state.step // self.steps_per_epoch, jnp.int32(self.settings.epochs), rate)
        batch, _ = self.batch_at(state.step, feed)
        by_teachers, teachers = passes.of_companions(self.companions, state, batch.images, forward_key)
        batch = batch._replace(teachers=by_teachers)
        gradient = jax.value_and_grad(self.objective, has_aux=True)
        (loss, (terms, by_view, stats, method_state)), grads = gradient(state.params, state, batch, clock, forward_key)
        updates, optimizer = self._optimizer[0].update(grads, state.opt_state, state.params)
        params = optim.apply(state.params, updates, rate)
        teachers = self.companions.follow(teachers, params["peers"], stats, state.step)
        values = {name: term.mean() for name, term in terms.items()}
        values |= {"loss": loss, "accuracy": mixed_accuracy(self.method.students(by_view[0]), batch.targets[0])}
        after = TrainState(state.step + 1, params, stats, method_state, optimizer, teachers)
        return after, added(sums, values, after.step)

    @functools.cached_property
    def train_steps(self) -> Any:
        """`train_steps(state, totals, feed, count) -> (state, totals)`, compiled.

        Does the next `count` steps, or fewer where something is no longer finite, and reuses the memory of `state`.
        Where `steps_per_call` is 1 it does one: for a CPU, XLA compiles the gradient of a convolution inside a loop to
        something some 20 times slower.
        """

        def train(state: TrainState, sums: Totals, feed: Feed, count: jax.Array) -> tuple[TrainState, Totals]:
            if self.steps_per_call == 1:
                return self.step(state, sums, feed)
            return calls.until(state.step + count, lambda before, totals: self.step(before, totals, feed), state, sums)

        return compiled(train, donate=0, **self.devices.of_steps(self.shapes.state, self.feed_shapes))

    def compiled_beside(self) -> contextlib.AbstractContextManager[None]:
        """While entered, compiles `train_steps` in another thread."""
        saved = self.shapes
        return compiled_beside(self.train_steps, saved.state, saved.totals, self.feed_shapes, 1)

    def first_batch(self) -> tuple[Batch, Mix]:
        """The batch of step 0 as training sees it."""
        made = compiled(functools.partial(self.batch_at, 0), once=True, **self.devices.whole_results)
        return made(self.feeds().at(0))

    # Evaluation.

    @functools.cached_property
    def _evaluator(self) -> Evaluator:
        size = self.devices.whole_parts(self.settings.eval_batch_size)
        return Evaluator(self.method, self.peers, self.companions, self.dataset, size, self.devices)

    def evaluate(self, state: TrainState, data: Placed | None = None) -> Accuracies:
        """Exact accuracies on some images; on the test set where there are none."""
        return self._evaluator.accuracies(state, self.test_data if data is None else data)

    def calibrate(self, state: TrainState) -> TrainState:
        """Shows a method that asks for it what its peers say of the images that are held out."""
        if not self.method.calibrates:
            return state
        assert self.held_out
        return self._evaluator.calibrated(state, self.held_out)
