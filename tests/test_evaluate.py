"""Evaluation is a count of every test image once, whatever their number and the batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import batches, evaluate, methods
from cutnmix_jax.types import Dataset, Outputs, TrainState

K = 10
FEW = (1, 2, 3, 16, 64, 100, 297, 500, 511, 512)


class Rules:
    """Two peers that follow arithmetic on one pixel, so that float32 is exact and numpy can tell what they say."""

    @staticmethod
    def forward(params, stats, images, train, key):
        pixel = jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)
        said = [jnp.eye(K)[(3 * pixel + 1) % K], 2 * jnp.eye(K)[(7 * pixel + pixel // 3) % K]]
        return tuple(Outputs(logits, logits) for logits in said), stats


def counted(pixel, labels):
    said = {"peer_0": (3 * pixel + 1) % K, "peer_1": (7 * pixel + pixel // 3) % K}
    said["ensemble"] = said["peer_1"]  # twice as sure of itself
    right = {name: int((classes == labels).sum()) for name, classes in said.items()}
    return {name: count / len(labels) for name, count in right.items()}


@pytest.mark.parametrize("size", [1, 7, 297, 10_000])
@pytest.mark.parametrize(
    "sizes", [FEW, pytest.param(range(1, 513), marks=pytest.mark.slow)], ids=["few batches", "all batches"]
)
def test_against_numpy(size, sizes):
    chance = np.random.default_rng(size)
    images = chance.integers(0, 256, (size, 1, 1, 3), dtype=np.uint8)
    labels = chance.integers(0, K, size).astype(np.int32)
    names = tuple(map(str, range(K)))
    dataset = Dataset("", images, labels, images, labels, names, np.zeros(3), np.ones(3), False)
    data = batches.Data(jnp.asarray(images), jnp.asarray(labels))
    state = TrainState(jnp.int32(0), {"peers": (), "method": {}}, (), {}, (), {})
    method = methods.load("dml", temperature=3.0)
    expected = counted(images[:, 0, 0, 0].astype(int), labels)
    expected["accuracy"] = (expected["peer_0"] + expected["peer_1"]) / 2
    for batch_size in sizes:
        evaluator = evaluate.make_evaluator(peers=Rules, method=method, dataset=dataset, batch_size=batch_size)
        assert evaluate.accuracies(evaluator, state, data, batch_size) == expected, batch_size
