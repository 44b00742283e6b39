"""The starters in scripts/: which interpreter and environment they take, and whose folder a relative path means."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from cutnmix_jax.errors import UsageError
from scripts import mutation
from tests.test_run import ONE_STEP, TINY

ROOT = Path(__file__).parent.parent
STARTERS = {
    "quickstart": "cutnmix_jax/main.py",
    "cutnmix": "cutnmix_jax/__main__.py",
    "reproduce": "cutnmix_jax/paper/reproduce.py",
    "report": "cutnmix_jax/paper/report.py",
    "bench": "cutnmix_jax/benchmark/__main__.py",
    "mutate": "scripts/mutation.py",
    "release": "scripts/release.py",
}
TELL = """
import importlib.util, json, os, sys
specs = [importlib.util.find_spec(name) for name in ("cutnmix_jax", "scripts", "configs", "my_pkg")]
where = {spec.name: spec.origin for spec in specs if spec}
print(json.dumps({"folder": os.getcwd(), "arguments": sys.argv[1:], "where": where, "prefix": sys.prefix}))
"""


def executable(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The starters with programs that tell how they were started, an environment of their own, and no requirements."""
    clone = tmp_path_factory.mktemp("somewhere") / "a clone"
    for name in ("_environment", "test", *STARTERS):
        (clone / "scripts").mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, clone / "scripts")
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-mutation.txt"):
        (clone / name).touch()
    for path in (*STARTERS.values(), "pytest/__main__.py"):
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        (clone / path).write_text(TELL)
    (clone / "cutnmix_jax" / "__init__.py").touch()
    shutil.copy(ROOT / "scripts" / "__init__.py", clone / "scripts")
    done = start(clone, "quickstart", clone, PYTHON=sys.executable)
    assert done.returncode == 0, done.stderr
    assert (clone / ".venv" / "pyvenv.cfg").exists()
    return clone


@pytest.fixture
def caller(tmp_path):
    """A folder with things of a person's own, some of them of the same names as ours."""
    folder = tmp_path / "a caller"
    for name in ("my_pkg", "scripts", "configs", "cutnmix_jax"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    return folder


def start(clone, name, folder, *arguments, **variables):
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "VENV", "PYTHONPATH")}
    command = ["bash", os.path.relpath(clone / "scripts" / name, folder), *arguments]
    return subprocess.run(command, cwd=folder, env=environment | variables, capture_output=True, text=True, timeout=300)


def told(done):
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def refused(done):
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def wheel(folder, name, version, *metadata):
    """A wheel with nothing in it."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as file:
        lines = ("Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata)
        file.writestr(f"{info}/METADATA", "\n".join(lines) + "\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize(
    ("driver", "variables", "build", "says"),
    [
        ("535.104.05", {}, "cuda12", "jax[cuda12] for the NVIDIA driver"),
        ("470.57.02", {}, None, "470.57.02 is older than 525, which JAX needs; JAX is installed for the CPU"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("580.65.06", {}, "cuda13", "jax[cuda13] for the NVIDIA driver into"),
                ("No devices were found", {}, None, "nvidia-smi names no driver; JAX is installed for the CPU"),
                ("580.65.06", {"CUDA": "no"}, None, ""),
            )
        ),
    ],
)
def test_a_gpu_gets_the_build_of_jax_for_its_driver(driver, variables, build, says, clone, tmp_path):
    """With a stand-in for nvidia-smi, and wheels with nothing in them; the real ones are not tried."""
    for name in ("cuda12", "cuda13"):
        wheel(tmp_path, f"plugin_{name}", "1.0")
    extras = [f"Provides-Extra: {n}\nRequires-Dist: plugin_{n}; extra == '{n}'" for n in ("cuda12", "cuda13")]
    wheel(tmp_path, "jax", "0.10.1", *extras)
    wheel(tmp_path, "jax", "0.11.5", *extras)  # a newer one, which is not the pinned one
    lines = (f"echo '{driver}'; sleep 0.1" for _ in range(4))  # a line for each card, one after the other
    executable(tmp_path / "bin" / "nvidia-smi", *lines)
    here = tmp_path / "its clone"
    shutil.copytree(clone / "scripts", here / "scripts")
    shutil.copytree(clone / "cutnmix_jax", here / "cutnmix_jax")
    (here / "requirements.txt").write_text("jax==0.10.1\n")
    environment = variables | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": sys.executable, "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path),
    }  # fmt: skip
    done = start(here, "quickstart", tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    there = {path.name.partition("-")[0] for path in here.glob(".venv/lib/*/site-packages/*.dist-info")}
    assert {name for name in there if name.startswith("plugin_")} == ({f"plugin_{build}"} if build else set())
    assert (here / ".venv/lib").exists() and list(here.glob(".venv/lib/*/site-packages/jax-0.10.1.dist-info"))
    assert says in done.stdout + done.stderr
    # Once it is there, nothing is installed or said again, and what is there stays where no driver answers.
    (here / "requirements-mutation.txt").write_text("jax==0.10.1\n# another list\n")
    assert start(here, "mutate", tmp_path, **environment).returncode == 0
    for name, later in (
        ("quickstart", environment),
        ("mutate", environment),
        ("quickstart", environment | {"CUDA": "no"}),
    ):
        again = start(here, name, tmp_path, **later)
        assert again.returncode == 0 and not again.stderr and len(again.stdout.splitlines()) == 1


def test_what_compiles_for_a_gpu_has_an_environment_of_its_own(clone, tmp_path):
    """With wheels with nothing in them, and no GPU; whatever VENV says."""
    wheel(tmp_path, "plugin_cuda13", "1.0")
    wheel(tmp_path, "jax", "0.10.1", "Provides-Extra: cuda13\nRequires-Dist: plugin_cuda13; extra == 'cuda13'")
    here = tmp_path / "its clone"
    shutil.copytree(clone / "scripts", here / "scripts")
    shutil.copy(ROOT / "scripts" / "_cuda", here / "scripts")
    (here / "requirements.txt").write_text("jax==0.10.1\n")
    variables = {"PYTHON": sys.executable, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "VENV": "another"}
    done = start(here, "_cuda", tmp_path, **variables)
    assert done.returncode == 0 and "jax[cuda13] to compile for a GPU into" in done.stdout, done.stderr
    there = {path.name.partition("-")[0] for path in here.glob(".venv-cuda/lib/*/site-packages/*.dist-info")}
    assert {"jax", "plugin_cuda13"} <= there and not (tmp_path / "another").exists() and not (here / ".venv").exists()


@pytest.mark.parametrize("name", STARTERS)
def test_a_command_stays_in_the_folder_of_its_caller(name, clone, caller):
    found = told(start(clone, name, caller, "--workdir=mine"))
    assert found["folder"] == str(caller)
    assert found["arguments"][-1] == "--workdir=mine"
    if name == "quickstart":
        assert found["arguments"][0] == f"--config={clone}/configs/quickstart.py"
    ours = {part: f"{clone}/{part}/__init__.py" for part in ("cutnmix_jax", "scripts")}
    theirs = {part: f"{caller}/{part}/__init__.py" for part in ("configs", "my_pkg")}  # which ours does not import
    assert found["where"] == ours | theirs
    # A shell that looks for folders elsewhere, too, says which one it found.
    assert told(start(clone, name, clone.parent, CDPATH=str(clone.parent)))["folder"] == str(clone.parent)


def test_the_tests_run_in_the_clone_with_paths_of_the_caller(clone, caller):
    for name in ("ruff", "mypy", "lint-imports"):
        executable(clone / ".venv" / "bin" / name, "exit 0")
    (caller / "test_it.py").touch()
    found = told(start(clone, "test", caller, "test_it.py::test_one", "-k", "scripts", "tests/test_other.py"))
    assert found["folder"] == str(clone)
    assert found["arguments"][-4:] == [f"{caller}/test_it.py::test_one", "-k", "scripts", "tests/test_other.py"]


@pytest.mark.parametrize(
    ("name", "requirements"), [("torch", "scripts/bench_torch/requirements.txt"), ("ray", "requirements-cluster.txt")]
)
def test_pytorch_and_ray_are_brought_where_they_are_asked_for(name, requirements, clone, caller):
    for tool in ("ruff", "mypy", "lint-imports"):
        executable(clone / ".venv" / "bin" / tool, "exit 0")
    executable(clone / f".venv-{name}" / "bin" / "python", f'printf "%s\\n" "$*" >> "{caller}/asked"')
    found = told(start(clone, "test", caller, f"--{name}", "-q"))
    assert found["arguments"][-1] == "-q" and f"--{name}" not in found["arguments"]
    assert (caller / "asked").read_text().endswith(f"-r {clone}/{requirements}\n")


def test_the_quickstart_of_another_folder_leaves_its_run_there(tmp_path):
    """The clone itself, with an environment that is the one of the tests."""
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").touch()
    executable(tmp_path / "venv/bin/python", '[ "$2" != pip ] || exit 0', f'exec {sys.executable} "$@"')
    before = set(ROOT.iterdir())
    for workdir, kept in (["--workdir=mine"], "mine"), ([], "runs/digits/tests.tiny.Tiny/cutnmix/seed95"):
        done = start(ROOT, "quickstart", tmp_path, *TINY[1:], *ONE_STEP, *workdir, VENV="venv")
        assert done.returncode == 0, done.stderr
        assert (tmp_path / kept / "results.json").exists()
    done = start(ROOT, "reproduce", tmp_path, "table2", "--preset=mini", "--dry-run", "--runs=mine", VENV="venv")
    assert done.returncode == 0 and "0 of 12 cells done" in done.stdout, done.stderr
    done = start(ROOT, "report", tmp_path, "table2", "--out=tables", VENV="venv")
    assert done.returncode == 0 and (tmp_path / "tables" / "table2.md").exists(), done.stderr
    assert "config.seed" in refused(start(ROOT, "bench", tmp_path, "--config.seed=-1", VENV="venv"))
    assert set(ROOT.iterdir()) - before <= {ROOT / ".jax_cache"}


def test_a_slurm_job_from_elsewhere(tmp_path):
    done = subprocess.run(["bash", ROOT / "scripts/reproduce.sbatch"], cwd=tmp_path, capture_output=True, text=True)
    assert "submit this from the root of a clone" in refused(done)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def made(folder, **options):
    """A virtual environment in which a person has installed something."""
    venv.create(folder, symlinks=True, **options)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "installed_by_hand.py").touch()
    return folder


def test_another_interpreter_than_the_environments_is_told(clone, caller, tmp_path):
    other = executable(tmp_path / "python3.99", "echo CPython 3.99.0")
    before = contents(clone / ".venv")
    version = f"CPython {sys.version.split()[0]}"
    line = refused(start(clone, "quickstart", caller, PYTHON=str(other)))
    assert f"PYTHON={other} is CPython 3.99.0 and {clone}/.venv has {version}; set VENV to" in line
    assert "no Python that runs" in refused(start(clone, "quickstart", caller, PYTHON="./nowhere"))
    assert contents(clone / ".venv") == before
    told(start(clone, "quickstart", caller, PYTHON=sys.executable))
    # A python3 that is of no use is not asked for where there is an environment.
    executable(tmp_path / "bin" / "python3", "exit 1")
    told(start(clone, "quickstart", caller, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"))


def test_an_environment_beside_the_other(clone, caller):
    (caller / "new").mkdir()  # an empty folder is as good as none
    assert told(start(clone, "quickstart", caller, PYTHON=sys.executable, VENV="new"))["prefix"] == f"{caller}/new"
    assert "installing requirements.txt" not in start(clone, "quickstart", caller, VENV="new").stdout
    marker = caller / "new" / ".installed-requirements.txt"
    version = sys.version.split()[0]
    marker.write_text(marker.read_text().replace(version, "3.11.0"))  # by an interpreter that was updated since
    assert "installing requirements.txt" in start(clone, "quickstart", caller, VENV="new").stdout


def test_changes_are_tried_where_the_tests_pass_without_them(monkeypatch, tmp_path):
    """A test that is gone fails for each change, and all of them seemed to be noticed."""
    for name in mutation.TESTS:
        assert all((ROOT / path).is_file() for path in (f"cutnmix_jax/{name}.py", *mutation.tests_of(name))), name
    science = {f"{part}/{path.stem}" for part in ("engine", "methods", "backbones")
               for path in (ROOT / "cutnmix_jax" / part).glob("*.py") if path.stem != "__init__"}  # fmt: skip
    by_processes = {
        "devices",
        "led",
        "placement",
        "spread",
    }  # what several devices or processes do takes minutes a change
    plain = {"state", "supervised", "adapters", "foreign", "running_order"}
    assert {name.split("/")[1] for name in science - set(mutation.TESTS)} == by_processes | plain
    monkeypatch.setitem(mutation.TESTS, "losses", "of_nothing")
    with pytest.raises(UsageError, match="losses: its tests fail without any change"):
        mutation._tried(tmp_path, "losses", 1, 0)


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_is_no_environment_is_left_alone(kind, clone, caller):
    thing = caller / "thing"
    if kind == "folder":
        (thing / "bin").mkdir(parents=True)
        (thing / "thesis.tex").write_text("years of work")
    else:
        thing.write_text("years of work")
    before = contents(caller)
    line = refused(start(clone, "quickstart", caller, PYTHON=sys.executable, VENV="thing"))
    assert f"VENV={thing} is there and no virtual environment" in line
    if kind == "file":
        assert "cannot make VENV=" in refused(start(clone, "quickstart", caller, PYTHON=sys.executable, VENV="thing/x"))
    assert contents(caller) == before


def test_an_environment_whose_interpreter_is_gone_is_left_alone(clone, caller):
    folder = made(caller / "old")
    for path in folder.glob("bin/python*"):
        path.unlink()
        path.symlink_to("/nowhere/python")
    before = contents(folder)
    for python in ({}, {"PYTHON": sys.executable}):
        assert "the interpreter of " in refused(start(clone, "quickstart", caller, VENV="old", **python))
    assert contents(folder) == before


def test_an_environment_without_pip_gets_it_and_keeps_the_rest(clone, caller):
    folder = made(caller / "by uv", with_pip=False)
    before = contents(folder)
    assert told(start(clone, "quickstart", caller, VENV="by uv"))["prefix"] == str(folder)
    assert before.items() <= contents(folder).items()
