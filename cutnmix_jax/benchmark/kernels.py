"""What a compiled training step launches on a GPU, counted in the text of its program."""

import collections
import math
import re
from collections.abc import Callable

LAUNCH_US = 2.5  # microseconds to start a kernel on a stream, assumed; CUDA graphs need less
KINDS = (
    "batch norm", "batch norm, gradient", "convolution", "convolution, gradient", "other forward", "other gradient",
    "update, metrics", "copies", "batch, keys, rest",
)  # fmt: skip
# No kernels: they name, or look at, what is there.
_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast"}
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_BRANCHES = re.compile(r"branch_computations=\{(.*?)\}|(?:true|false)_computation=([%\w.\-]+)")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([\w\-]+)\(")


def launch_floor_ms(kernels: int) -> float:
    """The milliseconds that it takes to start so many kernels."""
    return kernels * LAUNCH_US / 1000


def counts(hlo: str) -> dict[str, int]:
    """How many kernels of each of `KINDS` a step launches: those of the largest loop, or of the program without one."""
    found = collections.Counter(dict.fromkeys(KINDS, 0))
    for line in _step(hlo):
        if (is_one := _INSTRUCTION.match(line)) and is_one[3] not in _FREE:
            found[_kind(line, is_one[1], is_one[3])] += 1
    return dict(found)


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """What travels between devices in a step: a kind -> how many `times`, and the `bytes` of what comes out of them.

    Of an all-reduce that is what goes in; of an all-gather what a device has in the end. Where devices take different
    branches it is what those send that send most.
    """
    found: dict[str, dict[str, int]] = {}
    for line in _step(hlo, lambda lines: sum(sent[1] for sent in map(_sent, lines) if sent)):
        if sent := _sent(line):
            one = found.setdefault(sent[0], {"times": 0, "bytes": 0})
            one["times"] += 1
            one["bytes"] += sent[1]
    return found


def _sent(line: str) -> tuple[str, int] | None:
    """The kind of what travels by an instruction, and its bytes."""
    is_one = _INSTRUCTION.match(line)
    if not is_one or (kind := is_one[3].removesuffix("-start")) not in _COLLECTIVES:
        return None
    results = re.findall(r"(\w+)\[([\d,]*)\]", is_one[2])
    operands = line[is_one.end() :].partition(")")[0]
    given = operands.count("%") or operands.count(",") + 1
    if len(results) >= 2 * given:  # one that is only begun has what goes in, too, and first
        results = results[given : 2 * given]
    return kind, sum(_bytes(dtype, shape) for dtype, shape in results)


def _bytes(dtype: str, shape: str) -> int:
    bits = int(re.sub(r"\D", "", dtype.partition("e")[0]) or 8)  # pred has none, f8e4m3 more than one
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _step(hlo: str, size: Callable[[list[str]], int] = len) -> list[str]:
    """The lines of the instructions of a step; of a conditional those of its largest branch, in its place."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        if head := _HEAD.match(line):
            lines = bodies.setdefault(head[1], [])
            entry = head[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line)
    loops = [name for name in re.findall(r"body=%?([\w.\-]+)", hlo) if name in bodies]
    step = max(loops, key=lambda name: len(bodies[name])) if loops else entry
    return _with_branches(bodies, step, size)


def _with_branches(bodies: dict[str, list[str]], name: str, size: Callable[[list[str]], int]) -> list[str]:
    found = []
    for line in bodies.get(name, []):
        branches = re.findall(r"[\w.\-]+", " ".join(map(" ".join, _BRANCHES.findall(line))))
        each = [_with_branches(bodies, one, size) for one in branches] or [[line]]
        largest = max(each, key=size)
        found += largest
    return found


def _kind(line: str, name: str, operation: str) -> str:
    named = re.search(r'op_name="([^"]*)"', line)
    where = named[1] if named else ""
    if "__cudnn$conv" in line or operation == "convolution":
        is_forward = "convForward" in line or "BiasActivation" in line
        return "convolution" if is_forward else "convolution, gradient"
    backwards = "transpose(" in where
    if "__cublas" in line and "/Conv_" in where:  # of pixels, which are products
        return "convolution, gradient" if backwards else "convolution"
    if operation == "copy" or "transpose_fusion" in name:
        return "copies"
    if "BatchNorm" in where:
        return "batch norm, gradient" if backwards else "batch norm"
    if backwards or "jvp(" in where:
        return "other gradient" if backwards else "other forward"
    return "update, metrics" if re.search(r"/(sub|add|mul)$", where) else "batch, keys, rest"
