"""Handwritten digits: 1,797 real 8x8 scans that come with scikit-learn, so nothing has to be downloaded.

Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998 (the
test part), through `sklearn.datasets.load_digits`.
"""

import numpy as np

from cutnmix_jax.types import Dataset

NUM_TRAIN, NUM_TEST = 1500, 297
COUNTS, NUM_CLASSES = {"train": NUM_TRAIN, "test": NUM_TEST}, 10
RESAMPLING = "nearest"  # as `enlarge` does it
SCALE = 4  # 8x8 pixels to 32x32, which every network here can take

# Of the training pixels in [0, 1]; grey images have three equal channels. A test recomputes them.
MEAN = 0.305467
STD = 0.375876


def load(data_dir: str = "") -> Dataset:
    """Reads the digits and splits them 1,500 to 297, always in the same way.

    Args:
      data_dir: ignored; the digits are part of scikit-learn.

    Returns:
      A `Dataset` with [1500, 32, 32, 3] and [297, 32, 32, 3] uint8 images of 10 classes.
    """
    from sklearn.datasets import load_digits  # a second of imports that no error on the command line need wait for

    digits = load_digits()
    # NumPy promises never to change the stream of RandomState, so the split is the same everywhere and for good.
    order = np.random.RandomState(0).permutation(len(digits.target))
    images, labels = enlarge(digits.images[order]), digits.target[order].astype(np.int32)
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


def enlarge(scans: np.ndarray) -> np.ndarray:
    """Turns scans [N, 8, 8] of values 0 to 16 into images [N, 32, 32, 3] uint8 of values 0 to 255."""
    grey = (scans.astype(np.int32) * 255 + 8) // 16  # integers: no platform rounds them differently
    large = grey.astype(np.uint8).repeat(SCALE, axis=1).repeat(SCALE, axis=2)
    return np.repeat(large[..., None], 3, axis=3)
