"""What is known of a student besides its weights: what `student.json` says."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from cutnmix_jax import backbones, data, precision
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.command import values_of
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import Backbone, ImageShape

FORMAT = 1  # of `student.json`; another number is of another version of this program

# The types of its fields, and of what its lists are made of.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("resampling", "precision", "dataset", "method", "which", "chosen_by"), (str,)),
    **dict.fromkeys(("seed", "epochs", "epoch", "step"), (int,)),
    "accuracy": (float, int, type(None)),
    "run": (dict,),
}
_LISTS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("backbones", "class_names", "networks_sha256"), (str,)),
    **dict.fromkeys(("image_shape", "peers"), (int,)),
    **dict.fromkeys(("mean", "std"), (float, int)),
}


@dataclasses.dataclass(frozen=True)
class Description:
    """A student, from which it can be made anew beside its weights.

    Attributes:
      backbones: the name of each of its networks; one, or those of an ensemble.
      class_names: K names, in the order of the logits.
      image_shape: (H, W, C) of its images.
      mean: [C] of the training pixels in [0, 1].
      std: [C] standard deviation likewise.
      resampling: how a picture of another size is brought to that of its images, `bicubic` or `nearest`.
      precision: one of `precision.CHOICES`.
      dataset: that it was trained on.
      method: the row of the tables.
      seed: of the run.
      epochs: of the run.
      which: `last` or `best` epoch of the run, or the `average` of the weights at its end.
      epoch: whose weights these are.
      step: likewise.
      peers: which networks of the run they are.
      accuracy: on the run's test images, of what is exported; None where it was not measured.
      chosen_by: the images by which the best peer was chosen, `test` or `validation`; empty where it was not.
      networks_sha256: `digests.of_network` of each network.
      run: what the run's results say, for people.
    """

    backbones: tuple[str, ...]
    class_names: tuple[str, ...]
    image_shape: ImageShape
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resampling: str
    precision: str
    dataset: str
    method: str
    seed: int
    epochs: int
    which: str
    epoch: int
    step: int
    peers: tuple[int, ...]
    accuracy: float | None
    chosen_by: str
    networks_sha256: tuple[str, ...]
    run: Mapping[str, Any]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def own_backbones(self) -> tuple[str, ...]:
        """Those of its networks that are a user's own."""
        return tuple(filter(is_foreign, self.backbones))

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        names = dict.fromkeys(self.backbones)
        count = f"{len(self.backbones)} x " if len(self.backbones) > len(names) else ""
        return f"{count}{' + '.join(names)}, {data.title(self.dataset)}, {self.method}, seed {self.seed}"

    def make(self) -> tuple[Backbone, ...]:
        """Its networks, without a number in them; those of one architecture are one object.

        Raises:
          UsageError: a network is not known, or cannot be made.
        """
        dtype = precision.CHOICES[self.precision].activations
        made = {name: backbones.load(name, self.num_classes, dtype, self.image_shape) for name in set(self.backbones)}
        return tuple(made[name] for name in self.backbones)

    @property
    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and deviation of the pixels, [C] float32 each."""
        return np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)


def check_consent(names: tuple[str, ...], asked: str | None, folder: object) -> None:
    """Refuses to run code that only a folder names: somebody's own network has to be named by the person, too.

    Args:
      names: of the networks that the folder names.
      asked: what the person has named, several with commas; None for nothing.
      folder: in which the names stand.

    Raises:
      UsageError: it is another one, or none.
    """
    own = list(dict.fromkeys(filter(is_foreign, names)))
    if not set(own) <= set(values_of(asked)):
        said, named = f", not {asked}" if asked else "", ",".join(own)
        what = "networks" if len(own) > 1 else "a network"
        raise UsageError(
            f"{folder} is of {named}, {what} of somebody's own{said}; to run that code say --backbone={named}"
        )


def to_json(description: Description) -> str:
    """The text of `student.json`."""
    return json.dumps({"format": FORMAT, **dataclasses.asdict(description)}, indent=2) + "\n"


def of_fields(fields: Mapping[str, Any]) -> Description:
    """A description out of the fields of `student.json`.

    Raises:
      ValueError, TypeError, KeyError: they are of another version, or none.
    """
    values = dict(fields)
    if (found := values.pop("format")) != FORMAT or type(found) is not int:
        raise ValueError(f"it has format {found}, and this version reads {FORMAT}")
    for name, value in values.items():
        each = value if name in _LISTS and isinstance(value, list) else [value]
        if not all(type(one) in (_LISTS | _TYPES)[name] for one in each) or (name in _LISTS and each is not value):
            raise ValueError(f"its {name} is {str(value)[:50]!r}")
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    description = Description(**values)
    H, W, C = description.image_shape
    if not all(type(size) is int and size > 0 for size in (H, W, C)) or not description.num_classes:
        raise ValueError("it says nothing of its images")
    is_finite = np.isfinite([*description.mean, *description.std]).all()
    if len(description.mean) != C or len(description.std) != C or not min(description.std) > 0 or not is_finite:
        raise ValueError("its mean and deviation are not those of its images")
    if description.resampling not in data.RESAMPLINGS:
        raise ValueError(f"its resampling {description.resampling!r} is not known")
    if description.precision not in precision.CHOICES:
        raise ValueError(f"its precision {description.precision!r} is not known")
    if not len(description.backbones) == len(description.networks_sha256) == len(description.peers) > 0:
        raise ValueError("it does not say what its networks are")
    return description
