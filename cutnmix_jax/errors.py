"""What a user can cause, and the exit code that belongs to it."""

import argparse
import difflib
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

from cutnmix_jax.streams import unbreakable


class UserError(Exception):
    """Something the user can mend; its message is one line that says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError):
    """A configuration or a command line that cannot be carried out."""

    exit_code = 2


class DataError(UserError):
    """A data set that is missing, damaged or not what it should be."""

    exit_code = 3


class CheckpointError(UserError):
    """A saved run that cannot be read, written or continued."""

    exit_code = 4


class DivergedError(UserError):
    """A training run whose loss is no longer finite."""

    exit_code = 5


class StoppedError(UserError):
    """A training run that was stopped by a signal, with what it had saved."""

    exit_code = 75


def of_exit_code(code: int) -> type[UserError]:
    """The kind of error that a run ended with, from its exit code; a plain `UserError` where the code tells none."""
    kinds = {error.exit_code: error for error in (UsageError, DataError, CheckpointError, DivergedError)}
    return kinds.get(code, UserError)


class CommandLine(argparse.ArgumentParser):
    """The arguments of a command; what is wrong with them is one line, like every other error of a user."""

    def __init__(self, module: str, description: str, epilog: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Instead of the usage text and an exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


def nearest(name: str, valid: Iterable[str]) -> str:
    """Says what `name` could have been: the closest valid name first, then all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are: {', '.join(valid)}"


def one_line(error: BaseException) -> str:
    """The message of an error, folded into a single line."""
    return " ".join(str(error).split())


def exit_code_of(command: Callable[[], None]) -> int:
    """Runs a command and turns what the user can mend into one line on stderr and an exit code.

    A command goes on when nobody reads what it prints.

    Args:
      command: called without arguments; its return value is ignored.

    Returns:
      0, the exit code of the `UserError` it raised, or 130 for a Ctrl-C that nothing was saved for.
    """
    with unbreakable():
        return _exit_code_of(command)


def _exit_code_of(command: Callable[[], None]) -> int:
    try:
        command()
    except StoppedError as error:  # as asked, and no error
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("error: stopped from the keyboard", file=sys.stderr)
        return 130
    return 0
