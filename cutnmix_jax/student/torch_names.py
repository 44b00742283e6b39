"""The weights of our networks under the names that they have in PyTorch.

Those of the large networks are torchvision's, those of the others stand in `scripts/bench_torch/networks.py`.

A rule for each family lists the PyTorch layers in the order in which they run. Our layers are noted while they run, and
then the two lists are paired.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from cutnmix_jax import backbones
from cutnmix_jax.backbones.densenet import DenseNet
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.backbones.mobilenet import MobileNetV2
from cutnmix_jax.backbones.resnet import ResNet
from cutnmix_jax.backbones.running_order import in_running_order
from cutnmix_jax.backbones.vgg import VGG, WIDTHS
from cutnmix_jax.errors import UsageError
from cutnmix_jax.student.network import Student
from cutnmix_jax.types import Backbone, Tree

_PARTS = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_AXES = {"conv": (3, 2, 0, 1), "dense": (1, 0)}  # of a kernel: HWIO -> OIHW, [in, out] -> [out, in]


class Layer(NamedTuple):
    """A layer in PyTorch.

    Attributes:
      kind: `conv`, `norm` or `dense`.
      name: as in `named_modules`.
      shape: of its weight: [out, in, h, w], [c] or [out, in].
    """

    kind: str
    name: str
    shape: tuple[int, ...]


def written(student: Student) -> bytes:
    """A file of safetensors with the state dict of a student; of an ensemble each name begins with `0.`, `1.` ...

    Raises:
      UsageError: a network has no form in PyTorch.
    """
    arrays: dict[str, np.ndarray] = {}
    description = student.description
    for name in description.backbones:
        if is_foreign(name):
            raise UsageError(
                f"{name} is a network of somebody's own, and --format=torch knows only {', '.join(backbones.names())}"
            )
    made = zip(description.backbones, description.make(), student.networks(), strict=True)
    for j, (name, network, variables) in enumerate(made):
        prefix = f"{j}." if len(description.backbones) > 1 else ""
        found = state_dict(name, description.num_classes, network, variables)
        arrays |= {f"{prefix}{key}": array for key, array in found.items()}
    metadata = {
        "format": "pt",
        "backbone": ",".join(description.backbones),
        "mean": json.dumps(description.mean),
        "std": json.dumps(description.std),
        "images": "[n, C, H, W], (pixels / 255 - mean) / std",
    }
    return safetensors.numpy.save(arrays, metadata=metadata)


def state_dict(name: str, num_classes: int, network: Backbone, variables: Mapping[str, Tree]) -> dict[str, np.ndarray]:
    """The variables of a network as `load_state_dict(strict=True)` takes them.

    Args:
      name: of the backbone, one of ours.
      num_classes: K.
      network: the backbone, made.
      variables: {'params': tree, 'batch_stats': tree}.

    Raises:
      UsageError: no rule is known for it, or its layers are not those of the rule.
    """
    ours, theirs = in_running_order(network, variables), layers(name, num_classes)
    if len(ours) != len(theirs):
        raise UsageError(f"{name} has {len(ours)} layers, and {len(theirs)} in PyTorch; --format=torch cannot write it")
    found: dict[str, np.ndarray] = {}
    for (kind, path), layer in zip(ours, theirs, strict=True):
        for part, array in _layer(variables, path).items():
            found[f"{layer.name}.{_PARTS[part]}"] = _there(array, kind, part)
        shape = found[f"{layer.name}.weight"].shape
        if (kind, shape) != (layer.kind, layer.shape):
            raise UsageError(
                f"{name}: its layer {'.'.join(path)} is a {kind} {list(shape)}, and in PyTorch {layer.name} is a "
                f"{layer.kind} {list(layer.shape)}; --format=torch is for 3 channels and, of VGG, for 32 x 32 pixels"
            )
        if kind == "norm":
            found[f"{layer.name}.num_batches_tracked"] = np.array(0, np.int64)
    return found


def _layer(variables: Mapping[str, Tree], path: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The parameters and statistics of a layer by Flax's names."""
    found: dict[str, np.ndarray] = {}
    for tree in variables.values():
        for name in path:
            tree = tree.get(name, {})
        found |= {part: np.asarray(array) for part, array in tree.items()}
    return found


def _there(array: np.ndarray, kind: str, part: str) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(_AXES[kind])) if part == "kernel" else array


def layers(name: str, num_classes: int) -> list[Layer]:
    """The layers of a backbone in PyTorch, in the order in which they run.

    Raises:
      UsageError: no rule is known for it.
    """
    module = backbones.find(name)(num_classes)
    if type(module) not in _RULES:
        raise UsageError(f"{name} has no form in PyTorch; --format=torch knows ResNet, VGG, DenseNet and MobileNetV2")
    return list(_RULES[type(module)](module))


def _convolved(conv: str, norm: str, outputs: int, inputs: int, size: int) -> Iterator[Layer]:
    """A square convolution, and the batch norm after it."""
    yield Layer("conv", conv, (outputs, inputs, size, size))
    yield Layer("norm", norm, (outputs,))


def _resnet(module: Any) -> Iterator[Layer]:
    width, number = module.widths[0], 0
    yield from _convolved("conv1", "bn1", width, 3, 7 if module.imagenet else 3)
    for stage, (count, planes) in enumerate(zip(module.blocks, module.widths, strict=True)):
        inner = planes * (module.width_per_group or 0) // 64
        convs = ((inner, 1), (inner, 3), (4 * planes, 1)) if inner else ((planes, 3), (planes, 3))
        for block in range(count):
            before, inputs = f"layer{stage + 1}.{block}" if module.imagenet else f"layers.{number}", width
            for i, (outputs, size) in enumerate(convs, 1):
                yield from _convolved(f"{before}.conv{i}", f"{before}.bn{i}", outputs, inputs, size)
                inputs = outputs
            if inputs != width or (stage and not block):
                beside = f"{before}.{'downsample' if module.imagenet else 'shortcut'}"
                yield from _convolved(f"{beside}.0", f"{beside}.1", inputs, width, 1)
            width, number = inputs, number + 1
    yield Layer("dense", "fc", (module.num_classes, width))


def _vgg(module: Any) -> Iterator[Layer]:
    inputs, number = 3, 0
    for count, width in zip(module.convs, WIDTHS, strict=True):
        for _ in range(count):
            yield from _convolved(f"convs.{number}", f"convs.{number + 1}", width, inputs, 3)
            inputs, number = width, number + 3  # a ReLU has a number, too
        number += 1  # and so has the pooling
    for number, outputs in ((0, 512), (2, 512), (4, module.num_classes)):
        yield Layer("dense", f"head.{number}", (outputs, 512))


def _densenet(module: Any) -> Iterator[Layer]:
    growth, width, number = module.growth, 2 * module.growth, 1
    yield Layer("conv", "layers.0", (width, 3, 3, 3))
    for block, count in enumerate(module.blocks):
        if block:  # norm, ReLU, convolution, pooling
            yield Layer("norm", f"layers.{number}", (width,))
            yield Layer("conv", f"layers.{number + 2}", (width // 2, width, 1, 1))
            width, number = width // 2, number + 4
        for _ in range(count):
            before = f"layers.{number}"
            yield Layer("norm", f"{before}.bn1", (width,))
            yield from _convolved(f"{before}.conv1", f"{before}.bn2", 4 * growth, width, 1)
            yield Layer("conv", f"{before}.conv2", (growth, 4 * growth, 3, 3))
            width, number = width + growth, number + 1
    yield Layer("norm", f"layers.{number}", (width,))
    yield Layer("dense", "fc", (module.num_classes, width))


def _mobilenet(module: Any) -> Iterator[Layer]:
    width, number = module.stem, 1
    yield from _convolved("features.0.0", "features.0.1", width, 3, 3)
    for expansion, outputs, count, _ in module.stages:
        for _ in range(count):
            before, inner = f"features.{number}.conv", expansion * width
            if expansion > 1:
                yield from _convolved(f"{before}.0.0", f"{before}.0.1", inner, width, 1)
            i = int(expansion > 1)
            yield from _convolved(f"{before}.{i}.0", f"{before}.{i}.1", inner, 1, 3)
            yield from _convolved(f"{before}.{i + 1}", f"{before}.{i + 2}", outputs, inner, 1)
            width, number = outputs, number + 1
    yield from _convolved(f"features.{number}.0", f"features.{number}.1", module.last, width, 1)
    yield Layer("dense", "classifier.1", (module.num_classes, module.last))


_RULES: dict[type, Callable[[Any], Iterator[Layer]]] = {
    ResNet: _resnet,
    VGG: _vgg,
    DenseNet: _densenet,
    MobileNetV2: _mobilenet,
}
