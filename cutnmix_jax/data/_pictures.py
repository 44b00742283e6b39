"""Pictures that are yet to be decoded: what is known of them, in which order they are kept, which ones are tests."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from cutnmix_jax.decoding import Read
from cutnmix_jax.errors import DataError

TESTED = 5  # where there is no test set, one picture of so many is put into one
MOST_CLASSES = 100_000
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class State:
    """What tells whether a source has changed.

    Attributes:
      files: how many there are.
      bytes: of all of them.
      digest: SHA-256 of their names, sizes and times of modification.
    """

    files: int
    bytes: int
    digest: str


class Split(NamedTuple):
    """The pictures of a split.

    Attributes:
      total: N.
      read: of rows, given in the order in which they are kept, the label and what `decoding.read` returns or raises.
    """

    total: int
    read: Callable[[Sequence[int]], Iterator[tuple[int, Read]]]


class Source(NamedTuple):
    """A data set before it is prepared.

    Attributes:
      path: of its folder.
      class_names: K names, in the order of the labels.
      splits: `train` and `test`.
      every_class: whether each class has to be in both.
      notes: what a person should know of it, a sentence each.
      before: the state of its files when they were looked at.
      state: their state now.
    """

    path: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    every_class: bool
    notes: tuple[str, ...]
    before: State
    state: Callable[[], State]


def state_of(files: Iterable[tuple[bytes, int, int]]) -> State:
    """The state of files that are given by their names, sizes and times in ns, in any order."""
    sha, count, total = hashlib.sha256(), 0, 0
    for name, size, time in sorted(files):
        sha.update(b"%b\0%d %d\n" % (name, size, time))
        count, total = count + 1, total + size
    return State(count, total, sha.hexdigest())


def shuffled(names: Iterable[bytes], purpose: bytes = b"order") -> list[int]:
    """The order of some names by a digest of each: one that only depends on them, and that nobody has chosen."""
    digests = [hashlib.sha256(purpose + b"\0" + name).digest() for name in names]
    return sorted(range(len(digests)), key=digests.__getitem__)


def test_rows(names: Sequence[bytes]) -> list[int]:
    """Which of some pictures, of a class for instance, are tests where nobody says it: a fifth, at least one."""
    return shuffled(names, b"test")[: max(1, round(len(names) / TESTED))]


def check_classes(where: str, names: Sequence[str]) -> None:
    """Raises DataError unless there are from 2 to `MOST_CLASSES` different classes."""
    if not 2 <= len(names) <= MOST_CLASSES:
        which = f" ({names[0]})" if len(names) == 1 else ""
        raise DataError(f"{where}: {len(names)} classes{which}; there must be from 2 to {MOST_CLASSES:,}")
    if len(set(names)) < len(names):
        double = next(name for name, after in zip(sorted(names), sorted(names)[1:], strict=False) if name == after)
        raise DataError(f"{where}: two classes are both written {double!r}; rename one")
