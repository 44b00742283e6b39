"""What is damaged is never restored: a whole older checkpoint is, or nothing is touched."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import tempfile
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import checkpoint, digests, files, main
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.errors import CheckpointError, DivergedError, UsageError
from tests.hostile import OTHER, snapshot
from tests.runs import TEN_EPOCHS, assert_same, made, rows_in, steps_in, stopped_after, whole

pytestmark = pytest.mark.usefixtures("programs_kept")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in its seventh epoch, and what its checkpoints hold."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stopped_after(made(), folder, 26)
    return folder, {step: made().saved(folder, step) for step in steps_in(folder)}


@pytest.fixture
def copied(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    return tmp_path / "run"


def restored(folder):
    """What a start would go on from."""
    checkpoints = Checkpoints(folder / "checkpoints", 3)
    try:
        state = checkpoints.restore(made().shapes).state
        return jax.device_get(state._replace(seconds=0, wall_seconds=0))
    finally:
        checkpoints.close()


def files_of(folder, step):
    return sorted(path for path in (folder / "checkpoints" / str(step)).rglob("*") if path.is_file())


def large(seed):
    """Arrays over the size below which TensorStore keeps a value, with a check sum, in its index: these have none."""
    chance = np.random.default_rng(seed)
    shapes = {"kernel": (3, 3, 16, 32), "momentum": (3, 3, 16, 32), "table": (500, 10), "bias": (32,), "step": ()}
    return {name: jnp.asarray(chance.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def rows_to(step):
    """Of epochs of two steps."""
    return [{"epoch": n, "step": 2 * n, "test/accuracy": 1 / n} for n in range(1, step // 2 + 1)]


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """Checkpoints of two steps, and what they hold."""
    folder = tmp_path_factory.mktemp("large") / "checkpoints"
    checkpoints = Checkpoints(folder, 3)
    for step in (24, 26):
        checkpoints.finish(step, large(step), rows_to(step))
    checkpoints.close()
    return folder


@pytest.mark.rounds(40, 300)
def test_a_flipped_bit(number, larger, tmp_path, capsys):
    folder, chance = tmp_path / "checkpoints", random.Random(number)
    shutil.copytree(larger, folder)
    files = files_of(tmp_path, 26)
    # By turns any file, and the large ones, which hold the arrays.
    weights = [1 if number % 2 else path.stat().st_size for path in files]
    file = chance.choices(files, weights)[0]
    content = bytearray(file.read_bytes())
    if content:
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        file.write_bytes(content)
    checkpoints = Checkpoints(folder, 3)
    found = checkpoints.restore(large(0))
    checkpoints.close()
    used = 24 if (tmp_path / "checkpoints-damaged").exists() else 26
    chex.assert_trees_all_equal(jax.device_get(found.state), jax.device_get(large(used)))
    assert found.rows == rows_to(used)
    assert capsys.readouterr().err.count("step 26 is damaged") == (used == 24)


def ways(stopped_folder):
    return [str(path.relative_to(stopped_folder / "checkpoints" / "26")) for path in files_of(stopped_folder, 26)]


@pytest.mark.parametrize("damage", ["removed", "emptied", "one byte", "half"])
def test_every_file_of_the_newest(damage, stopped, tmp_path, capsys):
    for name in ways(stopped[0]):
        folder = tmp_path / "run"
        shutil.copytree(stopped[0], folder)
        file = folder / "checkpoints" / "26" / name
        size = file.stat().st_size
        if damage == "removed":
            file.unlink()
        else:
            with file.open("r+b") as opened:
                opened.truncate({"emptied": 0, "one byte": min(1, size), "half": size // 2}[damage])
        found = restored(folder)
        chex.assert_trees_all_equal(found, stopped[1][int(found.state.step)])
        assert int(found.state.step) in (24, 26), name
        shutil.rmtree(folder)


def test_a_run_goes_on_from_the_one_before(copied, tmp_path, capsys):
    largest = max(files_of(copied, 26), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-10])
    assert made().train(copied) == 24
    assert_same(made(), copied, whole("cutnmix", tmp_path / "whole"))
    assert capsys.readouterr().err.count("\n") == 1
    # Who can mend it puts it back with its rows.
    [rows] = (copied / "checkpoints-damaged").glob("metrics-26-*.jsonl")
    assert rows_in(copied)[:6] == rows_in(whole("cutnmix", tmp_path / "whole"))[:6]
    assert [json.loads(line)["epoch"] for line in rows.read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("name", ["checkpoints", "checkpoints/26"])
def test_on_another_disk(name, copied, tmp_path, capsys):
    """A link is not followed: what it leads to is somebody else's, and cannot be renamed to beside the folder."""
    if not Path("/dev/shm").is_dir():
        pytest.skip("no other disk")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as disk:
        if Path(disk).stat().st_dev == copied.stat().st_dev:
            pytest.skip("no other disk")
        shutil.move(copied / name, f"{disk}/states")
        (copied / name).symlink_to(f"{disk}/states")
        before = snapshot(copied), snapshot(disk)
        command = ["--config=configs/quickstart.py:digits,cutnmix", *TEN_EPOCHS, f"--workdir={copied}"]
        assert main.main(command) == 4
        [error] = capsys.readouterr().err.splitlines()
        assert f"{copied / name} is a link to {disk}/states, where a run has a folder" in error
        with pytest.raises(CheckpointError, match="is a link to"):
            restored(copied)
        assert (snapshot(copied), snapshot(disk)) == before
        (copied / name).unlink()
        shutil.move(f"{disk}/states", copied / name)
    assert made().train(copied) == 26
    assert_same(made(), copied, whole("cutnmix", tmp_path / "whole"))


@contextlib.contextmanager
def as_who_has_no_rights(folder):
    """Root may read everything, so it is somebody else for a while, whose the folder is."""
    if os.geteuid() != 0:
        yield
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OTHER, OTHER, follow_symlinks=False)
    os.seteuid(OTHER)  # of all threads, those of TensorStore too
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    "name", [".", "state", "state/ocdbt.process_0/d", "largest", "digests/metadata", "_CHECKPOINT_METADATA"]
)
def test_what_may_not_be_read_is_not_moved(name, stopped):
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders let nobody else in
        Path(place).chmod(0o755)
        folder = Path(place) / "run"
        shutil.copytree(stopped[0], folder)
        path = max(files_of(folder, 26), key=lambda path: path.stat().st_size)
        path = path if name == "largest" else folder / "checkpoints" / "26" / name
        before, mode = snapshot(folder / "checkpoints"), path.stat().st_mode
        path.chmod(0)
        with as_who_has_no_rights(folder), pytest.raises(CheckpointError) as raised:
            restored(folder)
        path.chmod(mode)
        # Orbax looks at each checkpoint as soon as it is made, and then at none of them.
        told = "cannot read (the|a) checkpoint .*checkpoints/26.*: Permission denied.* let it be read"
        assert re.search(told, str(raised.value))
        assert snapshot(folder / "checkpoints") == before and not (folder / "checkpoints-damaged").exists()
        assert made().train(folder) == 26


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
@pytest.mark.parametrize("said", [None, "anything at all"])
def test_what_a_disk_does_not_give_back_is_not_moved(number, said, copied, monkeypatch):
    """Whatever a library says of it: the file system is asked."""
    before, real = snapshot(copied), {"os": os.open, "path": Path.open}

    def opened(how):
        def fails(path, *rest, **more):
            if f"{copied}/checkpoints/26/" in str(path):
                raise OSError(number, os.strerror(number), str(path))
            return real[how](path, *rest, **more)

        return fails

    def reads(*_):
        raise ValueError(said)

    with monkeypatch.context() as broken:
        broken.setattr(os, "open", opened("os"))
        broken.setattr(Path, "open", opened("path"))
        if said:
            broken.setattr(Checkpoints, "_read_flat", reads)
        with pytest.raises(CheckpointError, match="cannot read the checkpoint of step 26 .* let it be read") as raised:
            restored(copied)
    assert os.strerror(number) in str(raised.value)
    assert snapshot(copied) == before
    assert made().train(copied) == 26


@pytest.mark.parametrize(
    ("said", "moved"),
    [
        # As TensorStore says it.
        ('PERMISSION_DENIED: Error opening "zarr": Failed to open "d/64": Permission denied [spec={}]', True),
        ("UNKNOWN: Error reading \"w/0\": Failed to read: Input/output error [os_error_code='5']", True),
        ("ABORTED: Error reading \"w/0\": Failed to open: Too many open files [os_error_code='24']", False),
        ("Error reading: Cannot allocate memory", False),
    ],
)
def test_what_can_be_read_is_damaged_whatever_is_said(said, moved, copied, monkeypatch, capsys):
    """But for too few files or too little memory: then the file system would be asked in vain."""
    read, before = Checkpoints._read_flat, snapshot(copied)

    def fails(self, step, wanted):
        if step == 26:
            raise ValueError(said)
        return read(self, step, wanted)

    monkeypatch.setattr(Reader, "_read_flat", fails)
    if moved:
        assert int(restored(copied).state.step) == 24
        assert capsys.readouterr().err.count("step 26 is damaged") == 1
        [aside] = (copied / "checkpoints-damaged").glob("26-*")
        assert snapshot(aside) == {
            name.removeprefix("checkpoints/26/"): told
            for name, told in before.items()
            if name.startswith("checkpoints/26/")
        }
    else:
        with pytest.raises(CheckpointError, match="cannot read the checkpoint of step 26"):
            restored(copied)
        assert snapshot(copied) == before


def test_nothing_is_touched_where_none_is_whole(copied):
    for step in steps_in(copied):
        max(files_of(copied, step), key=lambda path: path.stat().st_size).write_bytes(b"x")
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=r"none of the \d checkpoints in .* is whole \(step 26"):
        made().train(copied)
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


def test_an_array_that_was_changed_and_written_well(tmp_path):
    """What no check sum of the storage can see: other numbers under the digests of the right ones."""
    state = {"w": jnp.arange(6.0), "n": jnp.int32(3)}
    for changed in (
        {"w": jnp.arange(6.0).at[2].set(2.0000002)},
        {"n": jnp.int32(4)},
        {"w": jnp.arange(6, dtype=jnp.float16)},
    ):
        told = digests.of(5, state)
        found = digests.of(5, state | changed)
        with pytest.raises(ValueError, match=f"{next(iter(changed))} is not what was written"):
            digests.compare(told, found)
    told["arrays"]["w"] = found["arrays"]["w"]
    with pytest.raises(ValueError, match="digests are damaged"):
        digests.check(told)
    told = digests.of(24, state, rows_to(24))
    digests.check(told)
    told["rows"][3]["test/accuracy"] += 0.1
    with pytest.raises(ValueError, match="digests are damaged"):
        digests.check(told)
    with pytest.raises(ValueError, match="of step 4"):
        digests.compare(digests.of(4, state), digests.of(5, state))


def test_digests_are_sha256_of_the_bytes():
    # echo -n '\0\0\x80?' | sha256sum: the four bytes of 1.0
    told = digests.of(1, {"w": jnp.ones((), jnp.float32)})
    assert told["arrays"]["w"] == "float32[] e00e5eb9444182f352323374ef4e08ebcb784725fdd4fd612d7730540b3e0c8c"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_saved(value, tmp_path):
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(1, {"w": jnp.ones(3)})
    for save in (checkpoints.save, checkpoints.finish):
        with pytest.raises(DivergedError, match="by step 2: w is not finite"):
            save(2, {"w": jnp.array([1.0, value, 1.0])})
    assert checkpoints.steps() == [1]
    checkpoints.close()


def test_a_teacher_s_checkpoint_is_checked_too(copied):
    shapes = made().shapes.state.params["peers"][0]
    reader = Reader(copied / "checkpoints")
    reader.read_network({"params": shapes})
    reader.close()
    for file in [path for path in files_of(copied, 26) if path.parent.name == "d"]:  # not the text about the arrays
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 3, 2 * len(content) // 3):  # of a single byte nothing may be an array's
            content[place] ^= 1
        file.write_bytes(content)
    reader = Reader(copied / "checkpoints")
    with pytest.raises(CheckpointError, match="cannot be read"):
        reader.read_network({"params": shapes})
    reader.close()
    assert steps_in(copied)[-1] == 26  # of somebody else's run nothing is moved


def test_a_failed_save_is_tried_again_and_then_told(tmp_path, monkeypatch, capsys):
    """Without a disk that is full: Orbax is made to fail."""
    monkeypatch.setattr(checkpoint, "PATIENCE", (0.0, 0.0))
    checkpoints = Checkpoints(tmp_path, 3)

    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(type(checkpoints._manager), "save", fails)
        with pytest.raises(CheckpointError, match="cannot save step 1 in .*the disk is full.*no checkpoint is there"):
            checkpoints.save(1, {"w": jnp.ones(3)})  # nothing to fall back on
    checkpoints.save(1, {"w": jnp.ones(3)})
    with monkeypatch.context() as broken:
        broken.setattr(type(checkpoints._manager), "save", fails)
        checkpoints.save(2, {"w": jnp.ones(3)})
        assert "training goes on, the newest checkpoint is that of step 1" in capsys.readouterr().err
        with pytest.raises(CheckpointError, match="cannot save step 3 .* the newest checkpoint is that of step 1"):
            checkpoints.finish(3, {"w": jnp.ones(3)})
    save, tries = type(checkpoints._manager).save, []

    def fails_once(*arguments, **keywords):
        tries.append(1)
        return fails() if len(tries) == 1 else save(*arguments, **keywords)

    with monkeypatch.context() as broken:
        broken.setattr(type(checkpoints._manager), "save", fails_once)
        checkpoints.finish(3, {"w": jnp.full(3, 2.0)})
    assert len(tries) == 2
    np.testing.assert_array_equal(checkpoints.restore({"w": jnp.ones(3)}).state["w"], [2, 2, 2])
    assert checkpoints.steps() == [1, 3]
    checkpoints.close()
    assert json.loads((tmp_path / "3" / "digests" / "metadata").read_text())["step"] == 3


@pytest.mark.parametrize("error", [ImportError("no codec", name="zstd"), MemoryError()])
def test_a_library_or_memory_that_is_missing_is_no_damage(error, copied, monkeypatch):
    def fails(*_):
        raise error

    before = steps_in(copied)
    monkeypatch.setattr(Reader, "_read_flat", fails)
    with pytest.raises(UsageError, match="installation is incomplete|too little memory"):
        restored(copied)
    assert steps_in(copied) == before and not (copied / "checkpoints-damaged").exists()
    reader = Reader(copied / "checkpoints")
    with pytest.raises(UsageError, match="installation is incomplete|too little memory"):
        reader.read_network({})
    reader.close()


def test_a_state_may_be_larger_than_any_text(tmp_path, monkeypatch):
    """What bounds a file that is read at once does not bound the arrays: two VGG-19 with momentum are 305 MB."""
    monkeypatch.setattr(files, "MOST_BYTES", 20_000)
    state = {"w": jnp.arange(300_000.0)}
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    checkpoints.finish(1, state)
    np.testing.assert_array_equal(checkpoints.restore(state).state["w"], state["w"])
    [large] = [
        path for path in (tmp_path / "checkpoints").rglob("*") if path.is_file() and path.stat().st_size > 100_000
    ]
    with large.open("r+b") as file:
        file.truncate(1 << 40)  # and still nothing is read that cannot have been written
    with pytest.raises(CheckpointError, match="bytes, more than what was saved"):
        checkpoints.restore(state)
    checkpoints.close()


def test_a_folder_that_cannot_be_opened_is_let_go_and_called_by_its_own_name(copied, monkeypatch):
    def refuse(place, **_):
        raise PermissionError(errno.EACCES, "Permission denied", str(place / "20" / "digests"))

    def held():
        return [link for link in Path("/proc/self/fd").iterdir() if link.resolve() == copied.resolve()]

    monkeypatch.setattr(checkpoint.ocp, "CheckpointManager", refuse)
    with pytest.raises(CheckpointError) as raised:
        Checkpoints(copied / "checkpoints", 3)
    assert "(checkpoints/20/digests: Permission denied)" in str(raised.value)
    assert not held()
