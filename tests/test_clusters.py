"""The tables on Ray and Slurm, where both libraries are installed: Ray for real, Slurm's commands by stand-ins."""

import csv
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from tests import slurm
from tests.test_run import wait_for

ROOT = Path(__file__).parent.parent
TABLE = ["table1", "--preset=mini", "--seeds=95", "--backbones=tests.tiny:Tiny", "--epochs=24"]
ROWS = ("baseline", "dml", "cutnmix", "kd")
# The command, with looks that follow one another sooner, and a program that says that it is another one.
COMMAND = """
import os, sys
from cutnmix_jax import environment
from cutnmix_jax.paper import options, reproduce
if "--on=slurm" in sys.argv:
    from cutnmix_jax.paper import on_slurm
    on_slurm.LOOK_SECONDS = 0.3
if version := os.environ.get("SAYS_THAT_IT_IS"):
    program = environment.program
    environment.program = lambda: program() | {"cutnmix_jax": version}
sys.exit(options.exit_code_of(reproduce.main))
"""


def python():
    """The interpreter that has Ray and submitit, as scripts/test --ray makes it; else this one."""
    made = ROOT / ".venv-ray" / "bin" / "python"
    return os.environ.get("RAY_PYTHON") or (str(made) if made.exists() else sys.executable)


@functools.cache
def has(library):
    """Whether it is installed there."""
    return subprocess.run([python(), "-c", f"import {library}"], capture_output=True).returncode == 0


def needs(library):
    """Skips where a library is not installed."""
    if not has(library):
        pytest.skip(f"{library} is not installed; scripts/test --ray brings it")


@pytest.fixture(scope="module")
def address():
    """Of a Ray with four places: two GPUs that are made up, of which a cell takes a half."""
    needs("ray")
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # names of sockets are short
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked = ["--num-cpus=4", "--num-gpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    command = [Path(python()).parent / "ray", "start", "--head", "--block", f"--port={port}", f"--temp-dir={folder}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        log = Path(folder, "log")
        bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_"))}
        process = subprocess.Popen([*command, *asked], stdout=log.open("w"), stderr=subprocess.STDOUT, env=bare)
        try:
            wait_for(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
            assert process.poll() is None, log.read_text()
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def state(tmp_path, monkeypatch):
    """The folder of a stand-in for Slurm."""
    needs("submitit")
    for name, value in slurm.install(tmp_path / "slurm").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(slurm, "STATE", tmp_path / "slurm" / "state")
    yield slurm.STATE
    for _, _, name, _ in list(slurm.jobs()):  # of a test that failed
        slurm.scancel(f"--name={name}")


def start(runs, *arguments, rows=ROWS):
    """The command for a table in a folder."""
    command = [python(), "-c", COMMAND, *TABLE, f"--methods={','.join(rows)}", f"--runs={runs}", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=runs.parent, env=environment, text=True, **pipes)


def ended(process, code=0):
    """What a command has printed, on each stream, after it has ended with a code."""
    out, errors = process.communicate(timeout=200)
    assert process.returncode == code, out + errors
    return out, errors


def refused(process):
    """The one line that a command has ended with."""
    _, error = ended(process, 2)
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def table(runs):
    """A table without its times."""
    with (runs / "tables" / "table1_mini.csv").open() as file:
        lines = [{name: value for name, value in row.items() if "seconds" not in name} for row in csv.DictReader(file)]
    return lines, (runs / "tables" / "table1_mini.md").read_text()


def folder_of(runs, row):
    return runs / "digits" / "tests.tiny.Tiny" / row / "seed95"


def epochs(runs, row):
    """How many a cell has so far."""
    rows = folder_of(runs, row) / "metrics.jsonl"
    return rows.read_text().count("\n") if rows.exists() else 0


def process_of(runs, row):
    """The number of the process that trains a cell."""
    return json.loads((folder_of(runs, row) / ".owner.json").read_text())["pid"]


def parent_of(number):
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """The table as processes of this machine make it."""
    runs = tmp_path_factory.mktemp("here") / "runs"
    ended(start(runs, "--jobs=3"))
    found = table(runs)
    assert all(row["last_mean"] for row in found[0]) and len(found[0]) == len(ROWS)
    return found


def test_a_table_on_ray_whose_worker_and_then_command_are_killed(tmp_path, address, by_processes):
    runs = tmp_path / "runs"
    asked = ("--on=ray", f"--address={address}", "--gpus-per-cell=0.5")
    process = start(runs, *asked)
    wait_for(lambda: epochs(runs, "dml") > 2)
    run = process_of(runs, "dml")
    shown = Path(f"/proc/{run}/environ").read_bytes().split(b"\0")
    assert [text for text in shown if text.startswith(b"CUDA_VISIBLE_DEVICES=")][0][-1:] in (b"0", b"1")
    os.kill(parent_of(run), signal.SIGKILL)
    log = folder_of(runs, "dml") / "log.txt"
    wait_for(lambda: log.read_text().count("begun on ") == 2 and epochs(runs, "baseline") > 2)
    process.kill()
    out, _ = process.communicate()
    assert "lost with its worker or its node (WorkerCrashedError), started again: digits tests.tiny:Tiny dml" in out
    assert "stopped and saved at step" in log.read_text()
    out, errors = ended(start(runs, *asked))
    assert errors == "" and table(runs) == by_processes
    assert "seed 95: exit code" not in out


def test_a_signal_stops_all_cells_on_ray(tmp_path, address):
    process = start(tmp_path / "runs", "--on=ray", f"--address={address}", "--gpus-per-cell=0.5", rows=ROWS[:3])
    wait_for(lambda: all(epochs(tmp_path / "runs", row) for row in ROWS[:3]))
    process.terminate()
    ended(process, 75)
    for row in ROWS[:3]:
        assert "stopped and saved at step" in (folder_of(tmp_path / "runs", row) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus-per-cell=3"], "--gpus-per-cell=3: no node of the Ray has as many GPUs; the most is 2"),
        (["--address=127.0.0.1:1"], "--address=127.0.0.1:1: no Ray is there ([Errno 111] Connection refused); "),
        (["--address=ray://127.0.0.1:1"], "give the command on a machine of the Ray, with --address=auto"),
    ],
)
def test_a_ray_that_cannot_be_used(arguments, said, tmp_path, address):
    assert said in refused(start(tmp_path / "runs", "--on=ray", f"--address={address}", *arguments))
    assert not (tmp_path / "runs" / "tables" / "table1_mini.md").exists()


def test_a_worker_of_ray_with_another_program(tmp_path, address, monkeypatch):
    monkeypatch.setenv("SAYS_THAT_IT_IS", "0.0.0")
    error = refused(start(tmp_path / "runs", "--on=ray", f"--address={address}", "--gpus-per-cell=0.5"))
    assert " has cutnmix_jax 0.1.0 and " in error and "has 0.0.0; all machines need the same program" in error


def test_a_table_on_slurm_through_preemptions_and_a_killed_command(tmp_path, state, by_processes):
    """Each end that a job can have without its cell's: taken away by Slurm in four ways."""
    runs = tmp_path / "runs"
    asked = ("--on=slurm", "--gpus-per-cell=0", "--slurm", "partition=some", "--slurm=cpus-per-task=1")
    process = start(runs, *asked)
    wait_for(lambda: all(epochs(runs, row) for row in ROWS[:3]))
    script = (state / "101" / "script").read_text()
    assert "#SBATCH --partition=some\n" in script and "#SBATCH --cpus-per-task=1\n" in script
    assert "#SBATCH --array=0-2%3\n" in script and "#SBATCH --requeue\n" in script and "--gres" not in script
    slurm.signalled("101", "0", signal.SIGTERM, "requeue")  # preempted, and queued again by Slurm
    slurm.signalled("101", "1", signal.SIGUSR2)  # told of its time limit, and queued again by submitit
    slurm.signalled("101", "2", signal.SIGTERM)  # preempted, and not queued again
    logs = [folder_of(runs, row) / "log.txt" for row in ROWS[:3]]
    wait_for(lambda: all(log.exists() and log.read_text().count("begun on ") == 2 for log in logs))
    process.kill()
    out, _ = process.communicate()
    assert "gone from Slurm (FAILED), started again: digits tests.tiny:Tiny cutnmix seed 95" in out
    assert all("stopped and saved at step" in log.read_text() for log in logs)
    process = start(runs, *asked)
    wait_for(lambda: epochs(runs, "kd") > 2)
    slurm.signalled("103", "alone", signal.SIGKILL, "lost")
    out, errors = ended(process)
    assert errors == "" and table(runs) == by_processes
    assert "cells are in Slurm since an earlier start of this command" in out
    assert "gone from Slurm (NODE_FAIL), started again: digits tests.tiny:Tiny kd seed 95" in out
    # Each was submitted once, and those two again that Slurm had forgotten.
    assert [(number, place) for number, place, _, _ in slurm.jobs()] == [
        ("101", "0"), ("101", "1"), ("101", "2"), ("102", "alone"), ("103", "alone"), ("104", "alone")
    ]  # fmt: skip


def test_cells_on_slurm_outlive_the_command_and_can_be_cancelled(tmp_path, state):
    runs, asked = tmp_path / "runs", ("--on=slurm", "--gpus-per-cell=0", "--epochs=2000")
    process = start(runs, *asked, rows=("baseline",))
    wait_for(lambda: epochs(runs, "baseline"))
    process.send_signal(signal.SIGINT)
    out, errors = ended(process, 75)
    assert errors == "stopped; what was trained is saved, the same command continues\n"
    name = next(slurm.jobs())[2]
    assert f"1 cells go on in Slurm; `scancel --name={name}` would stop them" in out
    process = start(runs, *asked, rows=("baseline",))
    assert any("1 cells are in Slurm since an earlier start of this command" in line for line in process.stdout)
    seen = epochs(runs, "baseline")
    wait_for(lambda: epochs(runs, "baseline") > seen)
    subprocess.run(["scancel", f"--name={name}"], check=True)
    _, errors = ended(process, 2)
    assert "(cancelled in Slurm; the same command submits it again)" in errors and errors.count("\n") == 1
    assert len(list(slurm.jobs())) == 1


def test_slurm_that_cannot_be_used(tmp_path, state, monkeypatch):
    asked = ("--on=slurm", "--gpus-per-cell=0")
    error = refused(start(tmp_path / "runs", *asked, "--slurm=partition=full"))
    assert "Slurm does not take the cells: " in error and "QOSMaxSubmitJobPerUserLimit" in error
    (tmp_path / "slurm" / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert "squeue does not say what runs" in refused(start(tmp_path / "runs", *asked))
    (tmp_path / "slurm" / "bin" / "srun").unlink()
    assert "--on=slurm: no Slurm is here" in refused(start(tmp_path / "runs", *asked))
