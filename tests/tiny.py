"""Networks that compile in a second, given to the program as a user gives their own."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Tiny(nn.Module):
    """A strided convolution and BatchNorm, which are its trunk, and a linear head."""

    num_classes: int
    width: int = 6
    use_bias: bool = True  # of the convolution
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, train, part="whole"):
        x = images
        if part != "tail":
            x = nn.Conv(self.width, (3, 3), strides=4, use_bias=self.use_bias, param_dtype=self.param_dtype)(x)
            norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, param_dtype=self.param_dtype)
            x = nn.relu(norm(x))
        if part == "trunk":
            return x
        features = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes, param_dtype=self.param_dtype)(features), features


def wide(num_classes):
    """The same with other shapes, a second architecture."""
    return Tiny(num_classes, width=9)


def unbiased(num_classes):
    """The same without a bias before BatchNorm, so that no array's gradient is nothing but rounding."""
    return Tiny(num_classes, use_bias=False)


def wide_unbiased(num_classes):
    """Both."""
    return Tiny(num_classes, width=9, use_bias=False)


def half(num_classes):
    """The same with bfloat16 parameters."""
    return Tiny(num_classes, param_dtype=jnp.bfloat16)


class TinyNNX(nnx.Module):
    """The same in NNX, with dropout, and logits alone."""

    def __init__(self, num_classes, rngs, param_dtype=jnp.float32):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=4, rngs=rngs, param_dtype=param_dtype)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs, param_dtype=param_dtype)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(6, num_classes, rngs=rngs, param_dtype=param_dtype)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return self.head(self.dropout(x.mean(axis=(1, 2))))


def half_nnx(num_classes, rngs):
    """The same with bfloat16 parameters."""
    return TinyNNX(num_classes, rngs, jnp.bfloat16)
