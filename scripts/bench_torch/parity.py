"""Whether the PyTorch program computes what ours does: same weights, same images, the same losses.

`compare` trains the steps that a file of `cutnmix_jax/benchmark/reference.py` holds. Run as a command it prints the
differences as JSON: python -m scripts.bench_torch.parity FILE
"""

import copy
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scripts.bench_torch import training, weights

# The largest differences allowed, relative to the loss; of the first step also twice what PyTorch's float32 rounds off,
# which in a network of 110 layers is 1e-5.
FIRST, ALL = 1e-5, 1e-3


class Difference(NamedTuple):
    """How far losses are apart, relative to ours.

    Attributes:
      first: ours and PyTorch's in float64, in the first step.
      rounding: PyTorch's in float32 and in float64, in the first step.
      most: ours and PyTorch's in float32, at most in any step.
    """

    first: float
    rounding: float
    most: float

    @property
    def passed(self) -> bool:
        """Whether they are small enough."""
        return self.first <= max(FIRST, 2 * self.rounding) and self.most <= ALL


def compare(path: Path) -> Difference:
    """Repeats the steps of a file.

    Args:
      path: arrays of the weights (see `weights.py`), of the peer teacher, of `images` [steps, J, n, 32, 32, 3],
        `targets` [steps, n, K] and `losses` [steps], and `spec`, the JSON of what is trained.

    Returns:
      The differences.

    Raises:
      ValueError: the networks are not the same.
    """
    arrays = dict(np.load(path, allow_pickle=False))
    spec = json.loads(str(arrays.pop("spec")))
    model = training.Model(spec)
    for j, peer in enumerate(model.peers):
        weights.load(peer, arrays, j)
    if model.teacher is not None:
        with torch.no_grad():
            model.teacher.weight.copy_(torch.from_numpy(arrays["teacher/kernel"].T.copy()))
            model.teacher.bias.copy_(torch.from_numpy(arrays["teacher/bias"]))
    # The first in float64, which is nearer to the truth than either in float32.
    with torch.no_grad():
        inputs, targets = tensors(arrays["images"][0], arrays["targets"][0], torch.float64)
        # A copy, so that no running statistics are seen twice.
        exact = training.objective(copy.deepcopy(model).double(), inputs, targets, spec).item()
    optimizer = training.optimizer(model, spec, spec["learning_rate"], fused=False)
    losses = []
    for images, targets in zip(arrays["images"], arrays["targets"], strict=True):
        loss = training.objective(model, *tensors(images, targets, torch.float32), spec)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    ours = arrays["losses"]
    return Difference(
        first=abs(exact / float(ours[0]) - 1),
        rounding=abs(losses[0] - exact) / float(ours[0]),
        most=float(np.abs(np.array(losses) / ours - 1).max()),
    )


def tensors(images: np.ndarray, targets: np.ndarray, dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor]:
    """[J, n, 32, 32, 3] as J times [n, 3, 32, 32], and [n, K]."""
    inputs = [torch.from_numpy(x.copy()).to(dtype).permute(0, 3, 1, 2) for x in images]
    return inputs, torch.from_numpy(targets.copy()).to(dtype)


if __name__ == "__main__":
    found = compare(Path(sys.argv[1]))
    print(json.dumps({**found._asdict(), "passed": found.passed}))
