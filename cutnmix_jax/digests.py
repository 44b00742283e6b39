"""What a saved state, the data and the random numbers must be when they are met again: a SHA-256 of each."""

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cutnmix_jax import files, stack
from cutnmix_jax.compiler import compiled
from cutnmix_jax.errors import CheckpointError, DivergedError, UsageError
from cutnmix_jax.types import Dataset, EpochRow, Tree

_OF_THE_STREAM = re.compile("prng|threefry|random")  # settings of JAX that a program can change while it runs

FORMAT = 4  # of what is said of a checkpoint; another number is of another version of this program

# What the names of the networks' arrays begin with in a saved state; a peer's number follows.
PEERS = {"params": "state.params.peers", "batch_stats": "state.batch_stats"}

# `format`, `step`, `bytes` of all arrays, `arrays`: name -> "type[shape] sha256", `rows` up to the step, the
# fields of the `config`, `stream`, and `all`, the SHA-256 of all these.
Digests = dict[str, Any]

DIVERGED = "lower config.optimizer.learning_rate and start in another --workdir; what was saved before is left"


def of(
    step: int, arrays: Mapping[str, jax.Array], rows: Sequence[EpochRow] = (), config: Mapping[str, Any] | None = None
) -> Digests:
    """Computes the digests of a state, on the host.

    Args:
      step: of the state.
      arrays: a name -> an array of any type and shape.
      rows: of the epochs up to the step, which are kept with it.
      config: the fields of the configuration that the state was trained with.

    Raises:
      DivergedError: an array is not finite. Saved, it could remove an older one that is.
    """
    each = {}
    for name, leaf in jax.device_get(dict(arrays)).items():
        array = np.asarray(leaf)
        # To numpy bfloat16 is no float.
        if jax.dtypes.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            raise DivergedError(f"training diverged by step {step}: {name} is not finite; {DIVERGED}")
        each[name] = _of_array(array)
    size = sum(leaf.nbytes for leaf in arrays.values())
    found = {"format": FORMAT, "step": step, "bytes": size, "arrays": each, "rows": list(rows)}
    found |= {"config": dict(config or {}), "stream": stream()}
    return found | {"all": _all(found)}


def flat(tree: Tree) -> dict[str, Any]:
    """The leaves of a tree by their names, which have dots between their parts; those of each network apart."""
    leaves = jax.tree_util.tree_leaves_with_path(stack.apart(tree))
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def part_of(arrays: dict[str, jax.Array], prefix: str, like: Tree) -> Tree:
    """The part of a flat tree whose names begin so.

    Args:
      arrays: a name -> an array, from `flat`.
      prefix: what the names begin with, up to a dot.
      like: the part's shapes.

    Raises:
      ValueError, KeyError: it is another part than this.
    """
    found = []
    for name, leaf in flat(like).items():
        found.append(arrays[f"{prefix}.{name}"])
        there, here = (f"{array.dtype}{list(array.shape)}" for array in (found[-1], leaf))
        if there != here:
            raise ValueError(f"{name} is {there}, not {here}")
    return jax.tree.unflatten(jax.tree.structure(like), found)


def of_network(variables: dict[str, Tree]) -> str:
    """The SHA-256 of a network, {'params': tree, 'batch_stats': tree}."""
    return of_json({name: _of_array(np.asarray(leaf)) for name, leaf in flat(jax.device_get(variables)).items()})


def of_saved_network(record: Digests) -> str:
    """`of_network` of peer 0, out of the digests of the state that it is in."""
    return of_json(
        {
            part + name.removeprefix(prefix): text
            for part, prefix in ((part, f"{peers}.0") for part, peers in PEERS.items())
            for name, text in record["arrays"].items()
            if name.startswith(f"{prefix}.")
        }
    )


def stream() -> str:
    """A fingerprint of JAX's random numbers, of all kinds that training draws: the same for the same stream.

    Keys, bits, and what is made of them without rounding; a setting, a variable or a release that changes one of them
    changes crops, boxes and order.
    """
    settings = {name: str(value) for name, value in jax.config.values.items() if _OF_THE_STREAM.search(name)}
    return _stream(json.dumps(settings, sort_keys=True))


@functools.cache  # it is asked for at each save
def _stream(settings: str) -> str:
    def draw() -> tuple[jax.Array, ...]:
        keys = jax.random.split(jax.random.fold_in(jax.random.key(0), 1), 4)
        return (
            jax.random.key_data(keys),
            jax.random.bits(keys[0], (4, 4)),
            jax.random.permutation(keys[1], 16),
            jax.random.randint(keys[2], (8,), 0, 9),
            jax.random.uniform(keys[3], (3, 3)) < 0.5,
        )

    drawn = [np.asarray(array) for array in compiled(draw, once=True)()]
    return of_json([f"{array.dtype}{array.tolist()}" for array in drawn])[:16]


def of_data(dataset: Dataset) -> str:
    """The SHA-256 of all images and labels in their order, with types and shapes; a tenth of a second for CIFAR.

    What was prepared has a digest of all of its files, of which the shapes say how many images are taken.
    """
    sha = hashlib.sha256(dataset.sha256.encode())
    arrays = dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels
    for number, array in enumerate(arrays):
        sha.update(f"[{number}] {array.dtype}{list(array.shape)}".encode())
        if not dataset.sha256:
            sha.update(array.tobytes())
    return sha.hexdigest()


def of_facts(dataset: Dataset) -> str:
    """The SHA-256 of what a run does with images and labels besides: class names, mean, deviation, whether mirrored."""
    pixels = dataset.mean.tolist(), dataset.std.tolist(), dataset.flip
    return of_json([list(dataset.class_names), *pixels])


def steps_in(folder: Path) -> list[int]:
    """The steps whose checkpoints are in a folder, oldest first: what counts as one is decided here.

    Raises:
      CheckpointError: something else than a folder has the name of one.
      OSError: the folder cannot be read.
    """
    if not files.kind(folder):
        return []
    files.refuse_other(folder, "folder")
    paths = [path for path in folder.iterdir() if path.name.isascii() and path.name.isdigit()]
    for path in paths:
        files.refuse_other(path, "folder")
        if path.name != str(int(path.name)):
            raise CheckpointError(f"{path} has the name of no step; move it away, or choose another --workdir")
    return sorted(int(path.name) for path in paths)


def read(folder: Path, step: int) -> Digests:
    """What a checkpoint says of itself, without its arrays.

    Raises:
      CheckpointError, OSError, ValueError, LookupError, TypeError: it cannot be read, or does not say it.
    """
    path = folder / str(step) / "digests" / "metadata"
    if (found := files.kind(path)) != "file":
        raise ValueError(f"its digests are {found or 'gone'}")
    record = files.read_fields(path)
    if record.get("format") != FORMAT and "arrays" in record:
        raise CheckpointError(
            f"the checkpoint of step {step} in {folder} was written by another version of this program; go on with "
            "that one, or choose another --workdir"
        )
    check(record)
    return record


def most_bytes(record: Digests) -> int:
    """How large a checkpoint may be: its arrays stand in it twice, and names, shapes and rows take room besides."""
    return 2 * record["bytes"] + (1 << 24)


def check(record: Digests) -> None:
    """Raises ValueError unless the digests themselves are what was written."""
    if record["all"] != _all(record):
        raise ValueError("its digests are damaged")


def compare(record: Digests, found: Digests) -> None:
    """Raises ValueError at the first array that is not what was written."""
    for name in sorted(set(record["arrays"]) | set(found["arrays"])):
        if record["arrays"].get(name) != found["arrays"].get(name):
            raise ValueError(f"{name} is not what was written")
    if record["step"] != found["step"]:
        raise ValueError(f"it is of step {record['step']}")


def check_stream(record: Digests, folder: Path) -> None:
    """Raises UsageError where the run of a folder of checkpoints would go on with other random numbers."""
    if record["stream"] != stream():
        raise UsageError(
            f"the run in {folder.parent} was begun with other random numbers than JAX draws now; unset "
            "JAX_DEFAULT_PRNG_IMPL, JAX_RANDOM_SEED_OFFSET and JAX_THREEFRY_PARTITIONABLE, or set them and install "
            "JAX as its environment.json says, or choose another --workdir"
        )


def check_shapes(record: Digests, wanted: Mapping[str, Any], folder: Path) -> None:
    """Raises CheckpointError at the first array that is not in both, or has another type or shape.

    Args:
      record: of a checkpoint.
      wanted: the arrays by their names, or their shapes.
      folder: of the checkpoints.
    """
    here = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in wanted.items()}
    there = {name: text.rpartition(" ")[0] for name, text in record["arrays"].items()}
    for name in sorted(set(here) | set(there)):
        if here.get(name) != there.get(name):
            raise CheckpointError(
                f"the checkpoint of step {record['step']} in {folder} is that of other fields or another version "
                f"({name} is {there.get(name, 'missing')} there and {here.get(name, 'missing')} here); use the fields "
                "and the version it was made with, or choose another --workdir"
            )


def _of_array(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()}"


def of_json(value: Any) -> str:
    """The SHA-256 of what JSON can hold, the same for the same fields: of those of a `config.json`, for instance."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _all(record: Mapping[str, Any]) -> str:
    return of_json({name: value for name, value in record.items() if name != "all"})
