"""What is known of a data set before its images are read, and whether what was read is as `types.Dataset` says."""

import collections
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from cutnmix_jax.types import Dataset


class Facts(NamedTuple):
    """What is known of a data set before its images are read.

    Attributes:
      counts: how many images it has, by its split: {'train': N, 'test': M}.
      num_classes: K.
      image_shape: (H, W, 3), of the images that `load` returns.
    """

    counts: Mapping[str, int]
    num_classes: int
    image_shape: tuple[int, int, int]


def of_dataset(dataset: Dataset) -> Facts:
    """Those of a data set that is at hand."""
    counts = {"train": len(dataset.train_labels), "test": len(dataset.test_labels)}
    return Facts(counts, dataset.num_classes, dataset.train_images.shape[1:])


def wrong(dataset: Dataset, known: Facts) -> str:
    """What of a data set is not as `Dataset` and what is known of it say, in a few words; empty if nothing is."""
    counts, num_classes, shape = known
    if len(shape) != 3 or shape[2] != 3:
        return f"images of {list(shape)}, not of (height, width, 3)"
    for name in ("mean", "std"):
        if (value := np.asarray(getattr(dataset, name))).shape != (3,) or not np.isfinite(value).all():
            return f"a {name} of {value.tolist()}, not of three finite numbers"
    mean, std = np.asarray(dataset.mean), np.asarray(dataset.std)
    if not np.all((std > 0) & (std <= 1) & (mean >= 0) & (mean <= 1)):
        return f"mean {mean.tolist()} and std {std.tolist()}, not of pixels from 0 to 1"
    if num_classes < 2:
        return f"{num_classes} classes, not at least 2"
    if len(dataset.class_names) != num_classes:
        return f"{len(dataset.class_names)} class names where NUM_CLASSES is {num_classes}"
    [(name, count)] = collections.Counter(dataset.class_names).most_common(1)
    if count > 1:
        return f"two classes called {name!r}, which no result could tell apart"
    for split in ("train", "test"):
        images, labels = getattr(dataset, f"{split}_images"), getattr(dataset, f"{split}_labels")
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            return f"{split} images {images.dtype}{list(images.shape)}, not uint8[N, {', '.join(map(str, shape))}]"
        if len(images) != counts[split]:
            return f"{len(images)} {split} images where COUNTS says {counts[split]}"
        if labels.dtype != np.int32 or labels.shape != images.shape[:1] or not len(labels):
            return f"{split} labels {labels.dtype}{list(labels.shape)} of {len(images)} images, not int32[N]"
        if labels.min() < 0 or labels.max() >= num_classes:
            return f"{split} labels from {labels.min()} to {labels.max()}, not from 0 to {num_classes - 1}"
    return ""
