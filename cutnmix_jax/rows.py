"""The row of `metrics.jsonl` for an epoch: what was measured in training, and the accuracies after it."""

import time
from typing import NamedTuple

import jax

from cutnmix_jax import metrics
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.state import Saved
from cutnmix_jax.types import EpochRow, Totals, TrainState


class Speed(NamedTuple):
    """Images per second of an epoch, without the first call, which may compile, where there are others."""

    images: int = 0
    seconds: float = 0.0


def of_epoch(engine: Engine, saved: Saved, speed: Speed) -> EpochRow:
    """The row of the epoch that was just finished."""
    begun, step = time.monotonic(), int(saved.state.step)
    epoch = step // engine.steps_per_epoch - 1
    trained = means(engine, saved.totals, engine.steps_per_epoch)
    tested = _tested(engine, saved.state) if engine.settings.is_evaluated(epoch + 1) else {}
    seconds = float(saved.seconds) + time.monotonic() - begun
    return {
        "epoch": epoch + 1,
        "step": step,
        "learning_rate": float(f"{engine.learning_rate(epoch):.7g}"),
        **{f"train/{name}": value for name, value in trained.items()},
        **tested,
        "seconds": round(seconds, 3),
        "images_per_second": round(speed.images / max(speed.seconds, 1e-9), 1),
    }


def means(engine: Engine, totals: Totals, steps: int) -> dict[str, float]:
    """What was measured, as means over so many steps."""
    found = jax.device_get(totals.sums)
    return {name: float(found[name]) / max(steps, 1) for name in engine.metrics}


def _tested(engine: Engine, state: TrainState) -> EpochRow:
    """The accuracies on the test set and, where there is one, on the validation set."""
    found = {"test": engine.evaluate(state)}
    if engine.validation_data:
        found["validation"] = engine.evaluate(state, engine.validation_data)
    return {
        f"{images}/{name}": value
        for images, accuracies in found.items()
        for name, value in metrics.named(accuracies.mean, *accuracies).items()
    }
