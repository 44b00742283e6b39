"""Data sets: real digits, and CIFAR from tiny archives that are made here in the official binary layout."""

import ast
import hashlib
import http.server
import inspect
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow_datasets as tfds

from cutnmix_jax import data
from cutnmix_jax.command import program
from cutnmix_jax.data import _builder, _cache, _source, _tfds, cifar10, cifar100, digits
from cutnmix_jax.data import prepare as prepare_module
from cutnmix_jax.data.__main__ import main
from cutnmix_jax.data.prepare import prepare, verify
from cutnmix_jax.errors import DataError, UsageError
from cutnmix_jax.types import Dataset

MODULES = {"cifar10": cifar10, "cifar100": cifar100}
PIXELS = {  # of all training pixels, 0 to 255, as CIFAR's users have known them since 2009
    "cifar10": ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "cifar100": ((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
}
COUNTS = {"cifar10": {"train": 20, "test": 10}, "cifar100": {"train": 200, "test": 100}}
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
PREPARED = os.environ.get("TFDS_DATA_DIR", "")  # of whoever runs the tests


class Fake(NamedTuple):
    """A made-up archive and what is in it, in the order of the archive."""

    archive: Path
    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def make_archive(name: str, folder: Path, seed: int = 0, bad_label: int | None = None) -> Fake:
    rng, layout, num_classes = np.random.default_rng(seed), layout_of(name), MODULES[name].SOURCE.num_classes
    images, labels, files = {}, {}, {}
    for split, names in (("train", layout.train_files), ("test", layout.test_files)):
        count = COUNTS[name][split]
        images[split] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
        labels[split] = rng.permutation(np.arange(count) % num_classes).astype(np.uint8)
        if bad_label is not None:
            labels[split][3] = bad_label
        columns = [labels[split] % 20, labels[split]] if name == "cifar100" else [labels[split]]
        rows = np.column_stack([*columns, images[split].transpose(0, 3, 1, 2).reshape(count, -1)])
        for file, part in zip(names, np.split(rows, len(names)), strict=True):
            files[file] = part.tobytes()
    for key, file in zip(layout.label_keys, layout.label_files, strict=True):
        count = 20 if key == "coarse_label" else num_classes
        files[file] = "".join(f"{key} {index}\n" for index in range(count)).encode()
    return Fake(write_tar(folder / "made-up.tar.gz", layout.prefix, files), images, labels)


def layout_of(name: str):
    return _builder.BUILDERS[name]._cifar_info.fget(_builder.BUILDERS[name])


def write_tar(path: Path, prefix: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def accept(patch: pytest.MonkeyPatch, name: str, archive: Path) -> None:
    """Makes the made-up archive the official one."""
    source = MODULES[name].SOURCE
    patch.setattr(MODULES[name], "SOURCE", source._replace(counts=COUNTS[name], digest=""))
    patch.setattr(MODULES[name], "COUNTS", COUNTS[name])
    checksum, size = hashlib.sha256(archive.read_bytes()).hexdigest(), archive.stat().st_size
    url, infos = layout_of(name).url, _builder.BUILDERS[name].url_infos
    patch.setitem(infos, url, type(infos[url])(size=size, checksum=checksum, filename=source.archive))


@pytest.fixture(scope="module", params=["cifar10", "cifar100"])
def made(request, tmp_path_factory):
    """One preparation per data set; tests copy it before they change anything."""
    folder = tmp_path_factory.mktemp(request.param)
    fake = make_archive(request.param, folder)
    with pytest.MonkeyPatch.context() as patch:
        accept(patch, request.param, fake.archive)
        said = prepare(request.param, str(folder / "tfds"), str(fake.archive))
    assert said.startswith("CIFAR-10") and "prepared in" in said
    return request.param, fake, folder / "tfds"


@pytest.fixture
def ready(made, tmp_path, monkeypatch):
    name, fake, prepared = made
    accept(monkeypatch, name, fake.archive)
    shutil.copytree(prepared, tmp_path / "tfds")
    return name, fake, str(tmp_path / "tfds")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "cache")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "nothing here"))
    return tmp_path / "cache"


@pytest.fixture
def decodings(monkeypatch):
    """Counts how often records are decoded."""
    calls, real = [], _tfds.decode
    monkeypatch.setattr(_tfds, "decode", lambda *args: calls.append(args) or real(*args))
    return calls


def same(one: Dataset, other: Dataset) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(other, key)) for key in ARRAYS)


def one_line(error: pytest.ExceptionInfo) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def sha256_of(dataset: Dataset) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(getattr(dataset, key)).tobytes() for key in ARRAYS)).hexdigest()


def expected_digest(fake: Fake) -> str:
    """The digest of what the test itself put into the archive, in the order of the archive."""
    blocks = [(fake.images[split], fake.labels[split].astype("<i4")) for split in ("train", "test")]
    return hashlib.sha256(b"".join(part.tobytes() for block in blocks for part in block)).hexdigest()


# Names and subsets.


def test_names_are_the_modules_that_load():
    files = {path.stem: ast.parse(path.read_text()) for path in Path(data.__file__).parent.glob("[!_]*.py")}
    with_load = [name for name, tree in files.items() if "load" in [getattr(node, "name", "") for node in tree.body]]
    assert data.names() == sorted(with_load) and {"cifar10", "cifar100", "digits"} <= set(with_load)


@pytest.mark.parametrize("name", ["cifar1000", "Digits", "prepare", "_tfds", "os", "../digits", ""])
def test_unknown_name_says_what_there_is(name):
    with pytest.raises(UsageError) as error:
        data.load(name)
    assert repr(name) in one_line(error) and one_line(error).endswith(f"there are: {', '.join(data.names())}")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'cifar100'"):
        data.load("cifar-100")


def test_subsets_are_the_first_examples():
    whole, part = data.load("digits"), data.load("digits", train_examples=7, test_examples=3)
    assert np.array_equal(part.train_images, whole.train_images[:7])
    assert np.array_equal(part.train_labels, whole.train_labels[:7])
    assert np.array_equal(part.test_images, whole.test_images[:3])
    assert np.array_equal(part.test_labels, whole.test_labels[:3])
    assert same(data.load("digits", train_examples=1500, test_examples=297), whole)


@pytest.mark.parametrize("wanted", [{"train_examples": 1501}, {"train_examples": -1}, {"test_examples": 298}])
def test_impossible_subsets_are_usage_errors(wanted):
    with pytest.raises(UsageError, match=f"{next(iter(wanted))}=.*none for all"):
        data.load("digits", **wanted)


# What holds for every data set; a new file is tested here as soon as it is there.


def check_contract(read: Dataset, name: str, counts: dict[str, int], num_classes: int) -> None:
    """What `types.Dataset` and `data.load` promise of what was read."""
    assert read.name == name and read.num_classes == num_classes
    assert len(set(read.class_names)) == num_classes and {type(text) for text in read.class_names} == {str}
    for split in ("train", "test"):
        images, labels = getattr(read, f"{split}_images"), getattr(read, f"{split}_labels")
        assert images.shape == (counts[split], *data.facts(name).image_shape) and images.dtype == np.uint8
        assert labels.shape == (counts[split],) and labels.dtype == np.int32
        assert labels.min() >= 0 and labels.max() < num_classes
    assert set(read.train_labels) == set(range(num_classes))
    # In no order, so that the first N are a fair sample: 20 images for each class hardly miss half of the classes.
    first = read.train_labels[: min(20 * num_classes, counts["train"] // 2)]
    assert len(set(first)) > num_classes / 2
    for numbers in (read.mean, read.std):
        assert numbers.shape == (3,) and numbers.dtype == np.float32 and (numbers > 0).all() and (numbers < 1).all()
    assert type(read.flip) is bool


@pytest.mark.parametrize("name", data.names())
def test_every_data_set_says_what_it_has(name):
    module = data.find(name)
    facts = data.facts(name)
    assert set(facts.counts) == {"train", "test"} and min(facts.counts.values()) > 0 and facts.num_classes > 1
    assert inspect.getdoc(module) and inspect.getdoc(module.load)
    [argument] = inspect.signature(module.load).parameters.values()
    assert (argument.name, argument.default) == ("data_dir", "")


@pytest.mark.parametrize("name", sorted(set(data.names()) - set(MODULES)))  # CIFAR below, from archives made here
def test_every_data_set_is_what_it_says(name):
    try:
        read = data.load(name, PREPARED)
    except DataError as error:
        pytest.skip(f"{error}; TFDS_DATA_DIR says where it was prepared")
    check_contract(read, name, *data.facts(name)[:2])
    assert same(data.load(name, PREPARED), read)


def test_an_archive_of_what_needs_none_is_refused(monkeypatch, tmp_path, capsys):
    assert main(["prepare", "--dataset=digits", "--archive=mine.tar.gz"]) == 2
    assert capsys.readouterr().err == "error: --archive=mine.tar.gz: digits has nothing to prepare; leave it out\n"
    monkeypatch.delitem(_builder.BUILDERS, "cifar10")
    with pytest.raises(UsageError, match=r"data set 'cifar10': its SOURCE has no builder in cutnmix_jax/data/_builder"):
        prepare("cifar10", str(tmp_path))


# Digits.


def test_digits_have_the_documented_form():
    read = data.load("digits")
    assert read.train_images.shape == (1500, 32, 32, 3) and read.test_images.shape == (297, 32, 32, 3)
    assert read.train_images.dtype == read.test_images.dtype == np.uint8
    assert read.train_labels.shape == (1500,) and read.test_labels.shape == (297,)
    assert read.train_labels.dtype == read.test_labels.dtype == np.int32
    assert read.class_names == tuple("0123456789") and read.num_classes == 10
    assert set(read.train_labels) == set(read.test_labels) == set(range(10))
    assert read.train_images.min() == 0 and read.train_images.max() == 255
    assert read.name == "digits" and read.flip is False


def test_digits_split_is_disjoint_complete_and_frozen():
    from sklearn.datasets import load_digits

    read = data.load("digits")
    ours = [image.tobytes() for image in np.concatenate([read.train_images, read.test_images])]
    assert sorted(ours) == sorted(image.tobytes() for image in digits.enlarge(load_digits().images))
    assert len(set(ours)) == 1797  # no two scans are equal, so the halves cannot share one
    assert sha256_of(read) == "523dd228505e793934655785f82a072bcf72d9c557cfcba20f0af8c0dcf87141"


def test_digits_are_read_as_scikit_learn_reads_them():
    from sklearn.datasets import load_digits

    theirs = load_digits()
    for ours, expected in zip(digits.read(), (theirs.images, theirs.target), strict=True):
        assert ours.dtype == expected.dtype and np.array_equal(ours, expected)


@pytest.mark.parametrize(
    "broken", [None, lambda whole: b"", lambda whole: whole[:-9], lambda whole: whole[:99] + b"it" + whole[101:]]
)
def test_digits_that_scikit_learn_has_lost_are_one_line(broken, tmp_path, monkeypatch):
    from sklearn import datasets

    file = tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    if broken:
        file.parent.mkdir(parents=True)
        file.write_bytes(broken((Path(datasets.__file__).parent / "data" / file.name).read_bytes()))
    found = SimpleNamespace(submodule_search_locations=[str(tmp_path / "sklearn")])
    monkeypatch.setattr(digits.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(DataError, match="data set 'digits'.*digits.csv.gz.*; install scikit-learn again") as error:
        data.load("digits")
    assert "\n" not in str(error.value)


def test_digits_are_enlarged_by_repetition():
    scan = np.arange(64).reshape(1, 8, 8) % 17
    large = digits.enlarge(scan.astype(np.float64))
    assert large.shape == (1, 32, 32, 3) and large.dtype == np.uint8
    assert np.array_equal(large[0, 5 * 4 + 3, 2 * 4 + 1], np.full(3, round(scan[0, 5, 2] * 255 / 16)))
    assert {digits.enlarge(np.full((1, 8, 8), value)).max() for value in (0, 16)} == {0, 255}


def test_digits_mean_and_std_are_those_of_the_training_pixels():
    read = data.load("digits")
    pixels = read.train_images / 255.0
    np.testing.assert_allclose(read.mean, pixels.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(read.std, pixels.std((0, 1, 2)), atol=1e-6)
    assert read.mean.dtype == read.std.dtype == np.float32


# CIFAR: from archive to arrays.


def test_prepared_arrays_are_the_archive_bit_for_bit(ready):
    name, fake, data_dir = ready
    read = data.load(name, data_dir)
    splits, names = _tfds.decode(MODULES[name].SOURCE, _source.require(MODULES[name].SOURCE, data_dir))
    for split in ("train", "test"):
        images, labels = getattr(read, f"{split}_images"), getattr(read, f"{split}_labels")
        place = [int(identity.removeprefix(f"{split}_")) for identity in splits[split].ids]
        assert sorted(place) == list(range(COUNTS[name][split]))
        assert place != sorted(place)  # stored shuffled, so that the first N are a fair sample
        assert images.dtype == np.uint8 and labels.dtype == np.int32
        assert np.array_equal(images, fake.images[split][place]) and np.array_equal(labels, fake.labels[split][place])
    assert read.class_names == names == tuple(f"label {index}" for index in range(read.num_classes))
    check_contract(read, name, COUNTS[name], MODULES[name].NUM_CLASSES)
    assert read.flip is True


def test_the_official_builder_reads_what_was_prepared_in_the_same_order(ready):
    name, _, data_dir = ready
    read = data.load(name, data_dir)
    for split in ("train", "test"):
        official = tfds.data_source(name, split=split, data_dir=data_dir, download=False)
        assert [example["label"] for example in official] == getattr(read, f"{split}_labels").tolist()
        images = np.stack([example["image"] for example in official])
        assert np.array_equal(images, getattr(read, f"{split}_images"))


def test_nothing_but_the_data_set_is_left(ready):
    name, _, data_dir = ready
    assert [path.name for path in Path(data_dir).iterdir()] == [name]
    assert [path.name for path in (Path(data_dir) / name).iterdir()] == ["3.0.2"]


def test_preparing_twice_does_nothing(ready):
    name, _, data_dir = ready
    before = {path: path.stat().st_mtime_ns for path in Path(data_dir).rglob("*")}
    assert "already prepared" in prepare(name, data_dir)
    assert {path: path.stat().st_mtime_ns for path in Path(data_dir).rglob("*")} == before


def test_data_dir_defaults_to_the_environment(ready, monkeypatch):
    name, _, data_dir = ready
    monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
    assert same(data.load(name), data.load(name, data_dir))
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert _source.root("") == Path("~/tensorflow_datasets").expanduser().resolve()


def test_download_goes_through_tfds(tmp_path, monkeypatch):
    fake = make_archive("cifar10", tmp_path)
    accept(monkeypatch, "cifar10", fake.archive)
    with serve(tmp_path) as address:
        redirect(monkeypatch, "cifar10", f"{address}/made-up.tar.gz")
        prepare("cifar10", str(tmp_path / "tfds"))
    assert expected_digest(fake) in verify("cifar10", str(tmp_path / "tfds"))


def test_download_with_another_checksum_is_refused(tmp_path, monkeypatch):
    accept(monkeypatch, "cifar10", make_archive("cifar10", tmp_path).archive)
    make_archive("cifar10", tmp_path, seed=1)
    with serve(tmp_path) as address:
        redirect(monkeypatch, "cifar10", f"{address}/made-up.tar.gz")
        with pytest.raises(DataError, match=r"(?i)checksum.*expected.*got") as error:
            prepare("cifar10", str(tmp_path / "tfds"))
    one_line(error)
    assert _source.find(cifar10.SOURCE, str(tmp_path / "tfds")) is None


def serve(folder: Path):
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        def __enter__(self):
            threading.Thread(target=self.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{self.server_port}"

        def __exit__(self, *args):
            self.shutdown()
            self.server_close()

    return Server(("127.0.0.1", 0), Handler)


def redirect(patch: pytest.MonkeyPatch, name: str, url: str) -> None:
    builder = _builder.BUILDERS[name]
    patch.setenv("no_proxy", "127.0.0.1")
    patch.setitem(builder.url_infos, url, builder.url_infos[layout_of(name).url])
    patch.setattr(builder, "url", url)


# The cache.


def test_second_load_comes_from_the_cache(ready, decodings, own_cache):
    name, _, data_dir = ready
    first, second = data.load(name, data_dir), data.load(name, data_dir)
    assert len(decodings) == 1 and same(first, second) and first.class_names == second.class_names
    assert len(list(own_cache.iterdir())) == 1


def test_stale_cache_is_not_used_and_removed(ready, decodings, own_cache):
    name, _, data_dir = ready
    data.load(name, data_dir)
    record = next(Path(data_dir).rglob("*train.array_record*"))
    os.utime(record, ns=(0, record.stat().st_mtime_ns + 1_000_000))
    data.load(name, data_dir)
    assert len(decodings) == 2 and len(list(own_cache.iterdir())) == 1


def test_another_folder_has_another_cache(ready, decodings, own_cache, tmp_path):
    name, _, data_dir = ready
    shutil.copytree(data_dir, tmp_path / "copy")
    assert same(data.load(name, data_dir), data.load(name, str(tmp_path / "copy")))
    assert len(decodings) == 2 and len(list(own_cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "text", "flips"])
def test_damaged_cache_is_made_again(ready, own_cache, damage, capsys):
    name, _, data_dir = ready
    good = data.load(name, data_dir)
    (file,) = own_cache.iterdir()
    content = file.read_bytes()
    flips = np.random.default_rng(0).integers(0, len(content), 40)
    for place in flips if damage == "flips" else [0]:
        bad = bytearray(content)
        bad[place] ^= 1 << (place % 8)
        file.write_bytes({"empty": b"", "half": content[: len(content) // 2], "text": b"hello"}.get(damage, bytes(bad)))
        assert same(data.load(name, data_dir), good)
    assert "will be made again" in capsys.readouterr().err


def test_cache_never_unpickles(ready, own_cache):
    name, _, data_dir = ready
    good = data.load(name, data_dir)
    (file,) = own_cache.iterdir()
    np.savez(file, train_images=np.array([{"an": "object"}], dtype=object))
    assert same(data.load(name, data_dir), good)


def test_a_cache_that_cannot_be_written_is_done_without(ready, tmp_path, monkeypatch, capsys):
    name, _, data_dir = ready
    (tmp_path / "a file").write_text("")
    monkeypatch.setattr(_cache, "folder", lambda: tmp_path / "a file")
    assert len(data.load(name, data_dir).train_labels) == COUNTS[name]["train"]
    assert "no cache in" in capsys.readouterr().err


# What can be wrong.


@pytest.mark.parametrize("call", [data.load, verify])
def test_missing_data_set_says_how_to_get_it(call, tmp_path):
    with pytest.raises(DataError) as error:
        call("cifar100", str(tmp_path))
    assert one_line(error) == (
        f"CIFAR-100 not found in {tmp_path.resolve()}; run `{program()} data prepare --dataset=cifar100 "
        f"--data_dir={tmp_path}` (with --archive=cifar-100-binary.tar.gz where there is no network); "
        "if it lies elsewhere, name the folder by data_dir or TFDS_DATA_DIR"
    )


@pytest.mark.parametrize("damage", ["removed", "empty", "half", "one byte less", "a byte changed"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_damaged_records_are_named(ready, split, damage):
    name, _, data_dir = ready
    file = next(Path(data_dir).rglob(f"*{split}.array_record*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    if damage == "removed":
        file.unlink()
    elif damage == "a byte changed":
        file.write_bytes(content)
    else:
        file.write_bytes(file.read_bytes()[: {"empty": 0, "half": len(content) // 2}.get(damage, -1)])
    for call in (data.load, verify):
        with pytest.raises(DataError, match="verify.*prepare") as error:
            call(name, data_dir)
        assert file.name in one_line(error)


def test_damaged_metadata_never_gives_other_data(ready):
    name, _, data_dir = ready
    good = data.load(name, data_dir)
    for file in [path for path in Path(data_dir).rglob("*") if path.suffix in (".json", ".txt")]:
        content = file.read_bytes()
        for bad in (b"", content[: len(content) // 2], b"{}", None):
            file.unlink() if bad is None else file.write_bytes(bad)
            try:
                read = data.load(name, data_dir)
                assert same(read, good) and read.class_names == good.class_names, (file, bad)
            except DataError as error:
                assert "verify" in str(error)
            file.write_bytes(content)


def test_wrong_counts_labels_and_shapes_are_errors(ready, monkeypatch):
    name, _, data_dir = ready
    source = MODULES[name].SOURCE
    monkeypatch.setattr(MODULES[name], "SOURCE", source._replace(counts={"train": 21, "test": 10}))
    with pytest.raises(DataError, match="train examples, not 21"):
        data.load(name, data_dir)
    monkeypatch.setattr(MODULES[name], "SOURCE", source._replace(num_classes=5))
    with pytest.raises(DataError, match="class names where NUM_CLASSES is 5"):
        data.load(name, data_dir)
    monkeypatch.setattr(MODULES[name], "SOURCE", source)
    monkeypatch.setattr(_source, "IMAGE_SHAPE", (32, 32, 1))
    with pytest.raises(DataError, match="an image is"):
        data.load(name, data_dir)


def test_another_record_format_is_named(ready):
    name, _, data_dir = ready
    file = next(Path(data_dir).rglob("dataset_info.json"))
    file.write_text(json.dumps({**json.loads(file.read_text()), "fileFormat": "tfrecord"}))
    with pytest.raises(DataError, match="prepared as tfrecord"):
        data.load(name, data_dir)


def test_verify_compares_with_the_reference(ready, monkeypatch):
    name, fake, data_dir = ready
    expected = expected_digest(fake)
    said = verify(name, data_dir)
    assert expected in said and "no reference" in said
    source = MODULES[name].SOURCE
    monkeypatch.setattr(MODULES[name], "SOURCE", source._replace(digest=expected))
    assert "as it must be" in verify(name, data_dir)
    monkeypatch.setattr(MODULES[name], "SOURCE", source._replace(digest="0" * 64))
    with pytest.raises(DataError, match=expected):
        verify(name, data_dir)


def test_verify_reads_the_records_and_not_the_cache(ready):
    name, _, data_dir = ready
    source = MODULES[name].SOURCE
    data.load(name, data_dir)
    file = next(Path(data_dir).rglob("*train.array_record*"))
    stat, content = file.stat(), bytearray(file.read_bytes())
    content[len(content) // 4] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert _cache.file_for(name, _source.require(source, data_dir)).exists()
    with pytest.raises(DataError, match=file.name):
        verify(name, data_dir)


@pytest.mark.parametrize("change", ["classes", "ids"])
def test_verify_counts_classes_and_ids(ready, change):
    name, _, data_dir = ready
    source = MODULES[name].SOURCE
    splits, _ = _tfds.decode(source, _source.require(source, data_dir))
    read = splits["train"]
    assert prepare_module._wrong(source, "train", read) == ""
    if change == "classes":
        read.labels[0] = (read.labels[0] + 1) % source.num_classes
    else:
        read.ids[0] = read.ids[1]
    assert change in prepare_module._wrong(source, "train", read)


# What the data are not to blame for.

MISSING, SHARED = "raise ModuleNotFoundError('No module named it')", "raise OSError('libit.so.1: cannot open')"
STAND_INS = [
    ("PIL", MISSING, "No module named it"),
    ("PIL", SHARED, "libit.so.1"),
    ("tree", MISSING, "No module named it"),
    ("tree", "", "map_structure"),  # found only when a record is read
    ("array_record", MISSING, "No module named it"),
    ("tensorflow_metadata", MISSING, "No module named it"),
    ("tensorflow_metadata", "", "tensorflow_metadata.proto"),
    ("etils/epath", MISSING, "epath"),
]


@pytest.mark.parametrize(("library", "text", "said"), STAND_INS)
def test_a_broken_library_is_no_damaged_data(made, library, text, said, tmp_path):
    name, _, data_dir = made
    if name != "cifar100":
        pytest.skip("one data set is enough")
    first = f"import sys; sys.modules['{library.replace('/', '.')}'] = None" if "/" in library else ""
    if not first:
        (tmp_path / f"{library}.py").write_text(text)
    program = f"""
{first}
import sys
from cutnmix_jax import data
from cutnmix_jax.data import {name} as module, prepare
from cutnmix_jax.command import exit_code_of
module.COUNTS = {COUNTS[name]!r}
module.SOURCE = module.SOURCE._replace(counts=module.COUNTS, digest="")
calls = (lambda: data.load({name!r}, {str(data_dir)!r}), lambda: prepare.verify({name!r}, {str(data_dir)!r}))
print([exit_code_of(call) for call in calls])
"""
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parent.parent)])
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env)
    assert done.stdout == "[2, 2]\n" and done.stderr.count("\n") == 2, done.stderr
    for line in done.stderr.splitlines():
        assert line.startswith("error: the installation is incomplete") and said in line and "pip install" in line
        assert "damaged" not in line and "delete" not in line


@pytest.mark.parametrize(
    ("error", "disk", "kind", "said"),
    [
        (MemoryError(), 0, UsageError, "too little memory"),
        (ImportError("no decoder"), 0, UsageError, "the installation is incomplete"),
        (PermissionError(13, "Permission denied", "x-00000"), 13, DataError, "cannot be read: .*Permission denied"),
        (ValueError("bad CRC"), 5, DataError, "cannot be read: .*Input/output error"),
        (OSError(24, "Too many open files", "x-00000"), 0, DataError, "cannot be read"),
        (ValueError("bad CRC"), 0, DataError, "is damaged"),
        # The disk is asked, and not the library.
        (ValueError("UNKNOWN: Input/output error reading x-00000"), 0, DataError, "is damaged"),
    ],
)
def test_only_data_are_called_damaged(ready, error, disk, kind, said, monkeypatch):
    real, fails_now = Path.open, []

    def fails(*_):
        fails_now.append(disk)
        raise error

    def opened(path, *rest, **more):
        if any(fails_now) and "array_record" in path.name:
            raise OSError(disk, os.strerror(disk), str(path))
        return real(path, *rest, **more)

    name, _, data_dir = ready
    monkeypatch.setattr(_tfds, "_fill", fails)
    monkeypatch.setattr(Path, "open", opened)
    for call in (data.load, verify):
        fails_now.clear()
        with pytest.raises(kind, match=said) as caught:
            call(name, data_dir)
        assert fails_now and ("damaged" in one_line(caught)) == (said == "is damaged")
        assert type(caught.value) is kind


@pytest.mark.parametrize("call", [data.load, verify, prepare])
def test_a_folder_that_may_not_be_read_is_not_missing(ready, call, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    name, _, data_dir = ready
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match="cannot be read.*Permission denied") as error:
        call(name, data_dir)
    assert "not found" not in one_line(error)


def test_full_memory_is_no_fault_of_an_archive(tmp_path, monkeypatch):
    def fails(*_):
        raise MemoryError

    fake = make_archive("cifar10", tmp_path)
    accept(monkeypatch, "cifar10", fake.archive)
    monkeypatch.setattr(_builder, "png", fails)
    with pytest.raises(UsageError, match="too little memory"):
        prepare("cifar10", str(tmp_path / "tfds"), str(fake.archive))


# Archives and networks that do not help.


def refused(name: str, tmp_path: Path, archive: Path | str = "") -> str:
    """The error line of a preparation, after which nothing may look prepared."""
    data_dir = str(tmp_path / "tfds")
    with pytest.raises(DataError) as error:
        prepare(name, data_dir, str(archive))
    assert _source.find(MODULES[name].SOURCE, data_dir) is None
    with pytest.raises(DataError, match="not found"):
        data.load(name, data_dir)
    return one_line(error)


def test_archive_with_other_content_is_refused(tmp_path):
    fake = make_archive("cifar100", tmp_path)
    assert "expected 168513733 bytes, it has" in refused("cifar100", tmp_path, fake.archive)


def test_archive_with_a_changed_byte_is_refused(tmp_path, monkeypatch):
    fake = make_archive("cifar100", tmp_path)
    accept(monkeypatch, "cifar100", fake.archive)
    content = bytearray(fake.archive.read_bytes())
    expected = hashlib.sha256(content).hexdigest()
    content[1000] ^= 1
    fake.archive.write_bytes(content)
    line = refused("cifar100", tmp_path, fake.archive)
    assert expected in line and hashlib.sha256(content).hexdigest() in line


def test_truncated_archive_is_refused(tmp_path, monkeypatch):
    fake = make_archive("cifar100", tmp_path)
    accept(monkeypatch, "cifar100", fake.archive)
    fake.archive.write_bytes(fake.archive.read_bytes()[:-100])
    assert "expected" in refused("cifar100", tmp_path, fake.archive)


def test_missing_archive_is_named(tmp_path):
    line = refused("cifar10", tmp_path, tmp_path / "elsewhere.tar.gz")
    assert "elsewhere.tar.gz" in line and "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd" in line


@pytest.mark.parametrize("content", ["cut", "not a tar", "no members", "half a record", "a label too large"])
def test_archive_with_the_right_checksum_and_wrong_content(tmp_path, monkeypatch, content):
    fake = make_archive("cifar10", tmp_path, bad_label=10 if content == "a label too large" else None)
    names = [*layout_of("cifar10").train_files, "test_batch.bin", "batches.meta.txt"]
    if content == "cut":
        fake.archive.write_bytes(fake.archive.read_bytes()[:20_000])
    elif content == "not a tar":
        fake.archive.write_bytes(b"hello" * 100)
    elif content == "no members":
        write_tar(fake.archive, "../../", dict.fromkeys(names, b"0\n"))
    elif content == "half a record":
        write_tar(fake.archive, "cifar-10-batches-bin/", dict.fromkeys(names, b"0123456789\n"))
    accept(monkeypatch, "cifar10", fake.archive)
    assert "could not be prepared" in refused("cifar10", tmp_path, fake.archive)


def test_interrupted_preparation_leaves_nothing_that_looks_prepared(tmp_path, monkeypatch):
    fake = make_archive("cifar10", tmp_path)
    accept(monkeypatch, "cifar10", fake.archive)
    images = []

    def interrupted(image):
        images.append(image)
        if len(images) == 12:
            raise KeyboardInterrupt
        return real(image)

    real = _builder.png
    monkeypatch.setattr(_builder, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare("cifar10", str(tmp_path / "tfds"), str(fake.archive))
    assert _source.find(cifar10.SOURCE, str(tmp_path / "tfds")) is None
    (tmp_path / "tfds/cifar10/3.0.2.incompleteABCDEF").mkdir()  # what a kill -9 would leave
    monkeypatch.setattr(_builder, "png", real)
    assert "prepared in" in prepare("cifar10", str(tmp_path / "tfds"), str(fake.archive))
    assert len(data.load("cifar10", str(tmp_path / "tfds")).train_labels) == 20


@pytest.mark.parametrize("network", ["refused", "hangs", "broken server"])
def test_no_network_fails_at_once_with_what_to_do(tmp_path, monkeypatch, network):
    def urlopen(request, timeout):
        if network == "hangs":
            time.sleep(60)
        if network == "broken server":
            raise urllib.error.HTTPError(request.full_url, 503, "Service Unavailable", None, None)
        raise urllib.error.URLError("Name or service not known")

    assert prepare_module.PROBE_SECONDS < 9
    monkeypatch.setattr(prepare_module, "PROBE_SECONDS", 0.5)
    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    start = time.monotonic()
    line = refused("cifar100", tmp_path)
    assert time.monotonic() - start < 3
    assert "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec" in line
    assert "--dataset=cifar100 --data_dir=" in line and "--archive=cifar-100-binary.tar.gz`" in line


# The command line.


def test_cli_prepares_and_verifies(tmp_path, monkeypatch, capsys):
    fake = make_archive("cifar10", tmp_path)
    accept(monkeypatch, "cifar10", fake.archive)
    where = ["--dataset=cifar10", f"--data_dir={tmp_path / 'tfds'}"]
    assert main(["prepare", *where, f"--archive={fake.archive}"]) == 0
    assert main(["verify", *where]) == 0
    out = capsys.readouterr()
    assert "20 training and 10 test images, 10 classes" in out.out and "no reference" in out.out
    assert out.err == ""


def test_cli_digits_need_nothing(monkeypatch, capsys):
    assert main(["prepare", "--dataset=digits"]) == 0 and main(["verify", "--dataset=digits"]) == 0
    assert "nothing to prepare" in capsys.readouterr().out
    whole = digits.load()
    monkeypatch.setattr(digits, "load", lambda data_dir: whole._replace(test_labels=whole.test_labels + 1))
    assert main(["verify", "--dataset=digits"]) == 2  # what a module returns is looked at here, too
    assert "returns test labels from 1 to 10, not from 0 to 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["verify", "--dataset=cifar100"], 3, "CIFAR-100 not found in"),
        (["prepare", "--dataset=cifar100", "--archive=nowhere.tar.gz"], 3, "nowhere.tar.gz"),
        (["verify", "--dataset=cifar-100"], 2, "did you mean 'cifar100'"),
        (["verify", "--dataset=cifar10", "--archive=x"], 2, "--archive goes with prepare"),
        (["verify"], 2, "--dataset"),
        (["prepair", "--dataset=digits"], 2, "prepare"),
        (["prepare", "--dataset=digits", "--datadir=x"], 2, "--datadir"),
        ([], 2, "--help"),
    ],
)
def test_cli_errors_are_one_line(argv, code, says, capsys):
    assert main(argv) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err


def test_cli_help_has_examples(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    assert "--archive=cifar-100-binary.tar.gz" in capsys.readouterr().out


def test_processes_are_quiet_and_without_tensorflow_or_torch(made, tmp_path):
    name, _, data_dir = made
    program = f"""
import sys
from cutnmix_jax import data
from cutnmix_jax.data import {name} as module
from cutnmix_jax.data.prepare import verify
module.COUNTS = {COUNTS[name]!r}
module.SOURCE = module.SOURCE._replace(counts=module.COUNTS, digest="")
data.load("digits"), data.load("{name}", {str(data_dir)!r}), verify("{name}", {str(data_dir)!r})
print(sorted({{"tensorflow", "torch", "cv2"}} & set(sys.modules)))
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=env, check=True)
    assert done.stdout == "[]\n" and done.stderr == ""


def test_exit_code_reaches_the_shell(tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.data", "verify", "--dataset=cifar10", f"--data_dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 3 and done.stdout == "" and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", MODULES)
def test_mean_and_deviation_of_cifar(name):
    source = MODULES[name].SOURCE
    np.testing.assert_allclose([source.mean, source.std], np.array(PIXELS[name]) / 255, atol=4e-4)
