"""The GPUs that `--devices` may name, by NVIDIA's own tool: the process that starts the runs must not hold a card."""

import os
import re
import subprocess
from typing import NamedTuple

from cutnmix_jax.errors import UsageError


class Gpu(NamedTuple):
    """A card, or a part of one.

    Attributes:
      number: as nvidia-smi counts; empty for a part of a card (MIG).
      uuid: `GPU-...` or `MIG-...`.
    """

    number: str
    uuid: str


def chosen(text: str | None) -> tuple[str, ...]:
    """The devices of `--devices=0,1`, by nvidia-smi's numbers or UUIDs, as CUDA_VISIBLE_DEVICES takes them.

    Raises:
      UsageError: one is not there, is hidden by CUDA_VISIBLE_DEVICES, or is named twice.
    """
    if text is None:
        return ()
    names = [name.strip() for name in text.split(",")]
    there = _listed(text)
    visible, hidden = there, ""
    if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        visible = [gpu for name in shown.split(",") for gpu in there if _means(name.strip(), gpu)]
        hidden = f" that CUDA_VISIBLE_DEVICES={shown} shows"
    known = ", ".join(gpu.number or gpu.uuid for gpu in visible) or "none"
    found: list[Gpu] = []
    for name in names:
        gpu = next((gpu for gpu in visible if _means(name, gpu)), None)
        if gpu is None:
            raise UsageError(f"--devices={text}: there is no GPU {name!r}{hidden}; there are: {known}")
        if gpu in found:
            raise UsageError(f"--devices={text} names GPU {name} twice; --jobs says how many run at once")
        found.append(gpu)
    return tuple(names)


def _means(name: str, gpu: Gpu) -> bool:
    """Whether CUDA would take the name for the GPU; of a UUID it takes the beginning, too."""
    return bool(name) and (name == gpu.number or (name[:4] in ("GPU-", "MIG-") and gpu.uuid.startswith(name)))


def _listed(text: str) -> list[Gpu]:
    """All there are, by `nvidia-smi -L`, which CUDA_VISIBLE_DEVICES does not change."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, errors="replace", timeout=60)
        said, code = done.stdout, done.returncode
        why = " ".join((done.stdout + done.stderr).split())[:200] or "it lists none"
    except OSError as error:
        said, code, why = "", 1, f"cannot be run, {error.strerror}"
    except subprocess.TimeoutExpired:
        said, code, why = "", 1, "no answer within a minute"
    lines = re.findall(r"^(?:GPU (\d+)|\s+MIG ).*\(UUID: ((?:GPU|MIG)-[^)]+)\)", said, re.MULTILINE)
    if code or not lines:
        raise UsageError(f"--devices={text}: no GPU is known here; leave it out (nvidia-smi: {why})")
    return [Gpu(number, uuid) for number, uuid in lines]
