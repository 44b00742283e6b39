"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn, so nothing has to be downloaded.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (the
test part), from the file that `sklearn.datasets.load_digits` reads.
"""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from cutnmix_jax.errors import DataError, described, excused
from cutnmix_jax.types import Dataset

NUM_TRAIN, NUM_TEST = 1500, 297
COUNTS, NUM_CLASSES = {"train": NUM_TRAIN, "test": NUM_TEST}, 10
RESAMPLING = "nearest"  # as `enlarge` does it
SCAN, SCALE = 8, 4  # 8x8 pixels to 32x32, which every network here can take

# Of the training pixels in [0, 1]; grey images have three equal channels. A test recomputes them.
MEAN = 0.305467
STD = 0.375876


def load(data_dir: str = "") -> Dataset:
    """Reads the digits and splits them 1,500 to 297, always in the same way.

    Args:
      data_dir: ignored; the digits are part of scikit-learn.

    Returns:
      A `Dataset` with [1500, 32, 32, 3] and [297, 32, 32, 3] uint8 images of 10 classes.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
      DataError: its file is not there or damaged.
    """
    scans, classes = read()
    # NumPy promises never to change the stream of RandomState, so the split is the same everywhere and for good.
    order = np.random.RandomState(0).permutation(len(classes))
    images, labels = enlarge(scans[order]), classes[order].astype(np.int32)
    return Dataset(
        name="digits",
        train_images=images[:NUM_TRAIN],
        train_labels=labels[:NUM_TRAIN],
        test_images=images[NUM_TRAIN:],
        test_labels=labels[NUM_TRAIN:],
        class_names=tuple(str(digit) for digit in range(10)),
        mean=np.full(3, MEAN, np.float32),
        std=np.full(3, STD, np.float32),
        flip=False,
    )


def read() -> tuple[np.ndarray, np.ndarray]:
    """The scans [N, 8, 8] and classes [N] of `load_digits`, without importing it, which takes a second of each start.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
      DataError: its file is not there or damaged.
    """
    found = importlib.util.find_spec("sklearn")
    if not found or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
    file = Path(found.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(file, "rt") as lines:
            table = np.array([line.split(",") for line in lines], np.float64)
        return table[:, :-1].reshape(-1, SCAN, SCAN), table[:, -1].astype(int)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        what = f"data set 'digits': {file} of scikit-learn cannot be read ({described(error)})"
        raise excused(error) or DataError(f"{what}; install scikit-learn again") from error


def enlarge(scans: np.ndarray) -> np.ndarray:
    """Turns scans [N, 8, 8] of values 0 to 16 into images [N, 32, 32, 3] uint8 of values 0 to 255."""
    grey = (scans.astype(np.int32) * 255 + 8) // 16  # integers: no platform rounds them differently
    large = grey.astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return np.repeat(large[..., None], 3, axis=3)
