"""Pictures of a user as a data set: what is prepared is what `predict` sees; what is wrong with them is one line."""

import errno
import fcntl
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cutnmix_jax import data, decoding, digests, main
from cutnmix_jax.command import program
from cutnmix_jax.data import _arrays, _moments, _pictures, _prepared, _writing
from cutnmix_jax.data.__main__ import main as command
from cutnmix_jax.errors import DataError, UsageError
from cutnmix_jax.settings import Settings, command_line
from tests import test_images

SIZE = 8


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def picture(path, seed, side=(12, 20)):
    """Writes noise of its own; the kind is that of the suffix, JPEG where there is none that Pillow knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*side, 3), np.uint8)
    Image.fromarray(pixels).save(path, Image.registered_extensions().get(path.suffix.lower(), "JPEG"))


def folder(top, counts, suffix="jpg"):
    """Pictures of some classes, `train/cat` -> how many; returns the folder."""
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(top / name / f"{i}.{suffix}", 1000 * number + i, (9 + i % 5, 30 - i % 7))
    return top


@pytest.fixture
def cats(tmp_path):
    return folder(tmp_path / "my pictures", {"train/cat": 5, "train/dog": 9, "test/cat": 2, "test/dog": 3})


def prepared(top, *flags, code=0, size=SIZE):
    """Prepares a folder by the command."""
    assert command(["prepare", f"--dataset=folder:{top}", f"--size={size}", *flags]) == code
    return f"folder:{top}"


def one_error(capsys):
    """The only line on stderr, which is an error."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    return line


def left_in(data_dir):
    """The names of all files below, but of none where there is no folder."""
    return sorted(str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.is_file())


# What is prepared.


def expected(top, paths):
    """The pictures in the order that is promised, and their classes: nothing of this is ours but the reading."""
    paths = sorted(paths, key=lambda path: hashlib.sha256(b"order\0" + os.fsencode(path.relative_to(top))).digest())
    images = np.stack([decoding.read(path, (SIZE, SIZE), "bicubic") for path in paths])
    return images, [path.parent.name for path in paths]


def test_what_is_prepared_is_what_predict_sees(cats, data_dir, capsys):
    name = prepared(cats)
    told = capsys.readouterr().out
    assert "14 training and 5 test images of 8x8 pixels, 2 classes" in told
    assert "train classes from 'cat' with 5 to 'dog' with 9 pictures, 1.8 times as many" in told
    read = data.load(name)
    assert read.name == name and read.class_names == ("cat", "dog") and read.flip
    for split in ("train", "test"):
        images, labels = getattr(read, f"{split}_images"), getattr(read, f"{split}_labels")
        wanted, classes = expected(cats, (cats / split).rglob("*.jpg"))
        np.testing.assert_array_equal(images, wanted)
        assert [read.class_names[label] for label in labels] == classes and labels.dtype == np.int32
        assert isinstance(images, np.memmap) and not images.flags.writeable
    pixels = read.train_images / 255.0
    np.testing.assert_allclose(read.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(read.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert data.facts(name, None, SIZE) == data.facts(name) == ({"train": 14, "test": 5}, 2, (SIZE, SIZE, 3))
    assert data.resampling(name) == "bicubic"
    [about] = data_dir.rglob("about.json")
    told = json.loads(about.read_text())
    assert told["path"] == str(cats) and told["source"]["files"] == 19
    assert told["source"]["bytes"] == sum(path.stat().st_size for path in cats.rglob("*.jpg"))
    for file, facts in told["files"].items():
        content = (about.parent / file).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert [about.parent / file for file in sorted(told["files"])] == sorted(about.parent.rglob("*.npy"))
    assert command(["verify", f"--dataset={name}"]) == 0
    assert f"{cats} is as it was then" in capsys.readouterr().out
    prepared(cats, "--skip-damaged", "--no-flip", size=4)
    assert "images of 4x4 pixels, 2 classes, never mirrored" in capsys.readouterr().out
    prepared(cats, size=4, code=2)
    assert f"{name} is already prepared without mirror images; to prepare it anew delete" in one_error(capsys)
    prepared(cats, "--no-flip", code=2)
    assert f"{name} is already prepared with mirror images; to prepare it anew delete" in one_error(capsys)
    assert not data.load(name, image_size=4).flip
    with pytest.raises(UsageError, match="prepared in the sizes 4, 8"):
        data.facts(name)
    with pytest.raises(DataError, match=r"not prepared at 64x64 .*\(it is at 4x4, 8x8\); run `.*--size=64`"):
        data.facts(name, None, 64)


def test_a_run_knows_them_by_a_digest_of_their_files(cats, tmp_path):
    read = data.load(prepared(cats))

    def of(dataset):
        return digests.of_data(dataset._replace(train_images=Unread(dataset.train_images)))

    other = data.load(prepared(shutil.copytree(cats, tmp_path / "copy")))
    assert of(read) == of(other) != of(data.load(read.name, train_examples=13))
    picture(tmp_path / "copy" / "train" / "cat" / "0.jpg", 7)
    shutil.rmtree(tmp_path / "prepared")
    assert of(data.load(prepared(tmp_path / "copy"))) != of(read)


class Unread:
    """An array of which no byte may be read."""

    def __init__(self, array):
        self.dtype, self.shape = array.dtype, array.shape


def test_tests_are_a_fifth_of_each_class_where_nobody_says_which(tmp_path, capsys):
    counts = {"a": 20, "b": 7, "c": 2}
    top, other = folder(tmp_path / "one", counts), folder(tmp_path / "two" / "train", counts)
    read = data.load(prepared(top))
    assert "a fifth of each class is tested with" in capsys.readouterr().out
    assert np.bincount(read.test_labels).tolist() == [4, 1, 1]
    assert np.bincount(read.train_labels).tolist() == [16, 6, 1]
    chosen = [
        path
        for name in counts
        for path in sorted(
            (top / name).iterdir(), key=lambda path: hashlib.sha256(f"test\0{path.relative_to(top)}".encode()).digest()
        )[: max(1, round(counts[name] / 5))]
    ]
    np.testing.assert_array_equal(read.test_images, expected(top, chosen)[0])
    np.testing.assert_array_equal(read.train_images, expected(top, set(top.rglob("*.jpg")) - set(chosen))[0])
    assert np.bincount(data.load(prepared(other.parent)).test_labels).tolist() == [4, 1, 1]  # a `train` alone


def test_where_the_tests_are(tmp_path, capsys):
    parts = {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 2}
    assert len(data.load(prepared(folder(tmp_path / "val", parts))).test_labels) == 4
    capsys.readouterr()
    both = folder(tmp_path / "both", parts | {"test/a": 1, "test/b": 1})
    assert len(data.load(prepared(both)).test_labels) == 2
    assert "folders beside train and test left out: val" in capsys.readouterr().out
    secret = folder(tmp_path / "secret", parts | {"test": 9})  # tests without classes, as ILSVRC has them
    assert len(data.load(prepared(secret)).test_labels) == 4
    vehicles = folder(tmp_path / "vehicles", {"train": 5, "car": 5})
    assert data.load(prepared(vehicles)).class_names == ("car", "train")
    picture(both / "train" / "beside.png", 0)
    shutil.rmtree(tmp_path / "prepared")
    prepared(both)
    assert "pictures beside the folders of the classes left out: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ({"training/a": 3, "training/b": 3, "test/a": 1, "test/b": 1}, "test"),
        ({"Train/a": 3, "Train/b": 3}, "Train"),
        ({"train/a": 3, "train/b": 3, "Test/a": 1, "Test/b": 1}, "Test"),
        ({"train/a": 3, "train/b": 3, "testing/a": 1, "testing/b": 1}, "testing"),
        ({"dev_set/a": 3, "dev_set/b": 3, "other": 3}, "dev_set"),
    ],
)
def test_a_part_of_a_data_set_is_no_class_and_not_left_out(counts, name, tmp_path, capsys):
    """The classes were "training" and "test"."""
    prepared(folder(tmp_path / "top", counts), code=3)
    assert f"{name!r} is called like a part of a data set; call the folders of the classes to train" in one_error(
        capsys
    )


def test_moments_are_exact_for_any_number():
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    images[0] = 255
    found = _moments.of_images(images)
    np.testing.assert_allclose(found.mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(found.std, (images / 255).std((0, 1, 2)), rtol=1e-12)
    white = np.full((1, 70_000, 1, 3), 255, np.uint8)  # more rows than are summed in 32 bits
    assert _moments.sums_of(white).tolist() == [[255 * 70_000] * 3, [65025 * 70_000] * 3]


# Names of any kind, links, and files of every kind.


def test_names_of_any_bytes_and_links(tmp_path, capsys):
    top = tmp_path / "日本 des,été: x"
    classes = ["猫", "собака", "שלום", "a b", "$x_1$", "\udcff", "line\nbreak"]
    folder(top, dict.fromkeys(classes, 2))
    picture(top / "猫" / "\udcfe.jpg", 5)
    picture(top / "猫" / ".hidden.jpg", 6)
    picture(top / "猫" / "below" / "deep.PNG", 7)
    (top / "猫" / "notes.txt").write_text("no picture")
    (top / "猫" / "below" / "up").symlink_to("../..")
    (top / "a b" / "around").symlink_to(top)
    (top / "a b" / "neighbour").symlink_to("../$x_1$")
    read = data.load(prepared(top))
    names = sorted(classes, key=os.fsencode)
    assert read.class_names == tuple({"\udcff": r"\xff", "line\nbreak": r"line\nbreak"}.get(n, n) for n in names)
    counts = np.bincount(np.concatenate([read.train_labels, read.test_labels]))
    assert dict(zip(names, counts, strict=True)) == dict.fromkeys(classes, 2) | {"猫": 4}
    assert capsys.readouterr().err == ""
    (top / "twin").symlink_to("a b")
    prepared(top, size=4, code=3)
    assert "two of its folders are links to one" in one_error(capsys)


def test_hostile_files_are_named_or_skipped(tmp_path, data_dir, capsys):
    top = folder(tmp_path / "top", {"train/a": 4, "train/b": 4, "test/a": 1, "test/b": 1}, "png")
    entries = test_images.entries(top / "train" / "a")
    for path in [path for path in entries if os.path.lexists(path) and not path.is_dir()]:
        path.rename(path.with_name(f"{path.name}.png"))
    (top / "train" / "a" / "to a pipe.png").unlink()
    for number, content in enumerate(test_images.BAD.values()):
        (top / "train" / "b" / f"bad {number}.png").write_bytes(content)
    count = len(list((top / "train").rglob("*.png"))) - 8
    assert count > 45
    prepared(top, code=3)
    assert "mend or remove it, or leave such pictures out with --skip-damaged" in one_error(capsys)
    assert left_in(data_dir) == [] and not list(data_dir.rglob("*.partial"))
    name = prepared(top, "--skip-damaged")
    told = capsys.readouterr()
    assert f"skipped {count} that cannot be read: {top}" in told.out and told.err == ""
    images = data.load(name).train_images
    np.testing.assert_array_equal(
        images, expected(top, [top / "train" / c / f"{i}.png" for c in "ab" for i in range(4)])[0]
    )
    assert command(["verify", f"--dataset={name}"]) == 0  # the digests are those of the shorter files
    for path in (top / "test" / "b").iterdir():
        path.write_bytes(b"no more")
    shutil.rmtree(data_dir)
    prepared(top, "--skip-damaged", code=3)
    assert "'b' has no test picture that can be read" in one_error(capsys) and left_in(data_dir) == []


WRONG = {
    "an empty class": ({"train/c": 0, "test/c": 1}, "'c' of the train classes has no picture"),
    "in train alone": ({"train/c": 1}, "'c' stands among the train classes and not among the test classes"),
    "in test alone": ({"test/c": 1, "test/d": 1}, "'c' (and 1 more) stands among the test classes and not among"),
}


@pytest.mark.parametrize("what", WRONG)
def test_classes_that_are_not_in_both(what, cats, data_dir, capsys):
    counts, says = WRONG[what]
    folder(cats, counts)
    for name in counts:
        (cats / name).mkdir(exist_ok=True)
    prepared(cats, code=3)
    assert says in one_error(capsys) and left_in(data_dir) == []


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({}, "there is no such folder"),
        ({"a": 3}, "1 classes (a); there must be from 2 to 100,000"),
        ({"a": 3, "b": 1}, "'b' has one picture, and needs two"),
        ({".": 3}, "0 classes"),
    ],
)
def test_folders_that_are_none(counts, says, tmp_path, capsys):
    prepared(folder(tmp_path / "top", counts), code=3)
    assert says in one_error(capsys)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"train/cat": 3, "train/dog": 3, "val": 4}, "pictures in val are not in folders of their classes"),
        ({"Train/cat": 3, "Train/dog": 3, "Test/cat": 2, "Test/dog": 2}, "'Test' is called like a part of a data set"),
    ],
)
def test_tests_that_are_not_where_they_are_looked_for(counts, says, tmp_path, data_dir, capsys):
    """ImageNet's `val` is flat; and a fifth of `train` in its place would be another test."""
    prepared(folder(tmp_path / "them", counts), code=3)
    assert says in one_error(capsys)
    assert not left_in(data_dir)


def test_a_link_in_the_place_of_what_is_begun(cats, data_dir, tmp_path, capsys):
    prepared(cats)
    [there] = [path for path in (data_dir / "cutnmix_jax").glob("*/*") if path.is_dir()]
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "precious").write_text("kept")
    shutil.rmtree(there)
    there.with_name(f"{there.name}.partial").symlink_to(tmp_path / "others")
    capsys.readouterr()
    prepared(cats, code=3)
    assert one_error(capsys)
    assert (tmp_path / "others" / "precious").read_text() == "kept"


def test_pictures_of_one_colour(tmp_path, data_dir, capsys):
    for name in ("a/1", "a/2", "b/1", "b/2"):
        (tmp_path / "top" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (ord(name[0]), 7, ord(name[2]))).save(tmp_path / "top" / f"{name}.png")
    prepared(tmp_path / "top", code=3)
    assert "a colour has one value in all of its training pictures" in one_error(capsys) and left_in(data_dir) == []


def test_too_many_classes_and_such_of_one_name():
    for names, says in ((["x"] * 100_001, "100001 classes"), (["a", "b", "a"], "both written 'a'")):
        with pytest.raises(DataError, match=says):
            _pictures.check_classes("here", names)
    _pictures.check_classes("here", [str(label) for label in range(100_000)])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["prepare", "--dataset=folder:x"], "--size=S is missing"),
        (["prepare", "--dataset=folder:x", "--size=0"], "from 1 to 4096"),
        (["verify", "--dataset=folder:x", "--size=-3"], "from 1 to 4096"),
        (["prepare", "--dataset=folder:x", "--size=8", "--archive=y"], "is not made of an archive"),
        (["prepare", "--dataset=my.data:load", "--archive=y"], "is not made of an archive"),
        (["prepare", "--dataset=digits", "--size=8"], "--size goes with folder:PATH"),
        (["verify", "--dataset=folder:x", "--skip-damaged"], "--skip-damaged goes with prepare"),
        (["prepare", "--dataset=cifar10", "--no-flip"], "--no-flip goes with prepare of folder:PATH"),
        (["prepare", "--dataset=folder:", "--size=8"], "names no folder"),
        (["prepare", "--dataset=folder:\udcff", "--size=8"], "its path cannot be written as text"),
        (["prepare", "--dataset=tfds:../x"], "no name of tensorflow-datasets"),
    ],
)
def test_options_that_go_with_something_else(flags, says, capsys):
    assert command(flags) == 2
    assert says in one_error(capsys)


# Disks, kills and changes.


def test_a_full_disk_leaves_nothing(cats, data_dir, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module, function in ((_arrays.os, "fsync"), (_writing.files, "write_json"), (_arrays, "_begin")):
        with monkeypatch.context() as patch:
            patch.setattr(module, function, full)
            prepared(cats, code=3)
        assert "No space left on device" in one_error(capsys)
        assert left_in(data_dir) == [] and not list(data_dir.rglob("*8x8*"))
    with monkeypatch.context() as patch:
        patch.setattr(_writing.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6, 1000))
        prepared(cats, code=3)
        assert "0.00 GB free, and 0.00 GB are needed" in one_error(capsys)
    prepared(cats)


def test_what_a_kill_leaves_is_not_taken_for_whole(cats, data_dir, capsys):
    target = _prepared.folder_of(f"folder:{cats}", "", SIZE)
    partial = target.with_name("8x8.partial")
    (partial / "train").mkdir(parents=True)
    (partial / "train" / "images.npy").write_bytes(b"half of it")
    (partial / "about.json").write_text("{}")
    with pytest.raises(DataError, match=rf"is not prepared in .*; run `{program()} data prepare --dataset="):
        data.load(f"folder:{cats}")
    handle = os.open(partial, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as another process that is at work
    prepared(cats, code=3)
    assert "another process prepares" in one_error(capsys) and partial.exists()
    os.close(handle)
    name = prepared(cats)
    assert not partial.exists() and len(data.load(name).train_labels) == 14
    assert command(["verify", f"--dataset={name}"]) == 0


def test_a_folder_that_changes(cats, data_dir, capsys, monkeypatch):
    name = prepared(cats)
    before = data.load(name)
    assert capsys.readouterr().err == ""
    prepared(cats)
    assert "is already prepared in" in capsys.readouterr().out
    picture(cats / "train" / "cat" / "new.jpg", 1)
    after = data.load(name)
    [warning] = capsys.readouterr().err.splitlines()
    assert f"{cats} has changed since it was prepared (19 files then, 20 now); what was prepared then" in warning
    np.testing.assert_array_equal(before.train_images, after.train_images)
    assert command(["verify", f"--dataset={name}"]) == 0
    assert "has changed since it was prepared" in capsys.readouterr().out
    prepared(cats, code=3)
    assert "to prepare it anew delete" in one_error(capsys)
    with monkeypatch.context() as patch:
        patch.setattr(_prepared, "LOOKED_AT", 18)  # of a larger one a start looks at no file
        data.load(name)
    shutil.rmtree(cats)
    data.load(name)
    assert capsys.readouterr().err == ""
    assert command(["verify", f"--dataset={name}"]) == 0
    assert "is not there" in capsys.readouterr().out


def test_a_folder_that_changes_while_it_is_prepared(cats, data_dir, capsys, monkeypatch):
    check_left = _writing._check_left
    monkeypatch.setattr(_writing, "_check_left", lambda *args: picture(cats / "test" / "cat" / "x.jpg", 1))
    prepared(cats, code=3)
    assert "changed while it was being prepared" in one_error(capsys) and left_in(data_dir) == []
    monkeypatch.setattr(_writing, "_check_left", check_left)
    prepared(cats)


DAMAGE = {
    "cut": ("train/images.npy", lambda content: content[:-1], True),
    "other bytes": ("train/images.npy", lambda content: content[:-1] + bytes([content[-1] ^ 1]), False),
    "another head": ("test/images.npy", lambda content: content.replace(b"u1", b"i1"), True),
    "an object": ("test/labels.npy", lambda content: content.replace(b"<i4", b"|O4"), True),
    "other labels": ("train/labels.npy", lambda content: content[:-4] + b"\7\0\0\0", True),
    "other names": ("about.json", lambda content: content.replace(b"cat", b"cow"), True),
    "no JSON": ("about.json", lambda content: content[:50], True),
    "gone": ("test/labels.npy", lambda content: None, True),
    "nothing told": ("about.json", lambda content: None, True),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named(what, cats, data_dir, capsys):
    """When it is loaded where that can be seen without reading all of it, else by `verify`."""
    name, (file, change, is_seen) = prepared(cats), DAMAGE[what]
    [about] = data_dir.rglob("about.json")
    path = about.parent / file
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    if is_seen:
        with pytest.raises(DataError, match="as it was prepared is damaged: ") as raised:
            data.load(name)
        assert str(raised.value).isprintable()
    capsys.readouterr()
    assert command(["verify", f"--dataset={name}"]) == 3
    assert "damaged" in one_error(capsys)


# Names of data sets.


def test_names_and_folders_of_runs(tmp_path, monkeypatch):
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("x")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for written in ("x", "./x/", "link", "~/x", f"{tmp_path}/link"):
        assert data.canonical(f"folder:{written}") == f"folder:{tmp_path}/x"
    of = {
        name: data.slug(name) for name in (f"folder:{tmp_path}/x", "folder:/a/x", "folder:/a/花 b/../花 b", "folder:/")
    }
    assert len(set(of.values())) == 4 and all("/" not in slug and ":" not in slug for slug in of.values())
    assert of["folder:/a/x"] == "x-" + hashlib.sha256(b"/a/x").hexdigest()[:8]
    assert of["folder:/a/花 b/../花 b"].startswith("花_b-") and of["folder:/"].startswith("root-")
    assert len(os.fsencode(data.slug("folder:/" + "花" * 300))) < 200
    assert [data.slug(name) for name in ("cifar100", "tfds:a/b", "p.q:load")] == ["cifar100", "tfds.a.b", "p.q.load"]
    assert data.title("folder:/home/me/cats") == "cats" and data.title("cifar10") == "cifar10"
    for name in ("folder:a", "tfds:mnist", "tfds:a_1/b-1.x", "my.pkg:load", "digits"):
        assert data.problem(name) == ""
    for name in (
        "folder:",
        "folder:a\nb",
        "tfds:",
        "tfds:A",
        "tfds:a/..",
        "my pkg:load",
        "my:",
        ":load",
        "a:b:c",
        "",
        3,
    ):
        assert data.problem(name)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError):
        data.canonical("folder:~nobody_here/x")


def test_in_the_argument_of_a_configuration(cats, capsys):
    name = prepared(cats)
    for given, row in ((f"resnet8:{name},dml", "dml"), (f"configs/quickstart.py:{name}", "cutnmix")):
        settings = command_line.from_flags(given, ["--config.batch_size=4"])
        assert (settings.dataset, settings.image_size, settings.method) == (name, SIZE, row)
        assert settings.default_workdir.parts[1] == data.slug(name)
    odd = folder(cats.parent / "a:b,c,dml", {"x": 4, "y": 4})
    name = prepared(odd)
    assert (
        command_line.from_flags("resnet8:,dml", [f"--config.dataset={name}", "--config.batch_size=4"]).dataset == name
    )
    (cats.parent / "d,dml").mkdir()
    for argument in (name, f"folder:{cats},x", f"folder:{cats.parent}/d,dml"):
        with pytest.raises(UsageError, match=r"a path with a comma stands in --config.dataset=folder:PATH"):
            command_line.from_flags(f"resnet8:{argument}", [])
    capsys.readouterr()
    assert main.main([f"--config=resnet8:folder:{cats.parent}/d/../none"]) == 3
    assert (
        f"folder:{cats.parent}/none: there is no folder {cats.parent}/none, and nothing was prepared of it in"
        in one_error(capsys)
    )
    assert main.main([f"--config=resnet8:folder:{cats.parent}/d/../{cats.name}", "--config.image_size=99"]) == 3
    assert f"run `{program()} data prepare --dataset='folder:{cats}' --size=99`" in one_error(capsys)
    assert Settings.__dataclass_fields__["image_size"].metadata["change"].name == "NEVER"
