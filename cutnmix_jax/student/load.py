"""A student by the folder that a person names: of a run, or of an export."""

import argparse
import os
from pathlib import Path

from cutnmix_jax import digests, layout, storage
from cutnmix_jax.command import folder_of
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.streams import handlers_kept
from cutnmix_jax.student import exported, of_run
from cutnmix_jax.student.description import check_consent
from cutnmix_jax.student.network import Student


def load(
    folder: Path, which: str | None = None, peer: int | None = None, ensemble: bool = False, backbone: str | None = None
) -> Student:
    """Loads a student.

    Args:
      folder: of a finished run, or of an export.
      which: of a run, `last` (where nothing is said) or `best` epoch, or the `average` of the weights at the end.
      peer: of a run; the best one of that epoch where nothing is said.
      ensemble: of a run, all peers instead of one.
      backbone: a network of somebody's own, `my_pkg.nets:make`, whose code may be run because the person says so.

    Raises:
      UsageError: there is neither, or it is not the kind for which something was said.
      CheckpointError: it is damaged, or of another version of this program.
    """
    is_chosen = bool(which or peer is not None or ensemble)
    if exported.is_export(folder):
        if is_chosen:
            what = "is an export, and which network it is was chosen then"
            raise UsageError(f"{folder} {what}; leave --which, --peer and --ensemble out")
        return exported.read(folder)
    run = of_run.look(folder)
    left = folder / layout.STUDENT
    # Checkpoints of a finished run may be removed to save room; and what was exported needs no code of anybody's.
    enough = not digests.steps_in(folder / layout.CHECKPOINTS) or (run.settings.own_backbones and not backbone)
    if enough and not is_chosen and exported.is_export(left):
        student = exported.read(left)
        if student.description.run["last"] != run.results["last"]:
            raise CheckpointError(f"{left} is not of the run in {folder}; remove it, or restore the run's own")
        return student
    check_consent(run.settings.backbones, backbone, folder)
    return of_run.load(run, which or of_run.LAST, peer, ensemble)


def load_student(folder: str | os.PathLike[str]) -> Student:
    """Loads an export, or the student of a finished run, its best peer of the last epoch; see `Student.predict`.

    Args:
      folder: of one of them.

    Raises:
      UsageError: there is neither.
      CheckpointError: it is damaged, or of another version of this program.
    """
    with storage.hush(), handlers_kept():
        return load(folder_of(os.fspath(folder), "folder"))


def chosen(known: argparse.Namespace) -> Student:
    """The student that a command's arguments mean, see `choice.add`."""
    if known.peer is not None and known.ensemble:
        raise UsageError("--peer and --ensemble: leave one of them out")
    source = folder_of(known.source, "RUN_OR_EXPORT")
    return load(source, known.which, known.peer, known.ensemble, known.backbone)
