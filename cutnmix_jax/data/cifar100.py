"""CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in 100 classes.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009. Mean and standard deviation as in
the public code of DLB and OKDDip.
"""

from cutnmix_jax.data import _source, _tfds
from cutnmix_jax.types import Dataset

SOURCE = _source.Source(
    name="cifar100",
    title="CIFAR-100",
    archive="cifar-100-binary.tar.gz",
    counts={"train": 50_000, "test": 10_000},
    num_classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    digest="865ace3bae982a1ed67e5b9dc8ddbbaa247dfa5eb85165493413a3d1ee403c6b",
)
COUNTS, NUM_CLASSES = SOURCE.counts, SOURCE.num_classes


def load(data_dir: str = "") -> Dataset:
    """Reads CIFAR-100; see `_tfds.load`."""
    return _tfds.load(SOURCE, data_dir)
