"""Fetches a data set, or takes it from a local archive, and writes it as tfds does; checks what was written.

Only what it and `_records` prepare may use the network.
"""

import hashlib
import queue
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

from cutnmix_jax import data
from cutnmix_jax.command import program
from cutnmix_jax.data import _library, _source, _tfds
from cutnmix_jax.errors import DataError, UsageError, UserError, described, excused

PROBE_SECONDS = 5  # tfds alone retries an unreachable address for more than three minutes


def prepare(name: str, data_dir: str = "", archive: str = "") -> str:
    """Makes a data set ready to load: downloads it, or reads a local archive, and writes array_record files.

    Nothing that looks prepared exists before all of it is written: tfds renames the folder at the end.

    Args:
      name: a data set.
      data_dir: the tfds data folder; empty for `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      archive: the official archive as a local file; empty to download it.

    Returns:
      One line for a person: what was done and where.

    Raises:
      UsageError: if the name is unknown, or there is an archive and nothing to prepare.
      DataError: if the archive is missing or not the official one, if there is neither a network nor an archive, or if
        what was prepared before is damaged.
    """
    module = data.find(name)
    if not hasattr(module, "SOURCE"):
        if archive:
            raise UsageError(f"--archive={archive}: {name} has nothing to prepare; leave it out")
        return f"{name}: nothing to prepare"
    source = module.SOURCE
    with _library.quiet():
        if folder := _source.find(source, data_dir):
            _tfds.open_builder(source, folder)
            return f"{source.title} is already prepared in {folder}"
        _write(source, data_dir, archive)
        folder = _source.require(source, data_dir)
        _tfds.open_builder(source, folder)
    return f"{source.title} prepared in {folder}: {_counts(source)}"


def _write(source: _source.Source, data_dir: str, archive: str) -> None:
    _library.imported()
    target = _source.root(data_dir)
    try:
        from cutnmix_jax.data import _builder  # of tfds it takes what is not needed to read

        if source.name not in _builder.BUILDERS:
            raise UsageError(f"data set {source.name!r}: its SOURCE has no builder in cutnmix_jax/data/_builder.py")
        builder = _builder.BUILDERS[source.name](data_dir=target, file_format="array_record")
        expected = builder.url_infos[builder.url]
        if archive:
            _check_archive(Path(archive).expanduser(), expected)
        else:
            _check_network(source, builder.url, expected, data_dir)
        _generate(builder, expected.filename, archive)
    except UserError:
        raise
    except Exception as error:  # the network, the archive, the disk and tfds each raise their own
        raise excused(error) or DataError(
            f"{source.title} could not be prepared in {target} ({described(error, 1000)})"
        ) from error


def _generate(builder: Any, filename: str, archive: str) -> None:
    if not archive:
        _library.build(builder, force_checksums_validation=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        # tfds takes a local archive from a folder of them, by its official name and after checking its sha256.
        (Path(scratch) / filename).symlink_to(Path(archive).expanduser().resolve())
        _library.build(builder, Path(scratch, "downloads"), force_checksums_validation=True, manual_dir=scratch)


def _check_archive(file: Path, expected: Any) -> None:
    if not file.is_file():
        raise DataError(f"no archive at {file}; expected {expected.filename} with sha256 {expected.checksum}")
    size = file.stat().st_size
    if size != expected.size:
        raise DataError(f"{file} is not the official archive: expected {int(expected.size)} bytes, it has {size}")
    with file.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    if checksum != expected.checksum:
        raise DataError(f"{file} is not the official archive: expected sha256 {expected.checksum}, it has {checksum}")


def _check_network(source: _source.Source, url: str, expected: Any, data_dir: str) -> None:
    if wrong := unreachable(url):
        where = f" --data_dir={data_dir}" if data_dir else ""
        raise DataError(
            f"{source.title} cannot be downloaded ({wrong}); copy {expected.filename} (sha256 {expected.checksum}) "
            f"from {url} to this machine and run `{program()} data prepare --dataset={source.name}{where} "
            f"--archive={expected.filename}`"
        )


def unreachable(url: str) -> str:
    """Why nothing can be downloaded from an address, within a few seconds; empty where it answers."""
    answer: queue.SimpleQueue[str] = queue.SimpleQueue()
    # A thread, because a name look-up ignores every time-out; a daemon, because it may never come back.
    threading.Thread(target=_probe, args=(url, answer), daemon=True).start()
    try:
        return answer.get(timeout=PROBE_SECONDS)
    except queue.Empty:
        return f"no answer in {PROBE_SECONDS} s"


def _probe(url: str, answer: "queue.SimpleQueue[str]") -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PROBE_SECONDS).close()
        answer.put("")
    except urllib.error.HTTPError as error:
        # A server that does not know this short question may still serve the file.
        answer.put("" if error.code in (405, 501) else described(error))
    except Exception as error:  # whatever it is, the caller must hear of it rather than wait
        answer.put(described(error))


def verify(name: str, data_dir: str = "") -> str:
    """Reads every record of a prepared data set, past the cache, and compares it with what it must be.

    Args:
      name: a data set.
      data_dir: as in `prepare`.

    Returns:
      A few words for a person, with the sha256 of all pixels and labels.

    Raises:
      UsageError: if the name is unknown.
      DataError: if the data set is missing, or anything about it is not as it should be.
    """
    module = data.find(name)
    if not hasattr(module, "SOURCE"):
        whole = data.load(name, data_dir)
        return f"{name}: {len(whole.train_labels)} training and {len(whole.test_labels)} test images, nothing to verify"
    source = module.SOURCE
    folder = _source.require(source, data_dir)
    splits, class_names = _tfds.decode(source, folder)
    if len(class_names) != source.num_classes:
        raise _source.damaged(source, folder, f"there are {len(class_names)} class names, not {source.num_classes}")
    for split, read in splits.items():
        if wrong := _wrong(source, split, read):
            raise _source.damaged(source, folder, wrong)
    found = digest(splits)
    if source.digest and found != source.digest:
        raise _source.damaged(source, folder, f"sha256 of its pixels and labels is {found}, not {source.digest}")
    known = "as it must be" if source.digest else "there is no reference to compare it with"
    return f"{source.title} in {folder}: {_counts(source)}; sha256 of all pixels and labels {found} ({known})"


def _counts(source: _source.Source) -> str:
    train, test = source.counts["train"], source.counts["test"]
    return f"{train} training and {test} test images, {source.num_classes} classes"


def _wrong(source: _source.Source, split: str, read: _source.Split) -> str:
    if sorted(read.ids) != [f"{split}_{index:05d}" for index in range(source.counts[split])]:
        return f"the ids of the {split} images are not {split}_00000 and so on, each once"
    classes, counts = np.unique(read.labels, return_counts=True)
    if classes.tolist() != list(range(source.num_classes)):
        return f"the {split} labels are not 0 to {source.num_classes - 1}"
    sizes = set(counts.tolist())
    if len(sizes) != 1:
        return f"the {split} classes have {min(sizes)} to {max(sizes)} images, not equally many"
    return ""


def digest(splits: dict[str, _source.Split]) -> str:
    """The sha256 of a data set, whatever the order of its records.

    Args:
      splits: what `_tfds.decode` gave.

    Returns:
      Hexadecimal digits, over the training images [N, 32, 32, 3] uint8, the training labels [N] little-endian int32,
      the test images and the test labels, each in the order of the ids, which is that of the official archive.
    """
    sha = hashlib.sha256()
    for split in ("train", "test"):
        order = np.argsort(splits[split].ids)
        sha.update(splits[split].images[order].tobytes())
        sha.update(splits[split].labels[order].astype("<i4").tobytes())
    return sha.hexdigest()
