"""The layers and initial weights that the families share; it names no backbone.

NHWC throughout. Parameters and batch statistics are float32 whatever `dtype` the activations are computed in.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.batch_norm import BatchNorm
from cutnmix_jax.backbones.convolution import convolution, of_pixels
from cutnmix_jax.backbones.depthwise import shifted_sum

# What of a network runs: `trunk` from the images to the feature maps that peers may share, `tail` from there on.
WHOLE, TRUNK, TAIL = "whole", "trunk", "tail"

# Untruncated: "normal" is PyTorch's kaiming_normal_ with the gain of ReLU.
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
KAIMING_FAN_IN = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Variance 1 / (3 fan_in) is U(-b, b) with b = 1 / sqrt(fan_in), PyTorch's default for a linear layer.
LINEAR_KERNEL = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def linear_bias(fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default bias of a linear layer, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
      fan_in: inputs of the layer; a bias alone does not tell.

    Returns:
      an initializer `(key, shape, dtype) -> array`.
    """
    bound = 1 / math.sqrt(fan_in)

    def init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, **_: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def conv(
    x: jax.Array,
    width: int,
    kernel: int,
    stride: int = 1,
    *,
    dtype: Any,
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT,
    use_bias: bool = False,
    depthwise: bool = False,
    name: str | None = None,
) -> jax.Array:
    """A square convolution of [n, h, w, c], padded by kernel // 2 on every side; for use inside `nn.compact`.

    Where it is `depthwise`, each channel has a kernel of its own.
    """
    # 'SAME' would pad (0, 1) where the stride is 2; the networks that were trained with PyTorch pad (1, 1).
    pad = (kernel // 2, kernel // 2)
    layer = nn.Conv(
        width,
        (kernel, kernel),
        strides=stride,
        padding=(pad, pad),
        feature_group_count=x.shape[-1] if depthwise else 1,
        use_bias=use_bias,
        kernel_init=kernel_init,
        dtype=dtype,
        conv_general_dilated=shifted_sum if depthwise and _on_cpu() else of_pixels if kernel == 1 else convolution,
        name=name,
    )
    return layer(kept(x))


def kept(x: jax.Array) -> jax.Array:
    """`x`, computed once and stored; for what is read more than once.

    Without it XLA computes an activation again, and all that led to it since the last convolution, wherever the
    gradients of a CPU read it in another order: in a residual network the whole stage, for each of its blocks. A GPU
    stores the input of a convolution anyway.
    """
    return jax.lax.optimization_barrier(x) if _on_cpu() else x


def _on_cpu() -> bool:
    """Whether what is traced now will run on a CPU."""
    return not _shapes_only.get() and jax.default_backend() == "cpu"


_shapes_only = contextvars.ContextVar("_shapes_only", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """While entered, networks can be traced for their shapes, and JAX is not asked for a device."""
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def norm(
    x: jax.Array, train: bool, dtype: Any, name: str | None = None, bias_before: jax.Array | float = 0
) -> jax.Array:
    """Batch norm with PyTorch's constants: momentum .9 in Flax's sense is .1 in PyTorch's; epsilon 1e-5.

    Its running variance is the biased one, unlike PyTorch's. `bias_before` is as in `BatchNorm`, for training alone.
    """
    if train:
        return BatchNorm(momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)(x, bias_before)
    return nn.BatchNorm(use_running_average=True, epsilon=1e-5, dtype=dtype, name=name)(x)


def pool_all(x: jax.Array) -> jax.Array:
    """Global average pooling of [n, h, w, d] into [n, d] float32, summed in float32."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
