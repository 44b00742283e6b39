"""A run on several devices is the run on one: the same images and boxes, and the same numbers but for rounding."""

import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax.engine import devices
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import command_line
from tests.conftest import ROOT
from tests.runs import TEN_EPOCHS, Made

MESH = {
    "four": ["--config.devices=4"],
    "both": ["--config.devices=0", "--config.mapping=shard"],  # 2 peers x 4 parts
    "two": ["--config.devices=2"],
    "vmap": ["--config.devices=4", "--config.mapping=vmap"],
    "peers": ["--config.devices=2", "--config.mapping=shard"],
    "disk": ["--config.devices=4", "--config.images_in=memory"],
}
ALWAYS = ("four", "both")  # the rest with --all: each is a program to compile
UNLIKE = ["--config.peers=tests.tiny:wide,tests.tiny:TinyNNX", "--config.mapping=shard"]
MMD = "--config.weights.mmd=0"  # where features differ in size
DRAWN = {  # mapping, groups of peers, whether each device has its part to itself, features of each network
    "parts": ("unroll", 1, False, (5, 5)),
    "local parts": ("unroll", 1, True, (5, 5)),
    "peers": ("shard", 2, False, (5, 5)),
    "local peers": ("shard", 2, True, (5, 5)),
    "unlike": ("shard", 2, False, (5, 6)),
    "local unlike": ("shard", 2, True, (5, 6)),
}
BRANCHED = ("one", "pcl")  # whose peers share a trunk
METHODS = ("cutnmix", "dml", "one", "ps_kd", "pcl")


def train(folder, cases, count=8):
    """The arrays of each case, each of `row, steps, *fields`, on 8 devices."""
    out = folder / "arrays.npz"
    command = [sys.executable, "-m", "tests.on_devices", str(out), str(count), json.dumps(cases)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: {} for name in cases}
    with np.load(out) as arrays:
        for key in arrays:
            name, _, path = key.partition(":")
            found[name][path] = arrays[key]
    return found


def assert_one_run(found, alone):
    """The same parameters within 1e-5 and the rest within rounding; the same images, labels and boxes exactly."""
    assert found.keys() == alone.keys()
    for path, array in found.items():
        if path.startswith(("batch", "mix", "tested")):
            np.testing.assert_array_equal(array, alone[path], err_msg=path)
        else:
            # Squares of activations, and sums of gradients, move further than the parameters.
            tolerance = 1e-4 if "batch_stats" in path or "opt_state" in path else 1e-5
            np.testing.assert_allclose(array, alone[path], atol=tolerance, rtol=tolerance, err_msg=path)


@pytest.fixture(scope="module")
def cutnmix(tmp_path_factory, request):
    """20 steps of it in each way."""
    ways = MESH if request.config.getoption("--all") else ALWAYS
    cases = {name: ["cutnmix", 20, *MESH[name]] for name in ways} | {"alone": ["cutnmix", 20]}
    if ways is MESH:
        cases["local"] = ["cutnmix", 1, "--config.devices=4", "--config.bn=local"]
    cases["local peers"] = ["cutnmix", 1, "--config.devices=8", "--config.mapping=shard", "--config.bn=local"]
    cases |= {f"drawn {name}": ["drawn", *how] for name, how in DRAWN.items()}
    return train(tmp_path_factory.mktemp("cutnmix"), cases)


@pytest.mark.parametrize("how", [pytest.param(name, marks=[] if name in ALWAYS else pytest.mark.slow) for name in MESH])
def test_the_same_run(how, cutnmix):
    assert_one_run(cutnmix[how], cutnmix["alone"])


@pytest.mark.parametrize("how", DRAWN)
def test_each_peer_and_each_image_has_numbers_of_its_own(how, cutnmix):
    """Dropout, say: those of one device, or, of parts that see nothing of each other, others for each part."""
    found = cutnmix[f"drawn {how}"]
    spread, alone = (np.concatenate([found[f"{name}.{j}"].ravel() for j in (0, 1)]) for name in ("spread", "alone"))
    assert len(np.unique(spread)) == len(np.unique(alone)) == len(spread)
    assert (spread == alone).all() != how.startswith("local")


@pytest.mark.slow
@pytest.mark.parametrize("row", METHODS[1:])
def test_the_same_run_of_other_methods(row, tmp_path):
    how = {name: fields for name, fields in MESH.items() if row not in BRANCHED or name in ("two", "four", "disk")}
    cases = {name: [row, 20, *fields] for name, fields in how.items()} | {"alone": [row, 20]}
    cases["eight"] = [row, 20, "--config.devices=8"]
    found = train(tmp_path, cases)
    for name in cases:
        assert_one_run(found[name], found["alone"])


def test_unlike_peers_on_devices_of_their_own(tmp_path):
    """One has more features than the other; the other has dropout, whose keys are among its statistics."""
    cases = {
        "two": ["cutnmix", 20, *UNLIKE, MMD, "--config.devices=2"],
        "handed on": ["handed on", "cutnmix", 20, *UNLIKE, MMD, "--config.devices=4"],
        "alone": ["cutnmix", 20, UNLIKE[0], MMD],
        "within": ["within branches", "cutnmix", 20, *UNLIKE, MMD, "--config.devices=4"],
    }
    found = train(tmp_path, cases, 4)
    # Devices of one peer, which all take the branch: others would wait for each other for good.
    assert set(found.pop("within")["groups"]) == {"[2,2]<=[4]"}
    for name in found:
        assert_one_run(found[name], found["alone"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "optimizer"), [("cutnmix", "sgd"), ("dml", "lars"), ("kdcl", "adamw,--config.optimizer.learning_rate=1e-3")]
)
def test_unlike_peers_of_other_methods(row, optimizer, tmp_path):
    """No array of theirs has a gradient that is nothing but rounding, of which AdamW would make whole steps."""
    one, other = "tests.tiny:unbiased", "tests.tiny:wide_unbiased"
    more = [MMD] * (row == "cutnmix") + f"--config.optimizer.name={optimizer}".split(",") + ["--config.average=0.9"]
    cases = {}
    of = {"two": (f"{one},{other}", (2, 4)), "four": (f"{other},{one},{one},{other}", (2, 4, 8))}
    for name, (peers, counts) in of.items():
        fields = [f"--config.peers={peers}", *more]
        cases[f"{name} alone"] = [row, 20, *fields]
        cases |= {f"{name} {count}": [row, 20, *fields, UNLIKE[1], f"--config.devices={count}"] for count in counts}
    found = train(tmp_path, cases)
    for name in cases:
        assert_one_run(found[name], found[f"{name.split()[0]} alone"])


@pytest.mark.slow
def test_twice_the_same_bits(tmp_path):
    cases = {name: ["cutnmix", 20, *fields] for name, fields in MESH.items()}
    cases |= {f"unlike {count}": ["cutnmix", 20, *UNLIKE, MMD, f"--config.devices={count}"] for count in (2, 4)}
    (tmp_path / "again").mkdir()
    first, again = train(tmp_path, cases), train(tmp_path / "again", cases)
    for name in cases:
        for path, array in first[name].items():
            np.testing.assert_array_equal(array, again[name][path], err_msg=f"{name} {path}")


@pytest.mark.parametrize("how", ["local peers", pytest.param("local", marks=pytest.mark.slow)])
def test_local_batch_norm_sees_the_images_of_a_device(how, cutnmix):
    """Against NumPy, by the first layer: the variance of each quarter of the batch, averaged over the quarters."""
    first, found = Made().first.state, cutnmix[how]
    kernel = first.params["peers"][0]["Conv_0"]
    images = found["batch.images"][0, 0]  # [16, 32, 32, 3]
    convolved = jax.lax.conv_general_dilated(
        jnp.asarray(images), kernel["kernel"], (4, 4), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    seen = np.asarray(convolved, np.float64).reshape(4, 4, -1, 6) + np.asarray(kernel["bias"], np.float64)
    local = seen.reshape(4, -1, 6).var(axis=1).mean(axis=0)
    whole = seen.reshape(-1, 6).var(axis=0)
    assert np.abs(local - whole).max() > 1e-3  # or the test could not tell
    path = "state.batch_stats.0.BatchNorm_0"
    np.testing.assert_allclose(found[f"{path}.var"], 0.9 + 0.1 * local, rtol=1e-4)
    np.testing.assert_allclose(found[f"{path}.mean"], 0.1 * seen.reshape(-1, 6).mean(axis=0), rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(cutnmix["alone"]["batch.images"], found["batch.images"])


@pytest.mark.slow
def test_gradients_of_local_batch_norm_are_those_part_by_part(tmp_path):
    ways = {"unroll": 1, "vmap": 1, "shard": 2}
    found = train(tmp_path, {mapping: ["local gradients", mapping, groups] for mapping, groups in ways.items()})
    for mapping, arrays in found.items():
        of = {name: [arrays[key] for key in arrays if key.startswith(name)] for name in ("spread", "parts", "whole")}
        for got, wanted in zip(of["spread"], of["parts"], strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4, err_msg=mapping)
        apart = max(np.abs(one - other).max() for one, other in zip(of["parts"], of["whole"], strict=True))
        assert apart > 0.1  # or the test could not tell


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"devices": 9}, "devices=9: JAX finds 8 here"),
        ({"devices": 3}, "batch_size=16 does not divide over 3 devices; choose a multiple of 3"),
        ({"devices": 3, "mapping": "shard"}, "2 peers do not divide over 3 devices"),
        ({"devices": 4, "mapping": "shard", "num_peers": 3}, "3 peers do not divide over 4 devices"),
        ({"devices": 2, "mapping": "shard", "bn": "local"}, "no batch is split over 2 devices with 2 groups of peers"),
    ],
)
def test_what_does_not_divide_is_refused(fields, said, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    with pytest.raises(UsageError, match=said):
        devices.choose(settings(fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"mapping": "shard"}, "mapping='shard' takes several devices"),
        ({"bn": "local"}, "bn='local' is of several devices"),
        ({"mapping": "vmap", "peers": "resnet8,tests.tiny:Tiny"}, "mapping='vmap' takes peers of one architecture"),
        ({"mapping": "shard", "devices": 2, "share_trunk": True}, "needs config.mapping='unroll'"),
    ],
)
def test_what_several_devices_are_needed_for(fields, said):
    with pytest.raises(UsageError, match=said):
        settings(fields)


def settings(fields):
    return command_line.from_flags(
        "configs/quickstart.py:digits,cutnmix", [*TEN_EPOCHS, *(f"--config.{name}={it}" for name, it in fields.items())]
    )


def test_one_device_needs_no_mesh():
    assert devices.choose(settings({"devices": 0})) is devices.ONE  # there is one here


@pytest.mark.parametrize(
    ("fields", "there", "wanted"),
    [
        ({"bn": "local", "devices": 0}, 4, 4),
        ({"bn": "local", "devices": 0}, 1, 1),
        ({"bn": "local", "devices": 2}, 4, 2),
        ({"devices": 0}, 4, 0),
    ],
)
def test_all_devices_are_counted_where_the_numbers_depend_on_them(fields, there, wanted, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: [None] * there)
    assert devices.counted(settings(fields)).devices == wanted


@pytest.mark.slow
def test_a_run_of_local_batch_norm_does_not_go_on_with_another_number_of_devices(tmp_path):
    """`all` was two devices first and then four, without a word."""
    command = [sys.executable, "-m", "cutnmix_jax.main", "--config=configs/quickstart.py:digits,cutnmix", *TEN_EPOCHS]
    command += ["--config.bn=local", "--config.devices=0", f"--workdir={tmp_path / 'run'}"]
    for there, epochs, code in ((2, 1, 0), (4, 1, 0), (4, 2, 2), (1, 2, 2), (2, 2, 0)):  # what is finished is shown
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(there)}
        more = [f"--config.epochs={epochs}", "--extend"][: epochs + (epochs > 1)]
        done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["devices"] == 2


def test_what_is_where_is_shown(tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", "--config=configs/quickstart.py:digits,cutnmix", *TEN_EPOCHS]
    command += ["--config.epochs=1", "--config.devices=4", "--config.mapping=shard", f"--workdir={tmp_path / 'run'}"]
    flags = {"JAX_NUM_CPU_DEVICES": "5"}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "device    4 x cpu, float32, 1 step per call; 1 further device stays idle" in done.stdout
    layout = "2 groups of devices with 1 peer each, and in each batches of 16 in 2 parts of 8; batch norm sees all 16"
    assert f"layout    {layout}\n" in done.stdout
    assert re.search(r" images/s \([\d,]+ per device\)", done.stdout)
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["layout"] == {"peer_groups": 2, "parts": 2, "processes": 1}
    # What was saved is that of a run on one device, and goes on there; that its last bits are others is said.
    more = ["--config.epochs=2", "--extend"]
    command = [part for part in command if not part.startswith(("--config.devices", "--config.epochs=1"))]
    command = [*command, *more, "--config.devices=1", "--config.mapping=vmap", "--force"]
    command.remove("--config.mapping=shard")
    command.remove("--extend")
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "continued from step 4" in done.stdout and "the bits need not be those" in done.stderr
