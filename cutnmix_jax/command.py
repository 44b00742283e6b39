"""How a command begins and ends: its arguments, its one line on stderr, its exit code."""

import argparse
import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cutnmix_jax.errors import StoppedError, UsageError, UserError, excused, one_line
from cutnmix_jax.streams import handlers_kept, unbreakable

PROGRAM = "cutnmix"


def called(name: str) -> str:
    """How this command was called: as `cutnmix COMMAND`, or by another name."""
    return sys.argv[0] if sys.argv[0].startswith(f"{PROGRAM} ") else name


def program() -> str:
    """How a person calls the program here: as it is installed, or out of the clone."""
    on_path = shutil.which(PROGRAM)
    with contextlib.suppress(OSError):  # the folder where the person is was removed
        for place in (Path(sys.executable).parent, Path(__file__).parents[1] / "scripts"):
            if (own := place / PROGRAM).is_file():
                if on_path and own.samefile(on_path):
                    return PROGRAM
                shown = os.path.relpath(own)
                return shlex.quote(shown if os.sep in shown else f"./{shown}")
    return f"{shlex.quote(sys.executable)} -m cutnmix_jax"


class CommandLine(argparse.ArgumentParser):
    """The arguments of a command; what is wrong with them is one line, like every other error of a user."""

    def __init__(self, name: str, description: str, epilog: str):
        """Makes a parser without arguments.

        Args:
          name: of the command, where it is not called as `cutnmix COMMAND`.
          description: what it does.
          epilog: shown last, with the name in place of `{command}`.
        """
        super().__init__(
            prog=called(name),
            description=description,
            epilog=epilog.replace("{command}", called(name)),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Instead of the usage text and an exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def before_jax() -> None:
    """Sets the environment of a process for a JAX that is imported later."""
    if sys.version_info < (3, 12):  # JAX 0.10.1 logs an error for every program that it finds in its cache
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def given(text: str) -> str:
    """A value as it is, for argparse: an empty one, as of a shell's variable that is not set, is no choice of anything.

    Raises:
      ArgumentTypeError: it is empty.
    """
    if not text.strip(" ,"):
        raise argparse.ArgumentTypeError("is empty; give a value, or leave it out")
    return text


def values_of(text: str | None) -> tuple[str, ...]:
    """The values of a list with commas; none where nothing is given."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def folder_of(name: str, flag: str) -> Path:
    """A folder as a person names it: a shell does not know that `~` in `--workdir=~/runs` is a home.

    Args:
      name: of the folder.
      flag: that it was given with, for the error.

    Raises:
      UsageError: it has no name, which would be the current folder; or there is no such home.
    """
    if not name:
        raise UsageError(f"{flag} is empty; name a folder")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise UsageError(f"{flag}={name}: {one_line(error)}; write the folder out") from error


def exit_code_of(command: Callable[[], int | None]) -> int:
    """Runs a command and turns what the user can mend into one line on stderr and an exit code.

    A command goes on when nobody reads what it prints.

    Args:
      command: called without arguments; returns an exit code, or nothing for 0.

    Returns:
      That, the exit code of the `UserError` it raised, or 130 for a Ctrl-C that nothing was saved for.

    Raises:
      Exception: a fault of ours, with its traceback.
    """
    with unbreakable(), handlers_kept():
        return exit_code_of_part(command)


def exit_code_of_part(command: Callable[[], int | None]) -> int:
    """As `exit_code_of`, of a part of a command whose streams are looked after."""
    try:
        return command() or 0
    except StoppedError as error:  # as asked, and no error
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: stopped from the keyboard", file=sys.stderr)
        return 130
    except Exception as error:
        known = error if isinstance(error, UserError) else excused(error)
        if known is None:
            raise
        print(f"error: {one_line(known)}", file=sys.stderr)
        return known.exit_code
