"""The wheel and the sdist: all is in them, and they work without the clone, beside packages of other people."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import cutnmix_jax
from cutnmix_jax.errors import UsageError
from scripts import release

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
def released(tmp_path_factory):
    """A folder with the wheel and the sdist of the next version, made from what git would commit, and what was said."""
    out = tmp_path_factory.mktemp("dist")
    made = [sys.executable, "-m", "scripts.release", "--dry-run", f"--out={out}"]
    done = subprocess.run(made, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return out, done.stdout


@pytest.fixture(scope="module")
def built(released):
    return released[0]


def test_the_next_version_is_described(released):
    out, said = released
    major, minor, *_ = cutnmix_jax.__version__.split(".")
    version = f"{major}.{int(minor) + 1}.0"
    assert said.startswith(f"cutnmix-jax {version}: Online distillation")
    assert {path.name for path in out.iterdir()} == {
        f"cutnmix_jax-{version}-py3-none-any.whl", f"cutnmix_jax-{version}.tar.gz"}  # fmt: skip
    for path in out.iterdir():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in said
    first = (ROOT / "CHANGELOG.md").read_text().partition("## Unreleased\n\n")[2].splitlines()[0]
    assert first in said and "Nothing was published" in said
    with tarfile.open(next(out.glob("*.tar.gz"))) as sdist:
        texts = {name: sdist.extractfile(f"cutnmix_jax-{version}/{name}").read().decode() for name in release.PLACES}
        changelog = sdist.extractfile(f"cutnmix_jax-{version}/CHANGELOG.md").read().decode()
    for name, before in release.PLACES.items():
        assert before + version in texts[name]
    assert re.search(rf"\n## {version} - \d{{4}}-\d\d-\d\d\n\n{re.escape(first)}", changelog)
    assert f'__version__ = "{cutnmix_jax.__version__}"' in (ROOT / "cutnmix_jax" / "__init__.py").read_text()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "publishes nothing; give --dry-run"),
        (["--dry-run", "--version=0.0.1"], "is older than"),
        (["--dry-run", "--version=soon"], "must be three numbers"),
        (["--dry-run", "--version=1!0.2+local"], "must be three numbers"),
    ],
)
def test_what_no_release_can_be(arguments, told, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/release", *arguments, f"--out={tmp_path / 'new'}"])
    with pytest.raises(UsageError, match=told):
        release.main()
    assert not list(tmp_path.iterdir())


def test_a_release_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/release", "--dry-run", f"--out={tmp_path / 'new'}"])
    monkeypatch.setattr(release.clone, "ROOT", tmp_path)  # where there is no clone
    (tmp_path / "CHANGELOG.md").write_text("")
    with pytest.raises(UsageError, match="no release could be built"):
        release.main()
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["scripts/release", "--dry-run", f"--out={ROOT / 'README.md'}"])
    with pytest.raises(UsageError, match="no release could be built"):
        release.main()
    assert not (tmp_path / "new").exists()


def test_a_module_that_is_left_out_and_another_version_are_seen(built, tmp_path):
    wheel, archive = next(built.glob("*.whl")), next(built.glob("*.tar.gz"))
    (tmp_path / "cutnmix_jax").mkdir()
    with pytest.raises(UsageError, match=r"whl says version .* should be 9.0.0"):
        release.check(tmp_path, wheel, archive, "9.0.0")
    (tmp_path / "cutnmix_jax" / "left_out.py").touch()
    with pytest.raises(UsageError, match="the wheel lacks cutnmix_jax/left_out.py; see MANIFEST.in"):
        release.check(tmp_path, wheel, archive, "9.0.0")


def test_the_version_that_is_built():
    version, (major, minor, *_) = cutnmix_jax.__version__, cutnmix_jax.__version__.split(".")
    following = f"{major}.{int(minor) + 1}.0"
    assert release.following(f"# C\n\n## Unreleased\n\n- New.\n\n## {version} - 2020-01-01\n\n- Old.\n") == following
    assert release.following("# C\n\n## Unreleased\n\n- New.\n") == following
    # Once the heading is written by hand, the same command builds that version.
    assert release.following(f"# C\n\n## {version} - 2020-01-01\n\n- New.\n") == version


def test_versions_that_disagree_and_nothing_new(tmp_path):
    for name in (*release.PLACES, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n\n## Unreleased\n\n## 0.0.9 - 2020-01-01\n\n- Old.\n")
    with pytest.raises(UsageError, match="nothing under 'Unreleased'"):
        release.set_version(tmp_path, "9.0.0")
    (tmp_path / "CITATION.cff").write_text("title: x\nversion: 0.0.3\n")
    with pytest.raises(UsageError, match="CITATION.cff does not say version"):
        release.set_version(tmp_path, "9.0.0")


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
