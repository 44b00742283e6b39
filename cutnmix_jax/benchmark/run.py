"""Measurements as functions: one program, several in turn, many of them one after another."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import methods
from cutnmix_jax.benchmark import reference, report, worker
from cutnmix_jax.names import term_names
from cutnmix_jax.settings import command_line
from cutnmix_jax.types import Spec

COMPILED_TIERS = ("C", "Cmax")
TIERS = ("A", "B", *COMPILED_TIERS)
_ROOT = Path(__file__).parents[2]


def spec_of(
    overrides: Mapping[str, Any], *, bare: bool = False, classes: int = 100, images: int = 50_000, seeds: int = 1
) -> dict[str, Any]:
    """What a worker with our program is told.

    Args:
      overrides: `backbone` and `method`, and fields of the configuration.
      bare: only forward, backward and SGD.
      classes: K.
      images: how many the training set has.
      seeds: whose networks one program trains, see `engine.joint`.
    """
    fields = [f"--config.{name}={value}" for name, value in overrides.items() if name not in ("backbone", "method")]
    row = methods.row(overrides.get("method", "cutnmix"))
    if str(overrides.get("num_peers")) == "1" and not row.share_trunk:
        alone = term_names(row.method, Spec(classes, (1,), 1))
        fields += [f"--config.weights.{name}=0" for name in row.weights if name not in alone]
    config = f"resnet32:cifar100,{overrides.get('method', 'cutnmix')}"  # the recipe is the same for all networks
    network = f"--config.backbone.name={overrides['backbone']}"
    size = {"classes": classes, "images": images, "seeds": seeds}
    return {"config": config, "overrides": [network, *fields], "bare": bare, **size}


def networks_of(fields: Mapping[str, Any]) -> str:
    """The names of the networks that are measured: those of `peers` count where they are named."""
    return str(fields.get("peers") or fields["backbone"])


def has_torch_side() -> bool:
    """Whether this is a clone, which has the program in PyTorch beside the package."""
    return (_ROOT / "scripts" / "bench_torch").is_dir()


def torch_python() -> str:
    """The interpreter that has PyTorch: $TORCH_PYTHON, else the one of `.venv-torch`, else this one."""
    made = _ROOT / ".venv-torch" / "bin" / "python"
    return os.environ.get("TORCH_PYTHON") or (str(made) if made.exists() else sys.executable)


def start(spec: Mapping[str, Any], tier: str | None, cache: str) -> worker.Worker:
    """Starts a worker: ours, or PyTorch's of a tier, which is told the same configuration."""
    if tier is None:
        environment = {
            "JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp(dir=cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # others are on the card
        } | spec.get("environment", {})
        return worker.start("ours", sys.executable, "cutnmix_jax.benchmark.jax_side", spec, environment)
    environment = {"TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=cache)}
    return worker.start(tier, torch_python(), "scripts.bench_torch", torch_spec(spec, tier), environment)


def torch_spec(spec: Mapping[str, Any], tier: str) -> dict[str, Any]:
    """What a worker with the PyTorch program is told; UsageError where that program cannot do it."""
    settings = command_line.from_flags(spec["config"], spec["overrides"])
    return reference.description(settings, spec["classes"]) | {"tier": tier}


def completed(
    found: report.Found, seconds: Sequence[float], steps: int, spec: Mapping, peak: float | None
) -> report.Found:
    """What a worker said, and what follows from its times."""
    settings = command_line.from_flags(spec["config"], spec["overrides"])
    found = found | report.timing(seconds, steps) | {"window_ms": [1000 * value / steps for value in seconds]}
    images = spec["seeds"] * len(settings.backbones) * settings.batch_size
    found["peer_images_per_second"] = 1000 * images / found["step_ms"]
    if gflop := found.get("gflop_per_step"):
        found["tflops"] = gflop / found["step_ms"]
        # `peak` is of one device, the operations are of all.
        found["percent_of_peak"] = None if peak is None else 100 * found["tflops"] / (peak * found["devices"])
    return found


def in_turn(
    programs: Mapping[str, tuple[Mapping[str, Any], str | None]], *, windows: int, steps: int, peak: float | None = None
) -> dict[str, report.Found]:
    """Measures programs that take turns, a window each, after all of them are ready.

    Args:
      programs: a name -> what it trains, and the tier of PyTorch or None for ours.
      windows: how many each has.
      steps: of each window.
      peak: TFLOP/s that the device can do, None if not known.

    Returns:
      A name -> what was measured, or an `error`.
    """
    found: dict[str, report.Found] = {}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        workers = {}
        try:
            for name, (spec, tier) in programs.items():  # one at a time: what compiles is timed too
                print(f"{name}: compiling", flush=True)
                workers[name] = start(spec, tier, cache)
                found[name] = attempt(workers[name])
            print(f"measuring {windows} windows of {steps} steps each", flush=True)
            for _ in range(windows):
                for name, one in workers.items():
                    if "error" not in found[name]:
                        answer = attempt(one, steps=steps)
                        if "error" in answer:
                            found[name] = answer
                        else:
                            seconds[name].append(answer["seconds"])
            for name, one in workers.items():
                if "error" not in found[name]:
                    found[name] |= attempt(one, after=True)
        finally:
            for one in workers.values():
                one.close()
    for name, (spec, _) in programs.items():
        if "error" not in found[name]:
            found[name] = completed(found[name], seconds[name], steps, spec, peak)
    return found


def attempt(one: worker.Worker, **request: Any) -> report.Found:
    """The answer of a worker, or the error in its place."""
    try:
        return one.ask(**request)
    except worker.Failed as failed:
        return {"error": str(failed)}
