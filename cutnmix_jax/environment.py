"""What a run is made with, besides its configuration, and what of it decides about the last bits of the numbers."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax import __version__, digests, files, own_code
from cutnmix_jax.errors import CheckpointError
from cutnmix_jax.layout import ENVIRONMENT
from cutnmix_jax.types import Dataset

_NUMBERS = ("jax", "jaxlib", "flax", "optax", "numpy")  # packages that decide the numbers, beside ours and a GPU's
_GPU_LIBRARIES = ("jax-cuda", "nvidia-")
_LOOKED_AT = ("JAX_", "XLA_", "PJRT_", "NPROC", "NVIDIA_TF32", "CUBLAS_")  # variables, by JAX and XLA
_OTHERS = ("orbax-checkpoint", "tensorflow-datasets")  # what they read has digests of its own

# XLA splits its sums by the number of threads and compiles for the CPU it finds; libc has some of its functions.
_OF_A_CPU = ("cores", "cpu", "libc")
_DECIDING = (
    "versions", "source", "backend", "runtime", "device", "device_count", "settings", "flags", "runs_in_program",
    "steps_per_call", "layout",
)  # fmt: skip
# Settings of JAX and flags of XLA that say what is kept, shown, checked or allowed, and where.
_HARMLESS = re.compile(
    "cache|log_|logging|traceback|dump|explain|guard|check|debug|leak|legacy|platform|visible_devices|timeout|pprint"
    "|rank_promotion|preemption_service"
)


def of_run(dataset: Dataset, networks: Sequence[str] = ()) -> dict[str, Any]:
    """What a run is made with.

    Args:
      dataset: whose images it has.
      networks: of a user's own, `my_pkg.nets:make`; each is known by the file that it is in.

    Returns:
      What `environment.json` says, as JSON can hold it.
    """
    device = jax.local_devices()[0]
    return {
        "command": sys.argv,
        "versions": versions(),
        "source": _source(networks),
        "commit": _git("rev-parse", "HEAD"),
        "local_changes": _git("status", "--porcelain", "--", "cutnmix_jax", "configs").splitlines(),
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "runtime": device.client.platform_version,
        "device_count": jax.device_count(),
        "cores": cores(),
        "cpu": _cpu(),
        "libc": " ".join(platform.libc_ver()),
        "platform": platform.platform(),
        "data_sha256": digests.of_data(dataset),
        "facts_sha256": digests.of_facts(dataset),
        "environment": {name: value for name, value in os.environ.items() if name.startswith(_LOOKED_AT)},
        "settings": {
            name: value if isinstance(value, bool | int | float | str | None) else str(value)
            for name, value in jax.config.values.items()
            if not _HARMLESS.search(name)
        },
        "flags": _flags(),
    }


def read(folder: Path) -> dict[str, Any]:
    """The `environment.json` of a run; empty where there is none that can be read."""
    try:
        return files.read_fields(folder / ENVIRONMENT)
    except (OSError, ValueError, CheckpointError):
        return {}


def check_code(folder: Path, networks: Sequence[str]) -> None:
    """Warns where networks of a user's own, `my_pkg.nets:make`, have other code than when a run was trained."""
    own_code.check_same(read(folder).get("source"), networks, folder)


def deciding(made_with: dict[str, Any]) -> dict[str, Any]:
    """The part of what `of_run` returns that decides about the last bits, as far as it is there."""
    names = _DECIDING + (_OF_A_CPU if made_with.get("backend") == "cpu" else ())
    found = {name: made_with[name] for name in names if name in made_with}
    if isinstance(found.get("versions"), dict):
        found["versions"] = {name: it for name, it in found["versions"].items() if name not in ("python", *_OTHERS)}
    return found


@functools.cache  # a start asks twice, and to look through all that is installed takes a tenth of a second
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that decide the numbers, or read what is stored."""
    ours = {"python": platform.python_version(), "cutnmix-jax": __version__}  # a clone need not be installed
    gpu = {
        it.name: it.version
        for it in importlib.metadata.distributions()
        if (it.name or "").lower().replace("_", "-").startswith(_GPU_LIBRARIES)
    }
    return ours | {package: importlib.metadata.version(package) for package in (*_NUMBERS, *_OTHERS)} | gpu


def program() -> dict[str, str]:
    """What must be the same on all machines that train for one table: this program, and the packages of its numbers.

    A GPU's libraries are not among them: a machine without a GPU lacks them.
    """
    packages = {package: versions()[package] for package in _NUMBERS}
    return {"cutnmix_jax": __version__, **packages, "source of cutnmix_jax": _source_of_ours()}


def cores() -> int:
    """How many threads XLA computes with on a CPU, by the rule that it has itself.

    It sees `taskset`, cpusets and what Slurm binds a process to, but not the quota of a container or PYTHON_CPU_COUNT,
    neither of which changes a bit.
    """
    for name in ("PJRT_NPROC", "NPROC"):
        with contextlib.suppress(KeyError, ValueError):
            return max(1, int(os.environ[name]))
    # Not everywhere; there nothing binds a process to cores either.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu() -> dict[str, Any]:
    """The model of the CPU and the vector instructions it has, which XLA compiles for."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip().lower(), value.strip())
    model = fields.get("model name") or " ".join(
        fields.get(f"cpu {of}", "") for of in ("implementer", "part", "revision")
    )
    features = (fields.get("flags") or fields.get("features") or "").split()
    # Others of the flags come and go with the kernel.
    vector = [name for name in features if re.match("avx|sse|ssse|fma|f16c|amx|asimd|sve|bf16|i8mm", name)]
    return {"model": model.strip() or platform.processor(), "vector_instructions": " ".join(sorted(vector))}


def _flags() -> list[str]:
    """The flags in XLA_FLAGS, or in the file that it names, and of a GPU's libraries, that decide about numbers."""
    text = os.environ.get("XLA_FLAGS", "").strip()
    if text and not text.startswith("-"):
        with contextlib.suppress(OSError):
            text = Path(text).read_text(errors="replace")
    flags = [flag for flag in text.split() if not _HARMLESS.search(flag.partition("=")[0])]
    gpu = ("NVIDIA_TF32_OVERRIDE", "CUBLAS_WORKSPACE_CONFIG")
    return flags + [f"{name}={os.environ[name]}" for name in gpu if name in os.environ]


def _source(networks: Sequence[str]) -> dict[str, str]:
    """A SHA-256 of the source of this package, and of each file of a user's own with a network or a method.

    Such a file may have been added to a package of ours, by its `__path__`.
    """
    found = {"cutnmix_jax": _source_of_ours()}
    here = Path(__file__).parent
    files = {name: getattr(sys.modules[name], "__file__", None) for name in [*sys.modules]}
    ours = {name: file for name, file in files.items() if file and name.startswith(f"{here.name}.")}
    added = [name for name, file in ours.items() if not Path(file).is_relative_to(here)]
    for module in sorted({*added, *(name.partition(":")[0] for name in networks)}):
        if digest := own_code.digest(module):
            found[module] = digest
    return found


@functools.cache
def _source_of_ours() -> str:
    """Read once: a table on a cluster asks for each cell, and the files may lie on storage that many machines share."""
    here = Path(__file__).parent
    ours = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        ours.update(f"{path.relative_to(here).as_posix()} ".encode() + path.read_bytes())
    return ours.hexdigest()[:16]


def _git(*command: str) -> str:
    """What git says of the clone that this is; nothing where it is none."""
    here = Path(__file__).parent.parent
    if not (here / ".git").exists():  # installed; a repository further up would be somebody else's
        return ""
    try:
        answer = subprocess.run(
            ["git", "--no-optional-locks", *command], cwd=here, capture_output=True, text=True, timeout=5
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.rstrip()
