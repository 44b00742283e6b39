"""Max pooling with its gradient written out; it names no backbone."""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels: [n, h, w, c] -> [n, h // 2, w // 2, c]; an odd last row or column is left out.

    The gradient goes to the first of several that are largest, row by row, as in XLA and PyTorch. Which one that is, is
    kept: XLA's own gradient looks for it again and scatters, which on a GPU is three kernels that join no other, and on
    a CPU takes several times as long.
    """
    return _forward(x)[0]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    height, width = (size // 2 * 2 for size in x.shape[1:3])
    a, b, c, d = (x[:, row:height:2, column:width:2] for row in (0, 1) for column in (0, 1))
    of_two, of_three = jnp.maximum(a, b), jnp.maximum(jnp.maximum(a, b), c)
    which = jnp.where(d > of_three, 3, jnp.where(c > of_two, 2, jnp.where(b > a, 1, 0))).astype(jnp.uint8)
    # Of the input only its shape matters, of which an empty part tells.
    return jnp.maximum(of_three, d), (which, x[:0])


def _backward(kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array]:
    which, like = kept
    n, height, width, channels = dy.shape
    number = 2 * jnp.arange(2)[:, None, None, None] + jnp.arange(2)[:, None]  # of a pixel among its four
    dx = jnp.where(which[:, :, None, :, None] == number, dy[:, :, None, :, None], 0)
    dx = dx.reshape(n, 2 * height, 2 * width, channels)
    odd = [(0, size % 2) for size in like.shape[1:3]]
    return (jnp.pad(dx, ((0, 0), *odd, (0, 0))),)


max_pool.defvjp(_forward, _backward)
