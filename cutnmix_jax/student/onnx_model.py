"""A student as an ONNX file, made in another environment, whose jax2onnx does not fit this one, and checked here."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import platformdirs

import cutnmix_jax
from cutnmix_jax.errors import UsageError, one_line
from cutnmix_jax.student import network, onnx_handover
from cutnmix_jax.student.description import check_consent, to_json
from cutnmix_jax.student.network import Student

REMEDY = (
    'make an environment for it, `python3 -m venv onnx-env && onnx-env/bin/pip install "jax2onnx==0.17.1" "jax<0.11"`, '
    "and give --python=onnx-env/bin/python"
)
TOLERANCE = 1e-5  # of the largest logit

# Before anything of ours is imported: our package first, so that no other version of it is taken, and last, after all
# that the environment has, what it may lack.
_START = (
    "import sys; sys.path.insert(0, sys.argv[1] + '/ours'); sys.path += [sys.argv[1] + '/lent', *sys.argv[2:]]; "
    "from cutnmix_jax.student.onnx_worker import main; main(sys.argv[1])"
)


def written(student: Student, python: str | None, backbone: str | None = None) -> bytes:
    """The file: from `images` [n, H, W, C] uint8 to `logits` [n, K] float32, with normalising and weights inside.

    It computes in float32 whatever the precision of the run: other types have no convolution in ONNX Runtime on a CPU.

    Args:
      student: what is written.
      python: the interpreter of an environment with jax2onnx; where it is None this one is tried.
      backbone: a network of somebody's own whose code may be run.

    Raises:
      UsageError: the environment cannot make it, or ONNX Runtime finds other logits in it than the student's.
    """
    check_consent(student.description.own_backbones, backbone, "the student")
    interpreter = python or _this_one()
    student = _in_float32(student)
    described = student.description
    images = np.random.default_rng(0).integers(0, 256, (5, *described.image_shape), dtype=np.uint8)
    try:
        with tempfile.TemporaryDirectory(prefix="cutnmix-onnx-") as name:
            folder = Path(name)
            _hand_over(folder, student, images)
            _work(interpreter, folder, bool(described.own_backbones))
            content = (folder / onnx_handover.MODEL).read_bytes()
            answers = onnx_handover.read(folder / onnx_handover.ANSWERS)
    except OSError as error:
        raise UsageError(f"--format=onnx needs a temporary folder ({error}); free some space, or set TMPDIR") from error
    for count in onnx_handover.COUNTS:
        _compare(answers[str(count)], student.logits(images[:count]))
    return content


def _in_float32(student: Student) -> Student:
    """The student with float32 activations."""
    described = dataclasses.replace(student.description, precision="float32")
    if described == student.description:
        return student
    try:
        return network.make(described, student.arrays)
    except (ValueError, KeyError) as error:  # an export of somebody's own network, whose code has changed since
        raise UsageError(f"{described.title}: its weights are not those of the network ({one_line(error)})") from error


def _this_one() -> str:
    """This interpreter, where it has jax2onnx."""
    if importlib.util.find_spec("jax2onnx") is None:
        raise UsageError(f"--format=onnx needs jax2onnx, which this environment does not have; {REMEDY}")
    return sys.executable


def _hand_over(folder: Path, student: Student, images: np.ndarray) -> None:
    """Writes what the worker reads, and links to the modules that its environment does not have."""
    for place, package in (("ours", cutnmix_jax), ("lent", platformdirs)):  # both are of Python alone
        (folder / place).mkdir()
        (folder / place / package.__name__).symlink_to(Path(str(package.__file__)).resolve().parent)
    (folder / onnx_handover.DESCRIPTION).write_text(to_json(student.description))
    onnx_handover.write(folder / onnx_handover.WEIGHTS, onnx_handover.widened(dict(student.arrays)))
    onnx_handover.write(folder / onnx_handover.IMAGES, {"images": images})


def _work(python: str, folder: Path, own: bool) -> None:
    """Runs `onnx_worker` in another environment.

    Args:
      python: its interpreter.
      folder: what is handed over, and where the results are left.
      own: whether a network is somebody's own, which may be found where the command is run.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    # Without those that would put other packages in front of the environment's; it computes nothing that needs a GPU.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment["JAX_PLATFORMS"] = "cpu"
    # -P: the folder where the command is run does not come first either.
    command = [str(Path(python).expanduser()), "-P", "-c", _START, str(folder), *given, *([str(Path.cwd())] * own)]
    try:
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UsageError(f"--python={python} cannot be run ({error.strerror}); {REMEDY}") from error
    if ended.returncode:
        lines = [" ".join(line.split()) for line in ended.stderr.splitlines() if line.strip()]
        last = lines[-1][:300] if lines else f"it ended with {ended.returncode} and no message"
        lacking = f"; {REMEDY}" if "No module named" in last else ""
        raise UsageError(f"{python} cannot make the ONNX file: {last}{lacking}")


def _compare(found: np.ndarray, expected: np.ndarray) -> None:
    """Raises UsageError where logits [n, K] of the file are not those of the student."""
    if found.shape != expected.shape:
        raise UsageError(f"the ONNX file gives logits {list(found.shape)}, not {list(expected.shape)}; none is written")
    difference = np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny)
    if not difference <= TOLERANCE:  # a NaN is no agreement
        raise UsageError(
            f"the ONNX file gives other logits than the student, by {difference:.1e} of the largest; none is written; "
            "try another release of jax2onnx"
        )
