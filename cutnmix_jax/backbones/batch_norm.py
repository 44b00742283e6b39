"""Batch norm (Ioffe and Szegedy 2015) with its gradient written out; it names no backbone.

Autodiff goes back through the mean and through the deviation one after the other and keeps the centred input besides
the input; the closed form reads the input and the gradient twice and keeps nothing else. `docs/performance.md` has the
gain.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn


@jax.custom_vjp
def batch_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises each channel over the batch.

    y = scale (x - mean) / sqrt(var + epsilon) + bias, with var = mean(x^2) - mean(x)^2 >= 0, the biased one

    Args:
      x: [..., c] float32 or bfloat16; sums are float32 always.
      scale: [c] float32.
      bias: [c] float32.
      epsilon: added to the variance.

    Returns:
      y [..., c] of the dtype of x, and mean and var, [c] float32; a gradient flows through all three
      (through a var that was cut off at 0 too).
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[tuple, tuple]:
    over, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    wide = x.astype(jnp.float32)
    sum_x, sum_xx = _sums(wide, wide * wide, over)
    mean = sum_x / count
    var = jnp.maximum(sum_xx / count - mean * mean, 0)
    inverse = jax.lax.rsqrt(var + epsilon)
    slope = scale * inverse
    y = wide * slope + (bias - mean * slope)
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _backward(kept: tuple, gradients: tuple) -> tuple[jax.Array, jax.Array, jax.Array, None]:
    """With x^ = (x - mean) / sqrt(var + epsilon): dx = slope (dy - mean(dy) - x^ mean(dy x^)), as slope dy + a x + b.

    d_mean and d_var stand for what comes in through mean and var themselves.
    """
    x, scale, mean, inverse = kept
    dy, d_mean, d_var = gradients
    over, count = tuple(range(x.ndim - 1)), math.prod(x.shape[:-1])
    wide, dy = x.astype(jnp.float32), dy.astype(jnp.float32)
    d_bias, sum_dyx = _sums(dy, dy * wide, over)
    d_scale = (sum_dyx - mean * d_bias) * inverse
    slope = scale * inverse
    a = (2 * d_var - slope * inverse * d_scale) / count
    b = (d_mean - slope * d_bias) / count - a * mean
    dx = dy * slope + wide * a + b
    return dx.astype(x.dtype), d_scale, d_bias, None


batch_norm.defvjp(_forward, _backward)


def _sums(one: jax.Array, other: jax.Array, over: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """The sums of two arrays of one shape over the same axes.

    XLA takes a sum over many rows in two kernels. On a GPU, which at small batches waits for their launches, both sums
    go through these two at once; a CPU is faster with one after the other.
    """
    if jax.default_backend() != "gpu":
        return jnp.sum(one, over), jnp.sum(other, over)
    zero = jnp.zeros((), one.dtype)
    return jax.lax.reduce((one, other), (zero, zero), lambda a, b: (a[0] + b[0], a[1] + b[1]), over)


class BatchNorm(nn.Module):
    """Batch norm in training, with the parameters, statistics and name of Flax's, which serves evaluation.

    As Flax's it keeps the mean of the biased variances; PyTorch keeps n / (n - 1) times them, of n numbers a channel.

    Attributes:
      momentum: how much of the old statistics stays.
      epsilon: added to the variance.
      dtype: of the result.
    """

    momentum: float
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias_before: jax.Array | float = 0) -> jax.Array:
        """[..., c] -> [..., c].

        Args:
          x: what is normalised.
          bias_before: [c], of what comes before and not yet added. The mean takes it away again, so it has no gradient
            and shows in the running mean alone.
        """
        channels = x.shape[-1:]
        averages = [
            self.variable("batch_stats", "mean", jnp.zeros, channels),
            self.variable("batch_stats", "var", jnp.ones, channels),
        ]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        y, mean, var = batch_norm(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            for average, new in zip(averages, (mean + bias_before, var), strict=True):
                average.value = self.momentum * average.value + (1 - self.momentum) * new
        return y.astype(self.dtype)
