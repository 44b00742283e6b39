"""Runs that differ in their seed alone, trained by one program: their steps are one step of stacked networks.

Each run keeps its own thread, which does all that a run does alone; only the steps are taken together. A small network
leaves most of a GPU idle at small batches, which waits for launches, and one program launches far fewer for three seeds
than three programs.
"""

import contextlib
import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax import compiler
from cutnmix_jax.engine import calls
from cutnmix_jax.engine.batches import Data
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.state import Feed
from cutnmix_jax.types import Totals, TrainState, Tree

Stepped = tuple[TrainState, Totals]


def train_steps(engine: Engine) -> Any:
    """Makes `train_steps(states, totals, data, feeds, count) -> (states, totals)`, compiled.

    Each but `data` and `count` is a tuple with an entry per run, of a feed all but its data. It does the next `count`
    steps of every run, or fewer where no run is finite any more, and reuses the memory of `states`.

    Args:
      engine: of one of the runs; the others differ in their seed.
    """

    def train(
        states: Sequence[TrainState], totals: Sequence[Totals], data: Data, feeds: Sequence[tuple], count: jax.Array
    ) -> tuple[tuple[TrainState, ...], tuple[Totals, ...]]:
        feed = _stacked(feeds)

        def one(state: TrainState, sums: Totals, rest: tuple) -> Stepped:
            return engine.step(state, sums, Feed(data, *rest))

        def step(state: TrainState, sums: Totals) -> Stepped:
            return jax.vmap(one)(state, sums, feed)

        state, sums = _stacked(states), _stacked(totals)
        if engine.steps_per_call == 1:
            state, sums = step(state, sums)
        else:
            state, sums = calls.until(state.step + count, step, state, sums)
        return _apart(state, len(states)), _apart(sums, len(states))

    return compiler.compiled(train, donate=0)


def _stacked(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _apart(tree: Tree, count: int) -> tuple[Tree, ...]:
    return tuple(jax.tree.map(lambda leaf, number=number: leaf[number], tree) for number in range(count))


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What a run waits for."""

    state: TrainState
    totals: Totals
    feed: Feed
    count: int


class Joint:
    """The steps of several runs, each of which asks for its own from a thread of its own.

    A call goes out when every run waits for one, or has left. What it computes with is always as many runs: in the
    place of one that is not there stands a copy of another, so that the bits of a run do not depend on when others end,
    and nothing is compiled anew.
    """

    def __init__(self, count: int, after_call: Callable[[], None] = lambda: None):
        """Makes places for runs.

        Args:
          count: of runs.
          after_call: called after each call, before any run goes on.
        """
        self.count = count
        self._after_call = after_call
        self._changed = threading.Condition()
        self._first: Engine | None = None
        self._waiting: dict[int, _Asked] = {}
        self._answers: dict[int, Stepped | Exception] = {}
        self._left = 0

    def engine(self, number: int, settings: Any, make: Callable[[], Engine]) -> Engine:
        """The engine of a run: the first one is made, the others share all but the seed with it.

        Args:
          number: of the run, from 0.
          settings: of the run.
          make: makes an engine of these settings.
        """
        with self._changed:
            is_first = self._first is None
            self._first = made = self._first or make()
            fields = {field.name: getattr(made, field.name) for field in dataclasses.fields(Engine)}
            return _Member(**(fields | {"settings": settings}), joint=self, number=number, compiles=is_first)

    def train_steps(self, number: int, state: TrainState, totals: Totals, feed: Feed, count: int) -> Stepped:
        """What `Engine.train_steps` is for a run alone."""
        with self._changed:
            self._waiting[number] = _Asked(state, totals, feed, count)
            self._go_if_all_wait()
            self._changed.wait_for(lambda: number in self._answers)
            answer = self._answers.pop(number)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def leave(self) -> None:
        """A run asks for nothing any more; each says so once."""
        with self._changed:
            self._left += 1
            self._go_if_all_wait()

    def compiled_beside(self, engine: Engine) -> contextlib.AbstractContextManager[None]:
        """While entered, compiles the program that all runs share."""
        saved, feed = engine.shapes, engine.feed_shapes
        states, totals = (saved.state,) * self.count, (saved.totals,) * self.count
        feeds = (feed[1:],) * self.count
        return compiler.compiled_beside(self._program, states, totals, feed.data, feeds, 1)

    @functools.cached_property
    def _program(self) -> Any:
        assert self._first
        return train_steps(self._first)

    def _go_if_all_wait(self) -> None:
        if not self._waiting or len(self._waiting) + self._left < self.count:
            return
        waiting, self._waiting = self._waiting, {}
        # Runs that do not stand at the same step, after a kill for instance, may be nearer to the end of their epochs.
        for count in {asked.count for asked in waiting.values()}:
            alike = {number: asked for number, asked in waiting.items() if asked.count == count}
            try:
                self._answers |= dict(zip(alike, self._call(list(alike.values()), count), strict=True))
            except Exception as error:
                self._answers |= dict.fromkeys(alike, error)
        self._after_call()
        self._changed.notify_all()

    def _call(self, asked: Sequence[_Asked], count: int) -> list[Stepped]:
        missing = self.count - len(asked)
        states = [one.state for one in asked]
        states += [jax.tree.map(jnp.copy, states[0]) for _ in range(missing)]  # their memory is used again
        totals = [one.totals for one in asked] + [asked[0].totals] * missing
        feeds = [one.feed[1:] for one in asked]
        feeds += [feeds[0]] * missing
        after = self._program(tuple(states), tuple(totals), asked[0].feed.data, tuple(feeds), count)
        return list(zip(*after, strict=True))[: len(asked)]


@dataclasses.dataclass(frozen=True, eq=False)
class _Member(Engine):
    """The engine of a run whose steps are taken together with those of others.

    Attributes:
      joint: where.
      number: of the run.
      compiles: whether it is the one that compiles the program.
    """

    joint: Joint
    number: int
    compiles: bool

    @property
    def runs_in_program(self) -> int:
        """How many runs one program trains."""
        return self.joint.count

    @property
    def train_steps(self) -> Callable[..., Stepped]:
        """As of an engine alone."""
        return lambda *asked: self.joint.train_steps(self.number, *asked)

    def compiled_beside(self) -> contextlib.AbstractContextManager[None]:
        """As of an engine alone; once for all runs."""
        return self.joint.compiled_beside(self) if self.compiles else contextlib.nullcontext()
