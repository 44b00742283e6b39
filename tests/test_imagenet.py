"""The recipe for ImageNet on images of its size, from a command to a student that is measured."""

import json
import sys

import numpy as np
import pytest

from cutnmix_jax import data, evaluate, load_student, main

# Fourteen images of six classes, each a colour and noise.
DATA_SET = """
import numpy as np
from cutnmix_jax.types import Dataset
COUNTS, NUM_CLASSES, IMAGE_SHAPE = {"train": 8, "test": 6}, 6, (224, 224, 3)
def made(count, seed):
    rng, labels = np.random.default_rng(seed), np.arange(count, dtype=np.int32) % 6
    colours = np.random.default_rng(0).uniform(40, 210, (6, 1, 1, 3))[labels]
    return (colours + rng.uniform(0, 40, (count, 224, 224, 3))).astype(np.uint8), labels
def load(data_dir=""):
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    return Dataset("six", *made(8, 1), *made(6, 2), tuple("abcdef"), mean, std, True)
"""


@pytest.mark.slow
def test_two_steps_at_224_pixels(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "six.py").write_text(DATA_SET)
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path / "data")])
    monkeypatch.delitem(sys.modules, "cutnmix_jax.data.six", raising=False)
    # By the rule of the recipe's source the rate is in proportion to the batch.
    fields = ["--config.batch_size=4", "--config.optimizer.learning_rate=0.0016", "--config.optimizer.milestones=()"]
    command = ["--config=imagenet_resnet18:six", *fields, "--config.epochs=1", "--config.eval_batch_size=6"]
    assert main.main([*command, f"--workdir={tmp_path / 'run'}"]) == 0
    [row] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert (row["step"], row["learning_rate"]) == (2, pytest.approx(0.0016))
    assert 0.5 * np.log(6) < row["train/ce"] < 2 * np.log(6)  # still guessed
    assert np.isfinite(list(row.values())).all()
    capsys.readouterr()
    assert evaluate.main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}"]) == 0
    [measured] = (tmp_path / "out").glob("*.json")
    for found in json.loads(measured.read_text())["classifiers"].values():
        assert found["accuracy"] <= found["top5"] <= 1 and 6 * found["top5"] == pytest.approx(round(6 * found["top5"]))
    student = load_student(tmp_path / "run" / "student")
    assert student.predict(np.zeros((1, 224, 224, 3), np.uint8)).logits.shape == (1, 6)
