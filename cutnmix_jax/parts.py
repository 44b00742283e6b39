"""What a run is put together from: its data set and its engine, which runs of several seeds can share."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from cutnmix_jax import data, teacher
from cutnmix_jax.engine import assemble
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.settings import Settings
from cutnmix_jax.student import start as start_from
from cutnmix_jax.types import Dataset


class Parts(NamedTuple):
    """How a run gets its data set and its engine.

    Attributes:
      load: reads the data set.
      assemble: puts the engine together.
    """

    load: Callable[[Settings, assemble.Networks], Dataset]
    assemble: Callable[[Settings, Dataset, assemble.Networks], Engine]


def load(settings: Settings, networks: assemble.Networks) -> Dataset:
    """Reads the data set of a run, and looks whether its networks can take it."""
    counts = settings.train_examples, settings.test_examples
    dataset = data.load(settings.dataset, settings.data_dir, *counts, settings.image_size)
    assemble.check(settings, networks, dataset)
    if networks.teacher:
        teacher.check_there(networks.teacher)
    return dataset


def assembled(settings: Settings, dataset: Dataset, networks: assemble.Networks) -> Engine:
    """The engine of a run."""
    load_start = functools.partial(start_from.load, settings, dataset, networks.backbones)
    return assemble.engine(settings, dataset, networks, load_start if settings.init_from else None)


ALONE = Parts(load, assembled)
