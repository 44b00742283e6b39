"""A network taken away from its run: the same numbers by every way to it, and those of numpy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cutnmix_jax import backbones, data, evaluate, export, load_student, main, own_code, predict
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.student import card, evaluated, exported, load, of_run
from tests.runs import few

pytestmark = pytest.mark.usefixtures("programs_kept")

DIGITS = data.load("digits").test_images
SMALL = [
    "--config.train_examples=64", "--config.test_examples=30", "--config.eval_batch_size=30", "--config.batch_size=16",
    "--config.epochs=2", "--config.optimizer.milestones=()",
]  # fmt: skip
# The best of its epochs is not the last, and in the last another peer is the best one on the validation images.
CHOSEN = [
    "--config.train_examples=96", "--config.validation_examples=32", "--config.average=0.5", "--config.epochs=3",
    "--config.eval_batch_size=16", "--config.seed=4",
]  # fmt: skip
BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
"""


def trained_in(folder, row, backbone, *flags):
    """The folder of a finished run; a backbone without a colon is one of ours."""
    name = backbone if ":" not in backbone else f"tests.tiny{backbone}"
    command = [f"--config=configs/quickstart.py:digits,{row}", f"--config.backbone.name={name}", *SMALL, *flags]
    assert main.main([*command, f"--workdir={folder}"]) == 0
    return folder


def own(folder, **which):
    return load.load(folder, backbone="tests.tiny:Tiny", **which)


def elsewhere(code, folder, blocked):
    """Runs Python in a process that finds JAX, but none of some packages; the repository is not on its path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-P", "-c", BLOCK.format(blocked=blocked) + code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def by_the_card(folder, images):
    """The logits by the lines of the card of the export `taken`, without this package and what it needs besides."""
    np.save(folder / "images.npy", images)
    card = (folder / "taken" / "README.md").read_text().split("```python\n")[2].partition("```")[0]
    code = f"import numpy\nimages = numpy.load('images.npy')\n{card}\nnumpy.save('logits.npy', logits)"
    elsewhere(code, folder, ("cutnmix_jax", "flax", "orbax", "optax", "tests"))
    return np.load(folder / "logits.npy")


def numpy_says(arrays, images, trunk, head, stats):
    """What `tests.tiny:Tiny` says to digits, in float64; its arrays have names that begin with these."""
    found = {name: np.asarray(array).astype(np.float64) for name, array in arrays.items()}
    seen = (images / 255.0 - np.float32(0.305467)) / np.float32(0.375876)
    patches = seen.reshape(-1, 8, 4, 8, 4, 3)[:, :, :3, :, :3]  # 3x3 pixels at every fourth
    x = np.einsum("nyixjc,ijcf->nyxf", patches, found[f"{trunk}.Conv_0.kernel"]) + found[f"{trunk}.Conv_0.bias"]
    mean, var = (found[f"{stats}.BatchNorm_0.{name}"] for name in ("mean", "var"))
    scale, bias = (found[f"{trunk}.BatchNorm_0.{name}"] for name in ("scale", "bias"))
    x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    return np.maximum(x, 0).mean(axis=(1, 2)) @ found[f"{head}.Dense_0.kernel"] + found[f"{head}.Dense_0.bias"]


def saved_in(run, which="last"):
    step = json.loads((run / "results.json").read_text())[which]["step"]
    reader = Reader(run / "checkpoints")
    arrays = reader.arrays(step)
    reader.close()
    return arrays


def peer_says(arrays, images, j, trunk=None):
    trunk = j if trunk is None else trunk
    names = f"state.params.peers.{trunk}", f"state.params.peers.{j}"
    return numpy_says(arrays, images, *names, f"state.batch_stats.{trunk}")


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("ours") / "run", "baseline", "resnet8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("tiny") / "run", "dml", ":Tiny", *CHOSEN)


def test_every_way_to_a_student_gives_the_same_logits(ours, tmp_path, capsys, caplog):
    """The last one in a process that has JAX, NumPy and safetensors alone, by the lines of the card."""
    images = DIGITS[:3]
    caplog.clear()
    student = load_student(ours)
    assert not caplog.records
    said = student.predict(images)
    np.testing.assert_array_equal(load_student(ours / "student").logits(images), said.logits)
    assert export.main([str(ours), str(tmp_path / "taken")]) == 0
    np.testing.assert_array_equal(load_student(tmp_path / "taken").logits(images), said.logits)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    for source in (ours, ours / "student", tmp_path / "taken"):
        capsys.readouterr()
        pictures = [str(tmp_path / f"{i}.png") for i in range(3)]
        assert predict.main([str(source), *pictures, "--json", "--top=10"]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        shares = [[line["probabilities"][str(digit)] for digit in range(10)] for line in lines]
        np.testing.assert_array_equal(np.float32(shares), said.probabilities)
        assert tuple(line["class"] for line in lines) == said.names
    np.testing.assert_array_equal(by_the_card(tmp_path, images), said.logits)
    # By the module alone, and as the engine evaluates.
    variables = student.networks()[0]
    seen = np.float32((images / 255.0 - np.float32(0.305467)) / np.float32(0.375876))
    alone = backbones.load("resnet8", 10).apply(variables, seen, False)[0].logits
    np.testing.assert_allclose(said.logits, alone, rtol=1e-5, atol=1e-5)
    answers = evaluated.of_run(of_run.look(ours), "last", evaluated.Images()).logits
    of_peer = answers[f"peer_{student.description.peers[0]}"]
    np.testing.assert_allclose(student.logits(DIGITS[:30]), of_peer, rtol=1e-5, atol=1e-5)
    assert np.ptp(said.logits) > 0.01 and np.abs(said.logits[0] - said.logits[1]).max() > 1e-4


def test_the_best_peer_of_the_last_epoch_is_taken(tiny):
    rows = [json.loads(line) for line in (tiny / "metrics.jsonl").read_text().splitlines()]
    on = {kind: [rows[-1][f"{kind}/accuracy_peer_{j}"] for j in (0, 1)] for kind in ("validation", "test")}
    assert on["validation"][1] > on["validation"][0] and on["test"][0] > on["test"][1]  # or it would show nothing
    student, arrays = own(tiny), saved_in(tiny)
    described = student.description
    assert (described.peers, described.chosen_by, described.which, described.epoch) == ((1,), "validation", "last", 3)
    assert described.accuracy == on["test"][1]
    np.testing.assert_allclose(student.logits(DIGITS), peer_says(arrays, DIGITS, 1), rtol=1e-5, atol=1e-5)
    other = own(tiny, peer=0)
    assert (other.description.peers, other.description.chosen_by) == ((0,), "")
    np.testing.assert_allclose(other.logits(DIGITS), peer_says(arrays, DIGITS, 0), rtol=1e-5, atol=1e-5)
    with pytest.raises(UsageError, match="--peer=-1: .* has peers 0 to 1"):
        own(tiny, peer=-1)


def test_the_best_epoch_the_average_and_the_ensemble(tiny):
    results = json.loads((tiny / "results.json").read_text())
    assert results["best"]["step"] < results["last"]["step"]  # or it would show nothing
    last, best = saved_in(tiny), saved_in(tiny, "best")
    for j in (0, 1):
        student = own(tiny, which="best", peer=j)
        assert student.description.step == results["best"]["step"]
        np.testing.assert_allclose(student.logits(DIGITS), peer_says(best, DIGITS, j), rtol=1e-5, atol=1e-5)
        params, stats = (f"state.teachers.average.{part}.{j}" for part in ("params", "batch_stats"))
        wanted = numpy_says(last, DIGITS, params, params, stats)
        student = own(tiny, which="average", peer=j)
        np.testing.assert_allclose(student.logits(DIGITS), wanted, rtol=1e-5, atol=1e-5)
        assert np.abs(wanted - peer_says(last, DIGITS, j)).max() > 1e-3
    by_peer = np.stack([peer_says(last, DIGITS, j) for j in (0, 1)])
    shares = np.exp(by_peer) / np.exp(by_peer).sum(axis=-1, keepdims=True)
    student = own(tiny, ensemble=True)
    np.testing.assert_allclose(student.logits(DIGITS), np.log(shares.mean(axis=0)), rtol=1e-5, atol=1e-5)
    said = student.predict(DIGITS)
    np.testing.assert_allclose(said.probabilities, shares.mean(axis=0), rtol=1e-5, atol=1e-6)
    assert said.names == tuple(str(label) for label in said.labels)
    accuracy = float((said.labels[:30] == data.load("digits").test_labels[:30]).mean())
    assert student.description.accuracy == results["last"]["accuracy_ensemble"] == pytest.approx(accuracy)


def test_the_card_tells_the_last_epoch_from_the_best(tiny):
    results, text = json.loads((tiny / "results.json").read_text()), card.text(own(tiny).description)
    assert results["best"]["epoch"] != results["last"]["epoch"]  # or it would show nothing
    for which in ("last", "best"):
        [line] = [line for line in text.splitlines() if line.startswith(f"| the run, {which} epoch |")]
        each = ", ".join(f"{100 * one:.2f}" for one in results[which]["accuracy_per_peer"])
        assert f"| epoch {results[which]['epoch']}" in line and f"peers {each} %" in line


def test_two_networks_of_somebody_s_own_are_both_named(tmp_path):
    """Each of them alone was refused for the other one."""
    names = "tests.tiny:Tiny,tests.tiny:wide"
    run = trained_in(tmp_path / "run", "dml", ":Tiny", f"--config.peers={names}", "--config.epochs=1")
    for asked in (None, "tests.tiny:Tiny", "tests.tiny:wide"):
        with pytest.raises(UsageError, match=f"to run that code say --backbone={names}$"):
            load.load(run, ensemble=True, backbone=asked)
    both = load.load(run, ensemble=True, backbone=names)
    assert both.description.backbones == tuple(names.split(","))
    assert evaluate.main([str(run), f"--backbone={names}"]) == 0
    assert export.main([str(run), str(tmp_path / "taken"), "--which=best", "--peer=1", f"--backbone={names}"]) == 0


def test_the_best_peer_is_that_of_the_epoch_and_of_the_kind(tiny, monkeypatch):
    """Peer or average, validation or test images, last or best epoch: each has another one, or another number."""
    names = ("peer_0", "peer_1", "average_0", "average_1")
    values = {
        2: {"validation": (0.1, 0.9, 0.8, 0.2), "test": (0.31, 0.32, 0.33, 0.34)},
        3: {"validation": (0.9, 0.1, 0.2, 0.8), "test": (0.41, 0.42, 0.43, 0.44)},
    }
    rows = [{"epoch": 1}] + [
        {"epoch": epoch, "test/accuracy_ensemble": epoch / 10}
        | {f"{on}/accuracy_{name}": value for on, each in of.items() for name, value in zip(names, each, strict=True)}
        for epoch, of in values.items()
    ]
    run = of_run.look(tiny)
    results = run.results | {which: run.results[which] | {"epoch": e} for which, e in (("best", 2), ("last", 3))}
    run = run._replace(rows=rows, results=results)
    monkeypatch.setattr(of_run, "load_networks", lambda run, *of: of_run.describe(run, *of[:3]))
    found = {which: of_run.load(run, which) for which in ("last", "best", "average")}
    assert {which: (it.peers, it.chosen_by, it.epoch, it.accuracy) for which, it in found.items()} == {
        "last": ((0,), "validation", 3, 0.41),
        "best": ((1,), "validation", 2, 0.32),
        "average": ((1,), "validation", 3, 0.44),
    }
    together = {which: of_run.load(run, which, ensemble=True) for which in ("last", "best", "average")}
    assert {which: (it.peers, it.accuracy) for which, it in together.items()} == {
        "last": ((0, 1), 0.3), "best": ((0, 1), 0.2), "average": ((0, 1), None)
    }  # fmt: skip


UNLIKE = ["--config.peers=tests.tiny:Tiny,tests.tiny:wide", "--config.weights.mmd=0"]


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ("one", []), ("okddip", []), pytest.param("cutnmix", UNLIKE, marks=pytest.mark.slow),
        pytest.param("dml", ["--config.mapping=vmap"], marks=pytest.mark.slow),
    ],
    ids=["one", "okddip", "unlike", "vmap"],
)  # fmt: skip
def test_each_peer_of_other_runs(row, flags, tmp_path):
    average = [] if flags else ["--config.average=0.5"]
    run = trained_in(tmp_path / "run", row, ":Tiny", *flags, *average)
    arrays, results = saved_in(run), json.loads((run / "results.json").read_text())
    found, labels = of_run.look(run), data.load("digits").test_labels[:30]
    count = len(results["last"]["accuracy_per_peer"])
    assert count == 2 and ("state.params.peers.2.Dense_0.bias" in arrays) == (row == "okddip")  # its leader
    for j, accuracy in enumerate(results["last"]["accuracy_per_peer"]):
        said = of_run.load(found, peer=j).logits(DIGITS)
        np.testing.assert_allclose(said, peer_says(arrays, DIGITS, j, None if flags else 0), rtol=1e-5, atol=1e-5)
        assert accuracy == pytest.approx((said[:30].argmax(axis=1) == labels).mean())
    with pytest.raises(UsageError, match=f"has peers 0 to {count - 1}"):
        of_run.load(found, peer=count)
    for j in range(count if average else 0):  # on the trunk of the averages, too
        params, stats = "state.teachers.average.params", "state.teachers.average.batch_stats"
        wanted = numpy_says(arrays, DIGITS, f"{params}.0", f"{params}.{j}", f"{stats}.0")
        said = of_run.load(found, which="average", peer=j).logits(DIGITS)
        np.testing.assert_allclose(said, wanted, rtol=1e-5, atol=1e-5)
        assert (
            np.abs(wanted - numpy_says(arrays, DIGITS, "state.params.peers.0", f"{params}.{j}", f"{stats}.0")).max()
            > 1e-4
        )
    both = of_run.load(found, ensemble=True)
    exported.write(both, tmp_path / "all")
    np.testing.assert_array_equal(exported.read(tmp_path / "all").logits(DIGITS[:5]), both.logits(DIGITS[:5]))
    np.testing.assert_array_equal(load_student(run / "student").logits(DIGITS), of_run.load(found).logits(DIGITS))


@pytest.mark.parametrize("name", few([":Tiny", ":TinyNNX"], (":Tiny",)))
def test_somebody_s_own_network(name, tiny, tmp_path, monkeypatch, capsys):
    """Its export needs no code of theirs, and out of a run that runs only where the person names it."""
    run = tiny if name == ":Tiny" else trained_in(tmp_path / "run", "cutnmix", name)
    name = f"tests.tiny{name}"
    with monkeypatch.context() as patched:
        asked = []
        patched.setattr(own_code, "named", lambda what, name: asked.append(name))
        patched.delitem(sys.modules, "tests.tiny")
        target, picture = tmp_path / "taken", tmp_path / "0.png"
        Image.fromarray(DIGITS[0]).save(picture)
        for more in ("--which=last", "--backbone=tests.tiny:wide", "--backbone=resnet8"):
            for command, rest in ((export, [str(target)]), (predict, [str(picture)]), (evaluate, [])):
                capsys.readouterr()
                code, streams = command.main([str(run), *rest, more]), capsys.readouterr()
                [error] = streams.err.splitlines()
                assert code == 2 and f"--backbone={name}" in error and not streams.out
        assert not target.exists() and predict.main([str(run), str(picture)]) == 0  # what the run has left is enough
        assert not asked and "tests.tiny" not in sys.modules
    assert export.main([str(run), str(target), f"--backbone={name}"]) == 0
    said = load.load(run, backbone=name).logits(DIGITS[:3])
    np.testing.assert_array_equal(by_the_card(tmp_path, DIGITS[:3]), said)
    code = f"""sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
import numpy, cutnmix_jax
numpy.save("ours.npy", cutnmix_jax.load_student("taken").logits(numpy.load("images.npy")))"""
    elsewhere(code, tmp_path, ("tests",))
    np.testing.assert_array_equal(np.load(tmp_path / "ours.npy"), said)


def test_a_run_without_its_checkpoints_still_has_its_student(ours, tiny, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(ours, run)
    shutil.rmtree(run / "checkpoints")
    assert np.array_equal(load.load(run).logits(DIGITS[:3]), load_student(ours).logits(DIGITS[:3]))
    with pytest.raises(CheckpointError, match="are gone; what is left of it is .*student, take that"):
        load.load(run, peer=0)
    shutil.rmtree(run / "student")
    shutil.copytree(tiny / "student", run / "student")
    with pytest.raises(CheckpointError, match="student is not of the run in"):
        load.load(run)


def test_any_number_of_images(tiny):
    """In their order, and each as it is alone but for the last digits, which follow from how many are shown at once."""
    student = own(tiny)
    images = np.random.default_rng(0).permuted(np.concatenate([DIGITS, DIGITS, DIGITS[:6]]), axis=1)
    alone = peer_says(saved_in(tiny), images, 1)
    whole = student.logits(images)
    assert whole.shape == (600, 10)
    for count in (1, 3, 256, 257, 600):
        said = student.logits(images[:count])
        np.testing.assert_allclose(said, whole[:count], rtol=0, atol=1e-6)
        np.testing.assert_allclose(said, alone[:count], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(student.logits(images[256:512]), whole[256:512])
    np.testing.assert_array_equal(student.logits(images[:257])[:256], whole[:256])
    np.testing.assert_array_equal(student.logits(list(images[:3])), student.logits(images[:3]))


def test_images_of_other_shapes_and_types(tiny):
    student, images = own(tiny), DIGITS[:2]
    for wrong in (
        images.astype(np.float32), images.astype(np.int64), images[0], images[:0], images[:, :16], images[..., :1],
        images.transpose(0, 3, 1, 2), np.uint8(3), "a text", [[1, 2], [3, 4]], None,
    ):  # fmt: skip
        array = np.asarray(wrong)
        with pytest.raises(ValueError, match="^images are ") as raised:
            student.predict(wrong)
        says = f"{array.dtype}{list(array.shape)}, not uint8[n, 32, 32, 3] with values from 0 to 255"
        assert str(raised.value) == f"images are {says}"
