"""Nothing that lies in a run's folder is run, nothing is unpickled, and training needs no network."""

import ast
import json
import pickle
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cutnmix_jax import main, metrics
from tests.runs import TEN_EPOCHS, assert_same, made, whole
from tests.test_run import ROOT

QUICK = ["--config=configs/quickstart.py", *TEN_EPOCHS, "--config.epochs=1", "--config.optimizer.milestones=()"]
FILES = [*(ROOT / "cutnmix_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py"), *(ROOT / "scripts").rglob("*.py")]
# What turns data into code, or hands a text to a shell.
RUNS_DATA = {"eval", "exec", "compile", "__import__", "system", "popen", "loads_pickle", "unpack_archive", "extractall"}


class Marker:
    """A pickle that leaves a file where it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_call_runs_data(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            # JAX's `lowered.compile()`, `re.compile` and the mode of an NNX module are other things.
            if name in RUNS_DATA and not (name in ("compile", "eval") and isinstance(node.func, ast.Attribute)):
                pytest.fail(f"{path}:{node.lineno} calls {name}")
            for keyword in node.keywords:
                assert (keyword.arg, getattr(keyword.value, "value", None)) not in (
                    ("allow_pickle", True),
                    ("shell", True),
                ), f"{path}:{node.lineno}"


def test_files_of_a_run_s_folder_are_data(tmp_path):
    """Modules, pickles and settings beside a run's own files are not looked at."""
    folder, marker = tmp_path / "run", tmp_path / "marker"
    shutil.copytree(whole("cutnmix", tmp_path / "whole"), folder)
    metrics.write_json(folder / "config.json", metrics.config_json(made().config))
    code = f"open({str(marker)!r}, 'w')"
    for name in ("sitecustomize.py", "conftest.py", "jax.py", "cutnmix_jax.py", "config.py", "configs/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name in ("state.pkl", "checkpoints/40/state.pkl", "checkpoints/40/state/_METADATA.pkl", "metrics.pkl"):
        (folder / name).write_bytes(pickle.dumps(Marker(marker)))
    (folder / "results.json").unlink(missing_ok=True)
    command = ["--config=configs/quickstart.py", *TEN_EPOCHS, f"--workdir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "cutnmix_jax.main", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same(made(), folder, tmp_path / "whole")
    assert not marker.exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "results.json"])
def test_a_pickle_in_the_place_of_a_file(name, tmp_path, capsys):
    assert main.main([*QUICK, f"--workdir={tmp_path / 'run'}"]) == 0
    (tmp_path / "run" / name).write_bytes(pickle.dumps(Marker(tmp_path / "marker")))
    if name != "results.json":
        (tmp_path / "run" / "results.json").unlink()
    capsys.readouterr()
    code = main.main([*QUICK, f"--workdir={tmp_path / 'run'}"])
    assert code == (0 if name == "results.json" else 4)
    assert capsys.readouterr().err.count("\n") == (code != 0)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"last": 1}', "null", "3"])
def test_results_that_are_none_are_made_again(text, tmp_path):
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 0
    whole_results = json.loads((tmp_path / "results.json").read_text())
    (tmp_path / "results.json").write_text(text)
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again | {"wall_seconds": 0} == whole_results | {"wall_seconds": 0}


@pytest.mark.parametrize("text", ["", "{", '{"epoch": 1}\n', "null\n", '{"epoch": 2, "step": 4}\n', "\x00\x00"])
def test_rows_that_are_none_are_refused(text, tmp_path, capsys):
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 0
    (tmp_path / "results.json").unlink()
    (tmp_path / "metrics.jsonl").write_text(text)
    capsys.readouterr()
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 4
    assert "metrics.jsonl lacks rows" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == text  # left for who can mend it


@pytest.mark.parametrize("backbone", ["os:system", "antigravity:fly", "hostile.nets:make"])
def test_a_teacher_s_folder_cannot_choose_what_is_imported(backbone, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "nets.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    (tmp_path / "teacher").mkdir()
    fields = {"backbone": {"name": backbone}, "peers": "", "num_peers": 1, "dataset": "digits"}
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(fields))
    (tmp_path / "teacher" / "results.json").write_text('{"last": 0, "best": 0, "epochs": 1}')
    command = ["--config=configs/quickstart.py:digits,kd", f"--config.teacher={tmp_path / 'teacher'}"]
    assert main.main([*command, f"--workdir={tmp_path / 'run'}"]) == 2
    assert "a network of somebody's own" in capsys.readouterr().err
    assert not (tmp_path / "marker").exists() and "hostile.nets" not in sys.modules


def test_training_needs_no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 0
    assert Path(tmp_path, "results.json").exists()
