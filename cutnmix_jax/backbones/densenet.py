"""DenseNet-BC for 32x32 images (Huang et al. 2017, arXiv 1608.06993), as in OKDDip.

Convolutions start from kaiming-normal fan_in, the linear kernel from PyTorch's default, its bias from 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.layers import KAIMING_FAN_IN, LINEAR_KERNEL, TAIL, TRUNK, WHOLE, conv, norm, pool_all

__all__ = ["densenet40_12"]


class DenseLayer(nn.Module):
    """BN-ReLU-1x1(4k)-BN-ReLU-3x3(k), joined to its input: [n, h, w, c] -> [n, h, w, c + k]."""

    growth: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(norm(x, train, self.dtype))
        y = conv(y, 4 * self.growth, 1, dtype=self.dtype, kernel_init=KAIMING_FAN_IN)
        y = nn.relu(norm(y, train, self.dtype))
        y = conv(y, self.growth, 3, dtype=self.dtype, kernel_init=KAIMING_FAN_IN)
        return jnp.concatenate([x, y], axis=-1)


class DenseNet(nn.Module):
    """Dense blocks with a halving of width and size between them, pooling, linear layer.

    Attributes:
      num_classes: K.
      blocks: how many layers each dense block has.
      growth: k, the channels that a layer adds; the stem has 2k.
      dtype: of the activations, float32 or bfloat16.
    """

    num_classes: int
    blocks: tuple[int, ...]
    growth: int = 12
    dtype: Any = jnp.float32

    @property
    def smallest(self) -> int:
        """Pixels on a side of which the poolings leave one."""
        return 2 ** (len(self.blocks) - 1)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: str = WHOLE) -> Any:
        """[n, H, W, 3] float32 -> (logits [n, K], features [n, D]), both float32; D = 132 for densenet40_12.

        The trunk goes up to the last transition, as in ONE and OKDDip.
        """
        x, last = images, len(self.blocks) - 1
        if part != TAIL:
            x = conv(x, 2 * self.growth, 3, dtype=self.dtype, kernel_init=KAIMING_FAN_IN, name="Conv_0")
        for block, count in enumerate(self.blocks):
            # Layers are named by their number in the network, whichever part of it runs.
            first = sum(self.blocks[:block])
            if part == WHOLE or (part == TAIL) == (block == last):
                for number in range(first, first + count):
                    x = DenseLayer(self.growth, self.dtype, name=f"DenseLayer_{number}")(x, train)
            if part != TAIL and block < last:
                x = nn.relu(norm(x, train, self.dtype, f"BatchNorm_{block}"))
                name = f"Conv_{block + 1}"
                x = conv(x, x.shape[-1] // 2, 1, dtype=self.dtype, kernel_init=KAIMING_FAN_IN, name=name)
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        if part == TRUNK:
            return x
        features = pool_all(nn.relu(norm(x, train, self.dtype, f"BatchNorm_{last}")))
        return nn.Dense(self.num_classes, kernel_init=LINEAR_KERNEL)(features), features


def densenet40_12(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """DenseNet-BC-40-12, blocks [6, 6, 6]: 0.19M parameters with 100 classes, D = 132.

    The network without bottlenecks of the same name has 1.06M parameters and is another one.
    """
    return DenseNet(num_classes, (6, 6, 6), dtype=dtype)
