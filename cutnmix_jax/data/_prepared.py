"""Data sets of a user's pictures once they are prepared: raw arrays, and beside them what is known of them.

They lie in `cutnmix_jax/NAME/SxS` of the data folder, each split as `images.npy` [N, S, S, 3] uint8, which may be
larger than memory, and `labels.npy` [N] int32, in NumPy's own format.
"""

import os
import re
import shlex
from pathlib import Path

import numpy as np

from cutnmix_jax import console, decoding, files
from cutnmix_jax.command import program
from cutnmix_jax.data import _about, _facts, _names, _source
from cutnmix_jax.data._about import About
from cutnmix_jax.data._pictures import SPLITS, State
from cutnmix_jax.errors import CheckpointError, DataError, UsageError, described, excused, one_line
from cutnmix_jax.types import Dataset

ABOUT = "about.json"
IMAGES, LABELS = "images.npy", "labels.npy"
LOOKED_AT = 100_000  # files of a source that a start looks at, in half a second; those of larger ones `verify` does


def folder_of(name: str, data_dir: str, size: int) -> Path:
    """Where a data set lies once it is prepared; `name` is canonical."""
    return _source.root(data_dir) / "cutnmix_jax" / _names.slug(name) / f"{size}x{size}"


def sizes(name: str, data_dir: str) -> list[int]:
    """The sizes in which a data set is prepared, smallest first."""
    folder = folder_of(name, data_dir, 1).parent
    try:
        found = [re.fullmatch(r"(\d+)x\1", path.name) for path in folder.iterdir() if path.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({described(error)}); let it be read") from error
    return sorted(int(match[1]) for match in found if match)


def only_size(name: str, data_dir: str, size: int | None, flag: str = "--config.image_size") -> int:
    """The size that is asked for, by a flag of this command, else the only one that there is.

    Raises:
      DataError: there is none.
      UsageError: there are several.
    """
    if size is not None:
        return size
    found = sizes(name, data_dir)
    if not found:
        raise _missing(name, data_dir, None)
    if len(found) > 1:
        raise UsageError(f"{name} is prepared in the sizes {', '.join(map(str, found))}; say {flag}=...")
    return found[0]


def command(name: str, data_dir: str, size: int | None) -> str:
    """The command that prepares a data set, for a person to copy."""
    where = f" --data_dir={shlex.quote(data_dir)}" if data_dir else ""
    return f"{program()} data prepare --dataset={shlex.quote(name)} --size={size or 32}{where}"


def _missing(name: str, data_dir: str, size: int | None) -> DataError:
    others = [f"{one}x{one}" for one in sizes(name, data_dir)]
    path = Path(name.removeprefix(_names.FOLDER))
    if name.startswith(_names.FOLDER) and not others and not path.is_dir():
        return DataError(
            f"{name}: there is no folder {path}, and nothing was prepared of it in {_source.root(data_dir)}; give the "
            "path of your pictures, or the data folder"
        )
    there = f" (it is at {', '.join(others)})" if others else ""
    any_size = "" if size else ", or with another size"
    at = f" at {size}x{size}" if size else ""
    return DataError(
        f"{name} is not prepared{at} in {_source.root(data_dir)}{there}; run "
        f"`{command(name, data_dir, size)}`{any_size}"
    )


def find(name: str, data_dir: str, size: int) -> About:
    """What is known of a prepared data set; none of its arrays is read.

    Raises:
      DataError: it is not prepared, with the command that does it, or damaged.
    """
    folder = folder_of(name, data_dir, size)
    if not os.path.lexists(folder):  # noqa: PTH110 - a link to nothing is not a folder that is missing
        raise _missing(name, data_dir, size)
    try:
        about = _about.of_json(files.read_fields(folder / ABOUT))
        if (about.name, about.size) != (name, size):
            raise ValueError(f"it is of {about.name} at {about.size}x{about.size}")
        return about
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise damaged(name, folder, f"there is no {ABOUT}") from error
        raise DataError(f"{folder / ABOUT} cannot be read ({error.strerror}); let it be read") from error
    except (CheckpointError, ValueError, TypeError, KeyError) as error:
        raise damaged(name, folder, f"{ABOUT}: {one_line(error)}") from error


def damaged(name: str, folder: Path, what: str) -> DataError:
    """The error for a prepared data set that is not what it should be."""
    again = command(name, str(folder.parents[2]), int(folder.name.partition("x")[0]))
    return DataError(f"{name} as it was prepared is damaged: {what}; delete {folder} and run `{again}`")


def load(name: str, data_dir: str, size: int, quiet: bool = False) -> Dataset:
    """Opens a prepared data set.

    Args:
      name: canonical.
      data_dir: the data folder; empty for the usual one.
      size: S.
      quiet: say nothing of a source that has changed.

    Returns:
      A `Dataset` whose images are maps of files, of which no byte is read yet.

    Raises:
      DataError: it is not prepared, or damaged.
    """
    about, folder = find(name, data_dir, size), folder_of(name, data_dir, size)
    arrays = {
        f"{split}_{part.removesuffix('.npy')}": _opened(about, folder, split, part)
        for split in SPLITS
        for part in (IMAGES, LABELS)
    }
    if about.rules != decoding.RULES:
        console.warn(f"{name} was prepared by other rules than `predict` has now; delete {folder} to prepare it anew")
    if not quiet and about.source.files <= LOOKED_AT and (changed := change(about)):
        console.warn(f"{changed}; what was prepared then is used")
    dataset = Dataset(
        name=name,
        **arrays,
        class_names=about.class_names,
        mean=np.array(about.mean, np.float32),
        std=np.array(about.std, np.float32),
        flip=about.flip,
        sha256=about.sha256,
    )
    if wrong := _facts.wrong(dataset, _facts.of_dataset(dataset)):
        raise damaged(name, folder, wrong)
    return dataset


def _opened(about: About, folder: Path, split: str, part: str) -> np.ndarray:
    path = folder / split / part
    count, shape = about.counts[split], (about.size, about.size, 3) if part == IMAGES else ()
    wanted = np.uint8 if part == IMAGES else np.int32
    try:
        if path.stat().st_size != about.files[f"{split}/{part}"]["bytes"]:
            raise ValueError("it has another number of bytes than was written")
        array = np.load(path, mmap_mode="r" if part == IMAGES else None, allow_pickle=False)
        if array.dtype != wanted or array.shape != (count, *shape):
            raise ValueError(f"it holds {array.dtype}{list(array.shape)}")
        return array
    except FileNotFoundError as error:
        raise damaged(about.name, folder, f"{path} is missing") from error
    except Exception as error:  # NumPy raises nearly anything on a damaged head
        excuse = excused(error) or (isinstance(error, OSError) and DataError(f"{path}: {described(error)}"))
        raise excuse or damaged(about.name, folder, f"{path}: {one_line(error)}") from error


def is_there(about: About) -> bool:
    """Whether the folder that a data set was made from can be seen from here."""
    return os.path.isdir(about.path)  # noqa: PTH112 - a path as it is


def change(about: About) -> str:
    """What is other now in the folder that a data set was made from; empty where nothing is, or it is not there."""
    if not is_there(about):
        return ""
    try:
        now = state_of(about.name, about.path)
    except DataError as error:
        return f"{about.path} cannot be compared with what was prepared ({one_line(error)})"
    if now == about.source:
        return ""
    files_then, files_now = about.source.files, now.files
    counted = f" ({files_then:,} files then, {files_now:,} now)" if files_then != files_now else ""
    return f"{about.path} has changed since it was prepared{counted}"


def state_of(name: str, path: str) -> State:
    """The state of the folder of a data set as it is now."""
    from cutnmix_jax.data import _folder, _records  # here, because a start that needs neither is quicker without

    return (_folder.state if name.startswith(_names.FOLDER) else _records.state)(path)
