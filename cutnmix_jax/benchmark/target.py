"""Compiles a training step for a GPU that is not there, and counts what it would launch.

XLA compiles for a card from a description of it, on any machine that has JAX's CUDA build. Without the card it chooses
no algorithms of convolutions (autotuning is off). The instructions of the program are counted; times are not known.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax.benchmark import jax_side, kernels
from cutnmix_jax.engine import assemble, devices
from cutnmix_jax.errors import UsageError
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import command_line
from cutnmix_jax.types import Tree

_ROOT = Path(__file__).parents[2]
_TARGETS = Path(__file__).parent  # with descriptions of cards, as XLA writes them
_IMAGES = 5_000  # in the made-up training set; no kernel depends on it


def described(target: str) -> str:
    """The description of a card: of a shipped one by its name, else of a file.

    Raises:
      UsageError: there is none.
    """
    path = _TARGETS / f"{target}.pbtxt" if re.fullmatch(r"\w+", target) else Path(target)
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():  # a device may have no end
            return path.read_text()
    known = ", ".join(sorted(one.stem for one in _TARGETS.glob("*.pbtxt")))
    raise UsageError(f"--target={target}: give one of {known}, or a file with XLA's target description")


def interpreter() -> str:
    """One with JAX's CUDA build: $CUDA_PYTHON; that of `.venv-cuda`, which a clone makes here; else this one.

    Raises:
      UsageError: it cannot be made.
    """
    script = _ROOT / "scripts" / "_cuda"
    if python := os.environ.get("CUDA_PYTHON"):
        return python
    if not script.is_file():
        return sys.executable
    if subprocess.run(["bash", script], check=False).returncode:
        raise UsageError("--target: .venv-cuda cannot be made, see above; CUDA_PYTHON names another interpreter")
    return str(_ROOT / ".venv-cuda" / "bin" / "python")


def on_target(spec: Mapping[str, Any], target: str, python: str) -> dict[str, Any]:
    """Counts, in a process of its own, what a step launches on a card that is not there.

    Args:
      spec: what is trained, from `run.spec_of`.
      target: the description of the card.
      python: an interpreter with JAX's CUDA build.

    Returns:
      a number for each of `kernels.KINDS`, their sum `kernels_per_step`, `launch_floor_ms`, `memory_mib` of temporary
      memory, `compile_cold_s`, and of several cards `collectives`; or an `error`.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1", "XLA_FLAGS": flags.strip()}
    command = [python, "-m", "cutnmix_jax.benchmark.target"]
    request = json.dumps({"spec": dict(spec), "target": target})
    done = subprocess.run(command, env=environment, input=request, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.splitlines() or ["?"])[-1][:300]}
    found = json.loads(done.stdout.splitlines()[-1])
    total = sum(found[kind] for kind in kernels.KINDS)
    return found | {"kernels_per_step": total, "launch_floor_ms": kernels.launch_floor_ms(total)}


def _compiled(spec: Mapping[str, Any], target: str) -> jax.stages.Compiled:
    from jax.experimental import topologies

    settings = command_line.from_flags(spec["config"], spec["overrides"])
    count = settings.devices
    if not count:
        raise UsageError("config.devices=0: nobody knows how many there are; give a number")
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{count}")
    except Exception as error:  # of several types: no plugin, or no such description
        raise UsageError(f"JAX compiles for no such card here (pip install 'jax[cuda13]'): {error}") from error
    cards = topologies.make_mesh(topology, (count,), ("d",))
    whole = jax.sharding.NamedSharding(cards, jax.sharding.PartitionSpec())

    def there(tree: Tree) -> Tree:
        where = whole if count == 1 else None  # a program for several says where they lie
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), tree)

    jax.config.update("jax_default_matmul_precision", CHOICES[settings.precision].products)
    jax.default_backend = lambda: "gpu"  # the program asks this, and nothing else, to choose what suits a device
    if count > 1:  # and lays a run out on these, to which nothing can be put
        jax.devices = lambda *_: list(cards.devices.flat)
        devices.put = lambda leaf, where: leaf
    networks = assemble.networks(settings, spec["classes"])
    dataset = jax_side.made_up(_IMAGES, spec["classes"], networks.backbones[0].image_shape)
    engine = assemble.engine(settings, dataset, networks)
    function, carry, rest = jax_side.arranged(engine, engine.shapes, engine.feed_shapes, spec["seeds"])
    return function.lower(*map(there, (*carry, *rest, jnp.int32(1)))).compile()


def main() -> None:
    """Reads what to compile from stdin, and prints what a step launches."""
    request = json.loads(sys.stdin.read())
    begun = time.monotonic()
    try:
        program = _compiled(request["spec"], request["target"])
    except UsageError as error:
        sys.exit(str(error))
    memory, text = program.memory_analysis(), program.as_text()
    assert memory is not None and text is not None  # which only other back ends lack
    found = {"memory_mib": memory.temp_size_in_bytes / 2**20, "compile_cold_s": time.monotonic() - begun}
    print(json.dumps(found | kernels.counts(text) | {"collectives": kernels.collectives(text)}))


if __name__ == "__main__":
    main()
