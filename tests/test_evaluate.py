"""Evaluation is a count of every test image once, whatever their number and the batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax.engine import batches
from cutnmix_jax.engine.companions import Companions
from cutnmix_jax.engine.devices import ONE
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.evaluation import Accuracies, Evaluator
from cutnmix_jax.settings import recipe
from cutnmix_jax.types import Dataset, Outputs, Spec, TrainState

K = 10
FEW = (1, 3, 64, 297, 511, 512)


class Rules:
    """Two peers that follow arithmetic on one pixel, so that float32 is exact and numpy can tell what they say."""

    @staticmethod
    def forward(params, stats, images, train, key):
        assert not train  # as which a network would use, and change, the statistics of the batch
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
        settings, dataset, Spec(K, (K, K), size), Rules, Companions({}), ONE, None, data, data, None, None, None, 1
    )
    expected = counted(images[:, 0, 0, 0].astype(int), labels)
    for batch_size in sizes:
        alike = dataclasses.replace(engine, settings=dataclasses.replace(settings, eval_batch_size=batch_size))
        found = alike.evaluate(state)
        assert found == expected and found.mean == (expected.peers[0] + expected.peers[1]) / 2, batch_size


class Shown:
    """A method that keeps what it is shown."""

    @staticmethod
    def calibrate(state, logits, labels):
        return {"logits": logits, "labels": labels}


@pytest.mark.parametrize("size", [1, 4, 7, 16])
def test_a_method_is_shown_each_held_out_image_once_and_in_order(size):
    images = np.random.default_rng(size).integers(0, 256, (size, 1, 1, 3), dtype=np.uint8)
    labels = np.arange(size, dtype=np.int32) % K
    dataset = Dataset("", images, labels, images, labels, tuple(map(str, range(K))), np.zeros(3), np.ones(3), False)
    state = TrainState(jnp.int32(0), {"peers": (), "method": {}}, (), {}, (), {})
    evaluator = Evaluator(Shown, Rules, Companions({}), dataset, 4)
    shown = evaluator.calibrated(state, batches.on_device(images, labels)).method_state
    pixel = images[:, 0, 0, 0].astype(int)
    expected = np.eye(K)[(3 * pixel + 1) % K], 2 * np.eye(K)[(7 * pixel + pixel // 3) % K]
    np.testing.assert_array_equal(shown["logits"], expected)
    np.testing.assert_array_equal(shown["labels"], labels)


class Close:
    """Two peers whose mean is a tie to the last digits of a float32; the pixel chooses the digits."""

    @staticmethod
    def forward(params, stats, images, train, key):
        pixel = images[0, :, 0, 0, 0] * 255
        sure, zero = 2.8623617 + pixel * 2.4e-7, jnp.zeros_like(pixel)
        said = [jnp.stack(columns, axis=1) for columns in ((jnp.full_like(pixel, 2.8623617), zero), (zero, sure))]
        return tuple(Outputs(logits, logits) for logits in said), stats


def test_the_ensemble_is_one_classifier_in_rows_and_in_answers():
    """Its accuracy is that of what `evaluate` and an export say, also where two classes are nearly as probable."""
    images = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1).repeat(3, axis=3)
    labels = np.zeros(8, np.int32)
    dataset = Dataset("", images, labels, images, labels, ("a", "b"), np.zeros(3), np.ones(3), False)
    state = TrainState(jnp.int32(0), {"peers": (), "method": {}}, (), {}, (), {})
    evaluator = Evaluator(recipe.of_row("rules", "digits", "dml").loss, Close, Companions({}), dataset, 8)
    data = batches.on_device(images, labels)
    said = evaluator.answers(state, data).ensemble.argmax(axis=1)
    assert evaluator.accuracies(state, data).ensemble == (said == labels).mean() > 0
