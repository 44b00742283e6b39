"""A cache folder that is not there, is no folder, is full or read-only: a run goes on without, and says so once."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from cutnmix_jax import cache, main
from tests.runs import few
from tests.test_disk import mounted
from tests.test_run import ONE_STEP, ROOT, TINY

SMALL = [f"{TINY[0]}:digits,baseline", *TINY[1:], *ONE_STEP, "--config.optimizer.milestones=()"]

NOBODY = """
import os, pwd, sys
def unknown(*_): raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = unknown
from cutnmix_jax import main
sys.exit(main.main(sys.argv[1:], own_process=True))
"""


def started(tmp_path, code=NOBODY, **variables):
    """The lines on stderr of a run without the variables that name a cache; its other output is as ever."""
    gone = ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR", "MPLCONFIGDIR")
    environment = {name: value for name, value in os.environ.items() if name not in gone} | variables
    command = [sys.executable, "-c", code, *TINY, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "curves.png").exists()
    return done.stderr.splitlines(), done.stdout


@pytest.mark.slow
def test_without_a_home(tmp_path):
    errors, said = started(tmp_path)
    assert len(errors) == 1 and errors[0].startswith("warning: cannot write in a cache folder (could not determine")
    assert "kept for the next start" not in said


@pytest.mark.parametrize("variable", few(["XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"], ()))
def test_where_the_folder_is_a_file(variable, tmp_path):
    file = tmp_path / "file"
    file.write_text("somebody's")
    errors, _ = started(tmp_path, HOME=str(tmp_path), **{variable: str(file)})
    assert len(errors) == 1 and errors[0].startswith(f"warning: cannot write in {file}"), errors
    assert file.read_text() == "somebody's"


@pytest.mark.parametrize("left", few([0, 20_000], (0,)))
def test_on_a_full_disk(left, tmp_path):
    """With room for nothing, and with room for less than a program."""
    errors = mounted(tmp_path / "disk", f'fill_cache("{tmp_path}", {left})', "test_cache")
    assert len(errors) == 1, errors
    assert errors[0].startswith("warning: cannot " + ("keep compiled programs in" if left else "write in")), errors
    assert "No space left" in errors[0]


@pytest.mark.slow
def test_what_is_there_is_read_on_a_read_only_disk(tmp_path):
    errors = mounted(tmp_path / "disk", f'read_again("{tmp_path}")', "test_cache")
    assert len(errors) == 1 and "Read-only file system" in errors[0], errors


def read_again(tmp_path):
    """Trains with a cache on a disk that takes nothing any more, but holds all that was compiled."""
    disk = Path(tmp_path) / "disk"
    jax.config.update("jax_compilation_cache_dir", str(disk))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert main.main([*TINY, f"--workdir={tmp_path}/one"]) == 0
    kept = sorted(disk.iterdir())
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    jax.clear_caches()
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
    assert main.main([*TINY, f"--workdir={tmp_path}/other"]) == 0
    assert hits.count("/jax/compilation_cache/cache_hits") > 3 and sorted(disk.iterdir()) == kept
    print("as it should be")


def test_a_second_start_is_as_quiet_as_the_first(tmp_path):
    """JAX 0.10.1 logs errors about programs that it reads from its cache."""
    command = [sys.executable, "-m", "cutnmix_jax.main", *SMALL]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # so that all of it is kept
    for number in (1, 2):
        done = subprocess.run(
            [*command, f"--workdir={tmp_path / str(number)}"],
            cwd=ROOT, capture_output=True, text=True,
            env=environment | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
    assert len(list((tmp_path / "cache").glob("*-cache"))) > 3


def fill_cache(tmp_path, left):
    """Fills the disk and trains with the cache of compiled programs on it."""
    disk = Path(tmp_path) / "disk"
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - left))
    jax.config.update("jax_compilation_cache_dir", str(disk / "compiled" if left else disk))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    assert main.main([*SMALL, f"--workdir={tmp_path}/run"]) == 0
    print("as it should be")


def test_on_a_read_only_disk(tmp_path):
    errors = mounted(tmp_path / "disk", f'read_only("{tmp_path / "disk"}")', "test_cache")
    assert len(errors) == 1 and "Read-only file system" in errors[0], errors


def read_only(disk):
    """Asks twice for a folder on a disk that takes nothing."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    os.environ["XDG_CACHE_HOME"] = disk
    assert cache.folder() is None and cache.folder() is None
    print("as it should be")
