"""Data sets from code of a user's own: `my_pkg.data:load`, a function `load(data_dir) -> types.Dataset`."""

import functools

import numpy as np

from cutnmix_jax import own_code
from cutnmix_jax.data import _facts
from cutnmix_jax.errors import DataError, UsageError, blaming, described, excused
from cutnmix_jax.types import Dataset


@functools.lru_cache(maxsize=1)  # what is known of it before it is read comes from reading it
def load(name: str, data_dir: str) -> Dataset:
    """Calls a user's function.

    Args:
      name: as `my_pkg.data:load`.
      data_dir: as the settings have it; empty where they have none.

    Returns:
      What it returns, under this name.

    Raises:
      UsageError: there is no such function, it fails, or it returns something else than a `Dataset` says.
      DataError: it cannot read a file.
    """
    function = own_code.named("data set", name)
    with blaming(f"data set {name!r}: its function fails", "mend it"):
        try:
            found = function(data_dir)
        except OSError as error:
            raise excused(error) or DataError(f"data set {name!r} cannot be read ({described(error)})") from error
        if not isinstance(found, Dataset):
            raise UsageError(f"data set {name!r}: its function returns a {type(found).__name__}, not a types.Dataset")
        dataset = found._replace(
            name=name,
            class_names=tuple(map(str, found.class_names)),
            mean=np.asarray(found.mean, np.float32),
            std=np.asarray(found.std, np.float32),
            flip=bool(found.flip),
            sha256="",
        )
        wrong = _facts.wrong(dataset, _facts.of_dataset(dataset))
    if wrong:
        raise UsageError(f"data set {name!r}: its function returns {wrong}; see `types.Dataset`")
    return dataset
