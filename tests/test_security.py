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

from cutnmix_jax import digests, evaluate, files, main
from cutnmix_jax.settings import recipe, tree
from tests.runs import TEN_EPOCHS, assert_same, made, whole, write_finished
from tests.test_run import ROOT

pytestmark = pytest.mark.usefixtures("programs_kept")

QUICK = [
    "--config=configs/quickstart.py:digits,baseline",
    *TEN_EPOCHS,
    "--config.epochs=1",
    "--config.optimizer.milestones=()",
]
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
    run = made("baseline")
    shutil.copytree(whole("baseline", tmp_path / "whole"), folder)
    files.write_json(folder / "config.json", tree.of_settings(run.settings))
    code = f"open({str(marker)!r}, 'w')"
    for name in ("sitecustomize.py", "conftest.py", "jax.py", "cutnmix_jax.py", "config.py", "configs/__init__.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)
    for name in ("state.pkl", "checkpoints/40/state.pkl", "checkpoints/40/state/_METADATA.pkl", "metrics.pkl"):
        (folder / name).write_bytes(pickle.dumps(Marker(marker)))
    (folder / "results.json").unlink(missing_ok=True)
    command = ["--config=configs/quickstart.py:digits,baseline", *TEN_EPOCHS, f"--workdir={folder}"]
    done = subprocess.run(
        [sys.executable, "-m", "cutnmix_jax.main", *command], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert_same(run, folder, tmp_path / "whole")
    assert not marker.exists()


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """A finished run of an epoch."""
    folder = tmp_path_factory.mktemp("short") / "run"
    assert main.main([*QUICK, f"--workdir={folder}"]) == 0
    return folder


@pytest.fixture
def copied(short, tmp_path):
    shutil.copytree(short, tmp_path / "run")
    return tmp_path / "run"


def results_in(folder):
    """What they say, but for the time that it took."""
    return json.loads((folder / "results.json").read_text()) | {"wall_seconds": 0}


def put_aside(folder, name):
    """What was put aside of a file."""
    return [path.read_bytes() for path in folder.glob(name.replace(".", "-before-*."))]


@pytest.mark.parametrize("name", ["metrics.jsonl", "config.json", "results.json"])
def test_a_pickle_in_the_place_of_a_file(name, short, copied, tmp_path, capsys):
    pickled = pickle.dumps(Marker(tmp_path / "marker"))
    (copied / name).write_bytes(pickled)
    if name != "results.json":
        (copied / "results.json").unlink()
    capsys.readouterr()
    code = main.main([*QUICK, f"--workdir={copied}"])
    assert code == (4 if name == "config.json" else 0)
    assert capsys.readouterr().err.count("\n") == 1
    assert pickled in ([(copied / name).read_bytes()] if code else put_aside(copied, name))
    assert code or results_in(copied) == results_in(short)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"last": 1}', "null", "3"])
def test_results_that_are_none_are_made_again(text, short, copied, capsys):
    (copied / "results.json").write_text(text)
    assert main.main([*QUICK, f"--workdir={copied}"]) == 0
    [warning] = capsys.readouterr().err.splitlines()
    assert warning.startswith(f"warning: the results in {copied} are not those of this run (")
    assert results_in(copied) == results_in(short)
    assert put_aside(copied, "results.json") == [text.encode()]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"config_sha256": "0" * 64}, "results.json is of another configuration than config.json"),
        ({"weights_sha256": "0" * 64}, "results.json is of other weights than the newest checkpoint, that of step 4"),
        ({"last": {"epoch": 1, "accuracy": 0.99}}, "results.json has other accuracies than metrics.jsonl"),
        ({"best": {"epoch": 1, "accuracy": 0.99}}, "results.json has other accuracies than metrics.jsonl"),
        ({"epochs": 2}, "results.json is of another configuration than config.json"),
        ({"epochs": True}, "results.json has no epochs"),
        ({"device": None}, "results.json has no device"),
        ({"versions": {"jax": 3}}, "results.json has no versions"),
    ],
)
def test_results_that_do_not_belong_to_the_run_are_made_again(change, why, short, copied, capsys):
    other = json.dumps(json.loads((copied / "results.json").read_text()) | change)
    (copied / "results.json").write_text(other)
    assert main.main([*QUICK, f"--workdir={copied}"]) == 0
    assert f"are not those of this run ({why}); now in results-before-" in capsys.readouterr().err
    assert results_in(copied) == results_in(short)
    assert put_aside(copied, "results.json") == [other.encode()]


@pytest.mark.parametrize("text", ["", "{", '{"epoch": 1}\n', "null\n", '{"epoch": 2, "step": 4}\n', "\x00\x00"])
@pytest.mark.parametrize("results", ["with results", "without"])
def test_rows_that_are_none_are_written_again(results, text, short, copied, capsys):
    if results == "without":
        (copied / "results.json").unlink()
    (copied / "metrics.jsonl").write_text(text)
    assert main.main([*QUICK, f"--workdir={copied}"]) == 0
    warnings = capsys.readouterr().err.splitlines()
    cut_off = text in ("", "{")  # what a kill or a full disk can leave of a file
    assert sum("had other rows than the run" in line for line in warnings) == (not cut_off)
    assert sum("are not those of this run" in line for line in warnings) == (results == "with results")
    assert len(warnings) == (not cut_off) + (results == "with results")
    assert put_aside(copied, "metrics.jsonl") == [text.encode()] * (not cut_off)  # left for who can mend it
    assert (copied / "metrics.jsonl").read_bytes() == (short / "metrics.jsonl").read_bytes()
    assert results_in(copied) == results_in(short)


@pytest.mark.parametrize(
    ("field", "name", "code", "told"),
    [
        ("backbone", "os:system", 2, "a network of somebody's own"),
        ("backbone", "antigravity:fly", 2, "a network of somebody's own"),
        ("backbone", "hostile.nets:make", 2, "a network of somebody's own"),
        ("loss", "hostile.nets", 2, "its checkpoints are gone"),
        ("loss", "...hostile.nets", 2, "its checkpoints are gone"),
    ],
)
def test_a_teacher_s_folder_cannot_choose_what_is_imported(field, name, code, told, tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile").mkdir()
    (tmp_path / "hostile" / "nets.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    fields = tree.of_settings(recipe.of_row("resnet8", "digits", "baseline")) | {"epochs": 1}
    fields[field] |= {"name": name}
    rows = [{"epoch": 1, "step": 4, "test/accuracy": 0.5}]
    write_finished(tmp_path / "teacher", fields, rows, backbones=[fields["backbone"]["name"]])
    command = ["--config=configs/quickstart.py:digits,kd", f"--config.teacher={tmp_path / 'teacher'}"]
    assert main.main([*command, f"--workdir={tmp_path / 'run'}"]) == code
    assert told in capsys.readouterr().err
    assert not (tmp_path / "marker").exists() and "hostile.nets" not in sys.modules


def test_a_run_s_folder_cannot_choose_the_code_that_reads_data(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "hostile_data.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
    fields = tree.of_settings(recipe.of_row("resnet8", "digits", "baseline")) | {"epochs": 1}
    fields["dataset"] = "hostile_data:load"
    seen = {"class_names": list("0123456789"), "image_shape": [32, 32, 3], "mean": [0.5] * 3, "std": [0.5] * 3}
    seen |= {"resampling": "nearest"}
    told = {"backbones": ["resnet8"], "data": seen | {"sha256": digests.of_json(seen)}}
    row = {"epoch": 1, "step": 4, "test/accuracy": 0.5, "test/accuracy_peer_0": 0.5, "test/accuracy_ensemble": 0.5}
    write_finished(tmp_path / "run", fields, [row], **told)
    for more in ([], ["--dataset=digits"]):
        assert evaluate.main([str(tmp_path / "run"), *more, f"--out={tmp_path / 'out'}"]) in (2, 4)
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "marker").exists() and "hostile_data" not in sys.modules


def test_training_needs_no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert main.main([*QUICK, f"--workdir={tmp_path}"]) == 0
    assert Path(tmp_path, "results.json").exists()
