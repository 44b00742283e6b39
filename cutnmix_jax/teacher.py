"""A trained network, out of the folder of a finished run or of an export, to teach another."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from cutnmix_jax import backbones, digests, environment, finished, layout
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.engine.companions import Trained
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.settings import Settings
from cutnmix_jax.settings.check import facts
from cutnmix_jax.student import exported
from cutnmix_jax.student.network import shapes_of
from cutnmix_jax.types import Backbone, Tree


def find(settings: Settings, num_classes: int, dtype: Any = jnp.float32) -> Trained:
    """Looks at the folder that `settings.teacher` names.

    Args:
      settings: of the student.
      num_classes: K.
      dtype: of its activations.

    Raises:
      UsageError: there is neither a finished run nor an export, or not one that can teach these.
      CheckpointError: from `load`: its weights cannot be read.
    """
    path = Path(settings.teacher or "")
    if exported.is_export(path):
        return _exported(settings, path, num_classes, dtype)
    return _of_run(settings, path, num_classes, dtype)


def _of_run(settings: Settings, path: Path, num_classes: int, dtype: Any) -> Trained:
    results, why_not = finished.look(path)
    if results is None:
        why_not = why_not and f" ({why_not[:300]})"
        what = f"no finished run there{why_not} and no export"
        raise UsageError(f"config.teacher={str(path)[:200]}: {what}; train it first")

    def is_there() -> bool:
        return step in digests.steps_in(path / layout.CHECKPOINTS)

    try:
        name, trained_on, shape = str(results["backbones"][0]), results["dataset"], results["data"].get("image_shape")
        step, sha256 = results[settings.teacher_which]["step"], results["weights_sha256"]
        if step != results["last"]["step"]:
            sha256 = digests.of_saved_network(digests.read(path / layout.CHECKPOINTS, step)) if is_there() else None
    # Its fields are not looked at: a run of another version, with other ones, can teach.
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"config.teacher={path}: its results or its checkpoints cannot be read") from error
    backbone = _backbone(settings, path, name, trained_on, shape, num_classes, dtype)

    def load() -> dict[str, Tree]:
        with contextlib.closing(Reader(path / layout.CHECKPOINTS)) as checkpoints:
            network = checkpoints.read_network(shapes_of(backbone), step)
        if digests.of_network(network) != sha256:  # somebody has changed them since
            raise CheckpointError(f"config.teacher={path}: its weights are not those of its results")
        environment.check_code(path, [name])
        return network

    return Trained(backbone, load, str(path), sha256, is_there, results["data"])


def _exported(settings: Settings, path: Path, num_classes: int, dtype: Any) -> Trained:
    if settings.teacher_which != "last":
        raise UsageError(
            f"config.teacher_which={settings.teacher_which}: {path} is an export, which is of one epoch; leave it out"
        )
    described = exported.read_description(path)
    if len(described.backbones) > 1:
        raise UsageError(
            f"config.teacher={path}: an ensemble of {len(described.backbones)}; export one of its networks"
        )
    name, trained_on = described.backbones[0], described.dataset
    backbone = _backbone(settings, path, name, trained_on, described.image_shape, num_classes, dtype)

    def load() -> dict[str, Tree]:
        return exported.read(path).networks(name)[0]  # which the students are, too, if it is somebody's own

    return Trained(backbone, load, str(path), described.networks_sha256[0], lambda: True, vars(described))


def _backbone(
    settings: Settings,
    path: Path,
    name: str,
    trained_on: str,
    shape: Sequence[int] | None,
    num_classes: int,
    dtype: Any,
) -> Backbone:
    """The network of a teacher, if it can teach."""
    if trained_on != settings.dataset:
        raise UsageError(f"config.teacher={path} was trained on {trained_on}, not on {settings.dataset}")
    ours = facts(settings).image_shape
    if shape and tuple(shape) != ours:  # a run of an earlier version does not tell it
        there, here = ("x".join(map(str, one)) for one in (shape, ours))
        raise UsageError(f"config.teacher={path} was trained on images of {there}, and these are of {here}")
    # What is written in a folder must not choose what code is run.
    if is_foreign(name) and name not in settings.backbones:
        raise UsageError(
            f"config.teacher={path} is a {name}, a network of somebody's own; it can teach students of its kind alone"
        )
    try:
        return backbones.load(name, num_classes, dtype, ours)
    except UsageError as error:
        raise UsageError(f"config.teacher={path}: {error}") from error


def digest(networks: Tree) -> str:
    """The SHA-256 of the first of some networks, {'params': (tree, ...), 'batch_stats': (tree, ...)}.

    Of the peers at the end of a run it is `weights_sha256` in the results, and `teacher_sha256` in those of a student.
    """
    return digests.of_network({name: trees[0] for name, trees in networks.items()})


def check_there(trained: Trained) -> None:
    """Raises UsageError where the weights of a teacher are gone; a student that has ended needs them no more."""
    if not trained.is_there():
        raise UsageError(f"config.teacher={trained.folder}: its checkpoints are gone; restore them or train it again")


def check(trained: Trained, taught_by: str, *, named_alike: bool = False) -> None:
    """Compares a teacher with the one that a run was taught by so far.

    Args:
      trained: from `find`.
      taught_by: `digests.of_network` of that one.
      named_alike: whether the fields of the run name it as they did; what counts where the weights are gone.

    Raises:
      UsageError: it is another one, or nothing tells that it is not.
    """
    if trained.weights_sha256 is None:
        if not named_alike:
            check_there(trained)
    elif trained.weights_sha256 != taught_by:
        raise UsageError(
            f"config.teacher={trained.folder} is another network than the one that the run was taught by so far; "
            "choose another --workdir"
        )
