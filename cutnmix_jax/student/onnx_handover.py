"""What the two processes that make an ONNX file hand to each other in a folder; numpy alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

DESCRIPTION, WEIGHTS, IMAGES = "student.json", "model.npz", "images.npz"  # for the worker
MODEL, ANSWERS = "model.onnx", "answers.npz"  # from it
COUNTS = (1, 5)  # of images that the file is shown at once


def write(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by their names."""
    np.savez(path, **arrays)  # type: ignore[arg-type]


def read(path: Path) -> dict[str, np.ndarray]:
    """Reads them again; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def widened(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays with all floats as float32: ONNX Runtime has no layers with bfloat16 weights, and numpy no such files."""
    return {name: np.asarray(array, wide(array.dtype)) for name, array in arrays.items()}


def wide(dtype: Any) -> Any:
    """The type of an array after `widened`: float32 for the types that parameters may have."""
    return np.dtype(np.float32) if str(dtype) in ("bfloat16", "float16") else dtype
