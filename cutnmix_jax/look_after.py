"""A process that looks after another one, which is one of several that train a run: `--distributed`.

JAX ends a process, with a page of its own, when one of the others has died; here that becomes a line and an exit code.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from cutnmix_jax import pool, signals
from cutnmix_jax.errors import GONE, NOT_COME, StoppedError

_MEMBER = "CUTNMIX_JAX_MEMBER"  # set in the environment of a process that is looked after
# What JAX prints before it ends a process, and all after it: a trace of addresses.
_GIVEN_UP = re.compile(r"F\d{4} .*Terminating process because the JAX distributed service")
_REGISTERS = "/RegisterTask"  # what it was doing, where it never met the others
# From outside: by Linux for want of memory, or by a signal before the process could listen.
_ENDED = (signal.SIGKILL, *signals.SIGNALS)


def is_member() -> bool:
    """Whether this process is one that trains, and not one that looks after it."""
    return _MEMBER in os.environ


def look_after(arguments: Sequence[str]) -> int:
    """Starts the process that trains, passes signals on to it, and waits for it.

    Args:
      arguments: of `cutnmix_jax.main`.

    Returns:
      Its exit code; 75 where it, or another process of the run, was ended from outside.
    """
    process = pool.child(arguments, stderr=subprocess.PIPE, env={**os.environ, _MEMBER: "1"})
    before = {
        number: signal.signal(number, lambda number, _: process.send_signal(number)) for number in signals.heard()
    }
    given_up: list[str] = []
    reader = threading.Thread(target=_echo, args=(process, given_up))
    reader.start()
    code = process.wait()
    reader.join()
    for number, handler in before.items():
        signal.signal(number, handler)
    if given_up:
        print(NOT_COME if any(_REGISTERS in line for line in given_up) else GONE, file=sys.stderr)
        return StoppedError.exit_code
    if -code in _ENDED:
        how = f"ended by {signal.Signals(-code).name}; what was saved stays, the same command continues"
        print(f"this process of the run was {how}", file=sys.stderr)
        return StoppedError.exit_code
    return code


def _echo(process: subprocess.Popen, given_up: list[str]) -> None:
    """Prints what a process says up to where JAX gives up, and keeps the rest."""
    assert process.stderr
    for line in process.stderr:
        if given_up or _GIVEN_UP.match(line):
            given_up.append(line)
        else:
            sys.stderr.write(line)
            sys.stderr.flush()
