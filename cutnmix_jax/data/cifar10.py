"""CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Mean and standard deviation as in
the public code of DLB and OKDDip.
"""

from cutnmix_jax.data import _source, _tfds
from cutnmix_jax.types import Dataset

SOURCE = _source.Source(
    name="cifar10",
    title="CIFAR-10",
    archive="cifar-10-binary.tar.gz",
    counts={"train": 50_000, "test": 10_000},
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    digest="",  # no reference yet: `verify` says so and prints the digest,
)
COUNTS, NUM_CLASSES = SOURCE.counts, SOURCE.num_classes


def load(data_dir: str = "") -> Dataset:
    """Reads CIFAR-10; see `_tfds.load`."""
    return _tfds.load(SOURCE, data_dir)
