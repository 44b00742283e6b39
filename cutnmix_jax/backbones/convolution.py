"""The convolutions of our networks: under `vmap` over J networks they are J plain ones, and not a grouped one.

XLA runs a grouped convolution several times slower than its parts on a CPU, and on many GPUs. Those of one pixel are
products of matrices, of J networks a batch of them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def convolution(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Like `jax.lax.conv_general_dilated`, for Flax's argument of that name."""
    settings = {"window_strides": strides, "padding": padding, **options}
    return _made(tuple(sorted((name, _hashable(value)) for name, value in settings.items())))(images, kernel)


def of_pixels(images: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **_: Any) -> jax.Array:
    """A convolution with a kernel [1, 1, c, d] and no padding as a product, for the same argument.

    A CPU takes a third to two thirds of the time for it and its gradients. A GPU copies nothing for its gradient, which
    in a convolution is in another order than the kernel, and launches one for all networks.
    """
    assert kernel.shape[:2] == (1, 1) and not any(map(any, padding))
    rows, columns = strides
    seen = images[:, ::rows, ::columns]
    # With one axis in front XLA takes the gradient's product as it is; over several it first turns what was seen.
    found = jnp.dot(seen.reshape(-1, seen.shape[-1]), kernel[0, 0])
    return found.reshape(*seen.shape[:-1], -1)


def _hashable(value: Any) -> Any:
    return tuple(map(_hashable, value)) if isinstance(value, list | tuple) and not hasattr(value, "_fields") else value


@functools.cache  # one function for each kind of convolution, so that JAX traces it once
def _made(settings: tuple[tuple[str, Any], ...]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    def plain(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(images, kernel, **dict(settings))

    def gradients(images: jax.Array, kernel: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(plain, images, kernel)[1](cotangent)

    each, each_gradient = _one_by_one(plain), _one_by_one(gradients)

    # JAX differentiates no function that has a batching rule of its own, so the rule is inside, at both passes.
    @jax.custom_vjp
    def made(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return each(images, kernel)

    def forward(images: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return each(images, kernel), (images, kernel)

    def backward(saved: tuple[jax.Array, jax.Array], cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return each_gradient(*saved, cotangent)

    made.defvjp(forward, backward)
    return made


def _one_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that under `vmap` is called once for each entry; the results are stacked."""
    mapped = jax.custom_batching.custom_vmap(function)

    @mapped.def_vmap
    def rule(size: int, batched: list[bool], *arguments: jax.Array) -> tuple[Any, Any]:
        pairs = list(zip(arguments, batched, strict=True))
        results = [mapped(*(array[j] if is_batched else array for array, is_batched in pairs)) for j in range(size)]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)
        return stacked, jax.tree.map(lambda _: True, stacked)

    return mapped
