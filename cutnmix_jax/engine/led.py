"""One engine in several processes: each call of it that all their devices take part in is told to the others.

What is computed is one program over all devices, which each process has to call, in the same order.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.evaluation import Accuracies
from cutnmix_jax.engine.feeding import Feeds
from cutnmix_jax.engine.placement import Placed
from cutnmix_jax.engine.state import Feed, Saved
from cutnmix_jax.types import Batch, Mix, Totals, TrainState

Tell = Callable[..., None]
Meet = Callable[[], None]


@dataclasses.dataclass(frozen=True, eq=False)
class _Led(Engine):
    """The engine of the process that leads.

    Attributes:
      inner: the same for a process alone.
      tell: tells the others the next command of `follow`.
      meet: waits until all others have come as far.
    """

    inner: Engine
    tell: Tell
    meet: Meet

    def begin(self) -> Saved:
        self.tell("begin")
        return _begun(self.inner, self.inner.drawn, self.meet)

    def placed(self, saved: Saved) -> Saved:
        self.tell("begin")
        return _begun(self.inner, lambda: saved, self.meet)

    def collected(self, saved: Saved) -> Saved:
        if self.devices.by_peer:
            self.tell("collected")
        return self.inner.collected(saved)

    def feeds(self) -> Feeds:
        return _Told(self.inner.feeds(), self.tell)

    @property
    def train_steps(self) -> Callable[..., tuple[TrainState, Totals]]:
        def steps(state: TrainState, totals: Totals, feed: Feed, count: int) -> tuple[TrainState, Totals]:
            self.tell("train_steps", count)
            return self.inner.train_steps(state, totals, feed, count)

        return steps

    def first_batch(self) -> tuple[Batch, Mix]:
        self.tell("first_batch")
        return self.inner.first_batch()

    def evaluate(self, state: TrainState, data: Placed | None = None) -> Accuracies:
        self.tell("evaluate", data is not None)
        return self.inner.evaluate(state, data)

    def calibrate(self, state: TrainState) -> TrainState:
        self.tell("end_epoch")
        return self.inner.calibrate(state)


class _Told:
    """The feeds of a run, of which the others get theirs at the same time."""

    def __init__(self, feeds: Feeds, tell: Tell):
        self._feeds, self._tell = feeds, tell

    def at(self, step: int) -> Feed:
        self._tell("at", step)
        return self._feeds.at(step)

    def shapes(self) -> Feed:
        return self._feeds.shapes()


def led(engine: Engine, tell: Tell, meet: Meet) -> Engine:
    """The same engine, for the process that leads the others."""
    fields = {field.name: getattr(engine, field.name) for field in dataclasses.fields(Engine)}
    return _Led(**fields, inner=engine, tell=tell, meet=meet)


def follow(engine: Engine, commands: Iterable[list[Any]], meet: Meet) -> tuple[int, str]:
    """Does what the process that leads tells.

    Args:
      engine: as that of the leading process, before `led`.
      commands: from that process; the last one is `end`.
      meet: says that this process has come as far.

    Returns:
      The exit code of the run, and why it is not 0.
    """
    feeds, feed = engine.feeds(), None
    none: Saved = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), engine.shapes)
    saved, state, totals = none, none.state, none.totals
    for name, *arguments in commands:
        if name == "end":
            return arguments[0], arguments[1]
        if name == "begin":
            saved = _begun(engine, lambda: none, meet)
            state, totals = saved.state, saved.totals
        elif name == "at":
            feed = feeds.at(*arguments)
        elif name == "train_steps":
            state, totals = engine.train_steps(state, totals, feed, *arguments)
        elif name == "end_epoch":
            state, totals = engine.calibrate(state), engine.zero_totals()
        elif name == "evaluate":
            engine.evaluate(state, engine.validation_data if arguments[0] else None)
        elif name == "collected":
            engine.collected(saved._replace(state=state, totals=totals))
        else:
            assert name == "first_batch", name
            engine.first_batch()
    raise AssertionError("the commands end with the run")


def _begun(engine: Engine, first: Callable[[], Saved], meet: Meet) -> Saved:
    """The leading process's first state in every process, once all have compiled the step: devices wait only so long.

    It is sent, and not drawn or read by each: another processor, or another file by the same name, has other numbers.
    """
    with engine.compiled_beside():
        saved = engine.placed(_sent(first()))
    meet()
    return saved


def _sent(saved: Saved) -> Saved:
    """The leading process's state, in every process; as bytes, because a sum of numbers would lose the sign of zero."""
    leaves, structure = jax.tree.flatten(jax.device_get(saved))
    sent = multihost_utils.broadcast_one_to_all([np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves])
    arrays = [np.asarray(data).view(leaf.dtype).reshape(leaf.shape) for data, leaf in zip(sent, leaves, strict=True)]
    return jax.tree.unflatten(structure, map(jnp.asarray, arrays))
