"""Where prepared data lie, what is known of them before they are read, and what is said of them when they are wrong."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cutnmix_jax import files
from cutnmix_jax.command import program
from cutnmix_jax.data import _library
from cutnmix_jax.errors import DataError, UsageError, UserError, described, excused, installation

IMAGE_SHAPE = (32, 32, 3)


class Source(NamedTuple):
    """What is known of a data set before it is read.

    Attributes:
      name: the name in tfds and on the command line.
      title: the name for people.
      archive: the file name of the official archive.
      counts: {'train': examples, 'test': examples}.
      num_classes: K.
      mean: of the training pixels in [0, 1], per channel.
      std: likewise.
      digest: what `prepare.digest` must give; empty where there is no reference.
    """

    name: str
    title: str
    archive: str
    counts: Mapping[str, int]
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    digest: str


class Split(NamedTuple):
    """One split in the order of the records.

    Attributes:
      ids: [N] str, `train_00000` and so on: the place in the official archive.
      images: [N, 32, 32, 3] uint8.
      labels: [N] int32.
    """

    ids: np.ndarray
    images: np.ndarray
    labels: np.ndarray


def root(data_dir: str) -> Path:
    """The tfds data folder: `data_dir`, else `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return files.resolved(folder)
    except (OSError, RuntimeError) as error:  # a user that is not known, links in a circle
        raise UsageError(f"data_dir={folder}: {' '.join(str(error).split())}; name a folder") from error


def find(source: Source, data_dir: str) -> Path | None:
    """The folder of the newest prepared version, or None; a preparation under way has another name and is not found.

    Raises:
      DataError: there may be one, but it cannot be looked at.
    """
    return newest(root(data_dir) / source.name, source.title)


def newest(folder: Path, title: str) -> Path | None:
    """The newest version that tfds has prepared in a folder, or None; raises as `find`, which calls it `title`."""
    versions = []
    try:  # `glob` would pass over what it may not read
        found = list(folder.iterdir())
        versions = [path for path in found if re.fullmatch(r"\d+\.\d+\.\d+", path.name) and path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise DataError(f"{title} cannot be read in {folder} ({described(error)}); let it be read") from error
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def require(source: Source, data_dir: str) -> Path:
    """Like `find`, but raises DataError with the command to run where there is none."""
    folder = find(source, data_dir)
    if folder is None:
        command = f"{program()} data prepare --dataset={source.name}"
        command += f" --data_dir={data_dir}" if data_dir else ""
        offline = f"with --archive={source.archive} where there is no network"
        where = "if it lies elsewhere, name the folder by data_dir or TFDS_DATA_DIR"
        raise DataError(f"{source.title} not found in {root(data_dir)}; run `{command}` ({offline}); {where}")
    return folder


def damaged(source: Source, folder: Path, what: str) -> DataError:
    """The error for records that are not what they should be; `what` names the file or the thing."""
    again, run = f"{source.name} --data_dir={folder.parent.parent}", program()
    return DataError(
        f"{source.title} is damaged: {what}; check with `{run} data verify --dataset={again}`, "
        f"or delete {folder} and run `{run} data prepare --dataset={again}`"
    )


def unreadable(source: Source, folder: Path, what: str, error: Exception) -> UserError:
    """The error for records that could not be read; they are called damaged only where nothing else is to blame.

    Args:
      source: which data set.
      folder: of its records.
      what: the file, and what cannot be done with it.
      error: what a library raised.
    """
    if excuse := excused(error):
        return excuse
    if reason := files.unreadable(folder, error):
        return DataError(f"{source.title} cannot be read: {what} ({reason}); let it be read and try again")
    if failed := _library.failure():
        return installation(failed)
    return damaged(source, folder, f"{what} ({described(error, 1000)})")
