"""What a method computes, by tracing the shapes alone: its names, whether a run can use it, and whether weights fit."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax.errors import UsageError, nearest
from cutnmix_jax.method import Method
from cutnmix_jax.types import CIFAR, Batch, Clock, Outputs, Spec, Terms, Tree, Views


def term_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """The names of a method's terms for peers of these sizes, in its order; nothing is computed.

    Raises:
      UsageError: a term is neither a scalar nor one value per peer, so that its sum would not be over peers; or a state
        is not like the first one, so that no run could go on from it; or the method looks at what it does not declare.
    """
    state = _variables(method, spec)[1]
    names, terms, after, batch, clock = _traced(method, spec)
    for flag, is_read, what in (
        ("counts_epochs", clock.epochs, "how many epochs a run has"),
        ("remembers", batch.indices, "which images a batch has"),
    ):
        if is_read and not getattr(method, flag):
            raise UsageError(f"{type(method).__name__}: its loss looks at {what}, so that it needs {flag} = True")
    _check_state(method, "loss", state, after)
    if method.calibrates:
        said = jax.ShapeDtypeStruct((len(spec.feature_sizes), _images(spec), spec.num_classes), jnp.float32)
        rows = jax.ShapeDtypeStruct((_images(spec),), jnp.int32)
        _check_state(method, "calibrate", state, jax.eval_shape(method.calibrate, state, said, rows))
    per_peer = (len(spec.feature_sizes),)
    if wrong := [name for name in names if terms[name].shape not in ((), per_peer)]:
        raise UsageError(
            f"{type(method).__name__}: its loss term {wrong[0]!r} has the shape {list(terms[wrong[0]].shape)}; it must "
            f"be a scalar or one value per peer, {list(per_peer)}"
        )
    return names


def is_looked_at(method: Method, spec: Spec) -> tuple[Batch, Clock]:
    """Whether a method's loss looks at each field of a batch and of a clock: True or False in the place of each."""
    return _traced(method, spec)[3:]


def _traced(method: Method, spec: Spec) -> tuple[tuple[str, ...], Terms, Tree, Batch, Clock]:
    """The names, shapes and next state of a loss, and what it looks at."""
    shape: Any = jax.ShapeDtypeStruct
    views: Views = (_outputs(spec),) * len(method.views)
    of_each = len(views), len(spec.feature_sizes), _images(spec)
    images, targets = (shape((*of_each, *axes), jnp.float32) for axes in (CIFAR, (spec.num_classes,)))
    rows, whole = shape((_images(spec),), jnp.int32), shape((), jnp.int32)
    batch = Batch(images, targets, rows, rows, dict.fromkeys(method.teachers, views))
    names: list[str] = []

    def loss(*arguments: Tree) -> tuple[Terms, Tree]:
        terms, after = method.loss(*arguments)
        names.extend(terms)  # here, because a tree's own order is that of the names
        return terms, after

    given = *_variables(method, spec), views, batch, Clock(whole, whole, whole, shape((), jnp.float32))
    jaxpr, (terms, after) = jax.make_jaxpr(loss, return_shape=True)(*given)
    *_, read_batch, read_clock = jax.tree.map(
        functools.partial(_is_read, jaxpr.jaxpr), jax.tree.unflatten(jax.tree.structure(given), jaxpr.jaxpr.invars)
    )
    return tuple(names), terms, after, read_batch, read_clock


def head_names(method: Method, spec: Spec) -> tuple[str, ...]:
    """The names of what a method reports besides its peers; nothing is computed.

    Raises:
      UsageError: one of them is no classifier of each image, or its `students` are not the first of the networks.
    """
    outputs = _outputs(spec)
    kept = method.students(outputs)
    if not kept or any(one is not other for one, other in zip(kept, outputs, strict=False)):
        raise UsageError(f"{type(method).__name__}: its students must be the first networks, at least one")
    heads = jax.eval_shape(method.heads, *_variables(method, spec), outputs)
    wanted = (_images(spec), spec.num_classes)
    if wrong := [name for name, logits in heads.items() if logits.shape != wanted]:
        raise UsageError(
            f"{type(method).__name__}: its head {wrong[0]!r} has the shape {list(heads[wrong[0]].shape)} for "
            f"{wanted[0]} images of {wanted[1]} classes; it must be {list(wanted)}"
        )
    return tuple(heads)


def _is_read(jaxpr: Any, variable: Any) -> bool:
    """Whether a traced function does anything with one of its arguments."""
    used = [*jaxpr.outvars, *(one for equation in jaxpr.eqns for one in equation.invars)]
    return any(variable is one for one in used)


def _check_state(method: Method, what: str, before: Tree, after: Tree) -> None:
    """Raises UsageError unless a method's next state has the arrays of the one before."""
    shown = [{jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in
              jax.tree_util.tree_leaves_with_path(tree)} for tree in (before, after)]  # fmt: skip
    if differs := sorted(set(shown[0].items()) ^ set(shown[1].items())):
        name = differs[0][0]
        raise UsageError(
            f"{type(method).__name__}: its state{name} is {shown[0].get(name, 'not there')} in `init` and "
            f"{shown[1].get(name, 'not there')} after `{what}`; a run goes on from the same arrays alone"
        )


def check_any_weight(weights: Mapping[str, float]) -> None:
    """Raises UsageError where the weights of all loss terms are 0."""
    if not any(weights.values()):
        raise UsageError("config.weights: all of them are 0, so nothing would be learned")


def check_weights(
    row: str, weights: Mapping[str, float], of_row: Iterable[str], terms: tuple[str, ...], spec: Spec
) -> None:
    """Raises UsageError unless each loss term has a weight and each weight a term; one of 0 may be any of the row.

    Args:
      row: its name.
      weights: the name of a term -> its weight.
      of_row: the names of those that the row itself has.
      terms: of the method, from `term_names`.
      spec: what they were asked for.
    """
    if missing := sorted(set(terms) - set(weights)):
        raise UsageError(f"config.weights: no weight for the loss term {missing[0]!r}")
    sizes = spec.feature_sizes
    if excess := sorted(name for name in set(weights) - set(terms) if weights[name] != 0):
        unlike = f"peers with features of {', '.join(map(str, sizes))} have"
        alike = "a single peer has" if len(sizes) == 1 else "this method has"
        who = unlike if len(set(sizes)) > 1 else alike
        raise UsageError(
            f"config.weights.{excess[0]}={weights[excess[0]]:g}: {who} no such loss term, only {', '.join(terms)}; "
            "set it to 0 or choose other peers"
        )
    known = {*terms, *of_row}
    if unknown := sorted(set(weights) - known):
        raise UsageError(f"config.weights.{unknown[0]}: {row} has no such loss term; {nearest(unknown[0], known)}")


def _variables(method: Method, spec: Spec) -> tuple[Tree, Tree]:
    return jax.eval_shape(lambda key: method.init(key, spec), jax.eval_shape(jax.random.key, 0))


def _images(spec: Spec) -> int:
    """How many images there are in a batch of which only the shapes are traced; not J, to tell the two apart."""
    return len(spec.feature_sizes) + 1


def _outputs(spec: Spec) -> tuple[Outputs, ...]:
    def array(width: int) -> Any:
        return jax.ShapeDtypeStruct((_images(spec), width), jnp.float32)

    trunk = None if spec.trunk_size is None else array(spec.trunk_size)

    def of(size: int) -> Outputs:
        return Outputs(array(spec.num_classes), array(size), trunk)

    return tuple(map(of, spec.feature_sizes))
