"""How precisely a run computes. Parameters of our networks, outputs, losses and the optimizer are float32 always."""

from typing import Any, NamedTuple

import jax.numpy as jnp


class Precision(NamedTuple):
    """One choice of `config.precision`.

    Attributes:
      activations: the type of what flows through our networks.
      products: XLA's name for how 32-bit products are made; a CPU has one way only.
    """

    activations: Any
    products: str


CHOICES = {
    "tf32": Precision(jnp.dtype(jnp.float32), "tensorfloat32"),
    "float32": Precision(jnp.dtype(jnp.float32), "highest"),
    "bfloat16": Precision(jnp.dtype(jnp.bfloat16), "default"),
}
