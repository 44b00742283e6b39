"""A disk that is full, for a while or for good, or read-only: nothing is lost. On a tmpfs of a namespace's own."""

import gc
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cutnmix_jax import checkpoint, files, main, metrics
from cutnmix_jax.errors import CheckpointError
from tests.runs import TEN_EPOCHS, assert_same, hooked, made, rows_in, steps_in, whole
from tests.test_run import ROOT

CODE = "from cutnmix_jax import storage as s; s.hush(); from tests import {3} as t; t.{2}"
MOUNT = "mount -t tmpfs -o size=3m,mode=777 none {0} && exec {1} -c '" + CODE + "'"


def mounted(folder, call, file="test_disk"):
    """Runs a function of a file of tests where `folder` is a small disk; skips where that needs more rights."""
    folder.mkdir()
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*unshare, f"mount -t tmpfs none {folder}"], capture_output=True).returncode
    ):
        pytest.skip("no right to mount a tmpfs")
    done = subprocess.run(
        [*unshare, MOUNT.format(folder, sys.executable, call, file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout.endswith("as it should be\n"), done.stdout + done.stderr
    return done.stderr.splitlines()


@pytest.mark.rounds(1, 20)
def test_a_full_disk(number, tmp_path):
    errors = mounted(tmp_path / "disk", f'fill({number}, "{tmp_path / "disk"}", "{tmp_path / "whole"}")')
    assert all(line.startswith("warning: ") for line in errors), errors
    print("\n".join(errors))


def fill(number, disk, reference):
    """Fills the disk before a random step; frees it before a later one, or not."""
    checkpoint.PATIENCE = metrics.PATIENCE = (0.0, 0.1)
    chance, disk = random.Random(number), Path(disk)
    run, filler, reference = disk / "run", disk / "filler", whole("baseline", Path(reference))
    begin = chance.randrange(1, 40)
    end = begin + chance.randrange(1, 12) if number % 2 else None
    left = chance.choice([0, 1, 5000, 20_000, 60_000])
    trained = []

    def before(step, *_):
        trained.append(step)
        if step == begin:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    file.truncate(max(0, file.tell() - left))
        elif step == end:
            filler.unlink()

    try:
        made("baseline").train(run, engine=hooked(made("baseline").engine, before))
    except CheckpointError as error:
        print(error)
        saved = steps_in(run)
        assert saved or trained[-1] == 4  # where nothing could be saved, nothing more is trained
        # What was whole before is whole still.
        rows = rows_in(run) if (run / "metrics.jsonl").exists() else []
        assert rows == rows_in(reference)[: len(rows)] and len(rows) >= (saved[-1] if saved else 0) // 4
        assert end is None or not saved or end > 40
        filler.unlink()
        assert made("baseline").train(run) == (saved[-1] if saved else 0)
    assert_same(made("baseline"), run, reference)
    print("as it should be")


@pytest.mark.parametrize("what", ["rows", "states"])
def test_nothing_is_trained_that_cannot_be_saved(what, tmp_path, monkeypatch, capsys):
    """Without an older checkpoint there is nothing to fall back on."""
    monkeypatch.setattr(checkpoint, "PATIENCE", (0.0, 0.0))
    monkeypatch.setattr(metrics, "PATIENCE", (0.0, 0.0))
    trained = []

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def before(step, *_):
        trained.append(step)
        if what == "rows":
            monkeypatch.setattr(files, "write", full)
        else:
            monkeypatch.setattr(checkpoint.Checkpoints, "_begin", full)

    with pytest.raises(CheckpointError, match="what was saved stays|no checkpoint is there"):
        made().train(tmp_path, engine=hooked(made().engine, before))
    assert trained == [1, 2, 3, 4]


def test_checkpoints_that_somebody_removes(tmp_path):
    """What is in memory is saved again, by the next save already."""
    saved = []

    def before(step, *_):
        if step == 14:
            (tmp_path / "run" / "checkpoints").rename(tmp_path / "removed")  # at once, while a save may be going on
        if step == 21:
            saved.extend(steps_in(tmp_path / "run"))

    made().train(tmp_path / "run", engine=hooked(made().engine, before))
    assert 16 in saved  # the one of step 12 too, where its save was going on and made its folder anew
    assert_same(made(), tmp_path / "run", whole("cutnmix", tmp_path / "whole"))
    gc.collect()  # Orbax tells of failed writes when their tasks are collected: here, and not among other tests


def test_a_read_only_disk(tmp_path):
    [error] = mounted(tmp_path / "disk", f'read_only("{tmp_path / "disk"}")')
    assert error.startswith("error: cannot lock ") and "Read-only file system" in error


def read_only(disk):
    """Makes the disk read-only between two starts."""
    command = [
        "--config=configs/quickstart.py:digits,baseline",
        *TEN_EPOCHS,
        "--config.epochs=6",
        f"--workdir={disk}/run",
    ]
    assert main.main(command) == 0
    Path(disk, "run", "results.json").unlink()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert main.main(command) == 2
    subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert main.main(command) == 0
    print("as it should be")


@pytest.mark.slow
def test_a_disk_that_fills_up_through_the_command(tmp_path):
    errors = mounted(tmp_path / "disk", f'through_the_command("{tmp_path / "disk"}")')
    assert errors[-1].startswith("error: cannot ") and "give the same command again" in errors[-1]
    assert all(line.startswith("warning: ") for line in errors[:-1])


def through_the_command(disk):
    """The exit code, and that the same command finishes once there is room."""
    from cutnmix_jax import rows

    command = ["--config=configs/quickstart.py", *TEN_EPOCHS, f"--workdir={disk}/run"]
    done = rows.of_epoch
    filler = Path(disk, "filler")

    def row(*arguments):
        if arguments[1].state.step == 24:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
        return done(*arguments)

    rows.of_epoch = row
    assert main.main(command) == 4
    filler.unlink()
    rows.of_epoch = done
    assert main.main(command) == 0
    print("as it should be")


def test_rows_wait_until_they_can_be_written(tmp_path, monkeypatch, capsys):
    """Also those of a start on a full disk that finds a row too many."""
    rows = [{"epoch": n, "step": 4 * n, "test/accuracy": 0.5, "seconds": 1.0} for n in (1, 2, 3)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[:2]))
    before = file.read_bytes()
    monkeypatch.setattr(metrics, "PATIENCE", (0.0, 0.0))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(files, "write", full)
        written = metrics.Metrics(tmp_path, rows[:1])
        written.append(rows[1])
        assert not written.written()
        with pytest.raises(CheckpointError, match="what was saved stays: make room"):
            written.settle()
    assert "No space left on device" in capsys.readouterr().err and file.read_bytes() == before
    written.append(rows[2])
    assert written.written()
    written.settle()
    written.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    # A file that is cut off while it is written leaves the one before, and nothing beside it.
    names = sorted(tmp_path.iterdir())
    written = metrics.Metrics(tmp_path, rows)
    with monkeypatch.context() as broken:
        broken.setattr(files.os, "fsync", full)
        written.append(rows[2] | {"epoch": 4})
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
    assert sorted(tmp_path.iterdir()) == names
    written.settle()
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [1, 2, 3, 4]
    written.close()


def test_rows_that_somebody_changes_are_written_again(tmp_path):
    """While the run goes on, by the next row; and a copy that shares the file by a hard link keeps what it has."""
    rows = [{"epoch": n, "step": 4 * n, "test/accuracy": 0.5} for n in (1, 2, 3)]
    file = tmp_path / "metrics.jsonl"
    written = metrics.Metrics(tmp_path, [])
    for row, change in zip(
        rows, (file.unlink, lambda: file.write_text("x"), lambda: os.link(file, tmp_path / "copy")), strict=True
    ):
        written.append(row)
        change()
    assert written.written() and [json.loads(line) for line in file.read_text().splitlines()] == rows
    written.append(rows[0] | {"epoch": 4})
    written.close()
    assert [json.loads(line) for line in (tmp_path / "copy").read_text().splitlines()] == rows
    again = metrics.Metrics(tmp_path, rows)
    again.close()
    assert [json.loads(line) for line in file.read_text().splitlines()] == rows
