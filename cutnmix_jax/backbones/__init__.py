"""Networks by name: ours, one family a file, and a user's own as `my_pkg.nets:make`.

Every function in the `__all__` of a file in this folder is a backbone, `make(num_classes, dtype) -> nn.Module`.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from cutnmix_jax.backbones import adapters, foreign
from cutnmix_jax.backbones.layers import shapes_only as shapes_only
from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.types import Backbone


def names() -> dict[str, Callable[..., Any]]:
    """Every backbone of this folder: its name -> the function that makes it, sorted by name."""
    found = {}
    for info in pkgutil.iter_modules(__path__):
        family = importlib.import_module(f"{__name__}.{info.name}")
        found.update({name: getattr(family, name) for name in getattr(family, "__all__", ())})
    return dict(sorted(found.items()))


def load(name: str, num_classes: int, dtype: Any = jnp.float32) -> Backbone:
    """Makes a backbone.

    Args:
      name: one of `names()`, or `module:function` or `module:Class` for a network of a user's own package, which is
        called as `foreign.from_factory` says.
      num_classes: K.
      dtype: of the activations, float32 or bfloat16. Outputs are float32 always, and of our own networks parameters and
        batch statistics, too.

    Returns:
      the backbone, as two pure functions.

    Raises:
      UsageError: if there is no such backbone, or the user's network is not what a backbone should be.
    """
    if ":" in name:
        return foreign.from_factory(name, foreign.import_attribute(name), num_classes, dtype)
    ours = names()
    if name not in ours:
        raise UsageError(f"unknown backbone {name!r}: {nearest(name, ours)}. Or your own, as my_pkg.nets:make")
    return adapters.linen_backbone(name, ours[name](num_classes, dtype))
