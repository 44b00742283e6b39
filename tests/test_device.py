"""Compiled programs that are kept from start to start."""

import os
import subprocess
import sys

import pytest

from tests.test_run import ROOT

CODE = """
import jax, jax.numpy as jnp
from cutnmix_jax import console, device
with device.set_up_jax("float32"): print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.arange(9.0).reshape(3, 3))))
"""


def start(folder):
    settings = {"JAX_COMPILATION_CACHE_DIR": str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ | settings)
    return done.stdout, done.stderr


@pytest.mark.parametrize("damage", ["emptied", "half", "a byte less", "a flipped bit"])
def test_a_damaged_program_is_removed_and_kept_again(damage, tmp_path):
    """A kill while it is written leaves it cut; JAX itself would complain of it at every start."""
    said, errors = start(tmp_path)
    programs = {path: path.read_bytes() for path in tmp_path.glob("*-cache")}
    assert programs and not errors
    for path, content in programs.items():
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 8
        path.write_bytes(
            {"emptied": b"", "half": content[: len(content) // 2], "a byte less": content[:-1]}.get(damage, flipped)
        )
    again, errors = start(tmp_path)
    assert again == said
    names = sorted(path.name.rpartition("-")[0].rpartition("-")[0] for path in programs)
    assert sorted(errors.splitlines()) == [
        f"warning: trouble with reading the compiled program {name} in {tmp_path}; it is compiled anew"
        for name in names
    ]
    assert {path: path.read_bytes() for path in tmp_path.glob("*-cache")}.keys() == programs.keys()
    assert start(tmp_path) == (said, "")


def test_what_cannot_be_read_or_removed_ends_nothing(tmp_path):
    said, _ = start(tmp_path)
    for path in tmp_path.glob("*-cache"):
        path.unlink()
        path.mkdir()  # not even by root
    again, errors = start(tmp_path)
    assert again == said and errors.count("\n") == errors.count("warning: trouble with ") > 0
