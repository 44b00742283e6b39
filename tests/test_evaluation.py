"""A finished run evaluated again has the accuracies of its results; runs that cannot be; and what a run leaves."""

import dataclasses
import json
import re
import shutil
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image

from cutnmix_jax import data, digests, evaluate, export, load_student, methods, predict
from cutnmix_jax.errors import CheckpointError, UserError
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.student import charts, evaluated, exported, of_run
from tests.hostile import snapshot
from tests.runs import few
from tests.test_student import CHOSEN, DIGITS, numpy_says, own, peer_says, saved_in, trained_in

pytestmark = pytest.mark.usefixtures("programs_kept")

LABELS = data.load("digits").test_labels
CONSENT = "--backbone=tests.tiny:Tiny"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("run") / "run", "cutnmix", ":Tiny", *CHOSEN)


def test_a_head_of_what_is_calibrated_is_evaluated_as_it_is_saved(tmp_path, monkeypatch):
    """The row of an epoch was of the weights of the one before, and a run evaluated again had other accuracies."""

    def heads(self, params, state, outputs):
        return {"weighed": jax.numpy.where(state["weights"][0] == 0.5, -1, 1) * outputs[0].logits}

    monkeypatch.setattr(methods.find("kdcl"), "heads", heads)
    flags = ["--config.loss.target=general", "--config.held_out_examples=20", "--config.epochs=1"]
    folder = trained_in(tmp_path / "run", "kdcl", ":Tiny", *flags)
    last = json.loads((folder / "results.json").read_text())["last"]
    assert last["accuracy_weighed"] == last["accuracy_per_peer"][0]
    assert told([folder, CONSENT], tmp_path / "out")["classifiers"]["weighed"]["accuracy"] == last["accuracy_weighed"]


def told(arguments, out):
    """What `evaluation.json` says; it is JSON without NaN, and each picture is one."""
    assert evaluate.main([*map(str, arguments), f"--out={out}"]) == 0

    def refuse(constant):
        raise AssertionError(constant)

    fields = json.loads((out / "evaluation.json").read_text(), parse_constant=refuse)
    pictures = {f"confusion_{name}.png" for name in fields["classifiers"]} | {"reliability.png"}
    assert {path.name for path in out.iterdir()} == pictures | {"evaluation.json"}
    for name in pictures:
        with Image.open(out / name) as picture:
            assert picture.format == "PNG" and min(picture.size) > 100
    return fields


def row_of(run, which):
    """The accuracies of an epoch on the test images, by the names of classifiers, as training measured them."""
    epoch = json.loads((run / "results.json").read_text())[which]["epoch"]
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[epoch - 1])
    return {name.partition("_")[2]: value for name, value in row.items() if name.startswith("test/accuracy_")}


def assert_as_measured(run, folder):
    for which in ("last", "best"):
        fields = told([run, f"--which={which}", CONSENT], folder / which)
        assert {name: found["accuracy"] for name, found in fields["classifiers"].items()} == row_of(run, which)
        assert fields["images"] == 30 and fields["dataset"] == "digits"


def test_a_run_has_the_accuracies_of_its_results(run, tmp_path):
    results = json.loads((run / "results.json").read_text())
    assert results["last"]["step"] != results["best"]["step"]  # or it would show nothing
    assert row_of(run, "last") != row_of(run, "best") and "average_1" in row_of(run, "last")
    assert_as_measured(run, tmp_path)


HEADS = {"pcl": "mean_teacher_0", "one": "gated_ensemble", "okddip": "leader"}


@pytest.mark.parametrize("row", few(HEADS, ()))
def test_every_head_of_other_rows(row, tmp_path):
    run = trained_in(tmp_path / "run", row, ":Tiny")
    assert HEADS[row] in row_of(run, "last")
    assert_as_measured(run, tmp_path)


def test_against_numpy(run, tmp_path):
    fields, arrays, images, labels = told([run, CONSENT], tmp_path / "out"), saved_in(run), DIGITS[:30], LABELS[:30]
    logits = {f"peer_{j}": peer_says(arrays, images, j) for j in (0, 1)}
    for j in (0, 1):
        params, stats = (f"state.teachers.average.{part}.{j}" for part in ("params", "batch_stats"))
        logits[f"average_{j}"] = numpy_says(arrays, images, params, params, stats)
    shares = {name: np.exp(each) / np.exp(each).sum(axis=1, keepdims=True) for name, each in logits.items()}
    shares["ensemble"] = (shares["peer_0"] + shares["peer_1"]) / 2
    assert len(set(fields["classifiers"]) - set(shares)) == 1  # the head of CutnMix on joined features
    for name, share in shares.items():
        found = fields["classifiers"][name]
        assert found["nll"] == pytest.approx(-np.log(share[np.arange(30), labels]).mean(), rel=1e-5)
        confusion = np.zeros((10, 10), int)
        np.add.at(confusion, (labels, share.argmax(axis=1)), 1)
        assert found["confusion"] == confusion.tolist()
        assert found["top5"] == (np.argsort(-share, axis=1)[:, :5] == labels[:, None]).any(axis=1).mean()
        each = {str(k): confusion[k, k] / n if (n := confusion[k].sum()) else None for k in range(10)}
        assert found["per_class"] == pytest.approx(each)
        edges = np.minimum(np.ceil(share.max(axis=1) * 15).astype(int) - 1, 14)
        right = share.argmax(axis=1) == labels
        gaps = [abs(right[edges == b].sum() - share.max(axis=1)[edges == b].sum()) for b in range(15)]
        assert found["ece"] == pytest.approx(sum(gaps) / 30, abs=1e-5)
    [pair] = fields["pairs"]
    same = (shares["peer_0"].argmax(axis=1) == shares["peer_1"].argmax(axis=1)).mean()
    assert pair["agreement"] == same and pair["peers"] == ["peer_0", "peer_1"]
    # Kornblith et al. 2019, of the features: the Dense layer's inputs, which its inverse gives back from the logits.
    features = []
    for j in (0, 1):
        head = {name: np.float64(arrays[f"state.params.peers.{j}.Dense_0.{name}"]) for name in ("kernel", "bias")}
        x = (logits[f"peer_{j}"] - head["bias"]) @ np.linalg.pinv(head["kernel"])
        features.append(x - x.mean(axis=0))
    one, other = features
    cka = ((other.T @ one) ** 2).sum() / (np.linalg.norm(one.T @ one) * np.linalg.norm(other.T @ other))
    assert pair["cka"] == pytest.approx(cka, rel=1e-4) and cka < 0.9999


def test_an_export_is_measured_on_all_test_images(run, tmp_path):
    exported.write(own(run, peer=1), tmp_path / "taken")
    fields = told([tmp_path / "taken"], tmp_path / "out")
    accuracy = (peer_says(saved_in(run), DIGITS, 1).argmax(axis=1) == LABELS).mean()
    assert list(fields["classifiers"]) == ["student"] and fields["images"] == 297 and fields["pairs"] == []
    assert fields["classifiers"]["student"]["accuracy"] == accuracy
    exported.write(own(run, ensemble=True), tmp_path / "both")
    assert list(told([tmp_path / "both"], tmp_path / "of both")["classifiers"]) == ["ensemble"]


def test_networks_that_are_too_sure_for_float32(run, tmp_path, monkeypatch):
    """A mean of probabilities that underflows has a logarithm all the same."""

    def sure(arrays):
        return {name: array * np.float32(1e6) if "Dense" in name else array for name, array in arrays.items()}

    student, read = own(run, ensemble=True), of_run.Reader.arrays
    arrays = sure(student.arrays)
    parts = [{name[2:]: leaf for name, leaf in arrays.items() if name.startswith(f"{j}.")} for j in (0, 1)]
    described = dataclasses.replace(student.description, networks_sha256=tuple(map(digests.of_network, parts)))
    exported.write(dataclasses.replace(student, arrays=arrays, description=described), tmp_path / "sure")
    logits = load_student(tmp_path / "sure").logits(DIGITS)
    assert np.isfinite(logits).all() and logits.min() < -1e3
    assert told([tmp_path / "sure"], tmp_path / "out")["classifiers"]["ensemble"]["nll"] > 1
    monkeypatch.setattr(of_run.Reader, "arrays", lambda reader, step: sure(read(reader, step)))
    answers = evaluated.of_run(of_run.look(run), "last", evaluated.Images())
    np.testing.assert_allclose(answers.logits["ensemble"], logits[:30], rtol=1e-4, atol=1e-4)
    assert evaluate.main([str(run), CONSENT]) == 0


DATA_SET = """
import numpy as np
from cutnmix_jax.data import digits
COUNTS, NUM_CLASSES, IMAGE_SHAPE = digits.COUNTS, len({names}), ({size}, {size}, 3)
def load(data_dir=""):
    one = digits.load()
    train, test = (np.ascontiguousarray(images[:, :{size}, :{size}]) for images in (one.train_images, one.test_images))
    mean, std = np.full(3, 0.5, np.float32), np.full(3, 0.25, np.float32)
    return one._replace(train_images=train, test_images=test[::-1].copy(), mean=mean, std=std,
                        test_labels=one.test_labels[::-1].copy(), class_names={names})
"""


def data_set(name, folder, monkeypatch, names=tuple("0123456789"), size=32):
    """Adds the digits under another name, their test images in reverse and with another mean and deviation."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(DATA_SET.format(names=names, size=size))
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, f"cutnmix_jax.data.{name}", raising=False)


@pytest.mark.parametrize("precision", CHOICES)
def test_a_run_is_evaluated_and_taken_out_in_its_own_precision(precision, run, monkeypatch):
    def reached(choice):
        raise InterruptedError(choice)

    looked = of_run.look(run)
    looked = looked._replace(settings=dataclasses.replace(looked.settings, precision=precision))
    assert of_run.describe(looked, "last", (0,), "").precision == precision
    monkeypatch.setattr(evaluated, "set_up_jax", reached)
    with pytest.raises(InterruptedError) as caught:
        evaluated.of_run(looked, "last", evaluated.Images(None, None))
    assert caught.value.args == (CHOICES[precision],)


def test_other_data_sets(run, tmp_path, monkeypatch, capsys):
    data_set("reverse", tmp_path / "data", monkeypatch)
    data_set("letters", tmp_path / "data", monkeypatch, tuple("abcdefghij"))
    data_set("small", tmp_path / "data", monkeypatch, size=16)
    assert data.load("reverse").name == "reverse"  # whatever its file, made from that of the digits, says
    exported.write(own(run, peer=1), tmp_path / "taken")
    # By the mean and the deviation that the run was trained with, and on all images.
    wanted = peer_says(saved_in(run), DIGITS[::-1], 1)
    images = evaluated.Images("reverse")
    of_peer = evaluated.of_run(of_run.look(run), "last", images)
    for answers, name in ((of_peer, "peer_1"), (evaluated.of_export(tmp_path / "taken", images), "student")):
        np.testing.assert_allclose(answers.logits[name], wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answers.labels, LABELS[::-1])
    for source in ([str(run), CONSENT], [str(tmp_path / "taken")]):
        for name, code, says in (
            ("letters", 3, "other classes"),
            ("small", 3, "16x16x3"),
            ("digit", 2, "mean"),
        ):
            capsys.readouterr()
            assert evaluate.main([*source, f"--dataset={name}", f"--out={tmp_path / 'out'}"]) == code
            [error] = capsys.readouterr().err.splitlines()
            assert says in error and not (tmp_path / "out").exists()


def without(run, part):
    """Removes a file or a folder of a run; or the checkpoint of its best or its last epoch."""
    if part in ("best", "last"):
        part = f"checkpoints/{json.loads((run / 'results.json').read_text())[part]['step']}"
    path = run / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def damaged(run, name, change):
    """Changes each file of a name in a folder."""
    for path in [path for path in run.rglob("*") if path.is_file() and name in str(path)]:
        path.write_bytes(change(path.read_bytes()))


BROKEN = {
    "no folder": (shutil.rmtree, 2),
    "not finished": (lambda run: without(run, "results.json"), 2),
    "other accuracies": (lambda run: damaged(run, "results.json", lambda text: text.replace(b": 0.", b": 0.9")), 2),
    "another configuration": (lambda run: damaged(run, "config.json", lambda text: text.replace(b"dml", b"one")), 2),
    "no last checkpoint": (lambda run: without(run, "last"), 2),
    "no checkpoints": (lambda run: without(run, "checkpoints"), 4),
    "no arrays": (lambda run: damaged(run, "checkpoints/12/state", lambda content: content[: len(content) // 2]), 4),
    "no best checkpoint": (lambda run: without(run, "best"), 4),
}


@pytest.mark.parametrize("what", BROKEN)
def test_runs_that_cannot_be_used(what, run, tmp_path, capsys):
    """One line and the exit code of its kind from each command, and nothing is written."""
    folder, (change, code) = shutil.copytree(run, tmp_path / "run"), BROKEN[what]
    change(folder)
    Image.fromarray(DIGITS[0]).save(tmp_path / "0.png")
    before = snapshot(tmp_path)
    chosen = [str(folder), CONSENT, "--which=best" if "best" in what else "--which=last"]
    commands = [(export, tmp_path / "taken"), (predict, tmp_path / "0.png"), (evaluate, f"--out={tmp_path / 'out'}")]
    for command, last in commands:
        capsys.readouterr()
        assert command.main([*chosen, str(last)]) == code
        [error] = capsys.readouterr().err.splitlines()
        assert error.startswith("error: ") and str(folder) in error and snapshot(tmp_path) == before


def test_without_checkpoints_what_the_run_has_left_is_enough(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    np.testing.assert_array_equal(load_student(folder).logits(DIGITS), own(run).logits(DIGITS))
    shutil.rmtree(folder / "student")
    with pytest.raises(UserError, match="--backbone=tests.tiny:Tiny"):
        load_student(folder)
    with pytest.raises(CheckpointError):
        own(folder)


def test_what_a_run_leaves(tmp_path, monkeypatch, capsys):
    """A disk error costs the student alone; more epochs put the student of fewer aside."""
    folder, calls = tmp_path / "run", []

    def full(*_, **__):
        calls.append(1)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(exported.safetensors.numpy, "save", full)
        trained_in(folder, "dml", ":Tiny", "--config.epochs=1")
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert calls and len(warnings) == 1 and "cannot write student (" in warnings[0] and "No space left" in warnings[0]
    assert (folder / "results.json").exists() and not list(folder.glob("*student*"))
    for epochs in (2, 3):
        trained_in(folder, "dml", ":Tiny", f"--config.epochs={epochs}", "--extend")
        assert exported.read_description(folder / "student").epoch == epochs
        np.testing.assert_array_equal(load_student(folder).logits(DIGITS), own(folder).logits(DIGITS))
    [before] = folder.glob("student-before-*")
    assert exported.read_description(before).epoch == 2


def test_what_is_printed_and_drawn_is_of_each_classifier(tmp_path, monkeypatch, capsys):
    """By hand: of four images `peer_0` has three right and `peer_1` one, and both say the same of one."""
    labels, named = np.array([0, 1, 2, 2]), ("a", "b", "c")
    said = {"peer_0": [0, 1, 2, 0], "peer_1": [0, 0, 1, 1]}
    logits = {name: np.log(0.8 * np.eye(3)[classes] + 0.2 / 3) for name, classes in said.items()}
    features = {name: np.eye(3)[classes] for name, classes in said.items()}
    answers = evaluated.Evaluated("a run", "some", labels, named, logits, features)
    monkeypatch.setattr(evaluated, "of_run", lambda *_: answers)
    monkeypatch.setattr(
        of_run, "look", lambda folder: types.SimpleNamespace(settings=types.SimpleNamespace(backbones=()))
    )
    drawn = {}
    monkeypatch.setattr(
        charts, "confusion", lambda path, found, names, title: drawn.update({path.name: (found, title)})
    )
    monkeypatch.setattr(charts, "reliability", lambda *_: None)
    monkeypatch.setenv("COLUMNS", "120")
    assert evaluate.main([str(tmp_path), f"--out={tmp_path / 'out'}"]) == 0
    out = capsys.readouterr().out
    rows = {
        cells[1]: cells[2:-1] for line in out.splitlines() if len(cells := re.split(r"\s*[\u2502\u2503]\s*", line)) > 3
    }
    right, wrong = -np.log(0.8 + 0.2 / 3), -np.log(0.2 / 3)
    sure = 100 * (0.8 + 0.2 / 3)  # of each answer, so that the error of calibration is its distance to the accuracy
    assert rows[""] == ["accuracy %", "top-5 %", "nll", "ece %"]
    assert rows["peer 0"] == ["75.00", "", f"{(3 * right + wrong) / 4:.4f}", f"{sure - 75:.2f}"]
    assert rows["peer 1"] == ["25.00", "", f"{(right + 3 * wrong) / 4:.4f}", f"{sure - 25:.2f}"]
    assert "peer 0 and peer 1: the same class for 25.00 % of the images, CKA" in out
    for name, classes in said.items():
        found, title = drawn[f"confusion_{name}.png"]
        assert found.tolist() == [[sum((labels == i) & (np.array(classes) == k)) for k in range(3)] for i in range(3)]
        assert title == f"a run: {name}"
