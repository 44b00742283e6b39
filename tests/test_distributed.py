"""Several processes train one run: stopped, killed, begun wrongly, and continued by other ones."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import chex
import numpy as np
import pytest

from cutnmix_jax import group, look_after, main
from cutnmix_jax.errors import GONE, NOT_COME, UsageError
from tests.conftest import ROOT
from tests.runs import TEN_EPOCHS, Made, rows_in, steps_in
from tests.test_run import wait_for

RUN = ["--config=configs/quickstart.py:digits,cutnmix", *TEN_EPOCHS, "--config.precision=float32"]
SHARD = "--config.mapping=shard"


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Processes:
    """The processes of a run, with what they print in files."""

    def __init__(self, folder, count, devices, *more, port=None, only=None):
        self.folder, self.port = folder / f"processes-{len(list(folder.iterdir()))}", port or free_port()
        self.folder.mkdir()
        flags = {"JAX_NUM_CPU_DEVICES": str(devices)}
        where = ["--distributed=on", f"--coordinator=127.0.0.1:{self.port}", f"--processes={count}"]
        self.each = {
            index: subprocess.Popen(
                [sys.executable, "-m", "cutnmix_jax.main", *RUN, *where, f"--process={index}", *more],
                cwd=ROOT,
                env=os.environ | flags,
                stdout=self.file(index, "out").open("w"),
                stderr=self.file(index, "err").open("w"),
            )
            for index in (range(count) if only is None else only)
        }

    def file(self, index, stream):
        return self.folder / f"{index}.{stream}"

    def said(self, index, stream="err"):
        """What a process has printed, without what Gloo prints of a CPU's collectives."""
        lines = self.file(index, stream).read_text().splitlines()
        return [line for line in lines if not line.startswith("[Gloo]") and "peer ranks" not in line]

    def errors(self, index):
        return [line for line in self.said(index) if not line.startswith("warning: ")]

    def ended(self, seconds=120):
        """The exit code of each."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.each.values()]
        finally:
            self.kill()

    def kill(self):
        for index in self.each:
            self.kill_one(index)

    def kill_one(self, index):
        """As a machine that goes: the process and what it looks after."""
        process = self.each[index]
        for child in children(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.kill()
        process.wait()


def children(pid):
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text().split()] if path.exists() else []


def trained(folder, epochs):
    """Whether so many epochs have rows."""
    return lambda: (folder / "metrics.jsonl").exists() and len(rows_in(folder)) >= epochs


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run by one process on one device."""
    folder = tmp_path_factory.mktemp("alone")
    made = Made("cutnmix", "--config.precision=float32")
    made.train(folder)
    return made, made.saved(folder), rows_in(folder)


def assert_as_alone(folder, alone):
    made, saved, rows = alone
    chex.assert_trees_all_close(made.saved(folder).state.params, saved.state.params, atol=1e-5, rtol=1e-5)
    for ours, theirs in zip(rows_in(folder), rows, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            if name.startswith("test/"):  # of 30 images; one on the edge may fall to the other side
                np.testing.assert_allclose(ours[name], value, atol=1.5 / 30)
            else:
                np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.rounds(1, 10)
def test_a_signal_to_one_stops_all_at_the_same_step(number, tmp_path, alone):
    """Then other processes, or one, go on: with 4, 1, 2 or 8 devices."""
    rng = random.Random(number)
    folder = tmp_path / "run"
    first = Processes(tmp_path, 2, 2, f"--workdir={folder}", *[SHARD] * (number % 2 == 0))
    wait_for(trained(folder, 1), 120)
    time.sleep(rng.uniform(0, 1))
    first.each[(number + 1) % 2].send_signal(signal.SIGTERM)
    assert first.ended() == [75, 75]
    (said,) = [line for line in first.errors(0) if not line.startswith("stopping")]
    step = steps_in(folder)[-1]
    assert said == f"stopped and saved at step {step}; the same command continues"
    assert [line for line in first.errors(1) if not line.startswith("stopping")] == []
    assert step < 40
    if number % 4 == 3:
        again = Processes(tmp_path, 4, 1, f"--workdir={folder}", *[SHARD] * (number % 2 == 0))
        assert again.ended() == [0] * 4
        out = again.said(0, "out")
    else:
        devices = (1, 2, 8)[number % 4]
        more = [SHARD] if number % 2 == 0 else []
        flags = {"JAX_NUM_CPU_DEVICES": str(devices)}
        command = [sys.executable, "-m", "cutnmix_jax.main", *RUN, "--config.devices=0", *more, f"--workdir={folder}"]
        done = subprocess.run(command, cwd=ROOT, env=os.environ | flags, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        out = done.stdout.splitlines()
    assert f"continued from step {step}" in out
    assert_as_alone(folder, alone)


@pytest.mark.rounds(1, 20)
def test_one_that_dies_ends_the_others_and_the_next_start_continues(number, tmp_path, alone):
    rng = random.Random(number)
    folder, dies = tmp_path / "run", (number + 1) % 2
    first = Processes(tmp_path, 2, 1, f"--workdir={folder}", "--config.checkpoint.every_steps=1")
    wait_for(trained(folder, 1), 120)
    time.sleep(rng.uniform(0, 1))
    first.kill_one(dies)
    killed = time.monotonic()
    assert first.each[1 - dies].wait(60) == 75
    assert time.monotonic() - killed < group.SILENT_SECONDS + 20
    (said,) = first.errors(1 - dies)
    assert said.startswith(GONE)
    step = steps_in(folder)[-1]
    again = Processes(tmp_path, 2, 1, f"--workdir={folder}", "--config.checkpoint.every_steps=1", port=first.port)
    assert again.ended() == [0, 0], again.said(0) + again.said(1)
    continued = [line for line in again.said(0, "out") if line.startswith("continued from step ")]
    assert int(continued[0].split()[-1]) in (step, step - 1)  # what was being written is no checkpoint
    assert_as_alone(folder, alone)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "devices"), [(1, 4), (2, 2), (4, 1)])
@pytest.mark.parametrize("mapping", ["unroll", "vmap", "shard"])
def test_every_layout_is_the_same_run(count, devices, mapping, tmp_path, alone):
    folder = tmp_path / "run"
    run = Processes(tmp_path, count, devices, f"--workdir={folder}", f"--config.mapping={mapping}")
    assert run.ended(300) == [0] * count, run.said(0)
    assert_as_alone(folder, alone)
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["layout"]["processes"] == count


def test_a_process_that_would_train_something_else_is_refused(tmp_path):
    folder = tmp_path / "run"
    one = Processes(tmp_path, 2, 1, f"--workdir={folder}", only=[0])
    other = Processes(tmp_path, 2, 1, f"--workdir={folder}", "--config.seed=7", port=one.port, only=[1])
    assert one.ended() == [2] and other.ended() == [2]
    (said,), (elsewhere,) = one.errors(0), other.errors(1)
    assert said.startswith("error: process 1 on ") and "config.seed is 95 in process 0 and 7 there" in said
    assert elsewhere == f"error: process 0 has ended with exit code 2: {said.removeprefix('error: ')}"
    assert not steps_in(folder)


@pytest.mark.parametrize("wrong", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_what_is_wrong_with_one_ends_all(wrong, tmp_path):
    """Whichever it is: here the first one's folder is of another run, or the second one's network is nowhere."""
    folder = tmp_path / "run"
    folder.mkdir()
    if wrong == 0:
        (folder / "results.json").write_text("{}")
    one = Processes(tmp_path, 2, 1, f"--workdir={folder}", only=[0])
    more = ["--config.backbone.name=tests.tiny:nowhere"] * wrong
    other = Processes(tmp_path, 2, 1, f"--workdir={folder}", *more, port=one.port, only=[1])
    assert (one.ended(), other.ended()) == ([2], [2])
    each = one.errors(0), other.errors(1)
    (said,), (elsewhere,) = each[wrong], each[1 - wrong]
    assert ("holds results.json", "nowhere")[wrong] in said
    assert elsewhere.startswith(f"error: process {wrong} ") and elsewhere.endswith(said.removeprefix("error: "))


def beside_one_process(folder, *more):
    """The results of two processes, and of one, whose rows are the same within rounding."""
    run = Processes(folder, 2, 1, *more, f"--workdir={folder / 'run'}")
    assert run.ended() == [0, 0], run.said(0) + run.said(1)
    command = [sys.executable, "-m", "cutnmix_jax.main", *RUN, *more, f"--workdir={folder / 'one'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(rows_in(folder / "run"), rows_in(folder / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name in theirs:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5 if "train" in name else 1.5 / 16)
    return [json.loads((folder / name / "results.json").read_text()) for name in ("run", "one")]


def test_a_teacher_and_what_peers_begin_as(tmp_path):
    """The first process alone reads their numbers; averages and validation images beside them."""
    command = [sys.executable, "-m", "cutnmix_jax.main", *RUN, "--config.epochs=1", "--config.optimizer.milestones=()"]
    command = [*command, f"--workdir={tmp_path / 'teacher'}"]
    command[3] = "--config=configs/quickstart.py:digits,baseline"
    assert subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300).returncode == 0
    more = [
        "--config=configs/quickstart.py:digits,kd", f"--config.teacher={tmp_path / 'teacher'}", "--config.epochs=1",
        f"--config.init_from={tmp_path / 'teacher'}", "--config.average=0.9", "--config.validation_examples=16",
    ]  # fmt: skip
    results = beside_one_process(tmp_path, *more)
    assert results[0]["teacher_sha256"] == results[1]["teacher_sha256"]
    assert results[0]["init_sha256"] == results[1]["init_sha256"]


def test_a_method_that_looks_at_held_out_images(tmp_path):
    """After each epoch, in all processes; and peers that have devices of their own."""
    row, held_out = "--config=configs/quickstart.py:digits,kdcl", "--config.held_out_examples=16"
    more = ["--config.mapping=shard", "--config.devices=0", "--config.loss.target=general", "--config.epochs=2"]
    beside_one_process(tmp_path, row, held_out, *more)


def test_a_port_that_another_run_has_is_refused(tmp_path):
    with contextlib.closing(socket.socket()) as other:
        other.bind(("", 0))
        other.listen()
        run = Processes(tmp_path, 2, 1, f"--workdir={tmp_path / 'run'}", port=other.getsockname()[1], only=[0])
        assert run.ended() == [2]
    (said,) = run.errors(0)
    assert "nobody can listen at that port here" in said and "give each its own" in said


def test_slurm_is_asked_only_where_it_is_asked_for(tmp_path):
    """It would take all but one GPU away from a process that has a node to itself."""
    variables = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "here", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    program = (
        "import jax\nfrom cutnmix_jax.group import Joining, joined\n"
        f"with joined(Joining('on', '127.0.0.1:{free_port()}', 1, 0)) as members:\n"
        "    print(members.count, jax.config.values['jax_cuda_visible_devices'])"
    )
    environment = os.environ | variables | {"SLURM_LOCALID": "0"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["1 all"], done.stdout + done.stderr


def test_nobody_tells_of_processes():
    command = [sys.executable, "-m", "cutnmix_jax.main", *RUN, "--distributed=auto"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    said = "error: --distributed=auto: no Slurm, Open MPI or Kubernetes tells of processes here"
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--processes=0", "--coordinator, --processes and --process are of --distributed=on"),
        ("--distributed=auto --process=7", "--coordinator, --processes and --process are of --distributed=on"),
        ("--distributed=on --coordinator=a:1 --processes=2 --process=2", "--process=2: 2 processes are 0 to 1"),
        ("--distributed=on", "--distributed=on needs --coordinator=HOST:PORT --processes=N --process=I"),
        ("--distributed=auto --seeds=1,2", "--distributed trains one run; leave --seeds out"),
    ],
)
def test_flags_that_do_not_fit(more, said, capsys):
    assert main.main([*RUN, *more.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}") and error.count("\n") == 1


@pytest.mark.parametrize("address", ["here", "here:", ":80", "here:port", "here:99999", "here:\N{SUPERSCRIPT TWO}"])
def test_an_address_that_is_none_is_refused_also_where_nobody_listens(address):
    """The other processes would look for it for minutes, or end with a traceback of JAX's."""
    with pytest.raises(UsageError, match=f"--coordinator={address}: give HOST:PORT"):
        group._check_port(group.Joining("on", address, 2, 1))


def test_what_jax_ends_with_becomes_one_line(tmp_path, capfd, monkeypatch):
    """A process that prints what JAX prints, and aborts."""
    said = "F1128 00:11:01.720890   22477 client.h:80] Terminating process because the JAX distributed service detected"
    program = f"import os, sys; print('warning: w', file=sys.stderr); print({said!r}, file=sys.stderr); "
    program += "print('*** Check failure stack trace: ***', file=sys.stderr, flush=True); os.abort()"
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **more: popen([sys.executable, "-c", program], **more))
    assert look_after.look_after([]) == 75
    assert capfd.readouterr().err.splitlines() == ["warning: w", GONE]
    program = f"import os, sys; print({said!r}, '\\nRPC: /x/RegisterTask', file=sys.stderr, flush=True); os.abort()"
    assert look_after.look_after([]) == 75
    assert capfd.readouterr().err.splitlines() == [NOT_COME]
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert look_after.look_after([]) == 75
    assert "SIGKILL" in capfd.readouterr().err
