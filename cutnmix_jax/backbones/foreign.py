"""A user's own network as a `Backbone`: found by `my_pkg.nets:make`, made, checked; it names no backbone."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax import digests, process
from cutnmix_jax.backbones import adapters, nnx_adapter
from cutnmix_jax.device import find_devices
from cutnmix_jax.errors import UsageError, blaming
from cutnmix_jax.types import Backbone, ImageShape, Tree

TRAINED = ("float32", "bfloat16", "float16")  # types of parameters


def is_foreign(name: str) -> bool:
    """Whether a backbone is a user's own, `my_pkg.nets:make`."""
    return ":" in name


def from_factory(
    name: str, make: Callable[..., Any], num_classes: int, dtype: Any, image_shape: ImageShape
) -> Backbone:
    """Makes a backbone of a user's function or class and checks it before the network is compiled.

    Args:
      name: how the user asked for it; it opens every message.
      make: called as `make(num_classes=K)` and returns a Linen module, or, if its signature takes `rngs`, as
        `make(num_classes=K, rngs=nnx.Rngs(...))` and returns an NNX module; `dtype` goes along if the signature takes
        it.
      num_classes: K.
      dtype: of the activations, float32 or bfloat16.
      image_shape: (H, W, C) of its images.

    Returns:
      the backbone. Its outputs are float32; only `nnx.Param` of an NNX module is trained. Parameters and batch
      statistics keep the types that the network gives them.

    Raises:
      UsageError: if the call fails, or returns something else, or a parameter is of none of the types `TRAINED`, or the
        outputs are not what a backbone returns.
    """
    accepted = adapters.arguments(make)
    kwargs = {"num_classes": num_classes} | ({"dtype": dtype} if "dtype" in accepted else {})
    if "rngs" in accepted:
        find_devices()  # NNX is built for real; without a device that would look like a fault of the network
    what = f"backbone {name!r} fails on images of {'x'.join(map(str, image_shape))}"
    with blaming(what, "mend it; docs/own_network.md says what is asked of a network"):
        with types_as_asked_for(name):
            if "rngs" in accepted:
                backbone = nnx_adapter.nnx_backbone(name, functools.partial(make, **kwargs), image_shape)
            else:
                backbone = adapters.linen_backbone(name, make(**kwargs), image_shape)
            check_types(backbone)
        check(backbone, num_classes)
    return backbone


def shapes(tree: Tree) -> Tree:
    """A tree with each array replaced by a string that says its shape and type."""
    return jax.tree.map(lambda array: f"{array.shape} {array.dtype}", tree)


def check_types(backbone: Backbone) -> None:
    """Raises UsageError where a parameter is of a type that cannot be trained."""
    params = jax.eval_shape(backbone.init, jax.eval_shape(jax.random.key, 0))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if str(leaf.dtype) not in TRAINED:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise UsageError(
                f"backbone {backbone.name!r}: its parameter {name} is {leaf.dtype}; what can be trained is"
                f" {', '.join(TRAINED)}, the rest belongs into batch_stats or into another Variable than nnx.Param"
            )


@contextlib.contextmanager
def types_as_asked_for(name: str) -> Iterator[None]:
    """Raises UsageError where a network asks for float64: JAX makes float32 of it, and says so in a warning alone."""
    shown: list[str] = []
    with process.heard("Explicitly requested dtype (float64|complex128) .*truncated", shown.append, own_thread=True):
        yield
    if shown:
        raise UsageError(f"backbone {name!r} asks for float64; what can be trained is {', '.join(TRAINED)}")


def check(backbone: Backbone, num_classes: int) -> None:
    """Traces a backbone in both modes, without compiling, and compares the shapes with the contract.

    Raises:
      UsageError: if logits are not [n, K], features not [n, D], training changes what the batch statistics are, or two
        arrays would have one name in a checkpoint.
    """
    n = 3 if num_classes == 2 else 2  # so that [K, n] is seen to be wrong
    images = jax.ShapeDtypeStruct((n, *backbone.image_shape), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(backbone.init, key)
    if len(digests.flat(variables)) < len(jax.tree.leaves(variables)):
        raise UsageError(f"backbone {backbone.name!r}: two of its arrays have one name once dots join its parts")
    for train in (True, False):
        # Nothing may be drawn in evaluation, so it has no key.
        outputs, batch_stats = jax.eval_shape(
            functools.partial(backbone.apply, train=train), variables, images, key=key if train else None
        )
        logits, features = outputs.logits.shape, outputs.features.shape
        if logits != (n, num_classes):
            raise UsageError(f"backbone {backbone.name!r}: logits of {n} images are {logits}, not {(n, num_classes)}")
        if len(features) != 2 or features[0] != n:
            raise UsageError(
                f"backbone {backbone.name!r}: features of {n} images are {features}, not [{n}, D];"
                " return (logits, features) with pooled features"
            )
        if shapes(batch_stats) != shapes(variables["batch_stats"]):
            raise UsageError(f"backbone {backbone.name!r}: batch statistics change their shape or type in training")


def is_always_evaluated(backbone: Backbone) -> bool:
    """Whether a network has batch statistics, and training computes the same as evaluation: it is not told of it."""
    images = jax.ShapeDtypeStruct((2, *backbone.image_shape), jnp.float32)
    key = jax.eval_shape(jax.random.key, 0)
    variables = jax.eval_shape(backbone.init, key)
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(variables["batch_stats"])):
        return False

    def program(train: bool) -> str:
        call = functools.partial(backbone.apply, train=train)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(call)(variables, images, key=key)))

    return program(train=True) == program(train=False)
