"""Takes a student out of its run: `cutnmix export RUN DIR`."""

import shlex
import sys
from collections.abc import Sequence

from cutnmix_jax import storage
from cutnmix_jax.command import CommandLine, before_jax, exit_code_of, folder_of, given, program
from cutnmix_jax.student import choice

_DESCRIPTION = "Takes one network, or the ensemble, out of a finished run: a folder that is enough by itself."
_EPILOG = """examples:
  {command} runs/digits/resnet8/cutnmix/seed95 my-student
  {command} RUN DIR --which=best --peer=0
  {command} RUN DIR --ensemble
  {command} RUN DIR --format=torch        with the weights for PyTorch besides
  {command} RUN DIR --format=onnx --python=onnx-env/bin/python

DIR gets the weights (safetensors), their description, a program that JAX runs without this package, a model card and a
SHA-256 of each. A run's best peer of its last epoch is taken unless something else is said; a run writes the same into
its own `student/` at the end. An export can be exported again, in another format.
Exit codes: 0 done, 2 usage, 4 a run or an export that cannot be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    parser = CommandLine("python -m cutnmix_jax.export", _DESCRIPTION, _EPILOG)
    choice.add(parser)
    parser.add_argument("target", type=given, metavar="DIR", help="a folder that is not there yet")
    parser.add_argument("--format", choices=choice.FORMATS, default="jax", help="what DIR has besides")
    parser.add_argument("--python", type=given, metavar="PATH", help="of an environment with jax2onnx, for onnx")
    if not arguments:
        print(f"{_DESCRIPTION}\n\n{parser.epilog}")
        return
    known = parser.parse_args(arguments)

    # After the arguments are read, because it takes a second.
    from cutnmix_jax.student import exported, formats, load

    target = folder_of(known.target, "DIR")
    exported.check_free(target)
    student = load.chosen(known)
    exported.write(student, target, formats.made(student, known.format, known.python, known.backbone))
    accuracy = student.description.accuracy
    on = f", {100 * accuracy:.2f} % of the test images" if accuracy is not None else ""
    print(f"{student.description.title}{on}\nexported: {target}")
    print(f"next: {program()} {shlex.join(['predict', str(target), 'PICTURE'])}")


if __name__ == "__main__":
    before_jax()
    storage.hush()
    sys.exit(main())
