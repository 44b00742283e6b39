"""Exact evaluation: every test image counts once, whatever the batch."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cutnmix_jax.batches import Data
from cutnmix_jax.compiler import compiled
from cutnmix_jax.peers import Peers, Teachers
from cutnmix_jax.step import NO_TEACHERS
from cutnmix_jax.types import Dataset, Method, TrainState

Evaluator = Callable[..., dict[str, jax.Array]]


def normalised(images: jax.Array, dataset: Dataset) -> jax.Array:
    """uint8 pixels [n, 32, 32, 3] as a network takes them, float32."""
    return (images.astype(jnp.float32) / 255 - dataset.mean) / dataset.std


def make_evaluator(
    *, peers: Peers, method: Method, dataset: Dataset, batch_size: int, teachers: Teachers = NO_TEACHERS
) -> Evaluator:
    """Makes the evaluation program.

    Returns:
      `count(state, data, start) -> {name: int32}`, compiled: how many of the test images from row `start` on, at most
      `batch_size`, each classifier gets right. The classifiers are `peer_0`, ..., `ensemble` (the mean of the peers'
      probabilities) and the heads of the method and of its teachers.
    """

    def count(state: TrainState, data: Data, start: jax.Array) -> dict[str, jax.Array]:
        index = start + jnp.arange(batch_size)
        valid = index < len(data.labels)
        rows = jnp.where(valid, index, 0)
        images = normalised(data.images[rows], dataset)
        outputs, _ = peers.forward(state.params["peers"], state.batch_stats, images, False, jax.random.key(0))
        students = outputs[: len(outputs) - method.leaders]
        scores = {f"peer_{j}": out.logits for j, out in enumerate(students)}
        scores["ensemble"] = jnp.mean(jnp.stack([jax.nn.softmax(out.logits) for out in students]), axis=0)
        scores |= method.heads(state.params["method"], state.method_state, outputs)
        scores |= teachers.heads(state.teachers, state.params["peers"], images)
        labels = data.labels[rows]
        return {name: jnp.sum((score.argmax(-1) == labels) & valid) for name, score in scores.items()}

    return compiled(count)


def make_calibrator(
    *, peers: Peers, method: Method, dataset: Dataset, held_out: Data, batch_size: int
) -> Callable[[TrainState], TrainState]:
    """Makes the function that shows a method what its peers say of images that are not trained on.

    Args:
      peers: the networks.
      method: one that has a `calibrate`.
      dataset: for its mean and deviation.
      held_out: M images.
      batch_size: how many at once.

    Returns:
      `calibrate(state) -> state`, which changes `method_state` alone.
    """
    assert method.calibrate
    finish = compiled(method.calibrate)

    @compiled
    def say(state: TrainState, start: jax.Array) -> jax.Array:
        rows = jnp.minimum(start + jnp.arange(batch_size), len(held_out.labels) - 1)
        images = normalised(held_out.images[rows], dataset)
        outputs, _ = peers.forward(state.params["peers"], state.batch_stats, images, False, jax.random.key(0))
        return jnp.stack([out.logits for out in outputs])

    def calibrate(state: TrainState) -> TrainState:
        size = len(held_out.labels)
        said = jnp.concatenate([say(state, start) for start in range(0, size, batch_size)], axis=1)[:, :size]
        return state._replace(method_state=finish(state.method_state, said, held_out.labels))

    return calibrate


def accuracies(evaluator: Evaluator, state: TrainState, data: Data, batch_size: int) -> dict[str, float]:
    """The accuracy of each classifier.

    Args:
      evaluator: from `make_evaluator`, with the same batch size.
      state: whose networks to evaluate.
      data: M test images.
      batch_size: how many at once; M need not be a multiple of it.

    Returns:
      {name: fraction of exactly M}, with `accuracy`, the mean over peers, besides the evaluator's names.
    """
    size = len(data.labels)
    batches = [evaluator(state, data, start) for start in range(0, size, batch_size)]
    counts = jax.device_get(batches)  # one wait for all of them
    fractions = {name: sum(int(count[name]) for count in counts) / size for name in counts[0]}
    peers = {name: fractions.pop(name) for name in list(fractions) if name.removeprefix("peer_").isdigit()}
    return {"accuracy": sum(peers.values()) / len(peers)} | peers | fractions
