"""VGG with batch norm for 32x32 images (Simonyan and Zisserman 2015, arXiv 1409.1556), as in OKDDip.

Convolutions have a bias and start from kaiming-normal fan_out; the linear layers start from a normal distribution with
standard deviation 0.01; every bias is 0. The lineage's classifier has dropout with p = 0, which is none.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.layers import TAIL, TRUNK, WHOLE, conv, norm
from cutnmix_jax.backbones.pooling import max_pool

__all__ = ["vgg16", "vgg19"]

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five stages of 3x3 convolutions, each followed by 2x2 max pooling, then three linear layers.

    Attributes:
      num_classes: K.
      convs: how many convolutions each stage has.
      dtype: of the activations of the convolutions, float32 or bfloat16.
    """

    num_classes: int
    convs: tuple[int, ...]
    dtype: Any = jnp.float32

    @property
    def smallest(self) -> int:
        """Pixels on a side of which the poolings leave one."""
        return 2 ** len(self.convs)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool, part: str = WHOLE) -> Any:
        """[n, H, W, 3] float32 -> (logits [n, K], features [n, D]), both float32; D = 512 floor(H / 32) floor(W / 32).

        The features are the flattened output of the convolutions (x_f), not the last hidden layer. The trunk goes up to
        the first stage of width 512, as in ONE and OKDDip.
        """
        x, last = images, len(self.convs) - 1
        for stage, (count, width) in enumerate(zip(self.convs, WIDTHS, strict=True)):
            if part == WHOLE or (part == TAIL) == (stage == last):
                # Named by their number in the network, whichever part of it runs.
                first = sum(self.convs[:stage])
                for number in range(first, first + count):
                    x = self.layer(x, train, number, width)
                # What is exported is one operation.
                x = max_pool(x) if train else nn.max_pool(x, (2, 2), strides=(2, 2))
        if part == TRUNK:
            return x
        features = x.reshape(x.shape[0], -1).astype(jnp.float32)
        # float32 whatever the dtype: the head is 0.2% of the work.
        kernel_init = nn.initializers.normal(0.01)
        hidden = nn.relu(nn.Dense(512, kernel_init=kernel_init)(features))
        hidden = nn.relu(nn.Dense(512, kernel_init=kernel_init)(hidden))
        return nn.Dense(self.num_classes, kernel_init=kernel_init)(hidden), features

    def layer(self, x: jax.Array, train: bool, number: int, width: int) -> jax.Array:
        """A convolution, batch norm, ReLU.

        Training leaves the bias to batch norm, which has no use for it: no sum for a gradient that is 0.
        """
        name, given = f"Conv_{number}", train and not self.is_initializing()
        x = conv(x, width, 3, dtype=self.dtype, use_bias=not given, name=name)
        bias = self.variables["params"][name]["bias"] if given else 0
        return nn.relu(norm(x, train, self.dtype, f"BatchNorm_{number}", bias))


def vgg16(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """VGG-16 with batch norm and a 512-512-512-K head: 15.3M parameters with 100 classes, D = 512."""
    return VGG(num_classes, (2, 2, 3, 3, 3), dtype)


def vgg19(num_classes: int, dtype: Any = jnp.float32) -> nn.Module:
    """VGG-19 with batch norm and a 512-512-512-K head: 20.6M parameters with 100 classes, D = 512."""
    return VGG(num_classes, (2, 2, 4, 4, 4), dtype)
