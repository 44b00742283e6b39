"""Exact accuracies, and what a method is shown of images that are not trained on."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax.compiler import compiled
from cutnmix_jax.engine import batches
from cutnmix_jax.engine.batches import Data
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.devices import ONE, Devices
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.engine.placement import Placed, in_parts
from cutnmix_jax.method import Method
from cutnmix_jax.types import Dataset, Outputs, TrainState


class Accuracies(NamedTuple):
    """The share of the images that each classifier gets right; within `Evaluator`, of a batch, their number as int32.

    Attributes:
      peers: of each peer, leaders left out.
      ensemble: of the mean of the peers' probabilities.
      heads: of what else the method and its teachers report.
    """

    peers: tuple[Any, ...]
    ensemble: Any
    heads: dict[str, Any]

    @property
    def mean(self) -> float:
        """Over the peers: the main result."""
        return sum(self.peers) / len(self.peers)


class Answers(NamedTuple):
    """What classifiers say to M images.

    Attributes:
      peers: the `Outputs` of each peer, leaders left out.
      ensemble: [M, K] float32, the logarithm of the mean of the peers' probabilities.
      heads: of what else the method and its teachers report: a name -> logits [M, K].
    """

    peers: tuple[Outputs, ...]
    ensemble: Any
    heads: dict[str, Any]


def log_mean(logits: Sequence[jax.Array]) -> jax.Array:
    """The logarithm of the mean of the probabilities of J networks, J times [n, K] to [n, K].

    Finite where a probability is too small for a float32.
    """
    each = jnp.stack([jax.nn.log_softmax(one) for one in logits])
    return jax.nn.logsumexp(each, axis=0) - jnp.log(jnp.float32(len(logits)))


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Shows images to the networks of a run, in batches of one size.

    Attributes:
      method: says which networks count as peers, and what else is reported.
      peers: the networks.
      companions: of which means are reported, too.
      dataset: for its mean and deviation.
      batch_size: images at once; of several devices a multiple of their number.
      devices: of the run.
    """

    method: Method
    peers: Peers
    companions: Companions
    dataset: Dataset
    batch_size: int
    devices: Devices = ONE

    @functools.cached_property
    def _count(self) -> jax.stages.Wrapped:
        def count(state: TrainState, data: Data, start: jax.Array, end: jax.Array) -> Accuracies:
            index = start + jnp.arange(self.batch_size)
            valid = index < end
            rows = jnp.where(valid, index, 0)
            labels = data.labels[rows]

            def right(scores: jax.Array) -> jax.Array:
                return jnp.sum((scores.argmax(-1) == labels) & valid)

            students, ensemble, heads = self._said(state, self._images(data, rows))
            return Accuracies(
                tuple(right(out.logits) for out in students),
                right(ensemble),
                {name: right(logits) for name, logits in heads.items()},
            )

        return compiled(count)

    def _images(self, data: Data, rows: jax.Array) -> jax.Array:
        # A part of images that are on the host is all that is there; it is split already.
        images = data.images if len(data.images) == self.batch_size else data.images[rows]
        return batches.normalised(self.devices.split_batch(images, 0), self.dataset.mean, self.dataset.std)

    def _said(
        self, state: TrainState, images: jax.Array
    ) -> tuple[tuple[Outputs, ...], jax.Array, dict[str, jax.Array]]:
        """What the peers say, their `log_mean`, and the logits of what else is reported."""
        outputs = self._evaluated(state, images)
        students = self.method.students(outputs)
        ensemble = log_mean([out.logits for out in students])
        heads = self.method.heads(state.params["method"], state.method_state, outputs)
        heads |= self.companions.heads(state.teachers, state.params["peers"], state.batch_stats, images)
        return students, ensemble, heads

    def _evaluated(self, state: TrainState, images: jax.Array) -> tuple[Outputs, ...]:
        """What the networks say to images [n, H, W, C] that are not trained on."""
        key = jax.random.key(0)  # nothing is drawn in evaluation
        outputs, _ = self.peers.forward(state.params["peers"], state.batch_stats, images[None], False, key)
        return outputs

    def accuracies(self, state: TrainState, data: Placed) -> Accuracies:
        """Every one of M images counts once, whatever their number and the size of the batches."""
        size = len(data.labels)
        counts = [self._count(state, *part) for part in in_parts(data, self.batch_size, self.devices)]
        counts = jax.device_get(counts)  # one wait for all of them
        return jax.tree.map(lambda *of_batches: sum(map(int, of_batches)) / size, *counts)

    def answers(self, state: TrainState, data: Placed) -> Answers:
        """What every classifier says to each of M images, on the host."""
        size = len(data.labels)
        parts = [jax.device_get(self._answer(state, *part)) for part in in_parts(data, self.batch_size, self.devices)]
        return jax.tree.map(lambda *of_batches: np.concatenate(of_batches)[:size], *parts)

    @functools.cached_property
    def _answer(self) -> jax.stages.Wrapped:
        def answer(state: TrainState, data: Data, start: jax.Array, end: jax.Array) -> Answers:
            rows = jnp.minimum(start + jnp.arange(self.batch_size), end - 1)
            return self.devices.split(Answers(*self._said(state, self._images(data, rows))))

        return compiled(answer)

    def calibrated(self, state: TrainState, data: Placed) -> TrainState:
        """Shows the method what its peers say of images that are held out."""
        size = len(data.labels)
        logits = [self._logits(state, *part) for part in in_parts(data, self.batch_size, self.devices)]
        joined = jnp.concatenate(logits, axis=1)[:, :size]
        return state._replace(method_state=self._calibrated(state.method_state, joined, data.labels))

    @functools.cached_property
    def _logits(self) -> jax.stages.Wrapped:
        def logits(state: TrainState, data: Data, start: jax.Array, end: jax.Array) -> jax.Array:
            rows = jnp.minimum(start + jnp.arange(self.batch_size), end - 1)
            outputs = self._evaluated(state, self._images(data, rows))
            return self.devices.split(jnp.stack([out.logits for out in outputs]))

        return compiled(logits)

    @functools.cached_property
    def _calibrated(self) -> jax.stages.Wrapped:
        return compiled(self.method.calibrate)
