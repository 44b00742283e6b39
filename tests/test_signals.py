"""Stopping on request, in processes of their own: at any moment, twice, and while the compiler has the word."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cutnmix_jax import main
from tests.runs import TEN_EPOCHS, steps_in
from tests.test_run import ROOT, wait_for

ENDLESS = ["--config=configs/quickstart.py", *TEN_EPOCHS, "--config.epochs=1000000"]
# Runs the command and notes in a file how many calls were begun; may hang in one of them.
SCRIPT = """
import sys, time
from cutnmix_jax import main, program
make = program.step.make_trainer
counter, hang = open(sys.argv[1], "w"), int(sys.argv[2])
def made(**parts):
    trainer, calls = make(**parts), [0]
    def train(*arguments):
        calls[0] += 1
        counter.seek(0), counter.write(str(calls[0])), counter.flush()
        if calls[0] == hang:
            time.sleep(600)
        return trainer(*arguments)
    return train
program.step.make_trainer = made
sys.exit(main.main(sys.argv[3:]))
"""


def start(tmp_path, *more, hang=0, environment=(), plain=False):
    command = ["-m", "cutnmix_jax.main"] if plain else ["-c", SCRIPT, str(tmp_path / "calls"), str(hang)]
    return subprocess.Popen(
        [sys.executable, *command, *ENDLESS, *more, f"--workdir={tmp_path / 'run'}"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | dict(environment),
    )


def calls_in(tmp_path):
    return int((tmp_path / "calls").read_text() or 0) if (tmp_path / "calls").exists() else 0


def ended(process, seconds=60):
    try:
        out, err = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, out, err.splitlines()


@pytest.mark.rounds(4, 30)
def test_a_signal_at_a_random_moment(number, tmp_path):
    chance = random.Random(number)
    early = number % 3 == 0  # before anything is trained, too
    process = start(tmp_path, plain=early)
    if early:
        time.sleep(chance.uniform(0.4, 4))  # Python itself takes a tenth of a second before it can listen
    else:
        wait_for(lambda: calls_in(tmp_path) > 0)
        time.sleep(chance.uniform(0, 2))
    begun = calls_in(tmp_path)
    process.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
    code, out, errors = ended(process)
    assert code == 75, errors
    if "stopped and saved" in errors[-1]:
        # Every call that was begun is saved: none is lost.
        assert steps_in(tmp_path / "run")[-1] >= begun
        assert f"at step {steps_in(tmp_path / 'run')[-1]}" in errors[-1]
    else:
        assert errors[-1] == "stopped before anything new was trained; the same command begins again"
        assert begun <= 1  # and not finished
    print(begun, steps_in(tmp_path / "run"))


@pytest.mark.rounds(2, 10)
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
        process.send_signal(chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
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


def test_while_the_compiler_has_the_word(tmp_path):
    process = start(tmp_path, "--config.backbone.name=resnet110", environment={"JAX_ENABLE_COMPILATION_CACHE": "false"})
    wait_for(lambda: calls_in(tmp_path) > 0)
    time.sleep(8)  # traced; a minute of XLA is ahead
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, _, errors = ended(process)
    assert code == 75 and time.monotonic() - begun < 1
    assert errors[-1].startswith("stopped before anything new was trained")


def test_the_handlers_are_given_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]
    files = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert main.main(["--config=configs/quickstart.py", "--config.epochs=0"]) == 2
    wait_for(lambda: len(list(Path("/proc/self/fd").iterdir())) <= files)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)] == before


def test_a_stop_in_the_last_step_is_the_end(tmp_path):
    assert main.main([*ENDLESS, "--config.epochs=1", f"--workdir={tmp_path}"]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 1
