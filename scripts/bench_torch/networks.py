"""Networks for CIFAR in PyTorch, NCHW, written from their papers and `cutnmix_jax/backbones/` in PyTorch's own idiom.

Each returns (logits [n, K], features [n, D]). Layers run in the same order as in the Flax networks: that order is how
weights are matched (`weights.py`).
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

Result = tuple[torch.Tensor, torch.Tensor]


def conv(inputs: int, outputs: int, size: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution padded by half its size."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=bias)


def widened(x: torch.Tensor) -> torch.Tensor:
    """At least float32: the features, whatever the convolutions are computed in."""
    return x.float() if x.dtype == torch.bfloat16 else x


class Basic(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, planes, 3, stride), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = conv(planes, planes, 3), nn.BatchNorm2d(planes)
        self.shortcut = shortcut(inputs, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 around a shortcut; the stride is on the 3x3."""

    def __init__(self, inputs: int, planes: int, stride: int, group: int) -> None:
        super().__init__()
        inner = planes * group // 64
        self.conv1, self.bn1 = conv(inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = conv(inner, inner, 3, stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = conv(inner, 4 * planes, 1), nn.BatchNorm2d(4 * planes)
        self.shortcut = shortcut(inputs, 4 * planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution and batch norm where shapes change."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
    """Stem, stages, average pooling, linear layer."""

    def __init__(self, num_classes: int, blocks: tuple[int, ...], widths: tuple[int, ...], group: int = 0) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, widths[0], 3), nn.BatchNorm2d(widths[0])
        layers: list[nn.Module] = []
        width = widths[0]
        for stage, (count, planes) in enumerate(zip(blocks, widths, strict=True)):
            for block in range(count):
                stride = 2 if stage and not block else 1
                layers.append(Bottleneck(width, planes, stride, group) if group else Basic(width, planes, stride))
                width = 4 * planes if group else planes
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> Result:
        x = self.layers(functional.relu(self.bn1(self.conv1(x))))
        features = widened(x).mean(dim=(2, 3))
        return self.fc(features), features


class VGG(nn.Module):
    """Five stages of 3x3 convolutions and max pooling, head of three linear layers."""

    def __init__(self, num_classes: int, convs: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for count, width in zip(convs, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                layers += [conv(inputs, width, 3, bias=True), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.convs = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, num_classes)
        )

    def forward(self, x: torch.Tensor) -> Result:
        features = widened(self.convs(x).flatten(1))
        return self.head(features), features


class DenseLayer(nn.Module):
    """BN-ReLU-1x1-BN-ReLU-3x3, joined to its input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, 4 * growth, 1)
        self.bn2, self.conv2 = nn.BatchNorm2d(4 * growth), conv(4 * growth, growth, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(functional.relu(self.bn1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.bn2(y)))], dim=1)


class DenseNet(nn.Module):
    """DenseNet-BC: dense blocks, a halving of width and size between them."""

    def __init__(self, num_classes: int, blocks: tuple[int, ...], growth: int = 12) -> None:
        super().__init__()
        width = 2 * growth
        layers: list[nn.Module] = [conv(3, width, 3)]
        for block, count in enumerate(blocks):
            if block:
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True), conv(width, width // 2, 1), nn.AvgPool2d(2)]
                width //= 2
            for _ in range(count):
                layers.append(DenseLayer(width, growth))
                width += growth
        self.layers = nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> Result:
        features = widened(self.layers(x)).mean(dim=(2, 3))
        return self.fc(features), features


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": lambda classes: ResNet(classes, (1, 1, 1), (16, 32, 64)),
    "resnet18": lambda classes: ResNet(classes, (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet32": lambda classes: ResNet(classes, (5, 5, 5), (16, 32, 64)),
    "resnet110": lambda classes: ResNet(classes, (12, 12, 12), (16, 32, 64), group=64),
    "wrn20_8": lambda classes: ResNet(classes, (2, 2, 2), (16, 32, 64), group=512),
    "vgg16": lambda classes: VGG(classes, (2, 2, 3, 3, 3)),
    "vgg19": lambda classes: VGG(classes, (2, 2, 4, 4, 4)),
    "densenet40_12": lambda classes: DenseNet(classes, (6, 6, 6)),
}
