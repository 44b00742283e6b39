"""NNX modules as `Backbone`s."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from cutnmix_jax.backbones.adapters import Call, check_mode, mode, outputs_of, with_types_of
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import Backbone, ImageShape, Outputs, Tree


def nnx_backbone(name: str, make: Callable[..., Any], image_shape: ImageShape) -> Backbone:
    """An NNX module as a backbone.

    Its `nnx.Param` are the params; every other Variable, the state of its random numbers too, travels as batch
    statistics. In training that state is drawn from `key`, so that no two passes of a step drop the same, be they of a
    network and of the mean of it; without a key it moves on by itself. An array that is no Variable is a constant.

    Args:
      name: how the user asked for it.
      make: called as `make(rngs=nnx.Rngs(key))`.
      image_shape: (H, W, C) of its images.

    Returns:
      the backbone; both trees are nested dicts of plain arrays with strings for keys.

    Raises:
      UsageError: if `make` does not return an NNX module; from `apply`, if that returns neither (logits, features) nor
        logits made by an `nnx.Linear`.
    """

    def build(key: jax.Array) -> Any:
        model = make(rngs=nnx.Rngs(key))
        if not isinstance(model, nnx.Module):
            raise UsageError(
                f"backbone {name!r} made a {type(model).__name__}, not a flax.nnx.Module"
                " (a function that makes a flax.linen.Module takes no argument `rngs`)"
            )
        check_mode(name, model)
        return nnx.split(model, nnx.Param, ...)

    # Built for real, not in a trace, where NNX would take an array that is no Variable for static and keep a tracer.
    # The seed does not matter: of the Variables only the names and types are used.
    graphdef, some_params, some_rest = build(jax.random.key(0))

    def init(key: jax.Array) -> dict[str, Tree]:
        _, params, rest = build(key)
        return {"params": to_plain(params), "batch_stats": to_plain(rest)}

    def apply(variables: Tree, images: jax.Array, train: bool, key: jax.Array | None = None) -> tuple[Outputs, Tree]:
        rest = from_plain(some_rest, variables["batch_stats"])
        if train and key is not None:
            rest = with_keys_from(rest, key)
        model = nnx.merge(graphdef, from_plain(some_params, variables["params"]), rest)
        if train:
            model.train()
        else:
            model.eval()
        calls: list[Call] = []
        with recorded_linears(calls):
            returned = model(images, **mode(model, train))
        batch_stats = variables["batch_stats"]
        if train:
            # What the model has sown during the call was not there before and is left out.
            after = flatten_dict(to_plain(nnx.state(model, nnx.Not(nnx.Param))))
            before = flatten_dict(batch_stats)
            drawn = random_paths(some_rest) if key is not None else set()
            after = unflatten_dict({path: before[path] if path in drawn else after[path] for path in before})
            batch_stats = with_types_of(batch_stats, after)
        return outputs_of(name, returned, calls), batch_stats

    return Backbone(name, init, apply, image_shape)


# Held while `nnx.Linear.__call__` is another one: two that trace at once would each put back what the other left.
_RECORDING = threading.RLock()  # a network may call another one


@contextlib.contextmanager
def recorded_linears(calls: list[Call]) -> Iterator[None]:
    """Notes what goes through every `nnx.Linear` of this thread; `nnx.capture` would give outputs, but not inputs."""
    with _RECORDING:
        original, here = nnx.Linear.__call__, threading.get_ident()

        @functools.wraps(original)
        def recording(self: Any, *args: Any, **kwargs: Any) -> Any:
            returned = original(self, *args, **kwargs)
            if threading.get_ident() == here:
                calls.append((args[0] if args else kwargs["inputs"], returned))
            return returned

        nnx.Linear.__call__ = recording  # type: ignore[method-assign]
        try:
            yield
        finally:
            nnx.Linear.__call__ = original  # type: ignore[method-assign]


def is_key(value: Any) -> bool:
    """Whether a value is an array of typed random keys."""
    return isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)


def with_keys_from(state: Any, key: jax.Array) -> Any:
    """A state whose random keys are drawn from another one, each differently."""
    pairs = []
    for number, (path, variable) in enumerate(nnx.to_flat_state(state)):
        if isinstance(variable, nnx.Variable) and is_key(value := variable.get_value()):
            bits = jax.random.bits(jax.random.fold_in(key, number), jax.random.key_data(value).shape)
            variable = variable.replace(jax.random.wrap_key_data(bits, impl=jax.random.key_impl(value)))
        pairs.append((path, variable))
    return nnx.from_flat_state(pairs)


def random_paths(state: Any) -> set[tuple[str, ...]]:
    """Where the keys and counts of random numbers stand in `to_plain` of a state."""
    return {
        tuple(map(str, path))
        for path, variable in nnx.to_flat_state(state)
        if isinstance(variable, nnx.RngState) or (isinstance(variable, nnx.Variable) and is_key(variable.get_value()))
    }


def to_plain(state: Any) -> Tree:
    """The Variables of an `nnx.State` as nested dicts of arrays; keys as the uint32 they are made of."""
    plain = {}
    for path, variable in nnx.to_flat_state(state):
        if isinstance(variable, nnx.Variable):
            value = variable.get_value()
            plain[tuple(map(str, path))] = jax.random.key_data(value) if is_key(value) else jnp.asarray(value)
    return unflatten_dict(plain)


def from_plain(template: Any, tree: Tree) -> Any:
    """The inverse of `to_plain`; `template` is a state of the same structure."""
    values = flatten_dict(tree)
    pairs = []
    for path, variable in nnx.to_flat_state(template):
        if isinstance(variable, nnx.Variable):
            value, model = values[tuple(map(str, path))], variable.get_value()
            impl = jax.random.key_impl(model) if is_key(model) else None
            variable = variable.replace(jax.random.wrap_key_data(value, impl=impl) if impl else value)
        pairs.append((path, variable))
    return nnx.from_flat_state(pairs)
