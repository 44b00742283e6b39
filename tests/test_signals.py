"""Stopping on request, in processes of their own: at any moment, twice, and while something is compiled."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from cutnmix_jax import main
from cutnmix_jax.signals import SIGNALS
from tests.runs import TEN_EPOCHS, few, steps_in
from tests.test_run import ROOT, wait_for

ONE_NETWORK = "--config=configs/quickstart.py:digits,baseline"  # which starts in two thirds of the time of two
ENDLESS = [ONE_NETWORK, *TEN_EPOCHS, "--config.epochs=1000000"]
# Runs the command and notes in a file how many calls were begun; may hang in one of them.
SCRIPT = """
import sys, time
from cutnmix_jax import main
from tests import runs
counter, hang, calls = open(sys.argv[1], "w"), int(sys.argv[2]), [0]
def around(train_steps):
    def train(*arguments):
        calls[0] += 1
        counter.seek(0), counter.write(str(calls[0])), counter.flush()
        if calls[0] == hang:
            time.sleep(600)
        return train_steps(*arguments)
    return train
runs.wrapped(around)
sys.exit(main.main(sys.argv[3:], own_process=True))
"""


def start(tmp_path, *more, hang=0, environment=(), plain=False, nohup=False):
    command = ["-m", "cutnmix_jax.main"] if plain else ["-c", SCRIPT, str(tmp_path / "calls"), str(hang)]
    return subprocess.Popen(
        [*["nohup"] * nohup, sys.executable, *command, *ENDLESS, *more, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment),
    )


def calls_in(tmp_path):
    return int((tmp_path / "calls").read_text() or 0) if (tmp_path / "calls").exists() else 0


def listens(pid):
    """Whether a process has a handler for SIGTERM; Python takes a tenth of a second before it can."""
    caught = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def ended(process, seconds=60):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err.splitlines()


@pytest.mark.rounds(2, 30)
def test_a_signal_at_a_random_moment(number, tmp_path):
    chance = random.Random(number)
    early, compiling = number % 5 == 0, number % 5 == 1  # before anything is trained, too
    process = start(tmp_path, plain=early)
    if early:
        wait_for(lambda: listens(process.pid))
        time.sleep(chance.uniform(0, 3))
    else:
        least = 0 if compiling else chance.randrange(1, 400)
        wait_for(lambda: calls_in(tmp_path) > least)
        time.sleep(chance.uniform(0, 1 if compiling else 0.05))
    begun = calls_in(tmp_path)
    process.send_signal(chance.choice(SIGNALS))
    code, out, errors = ended(process)
    assert code == 75, errors
    if "stopped and saved" in errors[-1]:
        # Every call that was begun is saved: none is lost.
        assert steps_in(tmp_path / "run")[-1] >= begun
        assert f"at step {steps_in(tmp_path / 'run')[-1]}" in errors[-1]
    else:
        assert errors[-1] == "stopped before a new step was trained; the same command begins where this one did"
        assert begun <= 1 and steps_in(tmp_path / "run") == []  # the first call was not finished
    print(begun, steps_in(tmp_path / "run"))


@pytest.mark.rounds(1, 10)
def test_a_second_signal_ends_within_a_second(number, tmp_path):
    chance = random.Random(number)
    hang = chance.randrange(5, 60)
    process = start(tmp_path, hang=hang)
    try:
        wait_for(lambda: calls_in(tmp_path) == hang)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.2)
        saved = steps_in(tmp_path / "run")
        second = time.monotonic()
        process.send_signal(chance.choice(SIGNALS))
        assert process.wait(10) == 130
        assert time.monotonic() - second < 1
        assert "stopped at once" in process.stderr.read()
    finally:
        process.kill()
    # Nothing was harmed: the same command goes on from what was saved.
    again = start(tmp_path, hang=0)
    assert any(f"continued from step {saved[-1]}" in line for line in again.stdout)
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 75


def test_the_same_request_twice_is_one(tmp_path):
    """A scheduler signals the parent, which passes it on, and the child itself."""
    process = start(tmp_path)
    wait_for(lambda: calls_in(tmp_path) > 20)
    for _ in range(3):
        process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75 and "stopped and saved" in errors[-1], errors


@pytest.mark.slow
def test_the_same_request_again_while_it_ends(tmp_path):
    """Passed on late: the process has saved, and Python takes itself apart."""
    for seconds in (0.05, 0.2, 0.35, 0.5, 0.65, 0.8):
        process = start(tmp_path)
        wait_for(lambda: calls_in(tmp_path) > 20)
        process.send_signal(signal.SIGTERM)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 75, seconds
        (tmp_path / "calls").unlink()


def test_nohup_is_obeyed(tmp_path):
    process = start(tmp_path, nohup=True)
    wait_for(lambda: calls_in(tmp_path) > 20)
    begun = calls_in(tmp_path)
    process.send_signal(signal.SIGHUP)
    wait_for(lambda: calls_in(tmp_path) > begun + 40)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75


def test_no_first_signal_is_lost():
    """Heard before there is something to save, and looked at after."""
    code = (
        "import os, signal, time\nfrom cutnmix_jax.signals import StopRequest\n"
        "with StopRequest(own_process=True) as stop:\n"
        "    os.kill(os.getpid(), signal.SIGTERM); stop.defer(); assert stop.requested; print('heard', flush=True)\n"
    )
    for _ in range(10):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode in (0, 75) and (done.stdout == "heard\n" or done.returncode == 75), done.stderr


def test_in_another_thread_it_hears_nothing_and_harms_nothing():
    heard = []
    thread = threading.Thread(target=lambda: heard.append(main.main(["--config=configs/quickstart.py:digits,x"])))
    thread.start()
    thread.join()
    assert heard == [2]


READERS = ["true", "head -c 300", "sleep 600"]


@pytest.mark.parametrize("reader", few(READERS, ("true", "sleep 600")))
@pytest.mark.parametrize("streams", few(["2>&1", ""], ("2>&1",)))
def test_output_that_nobody_reads(reader, streams, tmp_path):
    """A reader that ends, as tee does at Ctrl-C, or stops: the run goes on, and stops and saves when it is asked to."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "calls"), "0", *ENDLESS, f"--workdir={tmp_path / 'run'}"]
    shell = subprocess.Popen(
        ["bash", "-c", f'"$@" {streams} > >({reader}) & echo $! > {tmp_path}/pid; wait $!', "-", *command],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        # The pipe to a reader that has stopped is full after some 500 epochs, and then nothing goes on any more.
        wait_for(lambda: calls_in(tmp_path) > 30)
        run = int((tmp_path / "pid").read_text())
        os.kill(run, signal.SIGTERM)
        assert shell.wait(60) == 75
    finally:
        with suppress(ProcessLookupError):  # all of them may have ended
            os.killpg(shell.pid, signal.SIGKILL)
    assert steps_in(tmp_path / "run")[-1] >= 30


def test_a_full_pipe_does_not_hold_the_second_signal(tmp_path):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, bytes(4096))
    os.set_blocking(writing, True)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "calls"), "0", *ENDLESS, f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=writing)
    os.close(writing)
    try:
        wait_for(lambda: calls_in(tmp_path) > 0)
        process.send_signal(signal.SIGTERM)
        # The last line of a run that has saved waits for its reader; the second signal does not.
        time.sleep(3)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(10) in (75, 130)
    finally:
        process.kill()
        os.close(reading)
    assert not calls_in(tmp_path) > 1 or steps_in(tmp_path / "run")


def test_output_to_a_full_device(tmp_path):
    with Path("/dev/full").open("w") as full:
        command = [ONE_NETWORK, *TEN_EPOCHS, "--config.epochs=2", "--config.optimizer.milestones=()"]
        command += [f"--workdir={tmp_path}"]
        run = [sys.executable, "-m", "cutnmix_jax.main", *command]
        assert subprocess.run(run, cwd=ROOT, stdout=full, stderr=full).returncode == 0
    assert (tmp_path / "results.json").exists()


@pytest.mark.parametrize("closed", few([">&-", "2>&-", "<&- >&- 2>&-"], ()))
def test_streams_that_are_closed(closed, tmp_path):
    command = [ONE_NETWORK, *TEN_EPOCHS, f"--workdir={tmp_path / 'run'}"]
    run = ["bash", "-c", f'exec "$@" {closed}', "-", sys.executable, "-m", "cutnmix_jax.main", *command]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "results.json").exists()
    run[-2:] = ["--config.epochs=1000000", f"--workdir={tmp_path / 'other'}"]
    process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: steps_in(tmp_path / "other"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 75
    finally:
        process.kill()


def test_a_signal_while_xla_compiles(tmp_path):
    environment = {"JAX_ENABLE_COMPILATION_CACHE": "false", "JAX_LOG_COMPILES": "1"}
    process = start(tmp_path, "--config.backbone.name=resnet110", "--config.epochs=1", environment=environment)
    assert any("conversion jit(_fresh)" in line for line in iter(process.stderr.readline, ""))
    time.sleep(1)  # the last to be lowered, in Python, is with XLA now, which takes half a minute
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75 and time.monotonic() - begun < 1
    assert not calls_in(tmp_path)
    assert errors[-1].startswith("stopped before a new step was trained")


def test_the_handlers_are_given_back():
    before = [signal.getsignal(number) for number in SIGNALS]
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert main.main(["--config=configs/quickstart.py", "--config.epochs=0"]) == 2
    wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_stop_in_the_last_step_is_the_end(tmp_path):
    assert main.main([*ENDLESS, "--config.epochs=1", f"--workdir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 1
