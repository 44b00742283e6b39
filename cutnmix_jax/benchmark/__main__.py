"""Measures the speed of training, ours and PyTorch's."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax

from cutnmix_jax import together
from cutnmix_jax.benchmark import jax_side, reference, report, run, suites
from cutnmix_jax.command import CommandLine, called, exit_code_of, given, values_of
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import DEVICE, DISK, Settings, command_line

EXAMPLES = """  {command} --backbone=resnet32                                   one program
  {command} --backbone=resnet32 --bare                            beside forward, backward and SGD alone
  {command} --backbone=resnet8 --sweep num_peers=1,2,4            over the values of a field
  {command} --backbone=resnet32 --vs-torch --steps=8              beside PyTorch, taking turns
  {command} --backbone=resnet32 --sweep seeds=1,2,3               over the seeds that one program trains
  {command} --suite=gpu                                           all that a GPU should be asked
  {command} --suite=start --backbones=resnet32                    from the command to the first step, twice
  {command} --target=h100 --backbones=resnet32,resnet110          kernels of a step on a GPU that is not there
  {command} --suite=growth                                        how time and memory grow, with a picture

Any field of the configuration can follow, as --config.batch_size=128 --config.mapping=vmap --config.precision=bfloat16
--config.steps_per_call=50. The last line is JSON. Images are made up; nothing else should run on the machine."""
GATE = {"batch_size": 16, "precision": "float32", "images_in": DEVICE}
GATE_STEPS, GATE_SHARE = 20, 1e-3


def arguments() -> tuple[argparse.Namespace, dict[str, Any]]:
    """The command line, whose lists are lists, and the overridden fields.

    Raises:
      UsageError: it makes no sense.
    """
    parser = CommandLine("scripts/bench", "Measures the speed of training.", EXAMPLES)
    parser.add_argument("--backbone", help="a network, as --list of train shows them (resnet32)")
    parser.add_argument("--method", default="cutnmix", help="a row, as --list=methods of train shows them")
    parser.add_argument("--windows", type=int, default=5, help="measurements of each program")
    parser.add_argument("--steps", type=int, help="of each measurement (200 on a GPU, 8 on a CPU)")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--images", type=int, default=50_000, help="in the training set")
    parser.add_argument("--seeds", type=int, default=1, help="whose networks one program trains")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, to show the share of it")
    parser.add_argument("--bare", action="store_true", help="also forward, backward and SGD alone")
    parser.add_argument(
        "--sweep", type=given, metavar="FIELD=A,B,...", help="a field of the configuration, or classes, images or seeds"
    )
    parser.add_argument(
        "--vs-torch", action="store_true", help="also PyTorch; see CONTRIBUTING.md for its installation"
    )
    parser.add_argument("--tiers", type=given, help="of PyTorch: A, B, C, Cmax (A,B; on a GPU A,B,C)")
    parser.add_argument("--trace", type=given, metavar="DIR", help="write a profile and nothing else")
    parser.add_argument("--suite", choices=tuple(suites.SUITES))
    parser.add_argument(
        "--target",
        type=given,
        metavar="CARD",
        help="count what a step launches on a GPU that is not there: h100, or a file",
    )
    parser.add_argument("--backbones", type=given, help="of --suite, instead of all, or of --target")
    parser.add_argument("--budget", type=float, help=f"seconds that --suite=gpu or start may take ({suites.BUDGET:g})")
    parser.add_argument(
        "--json", type=given, metavar="FILE", help="where to write the JSON too; a suite's picture goes beside it"
    )
    known, rest = parser.parse_known_args()
    fields = {}
    for text in rest:
        name, equals, value = text.removeprefix("--config.").partition("=")
        if not text.startswith("--config.") or not equals:
            raise UsageError(f"unknown argument {text!r}; see --help")
        if name in ("dataset", "data_dir", "train_examples", "test_examples"):
            raise UsageError(f"{text}: the images are made up; say --images, --classes or --config.image_size")
        if name == "backbone.name":
            raise UsageError(f"{text}: say --backbone={value}, by which what is measured is called")
        fields[name] = value
    for name in ("windows", "steps", "classes", "images", "seeds", "peak", "budget"):
        value = getattr(known, name)
        if value is not None and not value >= (1 if isinstance(value, int) else 1e-3):
            raise UsageError(f"--{name}={value:g}: must be {'at least 1' if isinstance(value, int) else 'above 0'}")
    known.tiers = known.tiers and values_of(known.tiers)
    known.backbones = known.backbones and values_of(known.backbones)
    if unknown := [tier for tier in known.tiers or () if tier not in run.TIERS]:
        raise UsageError(f"--tiers: no tier {unknown[0]!r}; they are {', '.join(run.TIERS)}")
    _check(known)
    named = known.suite or known.backbones or known.backbone or (known.sweep or "").startswith(("num_peers=", "back"))
    if "peers" in fields and named:
        raise UsageError("--config.peers names the networks; leave out --suite, --backbone(s) and a --sweep of peers")
    return known, {"backbone": known.backbone or "resnet32", "method": known.method} | fields


def _check(known: argparse.Namespace) -> None:
    """Raises UsageError at what would not be looked at beside the rest, or found wrong only after it was measured."""
    ways = ("target", "suite", "trace", "sweep", "bare", "vs_torch")
    chosen = [f"--{way.replace('_', '-')}" for way in ways if getattr(known, way)]
    in_time = known.suite in ("gpu", "start")
    if chosen[1:] and chosen != ["--bare", "--vs-torch"]:
        raise UsageError(f"{chosen[0]} and {chosen[1]}: leave one of them out")
    for name, goes_with, is_looked_at in (
        ("backbone", "all but --suite, which takes --backbones", not known.suite),
        ("backbones", "--suite and --target", known.suite or known.target),
        ("tiers", "--vs-torch and --suite=gpu", known.vs_torch or known.suite == "gpu"),
        ("budget", "--suite=gpu and --suite=start", in_time),
        ("json", "what is measured, not with --trace", not known.trace),
    ):
        if getattr(known, name) and not is_looked_at:
            raise UsageError(f"--{name} goes with {goes_with}; leave it out")
    if known.seeds > 1 and (in_time or known.vs_torch or known.bare):
        other = f"--suite={known.suite}" if in_time else chosen[0]
        raise UsageError(f"--seeds and {other}: leave one of them out; what it compares with trains one seed")
    if known.suite == "growth" and len(known.backbones or ()) > 1:
        raise UsageError("--backbones: --suite=growth measures one network; leave the others out")
    if known.sweep:
        name, _, values = known.sweep.partition("=")
        if not name or not values_of(values):
            raise UsageError(f"--sweep={known.sweep}: has no values; name some, as num_peers=1,2,4")
        if name in suites.SIZES and not all(value.isdecimal() and int(value) for value in values_of(values)):
            raise UsageError(f"--sweep={known.sweep}: must be whole numbers, at least 1")
    try:
        if known.json:
            Path(known.json).touch()
        if known.trace:
            Path(known.trace).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {known.json or known.trace}: {error.strerror}; give another place") from error


def checked(spec: dict[str, Any]) -> Settings:
    """The settings of what is to be measured.

    Raises:
      UsageError: they make no sense, or not with images that are made up.
    """
    settings = command_line.from_flags(spec["config"], spec["overrides"])
    if settings.images_in == DISK:
        raise UsageError("config.images_in='disk': the images are made up, in no file; say memory, or device")
    return settings


def gate(fields: dict[str, Any]) -> dict[str, float]:
    """Compares our losses with PyTorch's, before their speeds mean anything.

    Raises:
      UsageError: they differ, or PyTorch is not there.
    """
    python = run.torch_python()
    if not run.has_torch_side():
        raise UsageError("--vs-torch: the PyTorch program is not part of the package; run scripts/bench in a clone")
    if subprocess.run([python, "-c", "import torch, PIL"], capture_output=True, check=False).returncode:
        raise UsageError(
            f"{python} has no PyTorch; python3 -m venv .venv-torch && "
            ".venv-torch/bin/pip install -r scripts/bench_torch/requirements.txt"
        )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference.npz"
        spec = run.spec_of(fields | GATE)
        reference.write(path, command_line.from_flags(spec["config"], spec["overrides"]), GATE_STEPS, 100, GATE_SHARE)
        command = [python, "-m", "scripts.bench_torch.parity", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError(f"no comparison with PyTorch: {(done.stderr.splitlines() or ['?'])[-1]}")
    found = json.loads(done.stdout)
    if not found["passed"]:
        raise UsageError(f"PyTorch computes something else: losses apart by {found['first']:.1e}, {found['most']:.1e}")
    return found


def measured(known: argparse.Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    """One program, or several in turn, or several one after another."""
    size = suites.size_of(known)
    timing = {"windows": known.windows, "steps": known.steps, "peak": known.peak}
    if known.sweep:
        name, _, values = known.sweep.partition("=")
        for value in values_of(values) if name not in suites.SIZES else ():  # a wrong one is said at once
            checked(run.spec_of(fields | {name: value}))
        found = suites.sweep(name, values_of(values), fields, size, timing)
        title = f"{run.networks_of(fields)}, {fields['method']}, over {name}"
        report.table({f"{name}={value}": one for value, one in found.items()}, title)
        return {"sweep": name, "found": found}
    programs: dict[str, suites.Program] = {"ours": (run.spec_of(fields, **size), None)}
    result: dict[str, Any] = {}
    if known.bare:
        programs["bare"] = (run.spec_of(fields, bare=True, **size), None)
    if known.vs_torch:
        result["gate"] = gate(fields)
        print(f"gate: losses apart by {result['gate']['first']:.1e} in the first of {GATE_STEPS} steps, by "
              f"{result['gate']['most']:.1e} at most", flush=True)  # fmt: skip
        # Compiling takes PyTorch minutes on a CPU.
        tiers = known.tiers or (suites.GPU_TIERS if jax.default_backend() == "gpu" else ("A", "B"))
        programs |= {f"torch {tier}": (run.spec_of(fields, **size), tier) for tier in tiers}
    found = run.in_turn(programs, **timing)
    report.table(found, f"{run.networks_of(fields)}, {fields['method']}")
    result |= {"found": found, "times_faster": report.ratios(found, "ours")}
    for name, ratio in result["times_faster"].items():
        print(
            f"ours is {ratio['median']:.2f} times as fast as {name} (from {ratio['least']:.2f} to {ratio['most']:.2f})"
        )
    return result


def main() -> None:
    """Measures what the command line says, prints a table and a line of JSON."""
    known, fields = arguments()
    spec = run.spec_of(fields, **suites.size_of(known))
    settings = checked(spec)  # a wrong field is said at once
    if known.seeds > 1:
        together.check(settings, f"--seeds={known.seeds}")
    if (known.sweep or "").startswith("seeds="):
        together.check(settings, f"--sweep={known.sweep}")
    if known.bare and settings.devices != 1:
        raise UsageError(f"--bare and config.devices={settings.devices}: leave one of them out; it takes one device")
    if known.target:
        return write(known, suites.on_target(known, fields, known.backbones or ()))
    # A measured program is a process of its own; this one must leave the card to it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if known.steps is None:
        known.steps = 200 if jax.default_backend() == "gpu" else 8
    if known.trace:
        jax_side.trace(spec, known.trace, known.steps)
        print(f"profile: {known.trace}")
        return None
    if known.suite:
        return write(known, suites.SUITES[known.suite](known, fields, known.backbones or ()))
    return write(known, measured(known, fields))


def write(known: argparse.Namespace, result: dict[str, Any]) -> None:
    """Prints what was found as a line of JSON, and writes it where that is asked for."""
    result = {"command": " ".join([called("scripts/bench"), *sys.argv[1:]])} | result
    if known.json:
        Path(known.json).write_text(json.dumps(result, indent=1) + "\n")
    print(report.line(result))


if __name__ == "__main__":
    sys.exit(exit_code_of(main))
