"""Of all who start in one folder at the same time, one trains."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cutnmix_jax import folder as folders
from cutnmix_jax import lock
from cutnmix_jax.continued import Allowed
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.settings import command_line
from tests.runs import TEN_EPOCHS
from tests.test_run import ROOT, wait_for


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One for all rounds, so that each round begins with the lock of a dead owner."""
    return tmp_path_factory.mktemp("locked") / "run"


@pytest.mark.rounds(1, 50)
def test_simultaneous_starts(number, folder):
    command = [sys.executable, "-m", "cutnmix_jax.main", "--config=configs/quickstart.py:digits,baseline", *TEN_EPOCHS]
    command += ["--config.epochs=1000000", f"--workdir={folder}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for _ in range(2 + number % 7)]
    try:
        wait_for(lambda: sum(process.poll() is not None for process in processes) >= len(processes) - 1)
        [winner] = [process for process in processes if process.poll() is None]
        for process in set(processes) - {winner}:
            _, errors = process.communicate()
            assert process.returncode == 2, errors
            assert (
                errors.startswith(f"error: {folder} is in use by process {winner.pid} on ") and errors.count("\n") == 1
            )
        assert any(line.startswith("epoch ") for line in winner.stdout)  # it trains
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_the_second_is_told_at_once(tmp_path):
    command = [sys.executable, "-m", "cutnmix_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path}"]
    with lock.held(tmp_path):
        begun = time.monotonic()
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert second.returncode == 2 and "is in use by process" in second.stderr
        assert time.monotonic() - begun < 10  # before data are loaded or anything is compiled; 3 s where it is quiet
    with lock.held(tmp_path):  # and free again
        pass


def test_no_dead_owner_is_named(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    with lock.held(tmp_path):
        owner = json.loads((tmp_path / ".owner.json").read_text())
        (tmp_path / ".owner.json").write_text(json.dumps(owner | {"pid": dead.pid}))
        with pytest.raises(UsageError, match="in use by another process"), lock.held(tmp_path):
            pass
        assert (tmp_path / ".owner.json").exists()
    assert not (tmp_path / ".owner.json").exists()


def test_in_one_process_too(tmp_path):
    with lock.held(tmp_path), pytest.raises(UsageError, match="in use"), lock.held(tmp_path):
        pass


def test_a_folder_that_is_not_there_any_more_is_told(tmp_path):
    """Moved, replaced by an empty one or by another run's; put back, or copied back whole, it is the same."""
    folder, moved = tmp_path / "run", tmp_path / "moved"
    folder.mkdir()
    with lock.held(folder) as check:
        check()
        folder.rename(moved)
        for name in (None, ".owner.json", "config.json"):
            if name:
                folder.mkdir(exist_ok=True)
                (folder / name).write_text('{"start": "of another"}')
            with pytest.raises(CheckpointError, match=f"{folder} was moved, removed or replaced while the run went on"):
                check()
        shutil.rmtree(folder)
        shutil.copytree(moved, folder)  # as where the numbers of a network's file system change
        check()
        shutil.rmtree(folder)
        moved.rename(folder)
        check()
    assert not (folder / ".owner.json").exists()


def test_what_another_machine_has_just_saved_is_seen(tmp_path, monkeypatch):
    """In a network's file system, which shows what a folder held before until this machine changes something in it."""
    saved, looked, changed = tmp_path / "checkpoints", Path.iterdir, []
    (saved / "4").mkdir(parents=True)
    mkdir, config = Path.mkdir, "configs/quickstart.py:digits,cutnmix"

    def made(path, *more, **others):
        mkdir(path, *more, **others)
        changed.append(path.parent)

    monkeypatch.setattr(Path, "iterdir", lambda path: looked(path) if path != saved or path in changed else iter([]))
    monkeypatch.setattr(Path, "mkdir", made)
    settings = command_line.from_flags(config, TEN_EPOCHS)
    # Four steps without a word of the fields that they were trained with; and not a new run, as an empty folder is.
    gone = pytest.raises(CheckpointError, match="which says how the run was begun")
    with gone, folders.opened(tmp_path, settings, Allowed.NONE):
        pass
    assert [path.name for path in looked(saved)] == ["4"]
