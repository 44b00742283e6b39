"""The official tfds builders of CIFAR, less TensorFlow, which tfds uses to unpack archives and to write PNG.

What they write is what the official builders read: same name, version, features, ids and keys, hence the same order.
"""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorflow_datasets.image_classification import cifar

from cutnmix_jax.data._library import png

PIXELS = 32 * 32 * 3


class _FromArchive:
    """Replaces the two steps of the official builders that need TensorFlow."""

    info: Any
    _cifar_info: Any

    @property
    def url(self) -> str:
        """Where the official archive is."""
        return self._cifar_info.url

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        archive, layout = dl_manager.download(self.url), self._cifar_info
        for key, file in zip(layout.label_keys, layout.label_files, strict=True):
            lines = _member(archive, layout.prefix + file).decode().split("\n")
            self.info.features[key].names = [line for line in lines if line]
        return {
            "train": self._generate_examples("train_", archive, layout.train_files),
            "test": self._generate_examples("test_", archive, layout.test_files),
        }

    def _generate_examples(self, prefix: str, archive: Path, files: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        layout, index = self._cifar_info, 0
        for file in files:
            labels, images = parse(_member(archive, layout.prefix + file), len(layout.label_keys))
            for row, image in zip(labels, images, strict=True):
                example = dict(zip(layout.label_keys, row.tolist(), strict=True))
                yield index, {**example, "id": f"{prefix}{index:05d}", "image": png(image)}
                index += 1


class Cifar10(_FromArchive, cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10 without TensorFlow."""

    name = "cifar10"
    url_infos = dict(cifar.Cifar10.url_infos)


class Cifar100(_FromArchive, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100 without TensorFlow."""

    name = "cifar100"
    url_infos = dict(cifar.Cifar100.url_infos)


BUILDERS = {builder.name: builder for builder in (Cifar10, Cifar100)}


def parse(data: bytes, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits a file of the binary version of CIFAR.

    Args:
      data: records of `num_labels` bytes and then 3,072 bytes: the red plane, the green one, the blue one.
      num_labels: 1 for CIFAR-10, 2 for CIFAR-100.

    Returns:
      Labels [N, num_labels] uint8 and images [N, 32, 32, 3] uint8.

    Raises:
      ValueError: if the data is not a whole number of records.
    """
    size = num_labels + PIXELS
    if not data or len(data) % size:
        raise ValueError(f"{len(data)} bytes are not a whole number of records of {size} bytes")
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    return rows[:, :num_labels], rows[:, num_labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _member(archive: Path, name: str) -> bytes:
    # Read by name and never unpacked to the path it carries, so a hostile archive cannot write anywhere.
    with tarfile.open(archive) as tar:
        member = tar.extractfile(name)
        if member is None:
            raise KeyError(f"{name} is not a file in the archive")
        return member.read()
