"""Several seeds at once are the runs that they are alone."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import pytest

from cutnmix_jax import main, pool, seeds
from cutnmix_jax.errors import StoppedError, UsageError
from tests.runs import write_finished
from tests.test_run import ROOT, TINY, rows_of, saved_in, start, wait_for
from tests.test_signals import listens

pytestmark = pytest.mark.usefixtures("programs_kept")

ALONE = [f"{TINY[0]}:digits,baseline", *TINY[1:]]  # one network, which is compiled in half the time of two


@pytest.mark.parametrize("text", ["", "95,", "95,x", "95,95", "9.5"])
def test_what_are_no_seeds(text):
    with pytest.raises(UsageError, match="whole numbers"):
        seeds.parse(text)


def test_a_seed_of_the_configuration_beside_seeds(capsys):
    assert main.main([*TINY, "--seeds=1,2", "--config.seed=3"]) == 2
    assert "leave one of them out" in capsys.readouterr().err


def test_what_one_seed_cannot_do_is_said_once(capsys, tmp_path):
    assert main.main([*TINY, "--seeds=1,-2", f"--workdir={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_seeds_at_once_equal_seeds_alone(tmp_path):
    done = start([*ALONE, "--seeds=1,2"], tmp_path / "together")
    out, err = done.communicate(timeout=300)
    assert done.returncode == 0, err
    assert {line[:8] for line in out.splitlines() if " | " in line} == {"seed 1 |", "seed 2 |"}
    accuracies = []
    for seed in (1, 2):
        together, alone = tmp_path / "together" / f"seed{seed}", tmp_path / str(seed)
        arguments = [*ALONE, f"--config.seed={seed}"]
        assert main.main([*arguments, f"--workdir={alone}"]) == 0
        assert rows_of(together, timings=False) == rows_of(alone, timings=False)
        chex.assert_trees_all_equal(saved_in(together, arguments), saved_in(alone, arguments))
        accuracies.append(json.loads((together / "results.json").read_text())["last"]["accuracy"])
    mean = 50 * sum(accuracies)
    spread = 100 * abs(accuracies[0] - accuracies[1]) / 2**0.5
    assert f"mean {mean:.2f}, standard deviation {spread:.2f} (n - 1), n 2" in out


def test_the_mean_and_the_deviation_by_hand(tmp_path, capsys):
    """Of the last epoch, which is not the best one, and of the peers, of which one is better than their mean."""
    folders = {}
    for seed, last in ((1, 0.25), (2, 0.5), (3, 0.3)):
        rows = [{"epoch": e, "step": e, "test/accuracy": a, "test/accuracy_peer_0": 0.8, "test/accuracy_peer_1": 0.2}
                for e, a in ((1, 0.75), (2, last))]  # fmt: skip
        folders[seed] = tmp_path / str(seed)
        write_finished(folders[seed], {"dataset": "digits", "method": "dml", "seed": seed, "epochs": 2}, rows)
    seeds.end(dict.fromkeys(folders, 0), False, folders)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("%, mean of peers: seed 1 25.00, seed 2 50.00, seed 3 30.00")
    # The mean is 35, and 10, 15 and 5 are off it: sqrt((100 + 225 + 25) / 2) = 13.23.
    assert second == "mean 35.00, standard deviation 13.23 (n - 1), n 3"


def test_the_mean_is_of_what_the_tables_show_of_a_method(tmp_path, capsys):
    """Of OKDDip that is its leader, and another number was shown than `report` has."""
    folders = {}
    for seed, leader in ((1, 0.5), (2, 0.7)):
        row = {"epoch": 1, "step": 1, "test/accuracy": 0.2, "test/accuracy_peer_0": 0.2, "test/accuracy_leader": leader}
        folders[seed] = tmp_path / str(seed)
        write_finished(folders[seed], {"dataset": "digits", "method": "okddip", "seed": seed, "epochs": 1}, [row])
    seeds.end(dict.fromkeys(folders, 0), False, folders)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("%, leader: seed 1 50.00, seed 2 70.00") and second.startswith("mean 60.00, ")


def stopped(tmp_path, *more):
    """Stops two seeds in the middle by a signal; returns what they printed and their folders."""
    process = start([*ALONE, "--seeds=1,2", "--config.epochs=100000", *more], tmp_path)
    folders = [tmp_path / "seed1", tmp_path / "seed2"]
    wait_for(lambda: all((folder / "metrics.jsonl").exists() and rows_of(folder) for folder in folders))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err.splitlines()[-1] == "stopped; what was trained of seeds 1, 2 is saved, the same command continues"
    return out, folders


def test_a_signal_stops_and_saves_all_of_them(tmp_path):
    _, folders = stopped(tmp_path)
    for folder in folders:
        assert any((folder / "checkpoints").iterdir())


def test_a_signal_at_the_very_start_and_a_second_one(tmp_path):
    process = start([*TINY, "--seeds=1,2", "--config.epochs=100000"], tmp_path)
    assert process.stdout.readline().startswith("seed ")  # their networks are not compiled yet
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err


def test_a_signal_before_any_of_them_has_started(tmp_path):
    process = start([*ALONE, "--seeds=1,2"], tmp_path)
    wait_for(lambda: listens(process.pid))
    process.send_signal(signal.SIGUSR1)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert out.count("| epoch") == 0


@pytest.mark.parametrize("which", [1, 2])
def test_a_signal_while_one_is_starting(which, monkeypatch):
    """It reaches that one too: those that started before it, and itself."""
    started = []

    def start(arguments, stdout, environment):
        process = subprocess.Popen(["sleep", "20"], stdout=stdout, text=True)
        started.append(process)
        if len(started) == which:
            os.kill(os.getpid(), signal.SIGTERM)
        return process

    monkeypatch.setattr(pool, "start", start)
    with pytest.raises(StoppedError, match="seeds 1"):
        seeds.run({1: [], 2: []}, {})
    assert [process.returncode for process in started] == [-signal.SIGTERM] * which


def test_one_that_fails_does_not_end_the_others(tmp_path):
    (tmp_path / "seed1").mkdir()
    (tmp_path / "seed1" / "config.json").write_text("{")
    process = start([*ALONE, "--seeds=1,2"], tmp_path)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 4
    assert "seed 1 | error: " in out
    assert err.splitlines()[-1] == "error: seed 1 ended with exit code 4; see its lines above"
    assert (tmp_path / "seed2" / "results.json").exists()


def test_a_signal_after_the_last_step_of_all(tmp_path, capsys):
    row = {"epoch": 1, "step": 1, "test/accuracy": 0.5}
    write_finished(tmp_path, {"dataset": "digits", "method": "dml", "seed": 1, "epochs": 1}, [row])
    seeds.end({1: 0, 2: 0}, True, {1: tmp_path, 2: tmp_path})
    assert "test accuracy" in capsys.readouterr().out
    with pytest.raises(StoppedError, match="seeds 2 is saved"):
        seeds.end({1: 0, 2: 75}, True, {1: tmp_path, 2: tmp_path})
    with pytest.raises(StoppedError, match="seeds 2, 3 is saved"):  # one has not begun
        seeds.end({1: 0, 2: 75}, True, dict.fromkeys((1, 2, 3), tmp_path))


def test_help_names_it():
    command = [sys.executable, "-m", "cutnmix_jax.main", "--help"]
    assert "--seeds" in subprocess.run(command, cwd=Path(ROOT), capture_output=True, text=True, check=True).stdout
