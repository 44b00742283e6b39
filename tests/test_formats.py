"""Exports for PyTorch and ONNX: the same logits there as here, in environments that have them, and what is refused."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cutnmix_jax import backbones
from cutnmix_jax.errors import UsageError
from cutnmix_jax.student import formats, network, onnx_handover, onnx_model, torch_names
from cutnmix_jax.student.description import Description

ROOT = Path(__file__).parent.parent
BIG = ("resnet18", "resnet32", "resnet110", "wrn20_8", "densenet40_12", "vgg16", "vgg19")
BACKBONES = ["resnet8", *(pytest.param(name, marks=pytest.mark.slow) for name in BIG)]
TORCHVISION = {
    "resnet18_imagenet": "resnet18", "resnet34_imagenet": "resnet34", "resnet50_imagenet": "resnet50",
    "mobilenet_v2": "mobilenet_v2",
}  # fmt: skip


@functools.cache
def found_python(package, variable):
    python = os.environ.get(variable)
    if python:
        done = subprocess.run([python, "-c", f"import {package}"], capture_output=True, text=True)
        assert done.returncode == 0, f"{variable}={python}: {done.stderr}"
    return python


def python_with(package, variable):
    """The interpreter that a variable names; without it there is nothing to compare with."""
    return found_python(package, variable) or pytest.skip(f"{variable} names no Python that has {package}")


def described(*names, image_shape=(32, 32, 3), precision="float32"):
    C = image_shape[-1]
    return Description(
        backbones=names, class_names=tuple(f"class {k}" for k in range(10)), image_shape=image_shape,
        mean=(0.5, 0.45, 0.4)[:C], std=(0.25, 0.2, 0.3)[:C], resampling="bicubic", precision=precision,
        dataset="digits", method="cutnmix", seed=1, epochs=2, which="last", epoch=2, step=9,
        peers=tuple(range(len(names))), accuracy=None, chosen_by="", networks_sha256=("0" * 64,) * len(names), run={},
    )  # fmt: skip


def drawn(rng, path, leaf):
    """A leaf with other numbers than it starts from, where those are 0 and 1: biases, scales and statistics.

    In these ranges what a network adds up neither dies out nor drowns the biases, so that each array is seen.
    """
    if leaf.ndim != 1 or not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    low, high = {"var": (1, 3), "scale": (0.5, 1.5)}.get(jax.tree_util.keystr(path[-1:], simple=True), (-0.3, 0.3))
    return jnp.asarray(rng.uniform(low, high, leaf.shape), leaf.dtype)


@functools.cache  # with what it has compiled
def student_of(*names, **fields):
    description, rng = described(*names, **fields), np.random.default_rng(1)
    networks = [made.init(jax.random.key(j)) for j, made in enumerate(description.make())]
    changed = [jax.tree_util.tree_map_with_path(functools.partial(drawn, rng), one) for one in networks]
    return network.make(description, network.named(changed))


def numbered(*names, **fields):
    """A student whose arrays are filled with 1, 2, 3, ...; nothing is compiled."""
    description = described(*names, **fields)
    shapes = network.named(
        [jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), network.shapes_of(m)) for m in description.make()]
    )
    return network.make(description, {name: np.full_like(a, i) for i, (name, a) in enumerate(shapes.items(), 1)})


def refused(*arguments):
    with pytest.raises(UsageError) as caught:
        formats.made(*arguments)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 600
    return line


def ran(python, program, folder):
    done = subprocess.run([python, "-c", program, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr  # a file is not right that makes its reader warn
    return np.load(folder / "logits.npz")


def close(found, expected, most=1e-5):
    assert found.shape == expected.shape and found.dtype == np.float32
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    print(f"largest difference {difference:.1e} of {np.abs(expected).max():.2f}")
    assert difference <= most


def pictures(student, count):
    shape = (count, *student.description.image_shape)
    return np.random.default_rng(2).integers(0, 256, shape, dtype=np.uint8)


# PyTorch

IN_TORCH = """
import json, sys
import numpy as np, torch
from scripts.bench_torch.networks import NETWORKS
folder = sys.argv[1]
file, told = np.load(f"{folder}/state.npz"), json.load(open(f"{folder}/metadata.json"))
names, logits = told["backbone"].split(","), []
mean, std = (torch.tensor(json.loads(told[name])) for name in ("mean", "std"))
images = ((torch.from_numpy(np.load(f"{folder}/images.npy")) / 255 - mean) / std).permute(0, 3, 1, 2)
for j, name in enumerate(names):
    prefix = f"{j}." if len(names) > 1 else ""
    state = {key.removeprefix(prefix): torch.from_numpy(file[key]) for key in file if key.startswith(prefix)}
    made = NETWORKS[name](10).eval()
    made.load_state_dict(state, strict=True)
    with torch.no_grad():
        logits.append(made(images)[0])
if len(names) > 1:
    logits = [torch.stack([one.softmax(1) for one in logits]).mean(0).log()]
np.savez(f"{folder}/logits.npz", logits=logits[0].numpy())
"""


def read(content, path):
    """The arrays and the metadata of a file of safetensors."""
    path.write_bytes(content)
    with safetensors.safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def same_in_torch(student, folder):
    python = python_with("torch", "TORCH_PYTHON")
    arrays, metadata = read(formats.made(student, "torch")["torch.safetensors"], folder / "torch.safetensors")
    images = pictures(student, 5)
    np.savez(folder / "state.npz", **arrays)  # PyTorch's environment may have no safetensors
    np.save(folder / "images.npy", images)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    close(ran(python, IN_TORCH, folder)["logits"], student.logits(images))


@pytest.mark.parametrize("name", BACKBONES)
def test_pytorch_loads_a_student_and_says_the_same(name, tmp_path):
    python_with("torch", "TORCH_PYTHON")
    same_in_torch(student_of(name), tmp_path)


def test_pytorch_loads_an_ensemble(tmp_path):
    python_with("torch", "TORCH_PYTHON")
    same_in_torch(student_of("resnet8", "resnet8"), tmp_path)


# torchvision

IN_TORCHVISION = """
import json, sys
import numpy as np, torch, torchvision
folder, name = sys.argv[1], json.load(open(f"{sys.argv[1]}/name.json"))
file = np.load(f"{folder}/state.npz")
made = getattr(torchvision.models, name)(num_classes=len(file["classes"])).eval()
made.load_state_dict({key: torch.from_numpy(file[key]) for key in file if key != "classes"}, strict=True)
with torch.no_grad():
    logits = made(torch.from_numpy(np.load(f"{folder}/images.npy")).permute(0, 3, 1, 2))
np.savez(f"{folder}/logits.npz", logits=logits.numpy())
"""


@functools.cache
def has_torchvision():
    done = subprocess.run(
        [python_with("torch", "TORCH_PYTHON"), "-c", "import torchvision"], capture_output=True, text=True
    )
    return done.returncode == 0 or done.stderr.strip().splitlines()[-1]


def filled(rng, path, leaf):
    """A leaf such that every layer keeps the size of what it is given; depthwise kernels start too small for that."""
    if leaf.ndim == 1:
        return drawn(rng, path, leaf)
    return jnp.asarray(rng.normal(scale=(2 / np.prod(leaf.shape[:-1])) ** 0.5, size=leaf.shape), leaf.dtype)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "resnet18_imagenet")) for name in TORCHVISION]
)
def test_torchvision_loads_a_large_network_and_says_the_same(name, tmp_path):
    """At 224x224 and another size, with 1000 classes, random weights and random running statistics."""
    if (reason := has_torchvision()) is not True:
        pytest.skip(f"TORCH_PYTHON has no torchvision: {reason}")
    made, rng = backbones.load(name, 1000, image_shape=(224, 224, 3)), np.random.default_rng(1)
    shapes = network.shapes_of(made)
    variables = jax.tree_util.tree_map_with_path(functools.partial(filled, rng), shapes)
    answer = jax.jit(lambda variables, images: made.apply(variables, images, False)[0].logits)
    state = torch_names.state_dict(name, 1000, made, variables)
    np.savez(tmp_path / "state.npz", classes=np.arange(1000), **state)
    (tmp_path / "name.json").write_text(json.dumps(TORCHVISION[name]))
    for size in ((224, 224), (65, 98)):
        images = (rng.normal(size=(2, *size, 3)) + 2 * rng.normal(size=(2, 1, 1, 3))).astype(np.float32)
        np.save(tmp_path / "images.npy", images)
        logits = answer(variables, images)
        close(ran(python_with("torch", "TORCH_PYTHON"), IN_TORCHVISION, tmp_path)["logits"], np.asarray(logits))
        assert np.abs(logits[0] - logits[1]).max() > 0.01 * np.abs(logits).max()  # the images are seen


@pytest.mark.parametrize("name", ["resnet8", *BIG, *TORCHVISION])
def test_each_array_has_one_name_in_pytorch(name, tmp_path):
    student = numbered(name)
    found, metadata = read(formats.made(student, "torch")["torch.safetensors"], tmp_path / "file")
    counters = [key for key in found if key.endswith(".num_batches_tracked")]
    assert all(found[key].shape == () and found[key].dtype == np.int64 and found[key] == 0 for key in counters)
    values = sorted(float(array.flat[0]) for key, array in found.items() if key not in counters)
    assert values == list(range(1, len(student.arrays) + 1))
    assert len(counters) == sum(key.endswith(".running_var") for key in found) > 0
    assert sum(array.size for array in found.values()) == sum(a.size for a in student.arrays.values()) + len(counters)
    assert (metadata["backbone"], json.loads(metadata["mean"])) == (name, [0.5, 0.45, 0.4])
    assert len({layer.name for layer in torch_names.layers(name, 10)}) == len(torch_names.layers(name, 10))


@pytest.mark.parametrize("name", ["resnet8", "mobilenet_v2", "densenet40_12", "vgg16"])
def test_each_array_has_its_axes_in_pytorch(name, tmp_path):
    """Kernels HWIO -> OIHW and [in, out] -> [out, in], and no array of a layer is another one's of the same shape."""
    rng, blank = np.random.default_rng(0), numbered(name)
    ours = {path: rng.random(array.shape, np.float32) for path, array in blank.arrays.items()}
    student = network.make(blank.description, ours)
    found, metadata = read(formats.made(student, "torch")["torch.safetensors"], tmp_path / "file")
    by_first = {float(array.flat[0]): (path, array) for path, array in ours.items()}
    parts = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    for key, array in found.items():
        if not key.endswith(".num_batches_tracked"):
            path, own = by_first[float(array.flat[0])]
            assert key.rpartition(".")[2] == parts[path.rpartition(".")[2]], (key, path)
            wanted = {4: own.transpose(3, 2, 0, 1) if own.ndim == 4 else None, 2: own.T, 1: own}[own.ndim]
            np.testing.assert_array_equal(array, wanted, err_msg=key)
    assert [json.loads(metadata[name]) for name in ("mean", "std")] == [[0.5, 0.45, 0.4], [0.25, 0.2, 0.3]]


def test_an_ensemble_has_each_network_under_its_number(tmp_path):
    alone = read(formats.made(numbered("resnet8"), "torch")["torch.safetensors"], tmp_path / "one")[0]
    both, told = read(formats.made(numbered("resnet8", "resnet8"), "torch")["torch.safetensors"], tmp_path / "two")
    assert set(both) == {f"{j}.{name}" for j in range(2) for name in alone} and told["backbone"] == "resnet8,resnet8"


def test_what_has_no_form_in_pytorch_is_refused(monkeypatch):
    assert "tests.tiny:Tiny is a network of somebody's own" in refused(student_of("tests.tiny:Tiny"), "torch")
    assert "32 x 32" in refused(numbered("vgg16", image_shape=(64, 64, 3)), "torch")
    assert "conv1 is a conv [16, 3, 3, 3]" in refused(numbered("resnet8", image_shape=(32, 32, 1)), "torch")
    resnet8 = numbered("resnet8")
    layers = torch_names.layers("resnet8", 10)
    monkeypatch.setattr(torch_names, "layers", lambda *_: layers[:-1])
    assert "19 layers, and 18" in refused(resnet8, "torch")
    monkeypatch.setattr(torch_names, "layers", lambda *_: [layers[1], layers[0], *layers[2:]])
    assert "Conv_0 is a conv" in refused(resnet8, "torch")
    monkeypatch.undo()
    monkeypatch.setattr(torch_names, "_RULES", {})
    assert "no form in PyTorch" in refused(resnet8, "torch")


def test_other_image_sizes_have_a_form_where_the_network_is_the_same(tmp_path):
    found = read(
        formats.made(numbered("resnet8", image_shape=(48, 40, 3)), "torch")["torch.safetensors"], tmp_path / "f"
    )
    assert found[0]["fc.weight"].shape == (10, 64)


# ONNX

IN_ONNX = """
import sys
import numpy as np, onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
(taken,), (given,) = session.get_inputs(), session.get_outputs()
assert (taken.name, taken.type, given.name, given.type) == ("images", "tensor(uint8)", "logits", "tensor(float)")
assert isinstance(taken.shape[0], str) and given.shape[1:] == [10], (taken.shape, given.shape)
images = np.load(f"{folder}/images.npy")
answers = {str(n): session.run(None, {"images": images[:n]})[0] for n in (1, 5)}
np.savez(f"{folder}/logits.npz", **answers)
"""


def same_in_onnx(student, folder, backbone=None, wanted=None):
    """Exports a student, and compares the file with it, or with another that is `wanted`."""
    python = python_with("jax2onnx", "ONNX_PYTHON")
    (folder / "model.onnx").write_bytes(formats.made(student, "onnx", python, backbone)["model.onnx"])
    images = pictures(student, 5)
    np.save(folder / "images.npy", images)
    found = ran(python, IN_ONNX, folder)
    for n in (1, 5):
        close(found[str(n)], (wanted or student).logits(images[:n]))


@pytest.mark.parametrize("name", [*BACKBONES, *(pytest.param(name, marks=pytest.mark.slow) for name in TORCHVISION)])
def test_onnx_says_the_same(name, tmp_path):
    python_with("jax2onnx", "ONNX_PYTHON")
    same_in_onnx(student_of(name), tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "tests.tiny:Tiny",
        "tests.tiny:TinyNNX",
        *(pytest.param(f"tests.tiny:{name}", marks=pytest.mark.slow) for name in ("half", "half_nnx")),
    ],
)
def test_onnx_of_a_network_of_one_s_own(name, tmp_path, monkeypatch):
    python_with("jax2onnx", "ONNX_PYTHON")
    monkeypatch.chdir(ROOT)  # where it is found
    same_in_onnx(student_of(name), tmp_path, name)


POOLED = """
import flax.linen as nn, jax.numpy as jnp
class Net(nn.Module):
    num_classes: int
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = nn.max_pool(x, (2, 2), (1, 1), "SAME") + nn.avg_pool(x, (3, 3), padding="SAME")
        x = nn.avg_pool(x, window_shape=(2, 2), strides=(2, 2))
        return nn.Dense(self.num_classes)(nn.max_pool(x, (2, 2), strides=(2, 2)).reshape((x.shape[0], -1)))
"""


def test_onnx_of_each_way_to_pool(tmp_path, monkeypatch):
    python_with("jax2onnx", "ONNX_PYTHON")
    (tmp_path / "pooled_net.py").write_text(POOLED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    same_in_onnx(student_of("pooled_net:Net"), tmp_path, "pooled_net:Net")


@pytest.mark.slow
def test_onnx_of_an_ensemble_that_was_trained_in_bfloat16(tmp_path):
    python_with("jax2onnx", "ONNX_PYTHON")
    student = student_of("resnet8", "resnet8", precision="bfloat16")
    same_in_onnx(student, tmp_path, wanted=network.make(described("resnet8", "resnet8"), student.arrays))


def test_onnx_of_a_network_that_is_not_found_there(tmp_path, monkeypatch):
    python = python_with("jax2onnx", "ONNX_PYTHON")
    student = student_of("tests.tiny:Tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert "cannot import 'tests.tiny'" in refused(student, "onnx", python, "tests.tiny:Tiny")


def test_the_code_of_a_network_of_somebody_s_own_is_not_run_unasked():
    line = refused(student_of("tests.tiny:Tiny"), "onnx", sys.executable)
    assert line.endswith("to run that code say --backbone=tests.tiny:Tiny")


def test_weights_of_other_code_are_refused():
    student = student_of("tests.tiny:Tiny", precision="tf32")
    other = dataclasses.replace(student, arrays=student_of("tests.tiny:wide").arrays)
    assert "its weights are not those of the network" in refused(other, "onnx", sys.executable, "tests.tiny:Tiny")


def test_an_environment_without_jax2onnx_is_told_how_to_make_one(tmp_path, monkeypatch):
    student = student_of("tests.tiny:Tiny")
    own = "tests.tiny:Tiny"
    monkeypatch.setattr(onnx_model.importlib.util, "find_spec", lambda name: None)
    line = refused(student, "onnx", None, own)
    assert "python3 -m venv onnx-env && onnx-env/bin/pip install" in line and "--python=onnx-env/bin/python" in line
    assert onnx_model.REMEDY in refused(student, "onnx", str(tmp_path / "python"), own)
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexit 7\n")
    silent.chmod(0o755)
    assert "ended with 7 and no message" in refused(student, "onnx", str(silent), own)
    lacking = tmp_path / "lacking"
    lacking.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'jax'\" >&2; exit 1\n")
    lacking.chmod(0o755)
    line = refused(student, "onnx", str(lacking), own)
    assert "No module named 'jax'; make an environment" in line
    assert "leave it out" in refused(student, "torch", str(lacking))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits, ""),
        (lambda logits: logits * np.float32(1 + 5e-6), ""),
        (lambda logits: logits * np.float32(1 + 2e-5), "other logits than the student, by 2.0e-05"),
        (lambda logits: logits * np.float32("nan"), "other logits"),
        (lambda logits: logits[:1], r"logits [1, 10], not [5, 10]"),
    ],
)
def test_a_file_that_says_something_else_is_not_written(change, message, monkeypatch):
    student = student_of("tests.tiny:Tiny")

    def work(python, folder, own):
        images = onnx_handover.read(folder / onnx_handover.IMAGES)["images"]
        weights = onnx_handover.read(folder / onnx_handover.WEIGHTS)
        assert python == "somewhere" and own and all((weights[name] == a).all() for name, a in student.arrays.items())
        answers = {str(n): student.logits(images[:n]) for n in onnx_handover.COUNTS}
        answers["5"] = change(answers["5"])
        onnx_handover.write(folder / onnx_handover.ANSWERS, answers)
        (folder / onnx_handover.MODEL).write_bytes(b"file")

    monkeypatch.setattr(onnx_model, "_work", work)
    arguments = (student, "onnx", "somewhere", "tests.tiny:Tiny")
    if message:
        assert message in refused(*arguments)
    else:
        assert formats.made(*arguments) == {"model.onnx": b"file"}


def test_jax_has_no_other_file():
    assert formats.made(numbered("resnet8"), "jax") == {}
    assert set(backbones.names()) == {"resnet8", *BIG, *TORCHVISION}  # or another has to be tested here
