"""Evaluation is a count of every test image once, whatever their number and the batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax.engine import batches
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.evaluation import Accuracies
from cutnmix_jax.settings import recipe
from cutnmix_jax.types import Dataset, Outputs, Spec, TrainState

K = 10
FEW = (1, 3, 64, 297, 511, 512)


class Rules:
    """Two peers that follow arithmetic on one pixel, so that float32 is exact and numpy can tell what they say."""

    @staticmethod
    def forward(params, stats, images, train, key):
        pixel = jnp.round(images[0, :, 0, 0, 0] * 255).astype(jnp.int32)
        said = [jnp.eye(K)[(3 * pixel + 1) % K], 2 * jnp.eye(K)[(7 * pixel + pixel // 3) % K]]
        return tuple(Outputs(logits, logits) for logits in said), stats


def counted(pixel, labels):
    said = [(3 * pixel + 1) % K, (7 * pixel + pixel // 3) % K]
    one, other = (int((classes == labels).sum()) / len(labels) for classes in said)
    return Accuracies((one, other), other, {})  # the second one is twice as sure of itself


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
    data, settings = batches.on_device(images, labels), recipe.of_row("rules", "digits", "dml")
    state = TrainState(jnp.int32(0), {"peers": (), "method": {}}, (), {}, (), {})
    engine = Engine(
        settings, dataset, Spec(K, (K, K), size), Rules, Companions({}), None, data, data, None, None, None, None, 1
    )
    expected = counted(images[:, 0, 0, 0].astype(int), labels)
    for batch_size in sizes:
        alike = dataclasses.replace(engine, settings=dataclasses.replace(settings, eval_batch_size=batch_size))
        found = alike.evaluate(state)
        assert found == expected and found.mean == (expected.peers[0] + expected.peers[1]) / 2, batch_size
