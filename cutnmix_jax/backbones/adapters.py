"""Flax modules as `Backbone`s, Linen's here and NNX's in `nnx_adapter`; it names no backbone.

A module maps [n, H, W, C] float32 to `(logits [n, K], features [n, D])`, or to the logits alone. Then the features
are what went into the last fully connected layer, the one whose output is the logits.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict

from cutnmix_jax.backbones.layers import TAIL, TRUNK
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import CIFAR, Backbone, ImageShape, Outputs, Split, Tree

Call = tuple[Any, Any]  # what went into a fully connected layer, and what came out


def arguments(function: Any) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function or of a class's `__init__`; none if it does not tell."""
    if isinstance(function, functools.partial):
        return arguments(function.func)
    # The signature of an NNX class is that of its metaclass, (*args, **kwargs).
    function = function.__init__ if inspect.isclass(function) else function
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}


# What others call `train`, or its contrary; left at its default, such a network would never be trained as one.
_OTHER_MODES = ("training", "is_training", "is_train", "deterministic", "use_running_average", "inference", "is_eval")


def mode(module: Any, train: bool) -> dict[str, Any]:
    """The keyword argument that tells a module whether it is being trained, if it takes one."""
    return {"train": train} if "train" in arguments(type(module).__call__) else {}


def check_mode(name: str, module: Any) -> None:
    """Raises UsageError where what tells a module of a user's own that it is being trained has another name than ours.

    Args:
      name: how the user asked for it.
      module: of Linen or of NNX.
    """
    takes = arguments(type(module).__call__)
    if "train" in takes:
        return
    # A field of a Linen module is decided once, when it is made.
    fields = [field.name for field in dataclasses.fields(module)] if isinstance(module, nn.Module) else []
    for names, where in ((takes, "its __call__ takes"), (fields, "it has the field")):
        if other := [word for word in ("train", *_OTHER_MODES) if word in names]:
            raise UsageError(
                f"backbone {name!r}: {where} {other[0]!r}; what tells it that it is being trained is the argument "
                "`train` of its __call__, true or false"
            )


def linen_backbone(name: str, module: Any, image_shape: ImageShape = CIFAR) -> Backbone:
    """A Linen module as a backbone.

    Args:
      name: how the user asked for it.
      module: `__call__(images)` or `__call__(images, train)`, with batch statistics or without.
      image_shape: (H, W, C) of its images.

    Returns:
      the backbone; `key` feeds the module's dropout in training.

    Raises:
      UsageError: if `module` is not a Linen module; from `init`, if it keeps state in other collections than
        `batch_stats`; from `apply`, if it returns neither (logits, features) nor logits made by an `nn.Dense`.
    """
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"backbone {name!r} made a {type(module).__name__}, not a flax.linen.Module"
            " (a function that makes an nnx.Module takes an argument `rngs`)"
        )

    check_mode(name, module)

    def init(key: jax.Array) -> dict[str, Tree]:
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}
        variables = module.init(rngs, jnp.zeros((1, *image_shape)), **mode(module, train=False))
        if extra := set(variables) - {"params", "batch_stats"}:
            raise UsageError(f"backbone {name!r} keeps state in {sorted(extra)}; only batch_stats is carried along")
        return {"params": variables.get("params", {}), "batch_stats": variables.get("batch_stats", {})}

    def apply(variables: Tree, images: jax.Array, train: bool, key: jax.Array | None = None) -> tuple[Outputs, Tree]:
        calls: list[Call] = []
        with nn.intercept_methods(functools.partial(record_dense, calls)):
            returned, batch_stats = run(module, variables, images, train, key)
        return outputs_of(name, returned, calls), batch_stats

    has_parts = "part" in arguments(type(module).__call__)
    return Backbone(name, init, apply, image_shape, split_of(name, module, image_shape) if has_parts else None)


def run(
    module: nn.Module, variables: Tree, inputs: jax.Array, train: bool, key: jax.Array | None = None, **part: Any
) -> tuple[Any, Tree]:
    """A pass of a Linen module, or of the part of it that is named: what it returns, and its next batch statistics."""
    returned, changed = module.apply(
        variables,
        inputs,
        **mode(module, train),
        **part,
        rngs=None if key is None else {"dropout": key},
        mutable=["batch_stats"] if train else [],
    )
    before = variables["batch_stats"]
    return returned, with_types_of(before, changed.get("batch_stats", {})) if train else before


def split_of(name: str, module: Any, image_shape: ImageShape) -> Split:
    """The two parts of a Linen module whose `__call__` takes `part`, as ours do; see `layers.WHOLE`."""

    def tail(variables: Tree, maps: jax.Array, train: bool, key: jax.Array | None = None) -> tuple[Outputs, Tree]:
        returned, batch_stats = run(module, variables, maps, train, key, part=TAIL)
        return outputs_of(name, returned, []), batch_stats

    @functools.cache
    def names() -> frozenset[str]:
        images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
        init = functools.partial(module.init, **mode(module, train=False), part=TRUNK)
        variables = jax.eval_shape(init, {"params": jax.eval_shape(jax.random.key, 0)}, images)
        return frozenset(name for tree in variables.values() for name in tree)

    return Split(names, functools.partial(run, module, part=TRUNK), tail)


def record_dense(calls: list[Call], function: Callable[..., Any], args: tuple, kwargs: dict, context: Any) -> Any:
    """A Linen interceptor that notes what goes through every `nn.Dense`."""
    returned = function(*args, **kwargs)
    if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
        calls.append((args[0] if args else kwargs["inputs"], returned))
    return returned


def with_types_of(before: Tree, after: Tree) -> Tree:
    """Batch statistics after a pass with the types from before it: a mean in bfloat16 that took in a float32 stays one.

    What is another tree afterwards, or no float any more, is left for `foreign.check` to refuse.
    """
    if set(flatten_dict(before)) != set(flatten_dict(after)):
        return after

    def cast(old: jax.Array, new: jax.Array) -> jax.Array:
        floats = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (old, new))
        return jnp.asarray(new, old.dtype if floats else new.dtype)  # not of a weak type either

    return jax.tree.map(cast, before, after)


def outputs_of(name: str, returned: Any, calls: list[Call]) -> Outputs:
    """What a module returned, completed by the features where it returned the logits alone; all float32."""
    if isinstance(returned, tuple) and len(returned) == 2:
        logits, features = returned
    elif isinstance(returned, jax.Array):
        logits, features = returned, classifier_input(name, returned, calls)
    else:
        raise UsageError(f"backbone {name!r} returns a {type(returned).__name__}, not (logits, features) or logits")
    for what, array in (("logits", logits), ("features", features)):
        if not jnp.issubdtype(jnp.result_type(array), jnp.floating):  # no gradient flows through integers
            raise UsageError(f"backbone {name!r}: its {what} are {jnp.result_type(array)}; return floating-point ones")
    return Outputs(jnp.asarray(logits, jnp.float32), jnp.asarray(features, jnp.float32))


def classifier_input(name: str, logits: jax.Array, calls: list[Call]) -> jax.Array:
    """The input of the fully connected layer that made the logits."""
    for inputs, returned in reversed(calls):
        if returned is logits:
            return inputs
    # A cast or a scaling after the layer makes another array of the same shape, as of one layer alone.
    alike = [inputs for inputs, made in calls if made.shape == logits.shape]
    if alike and calls[-1][1].shape == logits.shape:
        if len(alike) == 1:
            return alike[0]
        which = f"returns logits alone, and {len(alike)} fully connected layers of it could have made them"
        raise UsageError(f"backbone {name!r} {which}; return (logits, features)")
    ends = "returns logits alone and ends in no fully connected layer"
    raise UsageError(f"backbone {name!r} {ends}; return (logits, features)")
