"""Networks by name: ours, one family a file, and a user's own as `my_pkg.nets:make`.

Every function in the `__all__` of a file in this folder is a backbone, `make(num_classes, dtype) -> nn.Module`;
the module's `smallest`, if it has one, tells how many pixels its images have on a side at least.
"""

import ast
import contextlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cutnmix_jax import own_code
from cutnmix_jax.backbones import adapters, foreign
from cutnmix_jax.backbones.layers import shapes_only as shapes_only
from cutnmix_jax.errors import UsageError, blaming, nearest
from cutnmix_jax.types import CIFAR, Backbone, ImageShape


def names() -> list[str]:
    """Every backbone of this folder, sorted. None of its files is imported."""
    return sorted(_files())


def _files() -> dict[str, str]:
    """Every backbone of this folder -> the file that has it in its `__all__`; UsageError where two files have it."""
    found: dict[str, str] = {}
    for path in (path for folder in __path__ for path in Path(folder).glob("*.py")):
        text = path.read_text(errors="replace")
        if listed := re.search(r"^__all__\b[^=\n]*=\s*([\[(].*?[\])])", text, re.MULTILINE | re.DOTALL):
            with contextlib.suppress(SyntaxError, ValueError):
                here = dict.fromkeys(ast.literal_eval(listed[1]), path.stem)
                if twice := [name for name in here if found.get(name, path.stem) != path.stem]:
                    files = " and ".join(sorted((found[twice[0]], path.stem)))
                    raise UsageError(f"backbone {twice[0]!r} is in the __all__ of {files}; rename one of them")
                found |= here
    return found


def find(name: str) -> Callable[..., Any]:
    """The function that makes a backbone of this folder, `make(num_classes, dtype) -> nn.Module`.

    Raises:
      UsageError: if there is no backbone of that name, or its file is broken.
    """
    files = _files()
    if name not in files:
        raise UsageError(f"unknown backbone {name!r}: {nearest(name, files)}. Or your own, as my_pkg.nets:make")
    file = f"cutnmix_jax/backbones/{files[name]}.py"
    with blaming(f"backbone {name!r}: {file} cannot be imported", "install what it needs, or mend it"):
        return getattr(importlib.import_module(f"{__name__}.{files[name]}"), name)


def load(name: str, num_classes: int, dtype: Any = jnp.float32, image_shape: ImageShape = CIFAR) -> Backbone:
    """Makes a backbone.

    Args:
      name: one of `names()`, or `module:function` or `module:Class` for a network of a user's own package, which is
        called as `foreign.from_factory` says.
      num_classes: K.
      dtype: of the activations, float32 or bfloat16. Outputs are float32 always, and of our own networks parameters and
        batch statistics, too.
      image_shape: (H, W, C) of its images.

    Returns:
      the backbone, as two pure functions.

    Raises:
      UsageError: if there is no such backbone, its file is broken, the images are too small for it, or the user's
        network is not what a backbone should be.

    Example:
      >>> import cutnmix_jax, jax
      >>> backbone = cutnmix_jax.backbones.load("resnet8", num_classes=10)
      >>> variables = jax.eval_shape(backbone.init, jax.random.key(0))
      >>> outputs, _ = jax.eval_shape(lambda v: backbone.apply(v, jnp.zeros((5, 32, 32, 3)), False), variables)
      >>> outputs.logits.shape, outputs.features.shape
      ((5, 10), (5, 64))
    """
    if foreign.is_foreign(name):
        return foreign.from_factory(name, own_code.named("backbone", name), num_classes, dtype, image_shape)
    module, (height, width, _) = find(name)(num_classes, dtype), image_shape
    if min(height, width) < (least := getattr(module, "smallest", 1)):
        raise UsageError(
            f"backbone {name!r}: images of {height}x{width} are too small for it; it takes {least}x{least}"
        )
    return adapters.linen_backbone(name, module, image_shape)
