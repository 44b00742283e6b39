"""Decoded arrays in the user's cache folder; nothing here may ever fail a run.

Beside the records would be simpler, but those are often shared and read-only.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cutnmix_jax import cache, console

Arrays = dict[str, np.ndarray]


def folder() -> Path | None:
    """Where the cache lies, which need not exist; None where there can be none."""
    kept = cache.folder()
    return kept and kept / "data"


def file_for(name: str, records: Path) -> Path | None:
    """The cache file that belongs to a folder of records as it is now; None where there can be none.

    The name holds a hash of the folder, so that an older cache of it can be found and removed, and a hash of the names,
    sizes and modification times of all its files, so that it is never used after one of them changed.
    """
    stats = [(path.name, path.stat()) for path in sorted(records.iterdir())]
    state = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    kept = folder()
    return kept and kept / f"{name}-{_hash(str(records.resolve()))}-{_hash(json.dumps(state))}.npz"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read(file: Path | None, problem: Callable[[Arrays], str]) -> Arrays | None:
    """Reads cached arrays.

    Args:
      file: what `file_for` gave.
      problem: what is wrong with the arrays; empty if nothing is. The checksum of a member is compared only when all of
        it is read, which a damaged shape can prevent.

    Returns:
      The arrays, or None if there is no cache or it cannot be used.
    """
    if file is None:
        return None
    try:
        with np.load(file, allow_pickle=False) as members:
            arrays = {key: members[key] for key in members.files}
        wrong = problem(arrays)
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged file can make NumPy raise nearly anything, MemoryError included
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        console.warn(f"the cache {file} cannot be used and will be made again ({' '.join(wrong.split())})")
        return None
    return arrays


def write(file: Path | None, arrays: Arrays) -> None:
    """Writes arrays under a temporary name, moves them into place and removes older caches of the same records."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            Path(temporary).replace(file)
        finally:
            Path(temporary).unlink(missing_ok=True)
        for older in file.parent.glob(f"{file.name.rpartition('-')[0]}-*.npz"):
            if older != file:
                older.unlink(missing_ok=True)
    except OSError as error:
        if not cache.takes_nothing(file.parent):
            console.warn(f"no cache in {file.parent} ({error.strerror or error}): the records are decoded in each run")
