"""Sets of measurements that belong together."""

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax.benchmark import kernels, levers, report, run, starts, target, worker
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import command_line

# Of Table 1, longest to compile first.
NETWORKS = ("resnet110", "densenet40_12", "vgg19", "vgg16", "wrn20_8", "resnet32")
GPU_TIERS = ("A", "B", "C")  # of PyTorch, where nothing is said
STARTING = 6  # workers that compile at once
SIZES = "classes", "images", "seeds"  # of a program, which --sweep takes beside the fields
BUDGET = 520.0  # seconds that all of it may take on a GPU
COMPILED_BY = 0.5, 0.85  # shares of the budget by which the networks, and then the levers, have to be ready
GROWTH = {
    "num_peers": (1, 2, 3, 4, 6, 8),
    "batch_size": (16, 32, 64, 128, 256, 512),
    "images": (1_000, 5_000, 20_000, 50_000),
    "classes": (10, 100, 500, 1000),
}

Program = tuple[dict[str, Any], str | None]  # what is trained, and the tier of PyTorch or None for ours


def size_of(known: argparse.Namespace) -> dict[str, Any]:
    """What a program is made for beside the fields of its configuration."""
    return {name: getattr(known, name) for name in SIZES}


def sweep(
    name: str, values: Sequence[Any], fields: Mapping[str, Any], size: Mapping[str, Any], timing: Mapping[str, Any]
) -> dict[Any, report.Found]:
    """One program for each value of a field of the configuration, or of `classes`, `images` or `seeds`."""
    found = {}
    for value in values:
        other = {name: int(value)} if name in size else {}
        field = {} if other else {name: value}
        spec = run.spec_of({**fields, **field}, **{**size, **other})
        found[value] = run.in_turn({"ours": (spec, None)}, **timing)["ours"]
        print(f"{name}={value}: {_shown(found[value])}", flush=True)
    return found


def _shown(found: report.Found) -> str:
    return found.get("error") or f"{found['step_ms']:.1f} ms per step"


def growth(known: argparse.Namespace, fields: Mapping[str, Any], networks: Sequence[str]) -> dict[str, Any]:
    """Step time and memory over peers, batch, images and classes; a picture beside `--json`."""
    fields = {**fields, "backbone": (networks or ["resnet8"])[0]}
    timing = {"windows": known.windows, "steps": known.steps, "peak": known.peak}
    size = size_of(known)
    sweeps = {name: sweep(name, values, fields, size, timing) for name, values in GROWTH.items()}
    for name, found in sweeps.items():
        report.table({f"{name}={value}": one for value, one in found.items()}, f"{fields['backbone']}, over {name}")
    if known.json:
        title = f"{fields['backbone']}, {known.method}, {jax.devices()[0].device_kind}"
        report.growth_picture(Path(known.json).with_suffix(".png"), sweeps, title)
    return {"suite": "growth", "fields": fields, "found": sweeps}


def on_target(known: argparse.Namespace, fields: Mapping[str, Any], networks: Sequence[str]) -> dict[str, Any]:
    """What a step of each network would launch on a card that is not there."""
    card, python, found = target.described(known.target), target.interpreter(), {}
    for name in networks or (run.networks_of(fields),):
        print(f"{name}: compiling for {known.target}", flush=True)
        found[name] = target.on_target(
            run.spec_of({**fields, "backbone": name} if networks else fields, **size_of(known)), card, python
        )
    if all("error" in one for one in found.values()):
        raise UsageError(next(iter(found.values()))["error"])
    kinds = {kind: (kind, "d") for kind in kernels.KINDS}
    for one in found.values():  # of a single card none
        for kind, travels in one.get("collectives", {}).items():
            kinds |= {f"{kind}, times": (f"{kind} times", "d"), f"{kind}, MB": (f"{kind} MB", ".3f")}
            one |= {f"{kind} times": travels["times"], f"{kind} MB": travels["bytes"] / 1e6}
    rest = {name: report.COLUMNS[name] for name in ("kernels", "launch floor, ms", "memory MiB", "compile s")}
    report.side_by_side(found, kinds | rest, f"kernels of a step on {known.target}, {known.method}; no times")
    return {"target": known.target, "found": found}


def start(known: argparse.Namespace, fields: Mapping[str, Any], networks: Sequence[str]) -> dict[str, Any]:
    """From the command to the first step of each network, with no program compiled before and with those of then."""
    found = starts.measured(networks or levers.GRAPH_NETWORKS, fields, time.monotonic() + (known.budget or BUDGET))
    report.table(found, f"seconds from the command to the first step, {known.method}")
    return {"suite": "start", "found": found}


def gpu(known: argparse.Namespace, fields: Mapping[str, Any], networks: Sequence[str]) -> dict[str, Any]:
    """Everything that a GPU should be asked, within a budget of seconds: networks beside PyTorch, levers, starts.

    Several workers compile at once, so kernels are chosen on a busy card and compile times are left out; then they take
    turns alone. What is not ready in time, or has no time left, is named as not measured.
    """
    begun, budget = time.monotonic(), known.budget or BUDGET
    names = list(networks) or list(NETWORKS)
    tiers = known.tiers or GPU_TIERS
    found: dict[str, report.Found] = {}
    phases = filter(None, [compared(names, known, fields, tiers), changed(names, known, fields)])
    for programs, share in zip(phases, COMPILED_BY, strict=False):
        measure(programs, begun + share * budget, begun + budget, known, found)
    for one in found.values():
        if one.get("kernels_per_step"):
            one["launch_floor_ms"] = kernels.launch_floor_ms(one["kernels_per_step"])
    starting = [name for name in names if name in levers.GRAPH_NETWORKS]
    found |= starts.measured(starting, fields, begun + budget)
    spec = run.spec_of({**fields, "backbone": names[0]})
    settings = command_line.from_flags(spec["config"], spec["overrides"])
    sizes = f"J={len(settings.backbones)} and batch {settings.batch_size}"
    report.table(found, f"{known.method}, {sizes} unless said otherwise")
    ratios = {name: faster(found, name, tiers) for name in names}
    for name, times in ratios.items():
        if times:
            print(f"{name}: " + ", ".join(f"{value:.2f} times tier {tier}" for tier, value in times.items()))
    return {"suite": "gpu", "seconds": time.monotonic() - begun, "found": found, "times_faster": ratios}


def compared(
    names: Sequence[str], known: argparse.Namespace, fields: Mapping[str, Any], tiers: Sequence[str]
) -> dict[str, Program]:
    """Ours and PyTorch's of each network, the slowest to compile first and those that compile nothing last."""
    programs: dict[str, Program] = {}
    compiled = [tier for tier in tiers if tier in run.COMPILED_TIERS]
    for tier in [*compiled, None, *(tier for tier in tiers if tier not in compiled)]:
        for name in names:
            spec = run.spec_of({**fields, "backbone": name}, **size_of(known))
            if tier:
                run.torch_spec(spec, tier)  # what PyTorch cannot do is said before anything starts
            programs[name if tier is None else f"{name}, torch {tier}"] = (spec, tier)
    return programs


def changed(names: Sequence[str], known: argparse.Namespace, fields: Mapping[str, Any]) -> dict[str, Program]:
    """Ours with one setting changed at a time."""
    programs: dict[str, Program] = {}
    for label, change in levers.of(names).items():
        size = size_of(known) | {"seeds": change.seeds}
        spec = run.spec_of({**fields, "backbone": change.network, **change.fields}, **size)
        programs[label] = (spec | {"environment": change.environment}, None)
    return programs


def measure(
    programs: Mapping[str, Program],
    ready_by: float,
    end: float,
    known: argparse.Namespace,
    found: dict[str, report.Found],
) -> None:
    """Starts all programs, then times those that are ready one after another, and adds what was found to `found`."""
    workers: dict[str, worker.Worker] = {}
    too_late = threading.Event()

    def ready(name: str) -> report.Found:
        if too_late.is_set():
            return {"error": "not compiled in time"}
        workers[name] = run.start(*programs[name], cache)
        if too_late.is_set():
            workers[name].kill()
        return run.attempt(workers[name])

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache, ThreadPoolExecutor(STARTING) as pool:
        try:
            asked = {name: pool.submit(ready, name) for name in programs}
            print(f"compiling {len(asked)} programs", flush=True)
            for name, future in asked.items():
                try:
                    found[name] = future.result(timeout=max(0.0, ready_by - time.monotonic()))
                except TimeoutError:
                    found[name] = {"error": "not compiled in time"}
                print(f"{name}: {found[name].get('error', 'compiled')}", flush=True)
            too_late.set()
            for name in list(workers):  # what still compiles would disturb the others
                if "error" in found[name]:
                    workers[name].kill()
            for name in programs:
                if "error" not in found[name]:
                    found[name] = _windows(workers[name], found[name], programs[name], known, end)
                    _write(known, found)
                    print(f"{name}: {_shown(found[name])}", flush=True)
        finally:
            too_late.set()
            for one in list(workers.values()):
                one.close()


def _windows(
    one: worker.Worker, said: report.Found, program: Program, known: argparse.Namespace, end: float
) -> report.Found:
    seconds: list[float] = []
    watchdog = threading.Timer(max(0.0, end - time.monotonic()), one.kill)
    watchdog.start()
    try:
        for _ in range(known.windows):
            answer = run.attempt(one, steps=known.steps)
            if "error" in answer:
                break
            seconds.append(answer["seconds"])
        if not seconds:
            return {"error": "no time left" if time.monotonic() > end else answer["error"]}
        after = run.attempt(one, after=True)
    finally:
        watchdog.cancel()
    one.kill()  # its memory is free for the others
    kept = {key: value for key, value in said.items() if not key.startswith(("compile", "trace"))}
    return run.completed(kept | after, seconds, known.steps, program[0], known.peak)


def faster(found: Mapping[str, report.Found], name: str, tiers: Sequence[str]) -> dict[str, float]:
    """How many times as fast as each tier of PyTorch on the same device ours is, by medians."""
    mine = found[name]
    others = {tier: found[f"{name}, torch {tier}"] for tier in tiers}
    return {
        tier: other["step_ms"] / mine["step_ms"]
        for tier, other in others.items()
        if "step_ms" in other and "step_ms" in mine and other["device"] == mine["device"]
    }


def _write(known: argparse.Namespace, found: Mapping[str, report.Found]) -> None:
    if known.json:
        Path(known.json).write_text(json.dumps({"suite": known.suite, "found": found}, indent=1) + "\n")


SUITES: dict[str, Callable[[argparse.Namespace, Mapping[str, Any], Sequence[str]], dict[str, Any]]] = {
    "gpu": gpu,
    "growth": growth,
    "start": start,
}
