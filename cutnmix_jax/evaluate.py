"""Exact evaluation: every test image counts once, whatever the batch."""

import jax

from cutnmix_jax.step import Data, Evaluator
from cutnmix_jax.types import TrainState


def accuracies(evaluator: Evaluator, state: TrainState, data: Data, batch_size: int) -> dict[str, float]:
    """The accuracy of each classifier.

    Args:
      evaluator: from `step.make_evaluator`, with the same batch size.
      state: whose networks to evaluate.
      data: M test images.
      batch_size: how many at once; M need not be a multiple of it.

    Returns:
      {name: fraction of exactly M}, with `accuracy`, the mean over peers, besides the evaluator's names.
    """
    size = len(data.labels)
    batches = [evaluator(state.params, state.batch_stats, data, start) for start in range(0, size, batch_size)]
    counts = jax.device_get(batches)  # one wait for all of them
    fractions = {name: sum(int(count[name]) for count in counts) / size for name in counts[0]}
    peers = {f"peer_{j}": fractions.pop(f"peer_{j}") for j in range(len(state.batch_stats))}
    return {"accuracy": sum(peers.values()) / len(peers)} | peers | fractions
