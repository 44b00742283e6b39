"""What a saved state and the data must be when they are read again: type, shape and SHA-256 of every array."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cutnmix_jax.errors import DivergedError
from cutnmix_jax.types import Dataset, Tree

Digests = dict[str, Any]  # `step`, `arrays`: name -> "type[shape] sha256", and `all`, the SHA-256 of both

DIVERGED = "lower config.optimizer.learning_rate and start in another --workdir; what was saved before is left"


def of(step: int, arrays: Mapping[str, jax.Array]) -> Digests:
    """Computes the digests of a state, on the host.

    Args:
      step: of the state.
      arrays: a name -> an array of any type and shape.

    Raises:
      DivergedError: an array is not finite. Saved, it would push out what is.
    """
    told = {}
    for name, leaf in jax.device_get(dict(arrays)).items():
        array = np.asarray(leaf)
        # To numpy bfloat16 is no float.
        if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise DivergedError(f"training diverged by step {step}: {name} is not finite; {DIVERGED}")
        told[name] = f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"
    return {"step": step, "arrays": told, "all": _all(step, told)}


def of_tree(tree: Tree) -> str:
    """The SHA-256 of the names, types, shapes and values of all arrays of a tree, a network's for instance."""
    sha = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(tree)):
        array = np.asarray(leaf)
        sha.update(f"{jax.tree_util.keystr(path)} {array.dtype}{list(array.shape)}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def of_data(dataset: Dataset) -> str:
    """The SHA-256 of all images and labels in their order; a tenth of a second for CIFAR."""
    return of_tree((dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels))


def check(told: Digests) -> None:
    """Raises ValueError unless the digests themselves are what was written."""
    if told["all"] != _all(told["step"], told["arrays"]):
        raise ValueError("its digests are damaged")


def compare(told: Digests, found: Digests) -> None:
    """Raises ValueError at the first array that is not what was written."""
    for name in sorted(set(told["arrays"]) | set(found["arrays"])):
        if told["arrays"].get(name) != found["arrays"].get(name):
            raise ValueError(f"{name} is not what was written")
    if told["step"] != found["step"]:
        raise ValueError(f"it is of step {told['step']}")


def difference(told: Digests, wanted: Mapping[str, Any]) -> str:
    """The first array that is not in both, or has another type or shape; empty where all are alike."""
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    there = {name: text.rpartition(" ")[0] for name, text in told["arrays"].items()}
    for name in sorted(set(here) | set(there)):
        if here.get(name) != there.get(name):
            return f"{name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
    return ""


def _all(step: int, arrays: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([step, arrays], sort_keys=True).encode()).hexdigest()
