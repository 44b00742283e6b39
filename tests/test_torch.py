"""Networks, losses and optimizer against PyTorch, where it is installed: the gate of the benchmark."""

import functools
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cutnmix_jax.benchmark import __main__ as command
from cutnmix_jax.benchmark import reference, run
from cutnmix_jax.settings import command_line

ROOT = Path(__file__).parent.parent
SLOW = ("resnet18", "resnet110", "wrn20_8", "densenet40_12", "vgg16", "vgg19")
BACKBONES = ["resnet8", "resnet32", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@functools.cache
def has_torch():
    return subprocess.run([run.torch_python(), "-c", "import torch"], capture_output=True, check=False).returncode == 0


@pytest.fixture(autouse=True)
def _needs_torch():
    if not has_torch():
        pytest.skip("PyTorch is not installed; CONTRIBUTING.md says how")


def parity(path):
    done = subprocess.run(
        [run.torch_python(), "-m", "scripts.bench_torch.parity", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.splitlines()[-1]


def written(path, name, method="cutnmix", share=command.GATE_SHARE, **fields):
    spec = run.spec_of({"backbone": name, "method": method, **command.GATE, **fields})
    reference.write(path, command_line.from_flags(spec["config"], spec["overrides"]), 20, 100, share)
    return path


@pytest.mark.parametrize("name", BACKBONES)
def test_the_paper_s_method_is_the_same_in_pytorch(name, tmp_path):
    found = parity(written(tmp_path / "file.npz", name))
    assert found["passed"], found
    assert found["first"] <= max(1e-5, 2 * found["rounding"]) and found["most"] <= 1e-3
    assert found["rounding"] <= 2e-5


@pytest.mark.parametrize("method", ["baseline", "dml", "cutnmix_mmd", "cutnmix_pt"])
def test_other_rows_are_the_same_in_pytorch(method, tmp_path):
    assert parity(written(tmp_path / "file.npz", "resnet8", method))["passed"]


def test_three_unlike_peers_are_the_same_in_pytorch(tmp_path):
    path = written(tmp_path / "file.npz", "resnet8", "dml", peers="resnet8,resnet8,resnet32")
    assert parity(path)["passed"]


def test_the_gate_can_fail(tmp_path):
    # Larger steps than the deep networks bear: at theirs a wrong momentum is at the limit of what is noticed.
    path = written(tmp_path / "file.npz", "resnet8", share=10 * command.GATE_SHARE)
    arrays = dict(np.load(path))
    assert parity(path)["passed"]
    told = json.loads(str(arrays["spec"]))

    def changed(**others):
        np.savez(tmp_path / "changed.npz", **(arrays | others))
        return parity(tmp_path / "changed.npz")

    for weights in ({"dml": 0.61}, {"mmd": 0.31}, {"pt": 0.11}):
        spec = json.dumps(told | {"weights": told["weights"] | weights})
        assert not changed(spec=np.array(spec))["passed"], weights
    assert not changed(spec=np.array(json.dumps(told | {"nesterov": False})))["passed"]
    # Not a convolution's: batch norm would take the factor out again.
    kernel = next(name for name in arrays if name.startswith("0/") and name.endswith("dense/kernel"))
    assert not changed(**{kernel: arrays[kernel] * 1.001})["passed"]
    assert "ValueError" in changed(**{kernel: arrays[kernel][:1]})


MIXERS = """
import torch
from scripts.bench_torch import training
torch.manual_seed(0)
n, size = 6, 32
labels = torch.arange(n)
# Pixels that tell the image, and after normalisation still do.
views = [torch.arange(n).float()[:, None, None, None].expand(n, 3, size, size).clone() for _ in range(2)]
for mixer in (training.mixed, training.mixed_on_host):
    for kind in ("cutmix", "cutnmix"):
        spec = {"classes": n, "mix": {"kind": kind, "prob": 1.0, "alpha": 1.0}}
        moved = 0
        for _ in range(50):
            images, targets = mixer([view.clone() for view in views], labels, spec)
            seen = [(x * training.STD + training.MEAN).round() for x in images]
            own = targets[torch.arange(n), labels]
            for x in seen:  # Eq. 7: each peer's box is the partner's share in the label
                kept = (x == labels[:, None, None, None]).float().mean((1, 2, 3))
                assert torch.allclose(kept, own, atol=1e-5), (kept, own)
            assert torch.allclose(targets.sum(1), torch.ones(n))
            moved += bool((seen[0] != seen[1]).any())
        assert (moved > 20) == (kind == "cutnmix"), (kind, moved)
    # CutMix's law for every peer: how often a box touches a border and covers the middle.
    spec, border, middle = {"classes": n, "mix": {"kind": "cutnmix", "prob": 1.0, "alpha": 1.0}}, 0, 0
    for _ in range(2000):
        images, _ = mixer([view.clone() for view in views], labels, spec)
        pasted = ((images[1] * training.STD + training.MEAN).round() != labels[:, None, None, None]).any(0)[0]
        border += bool(pasted[0].any() | pasted[-1].any() | pasted[:, 0].any() | pasted[:, -1].any())
        middle += bool(pasted[16, 16])
    # Boxes of no area and batches without a partner show nothing: .8 % of them.
    assert abs(border / 2000 - 0.826) < 0.03 and abs(middle / 2000 - 0.458) < 0.035, (border, middle)
pixels = torch.randint(1, 256, (4, size, size, 3), dtype=torch.uint8)
views = training.views_on_device(pixels)
assert views.shape == (4, 3, size, size) and views.is_contiguous(memory_format=torch.channels_last)
for image, view in zip(pixels.permute(0, 3, 1, 2).float() / 255, views):
    padded = torch.nn.functional.pad(image, (4,) * 4)
    crops = [padded[:, i:i + size, j:j + size] for i in range(9) for j in range(9)]
    assert any(torch.equal(view, crop) or torch.equal(view, crop.flip(2)) for crop in crops)
"""


def test_boxes_labels_and_crops_of_the_pytorch_program():
    done = subprocess.run([run.torch_python(), "-c", MIXERS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
