"""The commands: `cutnmix COMMAND`, or `python -m cutnmix_jax COMMAND`."""

import contextlib
import runpy
import sys
from pathlib import Path

from cutnmix_jax import __version__
from cutnmix_jax.command import PROGRAM, exit_code_of
from cutnmix_jax.errors import UsageError, nearest

# A command -> the module that is run, and what it does.
COMMANDS = {
    "train": ("cutnmix_jax.main", "train peer networks together, or go on with a run"),
    "evaluate": ("cutnmix_jax.evaluate", "measure the classifiers of a finished run, or an exported student"),
    "predict": ("cutnmix_jax.predict", "say what is on pictures"),
    "export": ("cutnmix_jax.export", "take a student out of its run"),
    "data": ("cutnmix_jax.data", "make a data set ready, or check one"),
    "report": ("cutnmix_jax.paper.report", "a table of the paper from its runs, or a comparison of any runs"),
    "reproduce": ("cutnmix_jax.paper.reproduce", "train every cell of a table of the paper"),
    "bench": ("cutnmix_jax.benchmark", "measure the speed of training"),
}
_SCREEN = """{program} {version}: online distillation with CutnMix, and the methods it is compared with

{commands}

Begin with
  {program} train --config=quickstart      two small networks on embedded digits: a minute and a half on two CPU cores
  {program} train --list                   what --config takes: networks, data sets, methods, fields
  {program} COMMAND --help                 the arguments of a command, with examples"""


def screen() -> str:
    """What is shown where no command is given."""
    commands = "\n".join(f"  {PROGRAM} {name:10} {what}" for name, (_, what) in COMMANDS.items())
    return _SCREEN.format(program=PROGRAM, version=__version__, commands=commands)


def main() -> int:
    """Runs the command that the first argument names, in this process.

    Returns:
      The exit code; the command itself ends the process.
    """
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("--help", "-h", "help"):
        return exit_code_of(lambda: print(screen()))
    if name == "--version":
        return exit_code_of(lambda: print(f"{PROGRAM} {__version__}"))
    return exit_code_of(lambda: _unknown(name)) if name not in COMMANDS else _run(name, arguments)


def _unknown(name: str) -> None:
    raise UsageError(f"no command {name[:200]!r}; {nearest(name, COMMANDS)}")


def _run(name: str, arguments: list[str]) -> int:
    sys.argv = [f"{PROGRAM} {name}", *arguments]
    # As `python -m` does, so that a network of one's own is found; last, so that nothing of ours is replaced.
    with contextlib.suppress(OSError):  # a folder that was removed
        if not {"", str(Path.cwd())} & set(sys.path):
            sys.path.append(str(Path.cwd()))
    runpy.run_module(COMMANDS[name][0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
