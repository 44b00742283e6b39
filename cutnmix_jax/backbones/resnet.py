"""Residual networks (He et al. 2016, arXiv 1512.03385), for 32x32 and for 224x224 images.

Those for 32x32 are defined as in the OKDDip code lineage, those for 224x224 as in torchvision. A stem, stages of
post-activation blocks, global average pooling, one linear layer. The stem is a 3x3 convolution, or for large images a
7x7 one and max pooling, which leave a quarter of each side. The shortcut is option B: a 1x1 convolution and batch norm
wherever the stride or the width changes, so also in the first stage of a Bottleneck network. Convolutions start from
kaiming-normal fan_out, the linear layer from PyTorch's default.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.layers import (
    LINEAR_KERNEL,
    TAIL,
    TRUNK,
    WHOLE,
    conv,
    kept,
    linear_bias,
    norm,
    pool_all,
)

__all__ = [
    "resnet8", "resnet18", "resnet32", "resnet110", "wrn20_8",
    "resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet",
]  # fmt: skip


def shortcut(x: jax.Array, width: int, stride: int, train: bool, dtype: Any) -> jax.Array:
    """The identity where shapes allow it, else a 1x1 convolution and batch norm."""
    if stride == 1 and x.shape[-1] == width:
        return x
    return norm(conv(x, width, 1, stride, dtype=dtype), train, dtype)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; [n, h, w, c] -> [n, h/stride, w/stride, planes]."""

    planes: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = kept(x)
        y = nn.relu(norm(conv(x, self.planes, 3, self.stride, dtype=self.dtype), train, self.dtype))
        y = norm(conv(y, self.planes, 3, dtype=self.dtype), train, self.dtype)
        return nn.relu(y + shortcut(x, self.planes, self.stride, train, self.dtype))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with the stride on the 3x3; [n, h, w, c] -> [n, h/stride, w/stride, 4 planes].

    The inner width is planes * width_per_group / 64.
    """

    planes: int
    stride: int
    dtype: Any
    width_per_group: int = 64

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = kept(x)
        inner = self.planes * self.width_per_group // 64
        y = nn.relu(norm(conv(x, inner, 1, dtype=self.dtype), train, self.dtype))
        y = nn.relu(norm(conv(y, inner, 3, self.stride, dtype=self.dtype), train, self.dtype))
        y = norm(conv(y, 4 * self.planes, 1, dtype=self.dtype), train, self.dtype)
        return nn.relu(y + shortcut(x, 4 * self.planes, self.stride, train, self.dtype))


class ResNet(nn.Module):
    """Stem, stages, pooling, linear layer.

    Attributes:
      num_classes: K.
      blocks: how many blocks each stage has; every stage but the first halves the image.
      widths: planes of each stage; the first is the stem's width too.
      width_per_group: None for BasicBlock, else that of Bottleneck.
      imagenet: whether the stem is the one for large images.
      dtype: of the activations, float32 or bfloat16.
    """

    num_classes: int
    blocks: tuple[int, ...]
    widths: tuple[int, ...] = (16, 32, 64)
    width_per_group: int | None = None
    imagenet: bool = False
    dtype: Any = jnp.float32

    @property
    def smallest(self) -> int:
        """Pixels on a side with which the last stage still sees one."""
        return 4 * 2 ** (len(self.blocks) - 1) if self.imagenet else 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: str = WHOLE) -> Any:
        """[n, H, W, 3] float32 -> (logits [n, K], features [n, D]), both float32; D is the last stage's width.

        The trunk is all but the last stage, as in ONE and OKDDip.
        """
        x = images
        if part != TAIL:
            kernel, stride = (7, 2) if self.imagenet else (3, 1)
            x = nn.relu(norm(conv(x, self.widths[0], kernel, stride, dtype=self.dtype), train, self.dtype))
            if self.imagenet:
                x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        last = len(self.blocks) - 1
        for stage, (count, planes) in enumerate(zip(self.blocks, self.widths, strict=True)):
            if part == WHOLE or (part == TAIL) == (stage == last):
                x = self.stage(x, train, stage, count, planes)
        if part == TRUNK:
            return x
        features = pool_all(x)
        classifier = nn.Dense(self.num_classes, kernel_init=LINEAR_KERNEL, bias_init=linear_bias(features.shape[-1]))
        return classifier(features), features

    def stage(self, x: jax.Array, train: bool, stage: int, count: int, planes: int) -> jax.Array:
        """The blocks of one stage; named by their number in the network, whichever part of it runs."""
        first = sum(self.blocks[:stage])
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            number = first + block
            if self.width_per_group is None:
                x = BasicBlock(planes, stride, self.dtype, name=f"BasicBlock_{number}")(x, train)
            else:
                name = f"Bottleneck_{number}"
                x = Bottleneck(planes, stride, self.dtype, self.width_per_group, name=name)(x, train)
        return x


def resnet8(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-8, BasicBlock [1, 1, 1]: 78,042 parameters with 10 classes, D = 64. For tests and the quickstart."""
    return ResNet(num_classes, (1, 1, 1), dtype=dtype)


def resnet18(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """The CIFAR form of ResNet-18, widths 64 to 512: 11.22M parameters with 100 classes, D = 512.

    Convolutions start as in the rest of this family.
    """
    return ResNet(num_classes, (2, 2, 2, 2), (64, 128, 256, 512), dtype=dtype)


def resnet32(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-32, BasicBlock [5, 5, 5]: 0.47M parameters with 100 classes, D = 64."""
    return ResNet(num_classes, (5, 5, 5), dtype=dtype)


def resnet110(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-110, Bottleneck [12, 12, 12] as in OKDDip: 1.17M parameters with 100 classes, D = 256.

    He et al. use BasicBlock [18, 18, 18], which has 1.74M parameters and is another network.
    """
    return ResNet(num_classes, (12, 12, 12), width_per_group=64, dtype=dtype)


def wrn20_8(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """WRN-20-8, Bottleneck [2, 2, 2] with 8 times the inner width, as in OKDDip: 6.87M parameters, D = 256.

    Not a network of Zagoruyko and Komodakis 2016, whose depth is 6n + 4 and whose blocks are wide on the outside.
    """
    return ResNet(num_classes, (2, 2, 2), width_per_group=512, dtype=dtype)


LARGE = (64, 128, 256, 512)


def resnet18_imagenet(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-18 for 224x224 images, torchvision's `resnet18`: 11.69M parameters with 1000 classes, D = 512."""
    return ResNet(num_classes, (2, 2, 2, 2), LARGE, imagenet=True, dtype=dtype)


def resnet34_imagenet(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-34 for 224x224 images, torchvision's `resnet34`: 21.80M parameters with 1000 classes, D = 512."""
    return ResNet(num_classes, (3, 4, 6, 3), LARGE, imagenet=True, dtype=dtype)


def resnet50_imagenet(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """ResNet-50 for 224x224 images, torchvision's `resnet50`: 25.56M parameters with 1000 classes, D = 2048.

    The stride is on the 3x3 convolution of a block (v1.5), where He et al. have it on the first 1x1.
    """
    return ResNet(num_classes, (3, 4, 6, 3), LARGE, width_per_group=64, imagenet=True, dtype=dtype)
