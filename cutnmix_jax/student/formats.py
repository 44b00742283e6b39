"""What an export has for other programs than JAX."""

from cutnmix_jax.errors import UsageError
from cutnmix_jax.student import onnx_model, torch_names
from cutnmix_jax.student.network import Student

TORCH, ONNX = "torch.safetensors", "model.onnx"


def made(student: Student, format: str, python: str | None = None, backbone: str | None = None) -> dict[str, bytes]:
    """The files of a format.

    Args:
      student: what is exported.
      format: `torch`, `onnx`, or `jax` for none.
      python: of `onnx`, the interpreter of an environment with jax2onnx; where it is None this one is tried.
      backbone: of `onnx`, a network of somebody's own, `my_pkg.nets:make`, whose code may be run because the person
        says so; an export alone does not.

    Returns:
      The name of each file -> its content.

    Raises:
      UsageError: the student has no such form, or the environment cannot make it.
    """
    if python is not None and format != "onnx":
        raise UsageError(f"--python={python} is for --format=onnx; leave it out")
    if format == "torch":
        return {TORCH: torch_names.written(student)}
    if format == "onnx":
        return {ONNX: onnx_model.written(student, python, backbone)}
    return {}
