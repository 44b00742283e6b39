"""What stands beside the arrays of a prepared data set, in `about.json`."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from cutnmix_jax.data._pictures import State

FORMAT = 1  # of `about.json` and of what lies beside it


@dataclasses.dataclass(frozen=True)
class About:
    """What `about.json` says.

    Attributes:
      name: of the data set, canonical.
      size: S.
      class_names: K names, in the order of the labels.
      counts: {'train': N, 'test': M}.
      mean: of the training pixels in [0, 1], per channel.
      std: likewise.
      flip: whether a mirror image keeps its class.
      files: the name of a file below the folder -> its `bytes` and its `sha256`.
      path: of the folder that it was made from.
      source: the state of that folder then.
      skipped: pictures that could not be read: how many, and the first names.
      rules: `decoding.RULES` that it was made by.
      pillow: the version of the library that decoded.
    """

    name: str
    size: int
    class_names: tuple[str, ...]
    counts: Mapping[str, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    files: Mapping[str, Mapping[str, Any]]
    path: str
    source: State
    skipped: tuple[int, tuple[str, ...]]
    rules: int
    pillow: str

    @property
    def sha256(self) -> str:
        """What tells its images, labels and classes from others: a digest of the digests of its files."""
        return _sha256([self.class_names, {name: of["sha256"] for name, of in self.files.items()}])


def of_json(fields: Mapping[str, Any]) -> About:
    """What the fields of `about.json` say.

    Raises:
      ValueError, TypeError, KeyError: they are not what was written, or of another version.
    """
    values = {name: value for name, value in fields.items() if name != "sha256"}
    if fields.get("sha256") != _sha256(values):
        raise ValueError("it is not what was written")
    if (version := values.pop("format")) != FORMAT:
        raise ValueError(f"it has format {version}, and this version reads {FORMAT}")
    values |= {name: tuple(values[name]) for name in ("class_names", "mean", "std")}
    skipped, first = values["skipped"]
    return About(**{**values, "source": State(**values["source"]), "skipped": (skipped, tuple(first))})


def to_json(about: About) -> dict[str, Any]:
    """The fields of `about.json`, as JSON can hold them, with a digest of them."""
    fields = json.loads(json.dumps({"format": FORMAT, **dataclasses.asdict(about)}))
    return {**fields, "sha256": _sha256(fields)}


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
