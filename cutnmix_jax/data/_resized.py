"""A data set in memory brought to another size."""

import numpy as np

from cutnmix_jax import decoding
from cutnmix_jax.data import _moments
from cutnmix_jax.types import Dataset


def to_size(dataset: Dataset, size: tuple[int, int], resampling: str) -> Dataset:
    """The same images as `predict` would bring them to a size, (H, W); mean and deviation are those of the new ones."""
    train, test = (decoding.resized(images, size, resampling) for images in (dataset.train_images, dataset.test_images))
    moments = _moments.of_images(train)
    mean, std = (np.array(values, np.float32) for values in (moments.mean, moments.std))
    return dataset._replace(train_images=train, test_images=test, mean=mean, std=std)
