"""The folder of an export: read as it was written or not at all, and written whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image

from cutnmix_jax import backbones, digests, export, load_student, predict
from cutnmix_jax.errors import CheckpointError, UserError
from cutnmix_jax.student import exported, network
from tests.hostile import snapshot
from tests.runs import few
from tests.test_disk import mounted
from tests.test_student import DIGITS, own, trained_in

FILES = ("README.md", "SHA256SUMS", "model.safetensors", "program.jax_export", "student.json")


def drawn(description, name, precision="float32", seed=0):
    """A student of drawn weights and batch statistics."""
    described = dataclasses.replace(description, backbones=(name,), precision=precision)
    [made], rng = described.make(), np.random.default_rng(seed)

    def leaf(path, shape):
        if not jnp.issubdtype(shape.dtype, jnp.floating):  # a count or a random key
            return np.zeros(shape.shape, shape.dtype)
        is_positive = jax.tree_util.keystr(path).endswith(("['var']", "['scale']"))
        scale = 1 / np.sqrt(max(1, shape.size // shape.shape[-1]))
        array = rng.uniform(0.5, 1.5, shape.shape) if is_positive else rng.normal(scale=scale, size=shape.shape)
        return array.astype(shape.dtype)

    variables = jax.tree_util.tree_map_with_path(leaf, network.shapes_of(made))
    described = dataclasses.replace(described, networks_sha256=(digests.of_network(variables),))
    return network.make(described, network.named([variables]))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return trained_in(tmp_path_factory.mktemp("run") / "run", "dml", ":Tiny")


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """Folders with a network of somebody's own, the same with other weights, and one of ours; and what each says."""
    folder, student = tmp_path_factory.mktemp("exports"), own(run, peer=0)
    exported.write(student, folder / "own")
    exported.write(own(run, peer=1), folder / "other")
    exported.write(drawn(student.description, "resnet8"), folder / "resnet8")
    return {path.name: (path, load_student(path).logits(DIGITS[:2])) for path in folder.iterdir()}


def copied(exports, name, target):
    return Path(shutil.copytree(exports[name][0], target)), exports[name][1]


def resummed(folder):
    """Makes the digests of an export anew, as somebody does who has changed it on purpose."""
    names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / "SHA256SUMS").write_text("".join(sums))


def is_refused(folder, said):
    """Whether an export cannot be loaded; if it can, it says what it said. What waits for a pipe is ended."""
    signal.alarm(60)
    try:
        student = load_student(folder)
    except UserError as error:
        assert error.exit_code in (2, 4) and "\n" not in str(error)
        return True
    finally:
        signal.alarm(0)
    np.testing.assert_array_equal(student.logits(DIGITS[:2]), said)
    return False


ALL = [(name, "float32") for name in backbones.names()]
ALL += [("resnet8", "bfloat16"), ("tests.tiny:half", "bfloat16"), ("tests.tiny:half_nnx", "float32")]


@pytest.mark.parametrize("which", few(ALL, (ALL[-2], ("resnet8", "float32"))), ids=" ".join)
def test_every_backbone_is_read_as_it_was_written(which, exports, tmp_path):
    """Weights in bfloat16 keep their type; activations in bfloat16 are told by the last digits alone."""
    name, precision = which
    description = exported.read_description(exports["own"][0])
    student = drawn(description, name, precision)
    exported.write(student, tmp_path / "taken")
    again = exported.read(tmp_path / "taken")
    assert again.description == student.description and set(again.arrays) == set(student.arrays)
    for of, array in student.arrays.items():
        assert again.arrays[of].dtype == array.dtype
        np.testing.assert_array_equal(again.arrays[of], array)
    said = student.logits(DIGITS[:4])
    np.testing.assert_array_equal(again.logits(DIGITS[:4]), said)
    exporting = jax.export.deserialize(bytearray((tmp_path / "taken" / "program.jax_export").read_bytes()))
    np.testing.assert_array_equal(exporting.call(dict(student.arrays), DIGITS[:4]), said)
    assert any(array.dtype == jnp.bfloat16 for array in student.arrays.values()) == ("half" in name)
    if which == ("resnet8", "bfloat16"):
        one, exact = student.logits(DIGITS[:50]), drawn(description, name).logits(DIGITS[:50])
        assert 1e-4 < np.abs(one - exact).max() / np.ptp(exact) < 0.05


@pytest.mark.rounds(12, 300)
def test_a_flipped_bit(number, exports, tmp_path):
    chance = random.Random(number)
    folder, said = copied(exports, ("own", "resnet8")[number % 2], tmp_path / "flipped")
    path = folder / FILES[number // 2 % len(FILES)]
    content, at = bytearray(path.read_bytes()), chance.randrange(path.stat().st_size)
    content[at] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    refused = is_refused(folder, said)
    assert refused == (path.name != "README.md") or path.name == "SHA256SUMS", at


@pytest.mark.parametrize("name", ["own", "resnet8"])
def test_files_cut_emptied_removed_and_swapped(name, exports, tmp_path):
    for path in FILES:
        for what in ("cut", "emptied", "removed", "longer", "of another", "swapped"):
            folder, said = copied(exports, name, tmp_path / f"{path} {what}")
            content, another = (folder / path).read_bytes(), FILES[FILES.index(path) - 1]
            if what == "swapped":
                (folder / path).write_bytes((folder / another).read_bytes())
                (folder / another).write_bytes(content)
            else:
                others = (exports["other" if name == "own" else "own"][0] / path).read_bytes()
                changed = {"cut": content[: len(content) // 2], "emptied": b"", "longer": content + b"\0"}
                (folder / path).write_bytes(changed.get(what, others))
            if what == "removed":
                (folder / path).unlink()
            # Nobody looks at the card, and a network of ours is made anew: it needs no program.
            spared = {"README.md"} | ({"program.jax_export"} if name == "resnet8" and what == "removed" else set())
            assert is_refused(folder, said) == (path not in spared or what == "swapped"), (path, what)


def test_weights_of_another_export_with_their_own_digest(exports, tmp_path):
    """The digests of the networks tell them, whoever has made the other ones anew."""
    folder, _ = copied(exports, "own", tmp_path / "mixed")
    shutil.copy(exports["other"][0] / "model.safetensors", folder)
    resummed(folder)
    with pytest.raises(CheckpointError, match="has other weights than student.json says"):
        load_student(folder)


@pytest.mark.parametrize("line", ["../secret", "/etc/hostname", "a/b", ".", "..", "", "x" * 5000, "a\0b", "FOLDER"])
def test_what_sha256sums_may_name(line, exports, tmp_path):
    """Nothing outside the folder is opened: a pipe there would be waited for."""
    folder, said = copied(exports, "own", tmp_path / "taken")
    os.mkfifo(tmp_path / "secret")
    (folder / "FOLDER").mkdir()
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {line}\n")
    assert is_refused(folder, said) or line in ("x" * 5000, "a\0b")


def test_links_work_and_pipes_do_not_hang(exports, tmp_path):
    blobs, said = copied(exports, "own", tmp_path / "blobs")
    (tmp_path / "linked").mkdir()
    for name in FILES:
        (tmp_path / "linked" / name).symlink_to(blobs / name)
    (tmp_path / "again").symlink_to(tmp_path / "linked")
    assert not is_refused(tmp_path / "linked", said) and not is_refused(tmp_path / "again", said)
    for name in FILES[1:]:
        folder, _ = copied(exports, "own", tmp_path / name)
        (folder / name).unlink()
        os.mkfifo(folder / name)
        assert is_refused(folder, said), name


VALUES = [None, True, -1, 0, 1e400, float("nan"), "x", [], {}, ["x"], [[]], [1, 2, 3], [-1, 32, 3], [0.5, 0.5, None]]


@pytest.mark.rounds(6, 100)
def test_descriptions_of_other_types_and_versions(number, exports, tmp_path, capsys):
    """With digests made anew: a line, and never a traceback; the card and the picture are the least that reads them."""
    chance = random.Random(number)
    fields = json.loads((exports["own"][0] / "student.json").read_text())
    for name in chance.sample(sorted(fields), 5):
        folder, _ = copied(exports, ("own", "resnet8")[number % 2], tmp_path / name)
        fields = json.loads((folder / "student.json").read_text())
        fields[name] = chance.choice(VALUES)
        (folder / "student.json").write_text(json.dumps(fields))
        resummed(folder)
        Image.fromarray(DIGITS[0]).save(tmp_path / "0.png")
        capsys.readouterr()
        code = predict.main([str(folder), str(tmp_path / "0.png"), "--csv"])
        errors = capsys.readouterr().err.splitlines()
        assert (code, len(errors)) in ((0, 0), (2, 1), (4, 1)), (name, fields[name], errors)
        if not code:
            assert export.main([str(folder), str(tmp_path / f"{name} again")]) in (0, 2, 4), (name, fields[name])
        assert code == 4 or name not in ("format", "run", "class_names")


def test_nothing_of_an_export_is_run(exports, tmp_path, monkeypatch):
    """No module that lies in it is imported, also where Python begins there, and nothing is unpickled."""
    folder, said = copied(exports, "own", tmp_path / "taken")
    for name in ("student", "jax", "sitecustomize", "tests", "model", "cutnmix_jax", "safetensors"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w').close()")

    def refuse(*_, **__):
        raise AssertionError("something is unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert not is_refused(folder, said)
    Image.fromarray(DIGITS[0]).save(tmp_path / "0.png")
    command = [sys.executable, "-P", "-m", "cutnmix_jax", "predict", ".", "../0.png"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    assert subprocess.run(command, cwd=folder, env=environment).returncode == 0 and not (tmp_path / "run").exists()


def exported_to(target, source):
    return export.main([str(source), str(target)])


@pytest.mark.parametrize("there", ["file", "folder", "link", "file/below", "missing/parents", "empty"])
def test_where_an_export_goes(there, exports, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    code = exported_to(tmp_path / there, exports["own"][0])
    if there in ("missing/parents", "empty"):
        assert code == 0 and sorted(path.name for path in (tmp_path / there).iterdir()) == sorted(FILES)
        assert not is_refused(tmp_path / there, exports["own"][1])
    else:
        [error] = capsys.readouterr().err.splitlines()
        assert code == 2 and str(tmp_path / there) in error and snapshot(tmp_path) == before


@pytest.mark.parametrize("error", [OSError(30, "Read-only file system"), KeyboardInterrupt(), ValueError("of JAX")])
def test_an_error_in_the_middle_leaves_nothing(error, exports, tmp_path, monkeypatch, capsys):
    calls, write = [], exported.files.write

    def failing(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise error
        write(path, content)

    monkeypatch.setattr(exported.files, "write", failing)
    with contextlib.suppress(ValueError):  # a fault of ours keeps its traceback
        assert exported_to(tmp_path / "new" / "taken", exports["own"][0]) == (2 if isinstance(error, OSError) else 130)
    assert len(calls) == 3 and not list(tmp_path.rglob("*taken*"))


def test_a_full_disk(exports, tmp_path):
    [error] = mounted(tmp_path / "disk", f'fill("{tmp_path / "disk"}", "{exports["own"][0]}")', "test_exports")
    assert error == f"error: cannot write {tmp_path / 'disk' / 'taken'}: No space left on device"


def fill(disk, source):
    """Exports to a full disk, and once there is room."""
    disk = Path(disk)
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with (disk / "filler").open("r+b") as file:
        file.truncate((disk / "filler").stat().st_size - 8192)
    assert exported_to(disk / "taken", source) == 2
    assert [path.name for path in disk.iterdir()] == ["filler"]
    (disk / "filler").unlink()
    assert exported_to(disk / "taken", source) == 0 and load_student(disk / "taken")
    print("as it should be")


def test_the_card(run, exports, tmp_path):
    results = json.loads((run / "results.json").read_text())
    folder, awkward = exports["own"][0], tmp_path / 'it\'s a "student"\\\udcff\n```'
    text = (folder / "README.md").read_text()
    facts = yaml.safe_load(text.split("---\n")[1])
    accuracy = results["last"]["accuracy_per_peer"][0]
    [model] = facts["model-index"]
    assert model["results"][0]["metrics"] == [{"type": "accuracy", "value": accuracy}]
    assert facts["datasets"] == ["digits"] and f"| {100 * accuracy:.2f} % of 30 test images |" in text
    for which in ("last", "best"):
        each = ", ".join(f"{100 * one:.2f}" for one in results[which]["accuracy_per_peer"])
        mean, ensemble = (f"{100 * results[which][name]:.2f} %" for name in ("accuracy", "accuracy_ensemble"))
        assert f"peers {each} %, mean {mean}, ensemble {ensemble}" in text
        assert f"epoch {results[which]['epoch']}" in text
    assert os.system(f"cd {folder} && sha256sum --quiet -c SHA256SUMS") == 0
    # Whatever the folder is called, its lines are Python.
    assert exported_to(awkward, folder) == 0
    for block in (awkward / "README.md").read_text().split("```python\n")[1:]:
        compile(block.partition("```")[0], "card", "exec")


def test_the_hub_reads_the_card(exports):
    hub = pytest.importorskip("huggingface_hub")
    folder, _ = exports["resnet8"]
    accuracy = exported.read_description(folder).accuracy
    card = hub.ModelCard.load(folder / "README.md")
    [told] = card.data.eval_results
    assert (told.metric_value, told.dataset_name, told.task_type) == (accuracy, "digits", "image-classification")
    assert card.data.library_name == "cutnmix-jax" and "# resnet8, digits, dml, seed 95" in card.text
