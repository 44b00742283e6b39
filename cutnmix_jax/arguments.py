"""What somebody calls an objective with: whether it is what the objective is of."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax.method import Method
from cutnmix_jax.types import Outputs, Spec, Tree, Views


def check_like(what: str, given: Tree, like: Tree) -> None:
    """Raises ValueError unless the arrays are those of an objective; JAX takes a row that is not there for another."""
    seen, wanted = (
        {jax.tree_util.keystr(path): list(jnp.shape(leaf)) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (given, like)
    )
    if wrong := sorted(name for name in {*seen, *wanted} if seen.get(name) != wanted.get(name)):
        shapes = " and ".join(f"{whose} {found.get(wrong[0], 'not there')}" for whose, found in
                              (("given", seen), ("of this objective", wanted)))  # fmt: skip
        raise ValueError(f"{what}{wrong[0]} is {shapes}; take what this objective's `init` has returned")


def check_teacher(name: str, method: Method, of_teacher: Views, views: Views) -> None:
    """Raises ValueError unless a teacher is one of the method's and says something to each view of each network."""
    if name not in method.teachers:
        raise ValueError(f"teachers[{name!r}]: this method learns from no such teacher; leave it out")
    shape = views[0][0].logits.shape
    if len(of_teacher) != len(views) or any(len(view) != len(views[0]) for view in of_teacher):
        raise ValueError(f"teachers[{name!r}]: for each of {len(views)} views `Outputs` of {len(views[0])} networks")
    for out in (out for view in of_teacher for out in view):
        if not isinstance(out, Outputs) or out.logits.shape != shape:
            found = list(out.logits.shape) if isinstance(out, Outputs) else type(out).__name__
            raise ValueError(f"teachers[{name!r}]: logits are {list(shape)}, not {found}")


def check_rows(indices: jax.Array, num_train: int) -> None:
    """Raises ValueError for rows that the training set does not have; within a compiled function nobody knows them."""
    if isinstance(indices, jax.core.Tracer) or not indices.size:
        return
    rows = np.asarray(indices)  # JAX would trace this within a compiled function, though it knows the rows
    if rows.min() < 0 or rows.max() >= num_train:
        raise ValueError(f"indices are {rows.min()} to {rows.max()}, not rows 0 to {num_train - 1} of num_train")


def check_epoch(epoch: jax.Array | int | None, epochs: jax.Array | int | None, is_counted: bool) -> None:
    """Raises ValueError for an epoch that the training does not have; within a compiled function nobody knows it.

    Args:
      epoch: 0-based.
      epochs: how many there are; None where nobody says.
      is_counted: whether the method depends on how many there are.
    """
    if epoch is None or (is_counted and epochs is None):
        what = "epoch or epochs are missing" if is_counted else "epoch is missing"
        raise ValueError(f"{what}: the terms of this method depend on {'them' if is_counted else 'it'}")
    if isinstance(epoch, jax.core.Tracer) or isinstance(epochs, jax.core.Tracer):
        return
    now = int(epoch)  # as a number of Python's: JAX would trace what is asked of its own
    if now < 0 or (epochs is not None and now >= int(epochs)):
        raise ValueError(f"epoch={epoch} of epochs={epochs}: the first one is 0, and the last one epochs - 1")


def views_of(method: Method, outputs: Sequence[Any]) -> Views:
    """The outputs as one tuple for each view."""
    count = len(method.views)
    views = (outputs,) if count == 1 else tuple(outputs)
    if len(views) != count or not all(isinstance(out, Outputs) for view in views for out in view):
        wanted = "`Outputs` of each network" if count == 1 else f"{count} views, each with `Outputs` of each network"
        raise ValueError(f"outputs must be {wanted}")
    return tuple(tuple(view) for view in views)


def check_outputs(views: Views, spec: Spec) -> int:
    """Raises ValueError unless every network's arrays have the shapes of the objective; returns n."""
    n = views[0][0].logits.shape[0] if views[0] and views[0][0].logits.ndim else 0
    for view in views:
        if len(view) != len(spec.feature_sizes):
            raise ValueError(f"outputs are of {len(view)} networks, not of {len(spec.feature_sizes)}")
        for j, (out, size) in enumerate(zip(view, spec.feature_sizes, strict=True)):
            for name, array, width in (("logits", out.logits, spec.num_classes), ("features", out.features, size)):
                if array.shape != (n, width):
                    raise ValueError(f"{name} of network {j} are {list(array.shape)}, not {[n, width]}")
    return n


def whole_targets(targets: jax.Array, views: Views, n: int, num_classes: int) -> jax.Array:
    """Targets with all axes: [views, J, n, K]."""
    whole = (len(views), len(views[0]), n, num_classes)
    allowed = [whole[2:], whole[1:], whole]
    if targets.shape not in allowed:
        shapes = " or ".join(str(list(shape)) for shape in allowed)
        raise ValueError(f"targets are {list(targets.shape)}, not {shapes}")
    return jnp.broadcast_to(targets, whole)
