"""The depthwise convolution of a CPU: a sum of shifted products. It names no backbone.

XLA has no kernel of a CPU for convolutions of one channel each: at 8 images of 28x28 and 192 channels its forward pass
takes some 100 times as long as this sum, and both passes take twice as long; of smaller maps 16 times.
"""

from typing import Any

import jax
import jax.numpy as jnp


def shifted_sum(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Like `jax.lax.conv_general_dilated` with a group for each channel, for Flax's argument of that name.

    Args:
      images: [n, h, w, c].
      kernel: [rows, columns, 1, c].
      strides: down and to the side.
      padding: of each ((above, below), (left, right)).
      options: axes and groups, which are as they have to be, and dilations of 1.

    Returns:
      [n, h', w', c].
    """
    del options
    rows, columns = kernel.shape[:2]
    padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
    height, width = padded.shape[1] - rows + 1, padded.shape[2] - columns + 1  # before the strides
    found = jnp.zeros((), images.dtype)
    for row in range(rows):
        for column in range(columns):
            seen = padded[:, row : row + height : strides[0], column : column + width : strides[1]]
            found = found + seen * kernel[row, column, 0]
    return found
