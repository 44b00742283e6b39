"""A trained network out of the folder of a finished run, to teach another."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import backbones, data, digests, files, finished
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.settings import Settings
from cutnmix_jax.types import Backbone, Tree


class Trained(NamedTuple):
    """Peer 0 of a finished run.

    Attributes:
      backbone: the network.
      load: reads its variables, {'params': tree, 'batch_stats': tree}, from the newest checkpoint.
      folder: the run's.
      weights_sha256: `digests.of_network` of them, as its results say.
    """

    backbone: Backbone
    load: Callable[[], dict[str, Tree]]
    folder: str
    weights_sha256: str


def find(settings: Settings, num_classes: int, dtype: Any = jnp.float32) -> Trained:
    """Looks at the folder of the run that `settings.teacher` names.

    Args:
      settings: of the student.
      num_classes: K.
      dtype: of its activations.

    Raises:
      UsageError: there is no finished run, or not one that can teach these.
      CheckpointError: from `load`: its checkpoint cannot be read.
    """
    folder, dataset, students = settings.teacher or "", settings.dataset, settings.backbones
    path = Path(folder)
    results, why_not = finished.look(path)
    if results is None:
        why_not = why_not and f" ({why_not[:300]})"
        raise UsageError(f"config.teacher={folder[:200]}: no finished run there{why_not}; train it first")
    try:
        fields = files.read_fields(path / finished.CONFIG)
        name = (fields.get("peers") or fields["backbone"]["name"]).split(",")[0].strip()
        trained_on = fields["dataset"]
    # No more of it is looked at: a run of another version, with other fields, can teach.
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"config.teacher={folder}: its config.json cannot be read") from error
    if trained_on != dataset:
        raise UsageError(f"config.teacher={folder} was trained on {trained_on}, not on {dataset}")
    if is_foreign(name) and name not in students:  # what is written in a folder must not choose what code is run
        raise UsageError(
            f"config.teacher={folder} is a {name}, a network of somebody's own; it can teach students of its kind alone"
        )
    try:
        backbone = backbones.load(name, num_classes, dtype, data.image_shape(dataset))
    except UsageError as error:
        raise UsageError(f"config.teacher={folder}: {error}") from error

    def load() -> dict[str, Tree]:
        shapes = jax.eval_shape(backbone.init, jax.eval_shape(jax.random.key, 0))
        with contextlib.closing(Reader(path / finished.CHECKPOINTS)) as checkpoints:
            network = checkpoints.read_network(shapes)
        if digests.of_network(network) != results["weights_sha256"]:  # somebody has changed them since
            raise CheckpointError(f"config.teacher={folder}: its newest weights are not those of its results")
        return network

    return Trained(backbone, load, folder, results["weights_sha256"])


def digest(networks: Tree) -> str:
    """The SHA-256 of the first of some networks, {'params': (tree, ...), 'batch_stats': (tree, ...)}.

    Of the peers at the end of a run it is `weights_sha256` in the results, and `teacher_sha256` in those of a student.
    """
    return digests.of_network({name: trees[0] for name, trees in networks.items()})


def check_there(trained: Trained) -> None:
    """Raises UsageError where the weights of a teacher are gone; a student that has ended needs them no more."""
    if not digests.steps_in(Path(trained.folder) / finished.CHECKPOINTS):
        raise UsageError(f"config.teacher={trained.folder}: its checkpoints are gone; restore them or train it again")


def check(trained: Trained, taught_by: str) -> None:
    """Compares a teacher with the one that a run was taught by so far.

    Args:
      trained: from `find`.
      taught_by: `digests.of_network` of that one.

    Raises:
      UsageError: it is another one.
    """
    if trained.weights_sha256 != taught_by:
        raise UsageError(
            f"config.teacher={trained.folder} is another network than the one that the run was taught by so far; "
            "choose another --workdir"
        )
