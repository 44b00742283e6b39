"""Data sets besides those that are shipped: from pictures to a student, of tensorflow-datasets, of a user's code."""

import contextlib
import importlib
import io
import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import sklearn
import tensorflow_datasets as tfds
from PIL import Image

from cutnmix_jax import configure, data, decoding, evaluate, export, main, predict, training
from cutnmix_jax.data import _library, digits, prepare
from cutnmix_jax.data.__main__ import main as command
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import command_line
from tests.runs import few

pytestmark = pytest.mark.usefixtures("programs_kept")

TINY = "--config.backbone.name=tests.tiny:Tiny"
SMALL = ["--config.batch_size=16", "--config.epochs=1", "--config.optimizer.milestones=()"]


@pytest.fixture(autouse=True)
def data_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "prepared"))
    return tmp_path / "prepared"


def one_error(capsys):
    """The only line on stderr, which is an error."""
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.isprintable()
    return line


# From pictures to a student, by three commands.

# Seven places in the two photographs that scikit-learn ships: left, top, right and bottom, in pixels.
PLACES = {
    "china": {"sky": (340, 0, 640, 170), "pagoda": (80, 60, 340, 370), "lake": (340, 190, 540, 300),
              "trees": (340, 310, 640, 427)},
    "flower": {"petals": (190, 100, 420, 350), "leaf": (0, 60, 150, 330), "dark": (450, 0, 640, 380)},
}  # fmt: skip
NAMES = sorted(name for places in PLACES.values() for name in places)


def pieces(top, **counts):
    """JPEGs of 30 to 100 pixels on a side, so many of each place in a split."""
    rng, ships = np.random.default_rng(0), Path(sklearn.__file__).parent / "datasets" / "images"
    for photograph, places in PLACES.items():
        whole = Image.open(ships / f"{photograph}.jpg")
        for name, (left, up, right, down) in places.items():
            for split, count in counts.items():
                (top / split / name).mkdir(parents=True)
                for i in range(count):
                    width, height = rng.integers(30, 101, 2)
                    x, y = rng.integers(left, right - width + 1), rng.integers(up, down - height + 1)
                    whole.crop((x, y, x + width, y + height)).save(top / split / name / f"{i}.jpg", quality=90)


def by_three_commands(top, run, size, config, flags, capsys):
    """Prepares a folder, trains, and asks the student what the test pictures are; [K, K], how often it says what."""
    assert command(["prepare", f"--dataset=folder:{top}", f"--size={size}"]) == 0
    assert main.main([config, *flags, f"--workdir={run}"]) == 0
    capsys.readouterr()
    assert predict.main([str(run), str(top / "test"), "--json"]) == 0
    confusion = np.zeros((len(NAMES), len(NAMES)), int)
    for line in map(json.loads, capsys.readouterr().out.splitlines()):
        confusion[NAMES.index(Path(line["file"]).parent.name), NAMES.index(line["class"])] += 1
    return confusion


@pytest.mark.parametrize("row", few(["cutnmix", "dml", "one", "ps_kd"], ("ps_kd",)))
def test_from_jpegs_of_mixed_sizes_to_a_student(row, tmp_path, capsys):
    top, run = tmp_path / "places", tmp_path / "run"
    pieces(top, train=20, test=6)
    epochs = 8 if row == "one" else 3  # two branches on one trunk take longer to know anything
    flags = ["--config.batch_size=20", f"--config.epochs={epochs}", "--config.optimizer.milestones=()"]
    confusion = by_three_commands(top, run, 64, f"--config=resnet8:folder:{top},{row}", flags, capsys)
    results = json.loads((run / "results.json").read_text())
    told = results["data"]
    assert told["class_names"] == NAMES and told["image_shape"] == [64, 64, 3] and told["resampling"] == "bicubic"
    read = data.load(f"folder:{top}")
    assert told["mean"] == read.mean.tolist() and told["std"] == read.std.tolist()
    assert results["last"]["accuracy"] > 2 / 7  # of seven alike it would be 1 / 7
    assert np.trace(confusion) / 42 == max(results["last"]["accuracy_per_peer"])
    # The same student, exported and measured on what was prepared: that is what a picture is brought to.
    assert evaluate.main([str(run), f"--out={tmp_path / 'of run'}"]) == 0
    found = json.loads((tmp_path / "of run" / "evaluation.json").read_text())
    peers = [found["classifiers"][f"peer_{j}"] for j in range(len(results["last"]["accuracy_per_peer"]))]
    assert [peer["accuracy"] for peer in peers] == results["last"]["accuracy_per_peer"] and found["images"] == 42
    assert export.main([str(run), str(tmp_path / "taken")]) == 0
    assert evaluate.main([str(tmp_path / "taken"), f"--out={tmp_path / 'of export'}"]) == 0
    exported = json.loads((tmp_path / "of export" / "evaluation.json").read_text())["classifiers"]["student"]
    assert exported["confusion"] == confusion.tolist()
    assert confusion.tolist() in [peer["confusion"] for peer in peers]
    for file in (tmp_path / "taken" / "README.md", tmp_path / "of run" / "evaluation.json"):
        assert "places" in file.read_text() and str(tmp_path) not in file.read_text()


@pytest.mark.slow
def test_from_jpegs_of_mixed_sizes_to_a_student_at_224_pixels(tmp_path, capsys):
    top, run = tmp_path / "places", tmp_path / "run"
    pieces(top, train=2, test=1)
    flags = ["--config.batch_size=7", "--config.epochs=1", "--config.optimizer.milestones=()"]
    confusion = by_three_commands(top, run, 224, f"--config=mobilenet_v2:folder:{top},cutnmix", flags, capsys)
    results = json.loads((run / "results.json").read_text())
    assert results["last"]["step"] == 2 and results["data"]["image_shape"] == [224, 224, 3]
    assert np.trace(confusion) / 7 == max(results["last"]["accuracy_per_peer"])


# Of tensorflow-datasets.


def written(folder, splits, features=None, shape=(None, None, 3), secret=False):
    """Has tfds prepare a set of two classes as its own builders do; returns pictures and labels of each split."""

    def pixels(i, count):
        size = (8, 8 if shape[0] else 6 + i % 5, 3)
        return np.random.default_rng([i, count]).integers(0, 256, size, np.uint8)

    made = {split: [(pixels(i, count), i % 2) for i in range(count)] for split, count in splits.items()}

    class Toys(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            image, label = tfds.features.Image(shape=shape), tfds.features.ClassLabel(names=["ball", "doll"])
            known = tfds.features.FeaturesDict({"image": image, "label": label, **(features or {})})
            return tfds.core.DatasetInfo(builder=self, features=known)

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(split) for split in made}

        def _generate_examples(self, split):
            for i, (pixels, label) in enumerate(made[split]):
                shown = -1 if split == "test" and secret else label
                yield i, {"image": _library.png(pixels), "label": shown, **dict.fromkeys(features or {}, label)}

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder = Toys(data_dir=folder, file_format="array_record")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return made


def pixels_of(made, size):
    """The pictures by what they become, each with its label; the order is that of tfds, which nobody promises."""
    fitted = [(decoding.resized(pixels[None], (size, size), "bicubic").tobytes(), label) for pixels, label in made]
    return sorted(fitted)


def read_of(read, split):
    images, labels = getattr(read, f"{split}_images"), getattr(read, f"{split}_labels")
    return sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True))


def test_a_set_of_tfds_is_prepared_and_trained(tmp_path, data_dir, capsys):
    made = written(data_dir, {"train": 40, "test": 12})
    assert command(["prepare", "--dataset=tfds:toys"]) == 3
    assert "its pictures are not all squares of one size; say --size=S" in one_error(capsys)
    assert command(["prepare", "--dataset=tfds:toys", "--size=16"]) == 0
    told = capsys.readouterr().out
    assert "40 training and 12 test images of 16x16 pixels, 2 classes" in told
    read = data.load("tfds:toys")
    assert read.class_names == ("ball", "doll") and read.name == "tfds:toys"
    for split in ("train", "test"):
        assert read_of(read, split) == pixels_of(made[split], 16)
    assert main.main(["--config=quickstart:tfds:toys,baseline", TINY, *SMALL, f"--workdir={tmp_path / 'run'}"]) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["dataset"] == "tfds:toys" and results["data"]["image_shape"] == [16, 16, 3]
    assert command(["verify", "--dataset=tfds:toys"]) == 0
    assert "is as it was then" in capsys.readouterr().out
    (data_dir / "toys" / "1.0.0" / "more").touch()
    assert command(["verify", "--dataset=tfds:toys"]) == 0
    assert "has changed since it was prepared" in capsys.readouterr().out


def test_which_splits_of_tfds_are_taken(data_dir, capsys):
    made = written(data_dir, {"train": 40}, shape=(8, 8, 3))
    assert command(["prepare", "--dataset=tfds:toys"]) == 0
    assert "it has no test pictures: a fifth of all is tested with" in capsys.readouterr().out
    read = data.load("tfds:toys")
    assert read.train_images.shape == (32, 8, 8, 3) and read.test_images.shape == (8, 8, 8, 3)
    assert sorted(read_of(read, "train") + read_of(read, "test")) == pixels_of(made["train"], 8)
    shutil.rmtree(data_dir)
    for secret, taken, said in (
        (True, "validation", "of the split validation"),
        (False, "test", "validation is left out"),
    ):
        splits, more = {"train": 10, "test": 9, "validation": 6}, {"other": tfds.features.Scalar(np.int64)}
        made = written(data_dir, splits, more, secret=secret)
        assert command(["prepare", "--dataset=tfds:toys", "--size=8"]) == 0
        assert said in capsys.readouterr().out
        assert read_of(data.load("tfds:toys"), "test") == pixels_of(made[taken], 8)
        shutil.rmtree(data_dir)


def test_sets_of_tfds_that_cannot_be_had(data_dir, capsys, monkeypatch):
    def cannot(name, **options):
        raise ImportError("No module named 'tensorflow'\nat all", name="tensorflow")

    with monkeypatch.context() as patch:
        patch.setattr(tfds, "builder", cannot)
        assert command(["prepare", "--dataset=tfds:beans/small", "--size=8"]) == 3
    error = one_error(capsys)
    assert "tfds cannot prepare it here, without TensorFlow (ImportError: No module named 'tensorflow' at all)" in error
    how = f"run `tfds build beans/small --file_format=array_record --data_dir={data_dir}`"
    assert f"{how} where TensorFlow and a network are" in error
    with monkeypatch.context() as patch:  # as `tfds.builder` makes it, with nobody who answers
        patch.setattr(prepare.urllib.request, "urlopen", cannot)
        assert command(["prepare", "--dataset=tfds:beans", "--size=8"]) == 3
    assert "(ConnectionError: https://storage.googleapis.com" in one_error(capsys)
    written(data_dir, {"train": 4, "test": 2}, {"label_2": tfds.features.ClassLabel(num_classes=3)})
    assert command(["prepare", "--dataset=tfds:toys", "--size=8"]) == 3
    assert "1 pictures and 2 class labels an example" in one_error(capsys)
    about = data_dir / "toys" / "1.0.0" / "dataset_info.json"
    about.write_text(about.read_text().replace("array_record", "tfrecord"))
    assert command(["prepare", "--dataset=tfds:toys", "--size=8"]) == 3
    assert "prepared as tfrecord, which takes TensorFlow to read" in one_error(capsys)
    about.write_text("{")
    assert command(["prepare", "--dataset=tfds:toys", "--size=8"]) == 3
    assert "toys/1.0.0 cannot be read" in one_error(capsys)


# Code of a user's own.

CODE = """
import numpy as np
from cutnmix_jax.data import digits
RESAMPLING = "nearest"
calls = []
def load(data_dir):
    calls.append(data_dir)
    read = digits.load()
    return read._replace(name="mine", **{change})
def text(data_dir): return "no data set"
def fails(data_dir): raise ValueError("two\\nlines")
def gone(data_dir): open(data_dir + "/nothing")
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    def write(name, change="{}"):
        (tmp_path / f"{name}.py").write_text(CODE.replace("{change}", change))
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop(name, None)
        return name

    return write


def test_a_set_of_a_users_code_is_trained(code, tmp_path, capsys):
    name = f"{code('own_set')}:load"
    small = ["--config.train_examples=64", "--config.test_examples=30", f"--config.data_dir={tmp_path}"]
    assert data.problem(name) == "" and "own_set" not in sys.modules  # a name alone runs nothing
    run = tmp_path / "run"
    assert main.main([f"--config=quickstart:{name},baseline", TINY, *SMALL, *small, f"--workdir={run}"]) == 0
    assert sys.modules["own_set"].calls == [str(tmp_path)]
    results = json.loads((run / "results.json").read_text())
    assert (results["dataset"], results["data"]["resampling"], results["test_examples"]) == (name, "nearest", 30)
    assert command_line.from_flags(f"resnet8:{name},dml", []).default_workdir.parts[1] == "own_set.load"
    consent = "--backbone=tests.tiny:Tiny"
    for source, flags in ((run, [consent]), (run / "student", [])):
        capsys.readouterr()
        assert evaluate.main([str(source), *flags]) == 2
        assert f"to run that code say --dataset={name}" in one_error(capsys)
        assert evaluate.main([str(source), *flags, f"--dataset={name}"]) == 0
    assert command(["prepare", f"--dataset={name}"]) == 0
    assert "nothing to prepare" in capsys.readouterr().out


SMALLER = ["--config.train_examples=64", "--config.test_examples=30"]


def test_the_next_run_of_a_process_calls_it_again(code, tmp_path):
    """It trained on the images of the first one, of which the code had other ones by then."""
    name = f"{code('growing', '{}')}:load"
    for count in (64, 32):
        command = [f"--config=quickstart:{name},baseline", TINY, *SMALL, f"--workdir={tmp_path / str(count)}"]
        assert main.main(command) == 0
        found = json.loads((tmp_path / str(count) / "results.json").read_text())["train_examples"]
        assert found == {64: 1500, 32: 100}[count]
        module = sys.modules["growing"]
        first = module.digits.load()
        fewer = first._replace(train_images=first.train_images[:100], train_labels=first.train_labels[:100])
        module.digits = types.SimpleNamespace(load=lambda fewer=fewer: fewer)


def test_a_run_is_of_the_images_that_are_there_when_it_begins(code):
    """`configure` had kept those that were there when it was called."""
    name = f"{code('asked', '{}')}:load"
    command_line.from_flags(f"quickstart:{name},baseline", [])
    assert len(sys.modules["asked"].calls) == 1
    configure(f"quickstart:{name},baseline")
    data.load(name)
    assert len(sys.modules["asked"].calls) == 2


def test_a_run_that_does_not_read_them_leaves_none_for_the_next(code, tmp_path):
    """One that had ended kept those of then, and another run was trained on them."""
    name, counts = f"{code('asked_again', '{}')}:load", []
    settings = command_line.from_flags(f"quickstart:{name},baseline", [TINY, *SMALL])
    for folder in ("a", "a", "b"):
        training.train(settings, tmp_path / folder)
        counts.append(len(sys.modules["asked_again"].calls))
    assert counts == [1, 2, 3]


def test_a_run_goes_on_with_the_same_classes_and_pixels_alone(code, tmp_path, capsys):
    """Images and labels were the same; the mean was .9, and the classes had each other's names."""
    name = f"{code('told', '{}')}:load"
    command = [f"--config=quickstart:{name},baseline", TINY, *SMALL, *SMALLER, f"--workdir={tmp_path / 'run'}"]
    assert main.main(command) == 0
    (tmp_path / "run" / "results.json").unlink()  # as if it had been killed before its results
    plain = sys.modules["told"].digits.load()
    for change in ({"mean": plain.mean + 0.1}, {"flip": not plain.flip}, {"class_names": plain.class_names[::-1]}):
        sys.modules["told"].digits = types.SimpleNamespace(load=lambda change=change: plain._replace(**change))
        capsys.readouterr()
        assert main.main(command) == 3
        assert "class names, mean, deviation or mirroring of the images are not those" in one_error(capsys)
    sys.modules["told"].digits = types.SimpleNamespace(load=lambda: plain)
    assert main.main(command) == 0


@pytest.mark.parametrize("change", ["class_names", "mean", "std"])
def test_a_teacher_has_learned_the_same_classes(change, code, tmp_path, capsys):
    """One of cats and dogs taught the other class of each: accuracy 0, without a word."""
    name = f"{code('taught', '{}')}:load"
    command = [TINY, *SMALL, *SMALLER]
    assert main.main([f"--config=quickstart:{name},baseline", *command, f"--workdir={tmp_path / 'teacher'}"]) == 0
    plain = sys.modules["taught"].digits.load()
    other = plain.class_names[::-1] if change == "class_names" else getattr(plain, change) * 1.25
    sys.modules["taught"].digits = types.SimpleNamespace(load=lambda: plain._replace(**{change: other}))
    for teacher in ("teacher", "teacher/student"):
        capsys.readouterr()
        student = [f"--config=quickstart:{name},kd", *command, f"--config.teacher={tmp_path / teacher}"]
        assert main.main([*student, f"--workdir={tmp_path / 'run'}"]) == 2
        assert f"was trained on images with other {change} (" in one_error(capsys)


@pytest.mark.parametrize(
    ("called", "change", "exit_code", "says"),
    [
        ("own_1:text", "{}", 2, "its function returns a str, not a types.Dataset"),
        ("own_1:fails", "{}", 2, "its function fails (ValueError: two lines)"),
        ("own_1:gone", "{}", 3, "cannot be read (FileNotFoundError"),
        ("own_1:lod", "{}", 2, "has no 'lod'; did you mean 'load'?"),
        ("own_none:load", "{}", 2, "cannot import 'own_none'"),
        ("own_2:load", "{'train_images': read.train_images[..., :1]}", 2, "images of [32, 32, 1], not of (height"),
        ("own_3:load", "{'test_labels': read.test_labels + 5}", 2, "test labels from 5 to 14, not from 0 to 9"),
        ("own_4:load", "{'mean': None}", 2, "its function"),
        ("own_5:load", "{'train_images': None}", 2, "its function fails"),
    ],
)
def test_code_that_returns_something_else(called, change, exit_code, says, code, tmp_path, capsys):
    code(called.partition(":")[0] if "none" not in called else "own_other", change)
    assert main.main([f"--config=quickstart:{called}", f"--workdir={tmp_path / 'run'}"]) == exit_code
    assert says in one_error(capsys) and not (tmp_path / "run").exists()


def test_lists_and_tuples_of_a_user_are_what_a_data_set_has(code):
    change = "{'class_names': list('0123456789'), 'mean': (.5, .5, .5), 'std': [.5] * 3, 'sha256': 'mine'}"
    found = data.load(f"{code('own_lists', change)}:load")
    assert found.class_names == tuple("0123456789") and found.sha256 == ""
    assert found.mean.dtype == found.std.dtype == np.float32


def test_a_wrong_way_of_resizing_is_told_before_anything_is_trained(code):
    assert tuple(decoding.RESAMPLING) == data.RESAMPLINGS  # named there without Pillow
    name = code("own_way")
    importlib.import_module(name).RESAMPLING = "bilinear"
    with pytest.raises(UsageError, match="RESAMPLING"):
        data.facts(f"{name}:load")


# Another size.


def test_a_set_of_a_users_code_is_resized_by_bicubic(code):
    """Of random pixels, whose mean and deviation another size changes; the digits keep theirs."""
    noise = "{'train_images': np.random.default_rng(0).integers(0, [99, 199, 256], (1500, 32, 32, 3)).astype('uint8')}"
    name = code("own_noise", noise)
    file = Path(sys.path[0]) / f"{name}.py"
    file.write_text(file.read_text().replace('RESAMPLING = "nearest"', ""))
    own, read = data.load(f"{name}:load"), data.load(f"{name}:load", image_size=12)
    wanted = [
        np.asarray(Image.fromarray(image).resize((12, 12), Image.Resampling.BICUBIC)) for image in own.train_images[:5]
    ]
    np.testing.assert_array_equal(read.train_images[:5], wanted)
    pixels = read.train_images / 255.0
    np.testing.assert_allclose(read.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(read.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert (read.std < 0.8 * (own.train_images / 255.0).std((0, 1, 2))).all()


def test_a_data_set_in_memory_is_resized_as_pictures_are(tmp_path):
    own, read = data.load("digits"), data.load("digits", image_size=16)
    wanted = [
        np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.NEAREST)) for image in own.test_images
    ]
    np.testing.assert_array_equal(read.test_images, wanted)
    pixels = read.train_images / 255.0
    np.testing.assert_allclose(read.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(read.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert data.facts("digits", None, 16) == (digits.COUNTS, 10, (16, 16, 3))
    whole = data.load("digits", image_size=32)
    assert whole.mean.tolist() == own.mean.tolist() and np.array_equal(whole.train_images, own.train_images)
    small = [*SMALL, "--config.train_examples=64", "--config.test_examples=30", "--config.image_size=16"]
    run = tmp_path / "run"
    assert main.main(["--config=quickstart:digits,baseline", TINY, *small, f"--workdir={run}"]) == 0
    results = json.loads((run / "results.json").read_text())
    assert results["data"]["image_shape"] == [16, 16, 3]
    assert evaluate.main([str(run), "--backbone=tests.tiny:Tiny", f"--out={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "evaluation.json").read_text())["classifiers"]
    assert [found["peer_0"]["accuracy"]] == results["last"]["accuracy_per_peer"]
    taught = command_line.from_flags("quickstart:digits,kd", [f"--config.teacher={run}", TINY])
    with pytest.raises(UsageError, match="was trained on images of 16x16x3, and these are of 32x32x3"):
        training.plan(taught)
