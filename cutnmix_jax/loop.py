"""The epochs of a run: train, evaluate, write the row, save; and what can come between."""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import console, metrics, rows
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.digests import DIVERGED
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.feeding import Feeds
from cutnmix_jax.engine.state import Saved
from cutnmix_jax.errors import DivergedError, StoppedError
from cutnmix_jax.rows import Speed
from cutnmix_jax.signals import Stop
from cutnmix_jax.types import NEVER, EpochRow, Totals

STEPS_IN_FLIGHT = 40  # how far the host may run ahead of the device, and so see late that something diverged


OnEpoch = Callable[[EpochRow], object]


class CallerError(Exception):
    """What the caller's `on_epoch` raised is its `__cause__`, so that nothing of it is taken for an error of ours."""


def nothing(row: EpochRow) -> None:
    """What is called after an epoch where nobody asks for more."""


class Began(NamedTuple):
    """How this start of a run began.

    Attributes:
      start: when, by `time.monotonic()`.
      compiling: the seconds that compiling took before the first call.
      then: what is left to do once the first step is trained, for which nobody need wait so long.
    """

    start: float
    compiling: float
    then: Callable[[], None] = lambda: None


def train(
    engine: Engine,
    saved: Saved,
    checkpoints: Checkpoints,
    files: metrics.Metrics,
    stop: Stop,
    began: Began | None = None,
    on_epoch: OnEpoch = nothing,
) -> Saved:
    """Trains what is left of a run.

    Args:
      engine: what to train.
      saved: where to begin.
      checkpoints: where to save.
      files: where the rows go.
      stop: says when to stop.
      began: when; now, where nothing is said.
      on_epoch: called with each row, once it is written.

    Returns:
      What was saved last.

    Raises:
      StoppedError: it was told to stop, and has saved.
      DivergedError: something is not finite; what was saved before is left as it was.
      CheckpointError: it cannot be saved, or its folder is not there any more.
      CallerError: `on_epoch` has raised; what was trained is saved.
    """
    total, settings = engine.total_steps, engine.settings
    every = settings.checkpoint.every_steps
    reached = int(saved.state.step)
    saved_at, speed = time.monotonic(), Speed()
    began = began or Began(saved_at, 0.0)
    saved = saved._replace(seconds=saved.seconds + began.compiling)
    earlier = float(saved.wall_seconds)
    feeds = engine.feeds()
    with console.Display(total, reached, settings.batch_size, engine.devices.count) as display:
        while reached < total:
            epoch = reached // engine.steps_per_epoch + 1
            end = epoch * engine.steps_per_epoch
            until = min(end, (reached // every + 1) * every) if every else end
            deadline = saved_at + 60 * (settings.checkpoint.every_minutes or math.inf)
            saved, speed = _train_until(engine, feeds, saved, until, deadline, speed, display, stop, began)
            reached = int(saved.state.step)
            _check_finite(saved.totals, engine)
            stop.defer()
            refused, due = None, time.monotonic() >= deadline or (every is not None and reached % every == 0)
            if reached == end:
                saved, is_best, refused = _end_epoch(engine, saved, speed, files, display, on_epoch)
                speed = Speed()
                due |= is_best or epoch % settings.checkpoint.every_epochs == 0
            last = reached == total
            stopping = stop.requested and not last  # read once: the signal may come at any time
            if stopping and not reached:
                raise StoppedError("stopped before a new step was trained; the same command begins where this one did")
            saved = saved._replace(wall_seconds=jnp.float32(earlier + time.monotonic() - began.start))
            if due or last or stopping or refused:
                _save(engine, checkpoints, files, saved, last or stopping or refused is not None)
                saved_at = time.monotonic()
            if refused:
                raise CallerError from refused
            if stopping:
                raise StoppedError(f"stopped and saved at step {reached}; the same command continues")
    return engine.collected(saved)


def _end_epoch(
    engine: Engine, saved: Saved, speed: Speed, files: metrics.Metrics, display: console.Display, on_epoch: OnEpoch
) -> tuple[Saved, bool, Exception | None]:
    """Evaluates after an epoch and writes its row.

    Returns:
      What the next epoch begins with, whether this one is the best so far, and what `on_epoch` raised.
    """
    # First, so that what is evaluated is what is saved.
    saved = saved._replace(state=engine.calibrate(saved.state))
    row, refused = rows.of_epoch(engine, saved, speed), None
    files.append(row)
    display.epoch_done(row, engine.settings.epochs)
    try:
        on_epoch(dict(row))
    except Exception as error:
        refused = error
    begun = saved._replace(totals=engine.zero_totals(), seconds=jnp.zeros(()))
    return begun, metrics.ranked(files.rows)[0] is row, refused


def _save(engine: Engine, checkpoints: Checkpoints, files: metrics.Metrics, saved: Saved, ends: bool) -> None:
    """Begins to save a state, or has it and all rows on disk where this start ends with it."""
    reached, first = int(saved.state.step), not checkpoints.steps()
    (checkpoints.finish if ends else checkpoints.save)(reached, engine.collected(saved), files.rows)
    if ends or first:  # a run that cannot write its rows ends now, and not after all epochs
        files.settle()


def _train_until(
    engine: Engine,
    feeds: Feeds,
    saved: Saved,
    until: int,
    deadline: float,
    speed: Speed,
    display: console.Display,
    stop: Stop,
    began: Began,
) -> tuple[Saved, Speed]:
    """Trains to a step of the epoch, or to the end of the call in which the deadline passes or a stop is requested.

    Returns:
      What to save, and the epoch's speed so far.
    """
    state, totals, seconds, _ = saved
    begun = timed = time.monotonic()
    reached = start = first = int(state.step)
    epoch = start // engine.steps_per_epoch
    before = epoch * engine.steps_per_epoch
    in_flight: deque[tuple[int, Totals]] = deque()
    looked = start
    # A call at least, or a run that is saved all the time would not move.
    while reached < until and not stop.requested and (reached == start or time.monotonic() < deadline):
        count = min(engine.steps_per_call, until - reached)
        state, totals = engine.train_steps(state, totals, feeds.at(reached), count)
        reached += count
        in_flight.append((reached, totals))
        if reached - count == start:
            jax.block_until_ready(totals)
            stop.defer()
            now = time.monotonic()
            if not display.has_started:
                display.started(began.compiling + now - begun, now - began.start)
                began.then()
                drawing = time.monotonic() - now  # is no training
                begun, timed = begun + drawing, timed + drawing
                display.measure(reached)
            if reached < until:
                timed, first = time.monotonic(), reached
        # Waiting for an older call bounds how late a stop is noticed, and leaves the device enough to do meanwhile.
        if len(in_flight) > 1 and reached - in_flight[0][0] >= min(STEPS_IN_FLIGHT, engine.steps_per_call * 4):
            done, finished = in_flight.popleft()
            jax.block_until_ready(finished)
            if done - looked >= STEPS_IN_FLIGHT:
                looked = done
                _check_finite(finished, engine)
            if display.due:
                display.update(epoch, engine.settings.epochs, done, rows.means(engine, finished, done - before))
    jax.block_until_ready(totals)
    now = time.monotonic()
    speed = Speed(speed.images + (reached - first) * engine.settings.batch_size, speed.seconds + now - timed)
    return saved._replace(state=state, totals=totals, seconds=seconds + (now - begun)), speed


def _check_finite(totals: Totals, engine: Engine) -> None:
    """Raises DivergedError with the first step in which a metric was not finite, and which ones were not."""
    broken = {name: int(first) for name, first in jax.device_get(totals.broken).items()}
    first = min(broken.values())
    if first < NEVER:
        epoch = (first - 1) // engine.steps_per_epoch + 1
        names = [name for name in engine.metrics if broken[name] == first]
        what = f"training diverged at step {first}, in epoch {epoch}: {', '.join(names)} not finite"
        if first == 1:  # no learning rate is to blame
            raise DivergedError(
                f"{what}; nothing had changed yet: look at the networks' first weights and at the images"
            )
        raise DivergedError(f"{what}; {DIVERGED}")
