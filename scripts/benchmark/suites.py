"""Sets of measurements that belong together."""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from scripts.benchmark import report, run, worker

NETWORKS = (
    "resnet110",
    "densenet40_12",
    "vgg19",
    "vgg16",
    "wrn20_8",
    "resnet32",
)  # of Table 1, longest to compile first
LAUNCH_US = 2.5  # assumed time to start a kernel on a stream
STARTING = 8  # workers that compile at once
GROWTH = {
    "num_peers": (1, 2, 3, 4, 6, 8),
    "batch_size": (16, 32, 64, 128, 256, 512),
    "images": (1_000, 5_000, 20_000, 50_000),
    "classes": (10, 100, 500, 1000),
}

# Beside the paper's six networks, of one network each: what the settings are worth. A name -> fields, environment.
LEVERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "vmap": ({"mapping": "vmap"}, {}),
    "float32": ({"precision": "float32"}, {}),
    "bfloat16": ({"precision": "bfloat16"}, {}),
    "1 step per call": ({"steps_per_call": 1}, {}),
    "4 peers": ({"num_peers": 4}, {}),
    "8 peers": ({"num_peers": 8}, {}),
    "batch 256": ({"batch_size": 256}, {}),
    "graphs with convolutions": ({}, {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+CONVOLUTION"}),
    "graphs with loops": ({}, {"XLA_FLAGS": "--xla_gpu_enable_command_buffer=+CONVOLUTION,+WHILE"}),
    "concurrent graphs": (
        {},
        {
            "XLA_FLAGS": "--xla_gpu_enable_command_buffer=+CONVOLUTION"
            " --xla_gpu_command_buffer_scheduling_mode=CONCURRENT"
        },
    ),
}
LEVER_NETWORK = "resnet32"


def default_tiers() -> tuple[str, ...]:
    """What PyTorch is compared in; compiling takes it minutes on a CPU."""
    return ("A", "B", "C") if jax.default_backend() == "gpu" else ("A", "B")


def sweep(
    name: str, values: Sequence[Any], fields: Mapping[str, Any], size: Mapping[str, int], timing: Mapping[str, Any]
) -> dict[Any, report.Found]:
    """One program for each value of a field of the configuration, or of `classes` or `images`."""
    found = {}
    for value in values:
        other = {name: int(value)} if name in size else {}
        field = {} if other else {name: value}
        spec = run.spec_of({**fields, **field}, **{**size, **other})
        found[value] = run.in_turn({"ours": (spec, None)}, **timing)["ours"]
        shown = found[value]
        print(f"{name}={value}: {shown.get('error') or format(shown['step_ms'], '.1f') + ' ms per step'}", flush=True)
    return found


def growth(known: argparse.Namespace, backbones: Sequence[str]) -> dict[str, Any]:
    """Step time and memory over peers, batch, images and classes; a picture beside `--json`."""
    fields = {"backbone": (backbones or ["resnet8"])[0], "method": known.method}
    timing = {"windows": known.windows, "steps": known.steps, "peak": known.peak}
    size = {"classes": known.classes, "images": known.images}
    sweeps = {name: sweep(name, values, fields, size, timing) for name, values in GROWTH.items()}
    for name, found in sweeps.items():
        report.table({f"{name}={value}": one for value, one in found.items()}, f"{fields['backbone']}, over {name}")
    if known.json:
        title = f"{fields['backbone']}, {known.method}, {jax.devices()[0].device_kind}"
        report.growth_picture(Path(known.json).with_suffix(".png"), sweeps, title)
    return {"suite": "growth", "fields": fields, "found": sweeps}


def gpu(known: argparse.Namespace, backbones: Sequence[str]) -> dict[str, Any]:
    """Everything that a GPU should be asked, within a budget of seconds.

    Workers compile beside each other for half of the time at most, then take turns alone. What is not ready by then, or
    has no time left, is named as not measured.
    """
    begun = time.monotonic()
    names = list(backbones) or list(NETWORKS)
    tiers = tuple(known.tiers.split(",")) if known.tiers else ("A", "B", "C")
    programs = programs_of(names, known, tiers)
    found: dict[str, report.Found] = {}
    with tempfile.TemporaryDirectory() as cache:
        pool = ThreadPoolExecutor(STARTING)
        workers: dict[str, worker.Worker] = {}
        try:
            # The first are the slowest to compile; tiers A and B, which compile nothing, are last.
            asked = {name: pool.submit(_ready, name, programs[name], cache, workers) for name in programs}
            until = begun + 0.55 * known.budget
            for name, future in asked.items():
                try:
                    found[name] = future.result(timeout=max(0.0, until - time.monotonic()))
                except TimeoutError:
                    future.cancel()
                    found[name] = {"error": "not compiled in time"}
                    if name in workers:  # or it would disturb the others
                        workers[name].process.kill()
            for name in programs:
                if "error" not in found[name]:
                    found[name] = _windows(workers[name], found[name], programs[name], known, begun)
                    _write(known, found)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for one in list(workers.values()):
                one.close()
    for one in found.values():
        one |= floors(one)
    report.table(found, "step time")
    ratios = {name: faster(found, name, tiers) for name in names}
    for name, times in ratios.items():
        print(f"{name}: " + ", ".join(f"{value:.2f} times tier {tier}" for tier, value in times.items()))
    return {"suite": "gpu", "seconds": time.monotonic() - begun, "found": found, "times_faster": ratios}


def programs_of(
    names: Sequence[str], known: argparse.Namespace, tiers: Sequence[str]
) -> dict[str, tuple[dict[str, Any], str | None]]:
    """Ours and PyTorch's of each network, then the levers of one network."""
    programs: dict[str, tuple[dict[str, Any], str | None]] = {}
    order: list[str | None] = [*(tier for tier in tiers if tier.startswith("C")), None]
    order += [tier for tier in tiers if not tier.startswith("C")]
    for tier in order:
        for name in names:
            spec = run.spec_of({"backbone": name, "method": known.method})
            programs[name if tier is None else f"{name}, torch {tier}"] = (spec, tier)
    if LEVER_NETWORK in names:
        for label, (fields, environment) in LEVERS.items():
            spec = run.spec_of({"backbone": LEVER_NETWORK, "method": known.method, **fields})
            programs[f"{LEVER_NETWORK}, {label}"] = (spec | {"environment": environment}, None)
    return programs


def _ready(name: str, program: tuple[Any, str | None], cache: str, workers: dict[str, worker.Worker]) -> report.Found:
    workers[name] = run.start(*program, cache)
    return run.attempt(workers[name].ask)


def _windows(
    one: worker.Worker,
    known_before: report.Found,
    program: tuple[Any, str | None],
    known: argparse.Namespace,
    begun: float,
) -> report.Found:
    seconds: list[float] = []
    for _ in range(known.windows):
        if time.monotonic() - begun > known.budget:
            break
        answer = run.attempt(lambda: one.ask(steps=known.steps))
        if "error" in answer:
            return answer
        seconds.append(answer["seconds"])
    if not seconds:
        return {"error": "no time left"}
    said = known_before | run.attempt(lambda: one.ask(after=True))
    one.process.kill()  # its memory is free for the others
    return run.completed(said, seconds, known.steps, program[0], known.peak)


def floors(found: report.Found) -> report.Found:
    """The least that the launches of a step can take, where the number of its kernels is known."""
    kernels = found.get("kernels_per_step")
    return {"launch_floor_ms": kernels * LAUNCH_US / 1000} if kernels else {}


def faster(found: Mapping[str, report.Found], name: str, tiers: Sequence[str]) -> dict[str, float]:
    """How many times as fast as each tier of PyTorch ours is, by medians."""
    mine = found[name].get("step_ms")
    others = {tier: found[f"{name}, torch {tier}"].get("step_ms") for tier in tiers}
    return {tier: other / mine for tier, other in others.items() if other and mine}


def _write(known: argparse.Namespace, found: Mapping[str, report.Found]) -> None:
    if known.json:
        Path(known.json).write_text(json.dumps({"suite": known.suite, "found": found}, indent=1) + "\n")


SUITES: dict[str, Callable[[argparse.Namespace, Sequence[str]], dict[str, Any]]] = {"gpu": gpu, "growth": growth}
