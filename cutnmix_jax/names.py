"""The names of what a method computes, from its own code: only shapes are traced."""

from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax.method import Method
from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views

_N = 2  # images in a batch of which only the shapes are traced


def term_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """The names of a method's terms for peers of these sizes, in its order; nothing is computed."""
    shape: Any = jax.ShapeDtypeStruct
    views: Views = (_outputs(spec),) * len(method.views)
    targets = shape((len(views), len(spec.feature_sizes), _N, spec.num_classes), jnp.float32)
    rows = shape((_N,), jnp.int32)
    batch = Batch(shape((), jnp.float32), targets, rows, rows, dict.fromkeys(method.teachers, views))
    whole = shape((), jnp.int32)
    clock = Clock(whole, whole, whole, shape((), jnp.float32))
    params, state = _variables(method, spec)
    names: list[str] = []

    def loss(*arguments: Tree) -> tuple[Terms, Tree]:
        terms, after = method.loss(*arguments)
        names.extend(terms)  # here, because a tree's own order is that of the names
        return terms, after

    jax.eval_shape(loss, params, state, views, batch, clock)
    return tuple(names)


def head_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """The names of what a method reports besides its peers; nothing is computed."""
    return tuple(jax.eval_shape(method.heads, *_variables(method, spec), _outputs(spec)))


def _variables(method: Method, spec: Spec) -> tuple[Tree, Tree]:
    return jax.eval_shape(lambda key: method.init(key, spec), jax.eval_shape(jax.random.key, 0))


def _outputs(spec: Spec) -> tuple[Outputs, ...]:
    def array(width: int) -> Any:
        return jax.ShapeDtypeStruct((_N, width), jnp.float32)

    def of(size: int) -> Outputs:
        return Outputs(array(spec.num_classes), array(size), array(spec.trunk_size) if spec.trunk_size else None)

    return tuple(map(of, spec.feature_sizes))
