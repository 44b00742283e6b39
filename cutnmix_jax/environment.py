"""What a run is made with."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax import __version__, digests
from cutnmix_jax.types import Dataset

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tensorflow-datasets")


def of_run(dataset: Dataset) -> dict[str, Any]:
    """What the run was made with: command, versions, devices, commit, data."""
    return {
        "command": sys.argv,
        "versions": versions(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "device_count": jax.device_count(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "commit": _commit(),
        "data_sha256": digests.of_data(dataset),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(("JAX_", "XLA_"))},
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    ours = {"python": platform.python_version(), "cutnmix-jax": __version__}  # a clone need not be installed
    return ours | {package: importlib.metadata.version(package) for package in _PACKAGES}


def _commit() -> str:
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():  # installed; a repository further up would be somebody else's
        return ""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()
