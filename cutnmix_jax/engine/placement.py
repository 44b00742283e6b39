"""Where the images of a run lie, on the device, in the machine's memory or on disk, and how they are read there."""

import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax.engine.batches import Data, on_device
from cutnmix_jax.engine.devices import ONE, Devices
from cutnmix_jax.errors import DataError, described, excused
from cutnmix_jax.settings import DEVICE, DISK, MEMORY
from cutnmix_jax.types import Dataset

READERS = 4  # threads; what they read waits for the disk and for copies, in which Python's lock is not held
AHEAD = 4  # parts that are read before they are asked for

T = TypeVar("T")


class OnHost(NamedTuple):
    """A labelled set whose images stay on the host.

    Attributes:
      images: [N, H, W, C] uint8, an array or `Stored`.
      rows: [N] int, which of these images they are.
      data: the rest of it, on the device; its `images` is None.
    """

    images: Any
    rows: np.ndarray
    data: Data

    @property
    def labels(self) -> jax.Array:
        """[N] int32."""
        return self.data.labels

    def read(self, rows: np.ndarray, size: int) -> np.ndarray:
        """Images by their rows, [size, H, W, C] uint8; what is left of it is black.

        Raises:
          DataError: they cannot be read.
        """
        found = np.zeros((size, *self.images.shape[1:]), np.uint8)
        try:
            found[: len(rows)] = self.images[self.rows[rows]]
        except (OSError, ValueError) as error:
            raise excused(error) or DataError(f"the images cannot be read any more ({described(error)})") from error
        return found


Placed = Data | OnHost


class Stored:
    """Images [N, H, W, C] uint8 in a file of NumPy's, read by their rows.

    Without a mapping, whose pages would count as the memory of this process.
    """

    def __init__(self, mapped: np.memmap):
        """Opens the file of a mapping, which may be of a part of it, such as the first images."""
        whole = mapped
        while isinstance(whole.base, np.memmap):  # a part says of itself that it begins where the whole does
            whole = whole.base
        self.shape, self._first = mapped.shape, whole.offset + mapped.ctypes.data - whole.ctypes.data
        self._bytes = int(np.prod(mapped.shape[1:]))
        self._file = open(str(mapped.filename), "rb", buffering=0)  # noqa: PTH123, SIM115 - as long as it is used

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        found = np.empty((len(rows), *self.shape[1:]), np.uint8)
        for place, row in enumerate(rows):
            at = self._first + int(row) * self._bytes
            if os.preadv(self._file.fileno(), [memoryview(found[place]).cast("B")], at) != self._bytes:
                raise OSError(f"{self._file.name} ends before image {row}")
        return found


def on_device_of(data: Placed) -> Data:
    """All of a set, or what of it is on the device where the images are not."""
    return data if isinstance(data, Data) else data.data


def choose(dataset: Dataset, wanted: str | None) -> str:
    """Where the images are to lie.

    On the device where they fit in a quarter of its memory; else in the machine's where they fit in half of that; else
    on disk. Without files of their own they are in memory already.

    Args:
      dataset: of the run.
      wanted: one of `DEVICE`, `MEMORY` and `DISK`; None for this rule.
    """
    if wanted:
        return wanted
    size = dataset.train_images.nbytes + dataset.test_images.nbytes
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", machine)
    return DEVICE if size <= device / 4 else MEMORY if size <= machine / 2 else DISK


def held(images: Any, where: str) -> Any:
    """Images as they are kept on the host; of a file that is mapped, rows are read from it, or all of it at once."""
    if not isinstance(images, np.memmap):
        return images
    is_file = images.filename is not None and getattr(images, "mode", "") == "r" and images.flags.c_contiguous
    if where == DISK:
        return Stored(images) if is_file else images
    return np.array(images) if where == MEMORY else images


def placed(
    images: Any,
    labels: np.ndarray,
    where: str,
    rows: np.ndarray | None = None,
    num_classes: int | None = None,
    devices: Devices = ONE,
) -> Placed:
    """Puts images where they are to lie.

    Args:
      images: [N, H, W, C] uint8, or what `held` made of them.
      labels: [N] int32.
      where: one of `DEVICE`, `MEMORY` and `DISK`.
      rows: the images that count; None for all.
      num_classes: K, where the rows of each class are wanted, too.
      devices: of the run; each has all that is on any, but images of the host.
    """
    rows = np.arange(len(labels)) if rows is None else rows
    if where == DEVICE:
        kept = images if len(rows) == len(labels) else images[rows]
        return devices.put_whole(on_device(kept, labels[rows], num_classes))
    return OnHost(held(images, where), rows, devices.put_whole(on_device(None, labels[rows], num_classes)))


def ahead(read: Callable[[int], T], count: int) -> Iterator[T]:
    """`read(0)`, `read(1)` and so on, in this order, each in a thread before it is asked for."""
    import grain  # not above: most runs do without, and it takes a second of a start

    class Parts:
        def __len__(self) -> int:
            return count

        def __getitem__(self, number: int) -> T:
            return read(number)

    options = grain.ReadOptions(num_threads=min(READERS, count), prefetch_buffer_size=min(AHEAD, count))
    return iter(grain.MapDataset.source(Parts()).to_iter_dataset(options))


def in_parts(data: Placed, size: int, devices: Devices) -> Iterator[tuple[Data, jax.Array | int, int]]:
    """All images in parts of one size, for an evaluation.

    Yields:
      A set on the device, the row at which the part begins, and before which row it ends.
    """
    total = len(data.labels)
    starts = range(0, total, size)
    if isinstance(data, Data):
        yield from ((data, start, total) for start in starts)
        return
    labels = np.asarray(data.labels)

    def read(number: int) -> tuple[Data, int, int]:
        rows = np.arange(starts[number], min(starts[number] + size, total))
        padded = np.zeros(size, np.int32)
        padded[: len(rows)] = labels[rows]

        def part(columns: slice) -> np.ndarray:
            return data.read(rows[columns], columns.stop - columns.start)

        return Data(devices.images((size, *data.images.shape[1:]), 0, part), jnp.asarray(padded)), 0, len(rows)

    yield from ahead(read, len(starts))
