"""The layers of a Linen network in the order in which they run; it names no backbone."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from cutnmix_jax.backbones.layers import shapes_only
from cutnmix_jax.types import Backbone, Tree

KINDS = {nn.Conv: "conv", nn.BatchNorm: "norm", nn.Dense: "dense"}


def in_running_order(network: Backbone, variables: Mapping[str, Tree]) -> list[tuple[str, tuple[str, ...]]]:
    """The kind and the path of each convolution, batch norm and linear layer; nothing is computed.

    Args:
      network: a Linen one.
      variables: {'params': tree, 'batch_stats': tree}, or their shapes.
    """
    ran: list[tuple[str, tuple[str, ...]]] = []

    def note(function: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        if type(context.module) in KINDS and context.method_name == "__call__":
            ran.append((KINDS[type(context.module)], context.module.path))
        return function(*args, **kwargs)

    def run(variables: Mapping[str, Tree]) -> jax.Array:
        return network.apply(variables, jnp.zeros((1, *network.image_shape)), False)[0].logits

    with shapes_only(), nn.intercept_methods(note):
        jax.eval_shape(run, variables)
    return ran
