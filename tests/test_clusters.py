"""The tables on Ray and Slurm, where both libraries are installed: Ray for real, Slurm's commands by stand-ins."""

import contextlib
import csv
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest

from cutnmix_jax import __version__, environment, lock, pool
from cutnmix_jax.errors import UsageError, UserError
from cutnmix_jax.paper import cluster, elsewhere, launch, options, progress, reproduce
from cutnmix_jax.paper.cells import Choice, cells_of
from cutnmix_jax.paper.place import Ended, Status
from tests import slurm
from tests.test_paper import save
from tests.test_run import wait_for
from tests.test_scripts import executable

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


def cells_in(folder):
    """Two of them."""
    return cells_of(Choice("fig1", mini=True, seeds=(95,), runs=folder))


def played(*scenes):
    """A place that tells one scene after the other, each a function of the cells; and those that it was to begin."""
    begun, scenes = [], iter(scenes)

    def place(cells):
        begun.extend(cells)
        running, queued, ended, *stopping = next(scenes)
        if callable(ended):
            ended = ended()
        return Status(frozenset(running), frozenset(queued), ended, bool(stopping))

    return place, begun


def test_cells_that_wait_for_a_machine_are_not_told_to_have_started(tmp_path, monkeypatch, capsys):
    one, other = cells_in(tmp_path)
    shown = []
    monkeypatch.setattr(progress.Display, "update", lambda _, runs, *counts: shown.append(([*runs], *counts)))

    def saved():
        save(one, 0.9)
        save(other, 0.8)
        return {one: Ended(0), other: Ended(0)}

    place, begun = played(
        ([], [], {}), ([one, other], [one, other], {}), ([one, other], [other], {}), ([], [], saved)
    )  # fmt: skip
    launch.run([one, other], 2, place)
    assert begun == [one, other]
    assert [([run.cell for run in runs], *counts) for runs, *counts in shown] == [
        ([], 0, 2, 2), ([one], 0, 2, 1), ([], 2, 2, 0)
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", log")[0].partition(" %")[0] for line in lines] == [
        "0 of 2 cells are done", f"started: {one.name}", f"[1/2] {one.name}: 90.00", f"started: {other.name}",
        f"[2/2] {other.name}: 80.00",
    ]  # fmt: skip


def test_what_runs_already_is_not_begun_again(tmp_path, capsys):
    one, other = cells_in(tmp_path)
    place, begun = played(([one], [], {}), ([one, other], [other], {}), ([], [], {}, "stopping"))
    with pytest.raises(UserError, match="stopped; "):
        launch.run([one, other], 2, place)
    assert begun == [other]


def test_a_lost_cell_goes_on_as_long_as_it_moves_on(tmp_path, capsys):
    """Lost without a new checkpoint it is begun again once, with one as often as it has one."""
    cell = cells_in(tmp_path)[0]

    def lost(step):
        (cell.workdir / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
        return {cell: Ended(75, lost="its node died")}

    steps = [1, 2, 3, 3]
    scenes = [([], [], functools.partial(lost, step)) for step in steps]
    place, begun = played(([], [], {}), *scenes)
    with pytest.raises(UserError, match=r"1 cells failed: .* \(its node died, see .*log.txt\)"):
        launch.run([cell], 1, place)
    assert begun == [cell] * len(steps)
    out = capsys.readouterr().out
    assert out.count(f"its node died, started again: {cell.name}") == len(steps) - 1 and "\nstarted: " not in out
    place, begun = played(([], [], {}), *(([], [], {cell: Ended(75)}),) * 2)  # by somebody, not lost
    with pytest.raises(UserError):
        launch.run([cell], 1, place)
    assert begun == [cell] * 2


def test_a_machine_looks_first(tmp_path, monkeypatch):
    """Another program, another folder under the same name, one that is not there, and one that is."""
    monkeypatch.setattr(elsewhere, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(elsewhere.time, "sleep", lambda _: None)
    started = []
    monkeypatch.setattr(pool, "start", lambda *arguments, **more: started.append((arguments, more)))
    cell = cells_in(tmp_path / "runs")[0]
    order = elsewhere.order(cell)
    with monkeypatch.context() as patch:
        other = environment.program() | {"jax": "0.0.1"}
        patch.setattr(environment, "program", lambda: other)
        with pytest.raises(UsageError, match=r" has jax 0\.0\.1 and .*; all machines need the same program"):
            elsewhere.begin(order)
    moved = (tmp_path / "runs").rename(tmp_path / "shared")
    with pytest.raises(UsageError, match="does not see what .*; --runs must name a folder on storage that all"):
        elsewhere.begin(order)
    cell.workdir.mkdir(parents=True)
    (cell.workdir / "log.txt").write_text(
        "asked for by somebody else, some time before, in a folder of this name\n" * 9
    )
    with pytest.raises(UsageError, match="does not see"):
        elsewhere.begin(order)
    assert not started and not elsewhere.has_begun(
        moved / order.log.relative_to(tmp_path / "runs"), order.at, order.mark
    )
    (tmp_path / "runs").rename(tmp_path / "other")
    moved.rename(tmp_path / "runs")
    relative = tuple(argument.replace(str(tmp_path), ".") for argument in order.arguments)
    with pytest.raises(UsageError, match="has no folder /gone, which --runs is relative to; give --runs in full"):
        elsewhere.begin(order._replace(folder="/gone", arguments=relative))
    assert not started
    (tmp_path / "given").mkdir()
    elsewhere.begin(order._replace(folder=str(tmp_path / "given")))
    [((arguments, _), more)] = started
    assert arguments == cell.arguments and more["folder"] == str(tmp_path / "given")
    assert elsewhere.has_begun(order.log, order.at, order.mark)


def test_who_waits_for_a_run_lets_it_save(tmp_path):
    """Whatever ends the wait; a Ctrl-C, which is how Ray cancels, or an exit, which is how Slurm's job is told."""
    trap = "trap 'sleep 1; touch saved; exit 75' TERM; touch ready; while :; do sleep 0.05; done"
    process = subprocess.Popen(["sh", "-c", trap], cwd=tmp_path)
    wait_for((tmp_path / "ready").exists)
    before = signal.signal(signal.SIGALRM, lambda *_: sys.exit(75))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(SystemExit):
            elsewhere.wait(process)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (tmp_path / "saved").exists() and process.returncode == 75


BETWEEN = "import sys; from cutnmix_jax import pool; sys.executable = sys.argv[1]; sys.exit(pool.between([]))"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_run_saves_also_where_the_process_before_it_is_killed(number, code, tmp_path):
    """As Ray's workers kill theirs when they end."""
    run = executable(
        tmp_path / "run", "trap 'touch saved; exit 75' TERM", "touch ready", "while :; do sleep 0.05; done"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", BETWEEN, run], cwd=tmp_path, env=os.environ | {"PYTHONPATH": ROOT}
    )
    wait_for((tmp_path / "ready").exists)
    process.send_signal(number)
    assert process.wait(60) == code
    wait_for((tmp_path / "saved").exists, 30)


def test_how_a_run_ended_is_passed_on(tmp_path):
    for end, code in (("exit 5", 5), ("kill -KILL $$", -signal.SIGKILL), ("kill -TERM $$", -signal.SIGTERM)):
        command = [sys.executable, "-c", BETWEEN, executable(tmp_path / "run", end)]
        assert subprocess.run(command, env=os.environ | {"PYTHONPATH": ROOT}).returncode == code


def test_results_that_are_not_seen_yet(tmp_path):
    cell = cells_in(tmp_path)[0]
    seconds = elsewhere.STALE_SECONDS
    assert [elsewhere.is_settled(cell, *ended) for ended in ((2, 0.0), (0, 0.0), (0, seconds + 1))] == [
        True,
        False,
        True,
    ]
    save(cell, 0.9)
    assert elsewhere.is_settled(cell, 0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--address=auto", "--address goes with --on=ray"),
        ("--on=slurm --address=auto", "--address goes with --on=ray"),
        ("--on=ray --slurm=time=1", "--slurm goes with --on=slurm"),
        ("--gpus-per-cell=1", "--gpus-per-cell goes with --on=ray or --on=slurm"),
        ("--on=ray --devices=0", "--devices does not go with --on=ray"),
        ("--on=ray --cell=1", "--cell does not go with --on=ray"),
        ("--on=ray --gpus-per-cell=1.5", "--gpus-per-cell=1.5: must be a whole number, or a part of one"),
        ("--on=ray --gpus-per-cell=-1", "--gpus-per-cell=-1: must be"),
        ("--on=ray --gpus-per-cell=nan", "--gpus-per-cell=nan: must be"),
        ("--on=slurm --gpus-per-cell=0.5", "--gpus-per-cell=0.5: Slurm gives whole GPUs"),
        ("--on=slurm --slurm=requeue", "--slurm requeue: must be NAME=VALUE"),
        (
            "--on=slurm --slurm=job_name=mine",
            "--slurm job_name=mine: must be NAME=VALUE, a long option of sbatch but array and job-name",
        ),
        ("--on=moon", "argument --on: invalid choice: 'moon'"),
    ],
)
def test_what_does_not_go_together(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", f"--runs={tmp_path / 'runs'}", *arguments.split()])
    assert options.exit_code_of(reproduce.main) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("on", "library"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_library_that_is_missing(on, library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", f"--on={on}", f"--runs={tmp_path / 'runs'}"])
    assert options.exit_code_of(reproduce.main) == 2
    line = f"error: --on={on} needs {library}: run `{sys.executable} -m pip install -r requirements-cluster.txt`\n"
    assert capsys.readouterr() == ("", line)
    assert not (tmp_path / "runs").exists()


def test_the_same_table_is_trained_by_one_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["reproduce", "fig1", "--preset=mini", "--on=ray", f"--runs={tmp_path}"])
    folder = tmp_path / "cluster" / "fig1_mini"
    folder.mkdir(parents=True)
    with lock.held(folder):
        assert options.exit_code_of(reproduce.main) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder} is in use by process {os.getpid()} on ") and error.count("\n") == 1
    assert "wait for it or watch that command, which trains the same table" in error
    assert not (tmp_path / "tables" / "fig1_mini.md").exists()


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


@contextlib.contextmanager
def node(*arguments, before=()):
    """A machine of a Ray, while entered."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # names of sockets are short
    command = [*before, Path(python()).parent / "ray", "start", "--block", "--disable-usage-stats", *arguments]
    command += [f"--temp-dir={folder}", "--include-dashboard=false"] if "--head" in arguments else []
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "JAX_"))}
    log = Path(folder, "log")
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, env=bare)
    try:
        wait_for(lambda: process.poll() is not None or "Ray runtime started" in log.read_text())
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.terminate()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def head(*arguments):
    """The first machine of a Ray; its address."""
    needs("ray")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", uuid.uuid4().hex)
        with node("--head", f"--port={port}", *arguments):
            yield f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def address():
    """Of a Ray with four places: two GPUs that are made up, of which a cell takes a half."""
    with head("--num-cpus=4", "--num-gpus=2") as address:
        yield address


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


@contextlib.contextmanager
def held_back(runs, rows):
    """Waits until some cells have trained; while entered, their processes stand still, so that none of them ends."""
    stopped = {}

    def caught(row):
        if row not in stopped and epochs(runs, row) > 1:
            stopped[row] = process_of(runs, row)
            os.kill(stopped[row], signal.SIGSTOP)
        return row in stopped

    try:
        wait_for(lambda: {caught(row) for row in rows} == {True})
        yield stopped
    finally:
        for number in stopped.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGCONT)


def parent_of(number):
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.fixture(scope="module")
def by_processes(tmp_path_factory):
    """The table as processes of this machine make it."""
    needs("submitit")
    runs = tmp_path_factory.mktemp("here") / "runs"
    ended(start(runs, "--jobs=3"))
    found = table(runs)
    assert all(row["last_mean"] for row in found[0]) and len(found[0]) == len(ROWS)
    return found


def test_a_table_on_ray_whose_worker_and_then_command_are_killed(tmp_path, address, by_processes):
    runs = tmp_path / "runs"
    asked = ("--on=ray", f"--address={address}", "--gpus-per-cell=0.5")
    process = start(runs, *asked)
    logs = {row: folder_of(runs, row) / "log.txt" for row in ROWS}
    with held_back(runs, ["baseline"]):
        with held_back(runs, ["dml"]) as run:
            shown = Path(f"/proc/{run['dml']}/environ").read_bytes().split(b"\0")
            assert [text for text in shown if text.startswith(b"CUDA_VISIBLE_DEVICES=")][0][-1:] in (b"0", b"1")
            os.kill(parent_of(parent_of(run["dml"])), signal.SIGKILL)
        wait_for(lambda: logs["dml"].read_text().count("begun on ") == 2)
        process.kill()
    out, _ = process.communicate()
    for row in ("dml", "baseline"):
        wait_for(lambda row=row: "stopped and saved at step" in logs[row].read_text(), 60)
    assert "lost with its worker or its node (WorkerCrashedError), started again: digits tests.tiny:Tiny dml" in out
    out, errors = ended(start(runs, *asked))
    assert errors == "" and table(runs) == by_processes
    assert "seed 95: exit code" not in out


def test_a_signal_stops_all_cells_on_ray(tmp_path, address):
    process = start(tmp_path / "runs", "--on=ray", f"--address={address}", "--gpus-per-cell=0.5", rows=ROWS[:3])
    with held_back(tmp_path / "runs", ROWS[:3]):
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
    assert f" has cutnmix_jax {__version__} and " in error and "has 0.0.0; all machines need the same program" in error


@pytest.mark.slow  # like the one above
def test_a_node_of_ray_is_lost(tmp_path, by_processes):
    runs, places = tmp_path / "runs", ("--num-cpus=2", "--num-gpus=1")
    with head(*places) as address, node(f"--address={address}", *places) as other:
        process = start(runs, "--on=ray", f"--address={address}", "--gpus-per-cell=0.5")
        with held_back(runs, ROWS[:3]):
            children = Path(f"/proc/{other.pid}/task/{other.pid}/children").read_text().split()
            [raylet] = [child for child in children if "raylet" in Path(f"/proc/{child}/comm").read_text()]
            os.kill(int(raylet), signal.SIGKILL)
        out, _ = ended(process)
    assert "lost with its worker or its node (NodeDiedError), started again: " in out
    assert table(runs) == by_processes


@pytest.mark.slow  # it waits a minute for a folder that may be seen late
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
def test_a_worker_of_ray_that_does_not_see_the_folder(tmp_path):
    """A second machine, by a namespace with another disk where the runs are; the first one takes no cells."""
    runs = tmp_path / "disk" / "runs"
    runs.parent.mkdir()
    before = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {runs.parent} && exec "$@"', "-"]
    with head("--num-cpus=0") as address, node(f"--address={address}", "--num-cpus=2", before=before):
        error = refused(start(runs, "--on=ray", f"--address={address}"))
    assert "does not see what " in error and "--runs must name a folder on storage that all machines share" in error


def test_a_table_on_slurm_through_preemptions_and_a_killed_command(tmp_path, state, by_processes):
    """Each end that a job can have without its cell's: taken away by Slurm in four ways."""
    runs = tmp_path / "runs"
    asked = ("--on=slurm", "--gpus-per-cell=0", "--slurm", "partition=some", "--slurm=cpus-per-task=1")
    process = start(runs, *asked)
    with held_back(runs, ROWS[:3]):
        script = (state / "101" / "script").read_text()
        slurm.signalled("101", "0", signal.SIGTERM, "requeue")  # preempted, and queued again by Slurm
        slurm.signalled("101", "1", signal.SIGUSR2)  # told of its time limit, and queued again by submitit
        slurm.signalled("101", "2", signal.SIGTERM)  # preempted, and not queued again
    assert "#SBATCH --partition=some\n" in script and "#SBATCH --cpus-per-task=1\n" in script
    assert "#SBATCH --array=0-2%3\n" in script and "#SBATCH --requeue\n" in script and "--gres" not in script
    logs = [folder_of(runs, row) / "log.txt" for row in ROWS[:3]]
    wait_for(lambda: all(log.exists() and log.read_text().count("begun on ") == 2 for log in logs))
    process.kill()
    out, _ = process.communicate()
    assert "gone from Slurm (FAILED), started again: digits tests.tiny:Tiny cutnmix seed 95" in out
    assert all("stopped and saved at step" in log.read_text() for log in logs)
    process = start(runs, *asked)
    with held_back(runs, ["kd"]):
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
