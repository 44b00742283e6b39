"""What is measured: the names of a method's terms, the accuracy on mixed labels, and the totals of an epoch.

Totals are kept on the device until somebody asks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax.method import Method
from cutnmix_jax.types import NEVER, Batch, Clock, Outputs, Spec, Terms, Totals, Tree, Views

_N = 2  # images in a batch of which only the shapes are traced


def mixed_accuracy(outputs: tuple[Outputs, ...], targets: jax.Array) -> jax.Array:
    """Mean over peers and images of how often the likeliest class is the larger share of the mixed label; a scalar."""
    hits = [(out.logits.argmax(-1) == targets[j].argmax(-1)).mean() for j, out in enumerate(outputs)]
    return jnp.stack(hits).mean()


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


def zero_totals(names: Sequence[str]) -> Totals:
    """At the start of an epoch."""
    return Totals({name: jnp.zeros(()) for name in names}, {name: jnp.int32(NEVER) for name in names})


def added(totals: Totals, values: Mapping[str, jax.Array], step: jax.Array) -> Totals:
    """The totals after step number `step`, counted from 1, in which `values` were measured."""
    sums = {name: total + values[name] for name, total in totals.sums.items()}
    broken = {
        name: jnp.minimum(first, jnp.where(jnp.isfinite(values[name]), NEVER, step))
        for name, first in totals.broken.items()
    }
    return Totals(sums, broken)


def finite(totals: Totals) -> jax.Array:
    """Whether all that was measured so far is finite: a bool."""
    return jnp.stack(list(totals.broken.values())).min() == NEVER
