"""A student out of the folder of a finished run."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import digests, environment, files, finished, layout, metrics, own_code
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.errors import CheckpointError, UsageError, UserError, one_line
from cutnmix_jax.settings import Settings, tree
from cutnmix_jax.student import network
from cutnmix_jax.student.choice import AVERAGE, BEST, LAST
from cutnmix_jax.student.description import Description
from cutnmix_jax.student.network import Student
from cutnmix_jax.types import EpochRow, Tree


class Run(NamedTuple):
    """What the folder of a finished run says.

    Attributes:
      folder: of the run.
      settings: of the run.
      results: its `results.json`.
      rows: of its epochs.
    """

    folder: Path
    settings: Settings
    results: dict[str, Any]
    rows: list[EpochRow]

    @property
    def num_counted(self) -> int:
        """How many of its networks count as peers, which are the first ones; a leader does not."""
        return len(self.results["last"]["accuracy_per_peer"])


def look(folder: Path) -> Run:
    """Reads the folder of a finished run; no array of it.

    Raises:
      UsageError: there is no finished run.
      CheckpointError: it is of another version of this program.
    """
    results, why_not = finished.look(folder)
    if not os.path.lexists(folder):  # noqa: PTH110 - it takes any name
        raise UsageError(f"there is no {folder}; name the folder of a finished run, or of an export")
    if results is None:
        why_not = why_not and f" ({why_not[:300]})"
        raise UsageError(f"{folder}: no finished run there{why_not}; train it to its end first")
    try:
        settings = tree.to_settings(files.read_fields(folder / layout.CONFIG))
    except (OSError, ValueError, UserError) as error:
        raise CheckpointError(
            f"{folder}: its config.json is not one of this version ({one_line(error)[:200]}); use the version that "
            "trained it"
        ) from error
    return Run(folder, settings, results, metrics.read_rows(folder / layout.ROWS))


def load(
    run: Run,
    which: str = LAST,
    peer: int | None = None,
    ensemble: bool = False,
    arrays: Mapping[str, jax.Array] | None = None,
) -> Student:
    """Loads a network of a run, or the ensemble of its peers.

    Args:
      run: from `look`.
      which: `last` or `best` epoch, or the `average` of the weights at the end.
      peer: its number; the best one of that epoch where nothing is said.
      ensemble: all peers instead of one.
      arrays: of the state of that epoch by their names, where they are at hand; read from its checkpoint otherwise.

    Raises:
      UsageError: there is no such peer, or no average.
      CheckpointError: the checkpoint is gone or damaged.
    """
    settings = run.settings
    if which == AVERAGE and settings.average is None:
        raise UsageError(f"{run.folder} has no averages of its weights: it was trained without config.average")
    count = run.num_counted
    if peer is not None and not 0 <= peer < count:
        raise UsageError(f"--peer={peer}: {run.folder} has peers 0 to {count - 1}")
    epoch = run.results["best" if which == BEST else "last"]
    row = run.rows[epoch["epoch"] - 1]
    chosen, chosen_by = (peer, "") if peer is not None else _best(row, count, which)
    peers = tuple(range(count)) if ensemble else (chosen,)
    return load_networks(run, which, peers, "" if ensemble or count == 1 else chosen_by, arrays)


def load_networks(
    run: Run, which: str, numbers: tuple[int, ...], chosen_by: str = "", arrays: Mapping[str, jax.Array] | None = None
) -> Student:
    """Loads some networks of a run; a leader is the last one.

    Args:
      run: from `look`.
      which: as for `load`.
      numbers: of the networks.
      chosen_by: the images by which a single one was chosen; empty where it was not.
      arrays: as for `load`.

    Raises:
      CheckpointError: the checkpoint is gone or damaged.
    """
    description = describe(run, which, numbers, chosen_by)
    arrays = saved_arrays(run, description.step) if arrays is None else arrays
    try:
        student = taken(description, arrays, run.settings.share_trunk)
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{run.folder}: its networks are not in its checkpoint ({one_line(error)})") from error
    environment.check_code(run.folder, description.own_backbones)
    return student


def saved_arrays(run: Run, step: int) -> dict[str, jax.Array]:
    """All arrays of the state of a step, by their names; CheckpointError where they are gone or damaged."""
    checkpoints, left = run.folder / layout.CHECKPOINTS, run.folder / layout.STUDENT
    if not digests.steps_in(checkpoints) and left.is_dir():
        raise CheckpointError(f"the checkpoints of {run.folder} are gone; what is left of it is {left}, take that")
    with contextlib.closing(Reader(checkpoints)) as reader:
        return reader.arrays(step)


def describe(run: Run, which: str, peers: tuple[int, ...], chosen_by: str) -> Description:
    """What is known of some networks of a run, but for their digests."""
    settings, results = run.settings, run.results
    epoch, seen = results["best" if which == BEST else "last"], results["data"]
    row = run.rows[epoch["epoch"] - 1]
    prefix = "test/accuracy_average_" if which == AVERAGE else "test/accuracy_peer_"
    ensemble = row["test/accuracy_ensemble"] if which != AVERAGE else None
    return Description(
        backbones=tuple(settings.backbones[j] for j in peers),
        class_names=tuple(seen["class_names"]),
        image_shape=tuple(seen["image_shape"]),
        mean=tuple(seen["mean"]),
        std=tuple(seen["std"]),
        resampling=seen["resampling"],
        precision=settings.precision,
        dataset=settings.dataset,
        method=settings.method,
        seed=settings.seed,
        epochs=settings.epochs,
        which=which,
        epoch=epoch["epoch"],
        step=epoch["step"],
        peers=peers,
        accuracy=row[f"{prefix}{peers[0]}"] if len(peers) == 1 else ensemble,
        chosen_by=chosen_by,
        networks_sha256=(),
        run={name: results[name] for name in _SHOWN},
    )


# What of a run's results goes along with a student.
_SHOWN = ("last", "best", "best_by", "train_examples", "test_examples", "seconds", "device", "versions")


def taken(description: Description, arrays: Mapping[str, jax.Array], share_trunk: bool) -> Student:
    """The student that a description speaks of, out of all arrays of a run's state.

    Raises:
      ValueError, KeyError: its networks are not among them.
    """
    found = dict(arrays)
    firsts = {part: _prefix(part, 0, description.which) for part in digests.PEERS}
    networks = []
    for j, made in zip(description.peers, description.make(), strict=True):
        own = {part: _prefix(part, j, description.which) for part in firsts}
        if share_trunk:  # what is not peer j's own is that of peer 0
            shared = {
                own[part] + name.removeprefix(first): array
                for part, first in firsts.items()
                for name, array in arrays.items()
                if name.startswith(f"{first}.")
            }
            found = shared | found
        networks.append({part: _part(found, own[part], like) for part, like in network.shapes_of(made).items()})
    # The code that what is exported is made of.
    code = {name.partition(":")[0]: own_code.digest(name) for name in description.own_backbones}
    known = {**description.run, **({"code": code} if code else {})}
    sha256 = tuple(map(digests.of_network, networks))
    described = dataclasses.replace(description, networks_sha256=sha256, run=known)
    return network.make(described, network.named(networks))


def _prefix(part: str, j: int, which: str) -> str:
    """Where the `params` or `batch_stats` of peer j stand in a state."""
    if which == AVERAGE:
        return f"state.teachers.average.{part}.{j}"
    return f"{digests.PEERS[part]}.{j}"


def _part(arrays: Mapping[str, jax.Array], prefix: str, like: Tree) -> Tree:
    """A part of a state with the types of a network: averages are float32 whatever those are."""
    leaves = []
    for name, shape in digests.flat(like).items():
        array = arrays[f"{prefix}.{name}"]
        if array.shape != shape.shape:
            raise ValueError(f"{name} is {list(array.shape)}, not {list(shape.shape)}")
        leaves.append(jnp.asarray(array, shape.dtype))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _best(row: EpochRow, count: int, which: str) -> tuple[int, str]:
    """The most accurate peer of an epoch, the first of equals, and the images by which it is chosen."""
    kind = "average" if which == AVERAGE else "peer"
    for images in ("validation", "test"):
        names = [f"{images}/accuracy_{kind}_{j}" for j in range(count)]
        if set(names) <= set(row):
            return int(np.argmax([row[name] for name in names])), images
    return 0, ""
