"""MobileNetV2 for 224x224 images (Sandler et al. 2018, arXiv 1801.04381), as torchvision defines it.

Blocks of a 1x1 convolution that widens, a depthwise 3x3 one and a 1x1 one that narrows without an activation. Dropout
before the classifier. Convolutions start from kaiming-normal fan_out, the linear layer from a normal distribution with
standard deviation 0.01, its bias from 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.layers import TAIL, TRUNK, WHOLE, conv, kept, norm, pool_all

__all__ = ["mobilenet_v2"]

# Table 2; see `MobileNetV2.stages`.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
DROPOUT = 0.2


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, 1x1; [n, h, w, c] -> [n, h/stride, w/stride, width]."""

    expansion: int
    width: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = kept(x)
        inner, y = self.expansion * x.shape[-1], x
        if self.expansion > 1:
            y = nn.relu6(norm(conv(y, inner, 1, dtype=self.dtype), train, self.dtype))
        y = conv(y, inner, 3, self.stride, dtype=self.dtype, depthwise=True)
        y = nn.relu6(norm(y, train, self.dtype))
        y = norm(conv(y, self.width, 1, dtype=self.dtype), train, self.dtype)
        return x + y if y.shape == x.shape else y


class MobileNetV2(nn.Module):
    """Stem, stages, a 1x1 convolution, pooling, dropout, linear layer.

    Attributes:
      num_classes: K.
      stages: of each, how much wider its blocks are inside, their channels, their number, the stride of the first.
      stem: channels of the first convolution, which halves the image.
      last: channels of the last one, D.
      dtype: of the activations, float32 or bfloat16.
    """

    num_classes: int
    stages: tuple[tuple[int, int, int, int], ...] = STAGES
    stem: int = 32
    last: int = 1280
    dtype: Any = jnp.float32

    @property
    def smallest(self) -> int:
        """Pixels on a side with which the last stage still sees one."""
        return 2 ** (1 + sum(stride > 1 for *_, stride in self.stages))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: str = WHOLE) -> Any:
        """[n, H, W, 3] float32 -> (logits [n, K], features [n, D]), both float32; the features are without dropout.

        The trunk is all before the last stage that halves the image. In training a `key` is needed, for dropout.
        """
        x, block = images, 0
        tail = max(stage for stage, (*_, stride) in enumerate(self.stages) if stride > 1)
        if part != TAIL:
            x = self.activated(x, train, 0, self.stem, 3, 2)
        for stage, (expansion, width, count, first) in enumerate(self.stages):
            if part == WHOLE or (part == TAIL) == (stage >= tail):
                for number in range(count):
                    stride, name = (1 if number else first), f"InvertedResidual_{block + number}"
                    x = InvertedResidual(expansion, width, stride, self.dtype, name=name)(x, train)
            block += count
        if part == TRUNK:
            return x
        features = pool_all(self.activated(x, train, 1, self.last, 1, 1))
        seen = nn.Dropout(DROPOUT, deterministic=not train)(features)
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01))(seen), features

    def activated(self, x: jax.Array, train: bool, number: int, width: int, kernel: int, stride: int) -> jax.Array:
        """A convolution, batch norm and ReLU6, named by their number outside of the blocks."""
        x = conv(x, width, kernel, stride, dtype=self.dtype, name=f"Conv_{number}")
        return nn.relu6(norm(x, train, self.dtype, f"BatchNorm_{number}"))


def mobilenet_v2(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """MobileNetV2 for 224x224 images, torchvision's `mobilenet_v2`: 3.50M parameters with 1000 classes, D = 1280."""
    return MobileNetV2(num_classes, dtype=dtype)
