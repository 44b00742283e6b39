"""Networks that compile in a second, given to the program as a user gives their own."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Tiny(nn.Module):
    """A strided convolution and BatchNorm, which are its trunk, and a linear head."""

    num_classes: int
    width: int = 6
    use_bias: bool = True  # of the convolution

    @nn.compact
    def __call__(self, images, train, part="whole"):
        x = images
        if part != "tail":
            x = nn.Conv(self.width, (3, 3), strides=4, use_bias=self.use_bias)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        if part == "trunk":
            return x
        features = jnp.mean(x, axis=(1, 2))
        return nn.Dense(self.num_classes)(features), features


def wide(num_classes):
    """The same with other shapes, a second architecture."""
    return Tiny(num_classes, width=9)


def unbiased(num_classes):
    """The same without a bias before BatchNorm, so that no array's gradient is nothing but rounding."""
    return Tiny(num_classes, use_bias=False)


class TinyNNX(nnx.Module):
    """The same in NNX, with dropout, and logits alone."""

    def __init__(self, num_classes, rngs):
        self.conv = nnx.Conv(3, 6, (3, 3), strides=4, rngs=rngs)
        self.norm = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(6, num_classes, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.conv(images)))
        return self.head(self.dropout(x.mean(axis=(1, 2))))
