"""The wheel and the sdist: all is in them, and they work without the clone, beside packages of other people."""

import csv
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NETWORK = """
from flax import nnx


class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.last = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, images):
        features = images.mean((1, 2))
        return self.last(features), features
"""
SMALL = ["--config.train_examples=64", "--config.test_examples=30", "--config.batch_size=16"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the wheel and the sdist, made from what git would commit."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    made = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(made, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out


def test_all_of_the_package_is_in_both(built):
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        inside = set(wheel.namelist())
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "cutnmix_jax").rglob("*.py")}
    assert ours | {"cutnmix_jax/py.typed"} <= inside
    # Nothing that would stand in the way of a folder of somebody's own.
    assert {name.partition("/")[0] for name in inside if ".dist-info" not in name} == {"cutnmix_jax"}
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        packed = {name.partition("/")[2] for name in sdist.getnames()}
    for name in ("configs/resnet110.py", "docs/fields.md", "scripts/_environment", "tests/tiny.py", "requirements.txt"):
        assert name in packed
    assert ours <= packed


@pytest.fixture(scope="module", params=["beside", pytest.param("alone", marks=pytest.mark.slow)])
def installed(request, built, tmp_path_factory):
    """An environment with the wheel: with the libraries of this one, or with its own, as a person would get them."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if request.param == "beside":
        pip.append("--no-deps")
        there = next(folder.glob("lib/python*/site-packages"))
        (there / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    done = subprocess.run([*pip, next(built.glob("*.whl"))], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of a person's own, with packages of the names that the clone has, and a network."""
    folder = tmp_path_factory.mktemp("a project")
    for name in ("configs", "scripts", "tests"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('this is somebody else\\'s')\n")
    (folder / "my_net.py").write_text(NETWORK)
    return folder


def run(installed, place, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [installed / "bin" / "cutnmix", *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)


def test_the_command_lists_its_commands(installed, place):
    done = run(installed, place)
    assert done.returncode == 0 and not done.stderr
    for name in ("train", "data", "report", "reproduce", "bench"):
        assert f"cutnmix {name} " in done.stdout
        shown = run(installed, place, name, "--help")
        assert shown.returncode == 0 and shown.stdout.startswith(f"usage: cutnmix {name}"), shown
    assert run(installed, place, "--version").stdout.startswith("cutnmix 0.")
    wrong = run(installed, place, "trian")
    assert wrong.returncode == 2 and "did you mean 'train'" in wrong.stderr and wrong.stderr.count("\n") == 1
    assert "resnet110" in run(installed, place, "train", "--list").stdout


def test_a_run_without_the_clone(installed, place):
    done = run(installed, place, "train", "--config=quickstart:digits,dml", "--config.epochs=1", *SMALL,
               "--config.backbone.name=my_net:Net")  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((place / "runs/digits/my_net.Net/dml/seed95/results.json").read_text())
    assert results["epochs"] == 1 and "bin/cutnmix train --list" in done.stdout
    own = place / "configs" / "mine.py"
    own.write_text("from cutnmix_jax.settings import recipe\n\n\ndef get_config(argument=None):\n"
                   "    config = recipe.make('resnet8', argument, dataset='digits')\n"
                   "    config.epochs = 0\n    return config\n")  # fmt: skip
    refused = run(installed, place, "train", "--config=configs/mine.py")
    assert refused.returncode == 2 and "config.epochs=0: must be" in refused.stderr, refused.stderr


def test_a_table_without_the_clone(installed, place):
    cells = ["table2", "--preset=mini", "--seeds=95", "--epochs=1", "--backbones=my_net:Net"]
    done = run(installed, place, "reproduce", *cells, "--methods=cutnmix_dml")
    assert done.returncode == 0, done.stdout + done.stderr
    table = place / "runs/mini/tables/table2_mini.csv"
    table.unlink()
    assert run(installed, place, "report", *cells, "--methods=cutnmix_dml").returncode == 0
    [line] = csv.DictReader(table.open())
    assert (line["method"], line["backbone"]) == ("cutnmix_dml", "my_net:Net") and 0 < float(line["last_mean"]) < 100
