"""Writes a student as an ONNX file; runs in the environment of jax2onnx, started by `onnx_model`.

Nothing is imported here, or by what is imported here, that JAX, Flax, numpy and `onnx_model`'s links do not have.
"""

import contextlib
import dataclasses
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

from cutnmix_jax import files
from cutnmix_jax.backbones import adapters
from cutnmix_jax.errors import UserError, described, one_line
from cutnmix_jax.student import description, network, onnx_handover
from cutnmix_jax.student.description import Description
from cutnmix_jax.types import Backbone, Tree


class Widened(Description):
    """A description whose networks have float32 weights, as they are handed over."""

    def make(self) -> tuple[Backbone, ...]:
        """Its networks."""
        return tuple(made._replace(init=_widened(made)) for made in super().make())


def _widened(made: Backbone) -> Any:
    def init(key: jax.Array) -> dict[str, Tree]:
        return jax.tree.map(lambda array: array.astype(onnx_handover.wide(array.dtype)), made.init(key))

    return init


def main(folder: str) -> None:
    """Reads what was handed over, writes the file and what it answers to images; ends with one line if it cannot."""
    try:
        _run(Path(folder))
    except Exception as error:  # of a network, of jax2onnx, or of ONNX Runtime
        sys.exit(one_line(error) if isinstance(error, UserError) else described(error))


def _run(folder: Path) -> None:
    found = description.of_fields(files.read_fields(folder / onnx_handover.DESCRIPTION))
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    student = network.make(Widened(**fields), onnx_handover.read(folder / onnx_handover.WEIGHTS))
    content = _model(student)
    images = onnx_handover.read(folder / onnx_handover.IMAGES)["images"]
    # By name, because no environment but this one has it.
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    answers = {str(n): session.run(["logits"], {"images": images[:n]})[0] for n in onnx_handover.COUNTS}
    (folder / onnx_handover.MODEL).write_bytes(content)
    onnx_handover.write(folder / onnx_handover.ANSWERS, answers)


@contextlib.contextmanager
def _pooling(own: dict[str, dict[str, Any]]) -> Iterator[None]:
    """While entered, Flax pools as it does, within what jax2onnx has put in its place while it traces.

    That takes arguments by name alone, and knows no padding in numbers. For means JAX's own operations will do; for
    maxima they are pooled over four axes, which ONNX Runtime cannot.

    Args:
      own: from `_own_pooling`.
    """
    with contextlib.ExitStack() as stack:
        for name, functions in own.items():
            theirs = {kind: _by_name(name, kind) for kind in ("max_pool", "min_pool") if kind in functions}
            stack.enter_context(mock.patch.multiple(name, **(functions | theirs)))
        yield


def _own_pooling() -> dict[str, dict[str, Any]]:
    """A module of Flax -> its functions that pool, as they are before jax2onnx traces."""
    names = "pool", "avg_pool", "max_pool", "min_pool"
    modules = map(importlib.import_module, ("flax.linen", "flax.linen.pooling", "flax.nnx"))
    return {one.__name__: {name: getattr(one, name) for name in names if hasattr(one, name)} for one in modules}


def _by_name(module: str, kind: str) -> Any:
    theirs, outside = getattr(importlib.import_module(module), kind), -jnp.inf if kind == "max_pool" else jnp.inf

    def pool(inputs: jax.Array, window_shape: Any, strides: Any = None, padding: Any = "VALID") -> jax.Array:
        if not isinstance(padding, str):
            inputs, padding = jnp.pad(inputs, ((0, 0), *padding, (0, 0)), constant_values=outside), "VALID"
        return theirs(inputs, window_shape=window_shape, strides=strides, padding=padding)

    return pool


def _model(student: network.Student) -> bytes:
    """The file, with the weights as constants."""
    own = _own_pooling()

    def answer(images: jax.Array) -> jax.Array:
        # Features are not asked for, and what jax2onnx puts in the place of `nn.Dense` cannot be listened to for them.
        with _pooling(own), mock.patch.object(adapters, "classifier_input", lambda name, logits, calls: logits):
            return student.answer(student.arrays, images)

    shape: Any = ("n", *student.description.image_shape)
    model = importlib.import_module("jax2onnx").to_onnx(
        answer,
        inputs=[jax.ShapeDtypeStruct(shape, jnp.uint8)],
        input_names=["images"],
        output_names=["logits"],
        model_name="student",
    )
    del model.graph.value_info[:]  # jax2onnx moves axes and leaves the shapes; ONNX Runtime finds them by itself
    importlib.import_module("onnx").checker.check_model(model, full_check=True)
    return model.SerializeToString()
