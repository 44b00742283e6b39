"""A student as a program of StableHLO, which JAX alone runs: weights and images of any number in, logits out."""

import re
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from cutnmix_jax import compiler
from cutnmix_jax.errors import CheckpointError, UsageError, described, one_line
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.student.network import Answer, Student

PLATFORMS = ("cpu", "cuda")
# What a program may call besides arithmetic. With others a file could reach any function of the process.
_HARMLESS = frozenset({"shape_assertion"})


def written(student: Student) -> bytes:
    """The program, as `jax.export.deserialize` reads it.

    Raises:
      UsageError: a network takes no batches of a size that is not known.
    """
    description = student.description
    (count,) = export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((count, *description.image_shape), jnp.uint8)
    weights = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in student.arrays.items()}
    try:
        with jax.default_matmul_precision(CHOICES[description.precision].products):  # nothing is compiled
            exported = export.export(compiler.compiled(student.answer), platforms=PLATFORMS)(weights, images)
            if foreign := _called_by(exported) - _HARMLESS:
                raise ValueError(f"it calls {min(foreign)}")
            return bytes(exported.serialize())
    except Exception as error:  # what a network does with a size that is no number can raise anything
        raise UsageError(
            f"{description.title}: no program can be made of it ({described(error)}); its network must take batches "
            "of any size"
        ) from error


def read(program: bytes, name: str) -> Answer:
    """What a program computes.

    Args:
      program: as it was written.
      name: of its file, for the error.

    Raises:
      CheckpointError: this JAX cannot read it.
      UsageError: it is for other devices.
    """
    try:
        exported = export.deserialize(bytearray(program))
        foreign = _called_by(exported) - _HARMLESS
    except Exception as error:
        raise CheckpointError(
            f"JAX {jax.__version__} cannot read {name} ({one_line(error)[:200]}); use a newer one, or export again"
        ) from error
    if foreign:
        raise CheckpointError(f"{name} calls {min(foreign)}, which is no arithmetic; it is not run")
    if jax.default_backend() not in {"gpu" if one == "cuda" else one for one in exported.platforms}:
        raise UsageError(f"{name} is for {' and '.join(exported.platforms)}, not for {jax.default_backend()}")

    def answer(arrays: Any, images: jax.Array) -> jax.Array:
        return exported.call(dict(arrays), images)

    return answer


def _called_by(exported: export.Exported) -> set[str]:
    """The names of what a program calls outside of itself; `?` for a call whose name cannot be read."""
    text = exported.mlir_module()
    named = re.findall(r"custom_call @([\w.$-]+)\(", text)
    return set(named) | ({"?"} if text.count("custom_call") != len(named) else set())
