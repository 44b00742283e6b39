"""Compiled programs that are kept from start to start."""

import os
import subprocess
import sys

import pytest

from tests.test_run import ROOT

CODE = """
import jax, jax.numpy as jnp
from cutnmix_jax import console, device
device.set_up_jax("float32")
print(float(jax.jit(lambda x: jnp.sin(x @ x).sum())(jnp.arange(9.0).reshape(3, 3))))
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
    assert (
        errors
        == f"warning: removed {len(programs)} damaged compiled programs from {tmp_path}; they are compiled again\n"
    )
    assert {path: path.read_bytes() for path in tmp_path.glob("*-cache")}.keys() == programs.keys()
    assert start(tmp_path) == (said, "")
