"""How long a user waits from the command to the first step: importing, reading data and, most of it, compiling."""

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cutnmix_jax.benchmark import report, worker

_FIRST_STEP = re.compile(r"trained the first step ([0-9.]+) s after the start")


def measured(networks: Sequence[str], fields: Mapping[str, Any], end: float) -> dict[str, report.Found]:
    """Starts the command twice for each network: with nothing compiled before, and with what the first has left.

    The data set is the digits that come with the program: they have the size of CIFAR's images and lie in no folder.

    Args:
      networks: which.
      fields: `method`, and fields of the configuration.
      end: `time.monotonic()` at which to stop.

    Returns:
      `NETWORK, start` -> `start_cold_s` and `start_cached_s`, in seconds, or an `error`.
    """
    found: dict[str, report.Found] = {}
    for name in networks:
        said = found[f"{name}, start"] = _twice({**fields, "backbone": name}, end)
        shown = said.get("error") or "first step after {start_cold_s:.1f} s, then {start_cached_s:.1f} s".format(**said)
        print(f"{name}, start: {shown}", flush=True)
    return found


def _twice(fields: Mapping[str, Any], end: float) -> report.Found:
    config = f"--config=resnet32:digits,{fields['method']}"  # the recipe is the same for all networks
    overrides = [f"--config.{name}={value}" for name, value in fields.items() if name not in ("backbone", "method")]
    command = [sys.executable, "-m", "cutnmix_jax.main", config, f"--config.backbone.name={fields['backbone']}"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Kernels that were chosen on the card are kept where the compiled programs are.
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        environment["XDG_CACHE_HOME"] = folder
        try:
            return {
                key: _first_step([*command, *overrides, f"--workdir={folder}/{key}"], environment, end)
                for key in ("start_cold_s", "start_cached_s")
            }
        except worker.Failed as failed:
            return {"error": str(failed)}


def _first_step(command: Sequence[str], environment: Mapping[str, str], end: float) -> float:
    """Seconds until the first step was trained; the run ends then.

    Raises:
      worker.Failed: there was none; says why.
    """
    one = worker.of_command("start", command, environment)
    watchdog = threading.Timer(max(0.0, end - time.monotonic()), one.kill)
    watchdog.start()
    try:
        assert one.process.stdout
        for line in one.process.stdout:
            if said := _FIRST_STEP.search(line):
                return float(said[1])
        raise worker.Failed("no time left" if time.monotonic() > end else worker.last_line(one.log))
    finally:
        watchdog.cancel()
        one.close()
