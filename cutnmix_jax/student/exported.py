"""An export: a folder from which a student can be loaded anywhere, written whole or not at all."""

import contextlib
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from cutnmix_jax import digests, files
from cutnmix_jax.errors import CheckpointError, UsageError, one_line
from cutnmix_jax.student import card, description, network, program
from cutnmix_jax.student.card import CARD, DESCRIPTION, PROGRAM, SUMS, WEIGHTS
from cutnmix_jax.student.description import Description
from cutnmix_jax.student.network import Student

_NEEDED = (DESCRIPTION, WEIGHTS)
_TYPES = {"BF16": "bfloat16", "BOOL": "bool"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("float", "int", "uint") for bits in (8, 16, 32, 64)
}


def is_export(folder: Path) -> bool:
    """Whether a folder says that it is an export."""
    return os.path.isfile(folder / DESCRIPTION)  # noqa: PTH113 - it takes any name


def write(student: Student, folder: Path, more: Mapping[str, bytes] | None = None) -> None:
    """Writes an export.

    Args:
      student: what is exported.
      folder: where; it must not be there, or be empty.
      more: other files of it, by their names, for other programs.

    Raises:
      UsageError: something is there, it cannot be written, or no program can be made of the student.
    """
    check_free(folder)
    contents = {
        DESCRIPTION: description.to_json(student.description).encode(),
        WEIGHTS: safetensors.numpy.save(dict(student.arrays), metadata={"format": "flax"}),
        PROGRAM: program.written(student),
        **(more or {}),
    }
    sums = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in contents.items())
    # In its examples the folder is named where its name can stand in Python as it is, and is `.` otherwise.
    named = folder.name if folder.name.isprintable() and not set(folder.name) & set("\"'\\`$|") else "."
    contents |= {SUMS: sums.encode(), CARD: card.text(student.description, named, list(more or {})).encode()}
    with _written_whole(folder) as temporary:
        for name, content in contents.items():
            files.write(temporary / name, content)


def check_free(folder: Path) -> None:
    """Raises UsageError where something is under a name, more than an empty folder."""
    try:
        if files.kind(folder) and not (folder.is_dir() and not any(folder.iterdir())):
            raise UsageError(f"{folder} is there already; name a folder that is not")
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}; name another folder") from error


@contextlib.contextmanager
def _written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that gets its name at the end, and is removed where something is raised."""
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}-{os.getpid()}-{time.monotonic_ns()}")
        temporary.mkdir()
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error
    try:
        yield temporary
        temporary.replace(folder)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> Student:
    """Loads an export; every byte of it that decides about a number is compared with its SHA-256.

    A network of somebody's own is run as the program that was exported with it, and none of its code is looked for.

    Args:
      folder: from `write`, or a copy of one.

    Raises:
      UsageError: there is no export, or not one for this device.
      CheckpointError: it is damaged, or of another version of this program.
    """
    contents = _contents(folder)
    described = _described(folder, contents[DESCRIPTION])
    with _of_this_version(folder):
        arrays = _arrays(contents[WEIGHTS])
        if tuple(_of_network(arrays, j) for j in range(len(described.backbones))) != described.networks_sha256:
            raise CheckpointError(f"{folder / WEIGHTS} has other weights than {DESCRIPTION} says; export again")
        if not described.own_backbones:
            return network.make(described, arrays)
    if PROGRAM not in contents:
        raise CheckpointError(f"{folder / PROGRAM} is gone; restore it, or export again")
    answer = program.read(contents[PROGRAM], str(folder / PROGRAM))
    with _of_this_version(folder):
        seen = jax.ShapeDtypeStruct((1, *described.image_shape), jnp.uint8)
        if (shape := jax.eval_shape(answer, arrays, seen).shape) != (1, described.num_classes):
            raise ValueError(f"its program says {list(shape)} to an image of {described.num_classes} classes")
    return Student(described, arrays, answer)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file of safetensors; `safetensors.numpy.load` knows no bfloat16."""
    return {
        name: np.frombuffer(view["data"], jnp.dtype(_TYPES[view["dtype"]])).reshape(view["shape"])
        for name, view in safetensors.deserialize(content)
    }


def _of_network(arrays: Mapping[str, np.ndarray], j: int) -> str:
    """`digests.of_network` of network j, out of arrays by their names."""
    prefix = f"{j}."
    return digests.of_network({name[len(prefix) :]: leaf for name, leaf in arrays.items() if name.startswith(prefix)})


def read_description(folder: Path) -> Description:
    """What is known of an export besides its weights; raises as `read` does."""
    return _described(folder, _contents(folder)[DESCRIPTION])


@contextlib.contextmanager
def _of_this_version(folder: Path) -> Iterator[None]:
    """While entered, what is wrong with the content of files that are as they were written is their version."""
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, safetensors.SafetensorError) as error:
        raise CheckpointError(
            f"{folder} is not an export of this version ({one_line(error)[:200]}); use the version that made it"
        ) from error


def _described(folder: Path, content: bytes) -> Description:
    with _of_this_version(folder):
        described = description.of_fields(files.fields_of(content))
        card.text(described).encode()  # which looks at all that it says of its run
        return described


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of an export that are there, as they were written."""
    if not is_export(folder):
        raise UsageError(f"{folder} is no export and no run: it has no {DESCRIPTION}")
    contents = {}
    for line in _bytes(folder / SUMS).decode(errors="replace").splitlines():
        sha256, _, name = line.partition("  ")
        if Path(name).name != name or not name:
            raise CheckpointError(f"{folder / SUMS} is damaged; restore it, or export again")
        if name not in _NEEDED and not os.path.exists(folder / name):  # noqa: PTH110 - it takes any name
            continue
        contents[name] = _bytes(folder / name)
        if hashlib.sha256(contents[name]).hexdigest() != sha256:
            raise CheckpointError(f"{folder / name} is not what was exported: its SHA-256 is another; export again")
    if missing := [name for name in _NEEDED if name not in contents]:
        raise CheckpointError(f"{folder / SUMS} says nothing of {missing[0]}; restore it, or export again")
    return contents


def _bytes(path: Path) -> bytes:
    """The content of a file; a hub's cache is made of links, so they are followed."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is no file; restore it, or export again")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is gone; restore it, or export again") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}; let it be read") from error
