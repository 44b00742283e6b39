"""What a user can cause, and the exit code that belongs to it."""

import contextlib
import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = Path(__file__).parent
_TOO_FEW = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_HELD = re.compile(r"/proc/self/fd/\d+/")  # how `storage.Place` has a library name a run's folder
_NOT_GIVEN = (*_TOO_FEW, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV)


class UserError(Exception):
    """Something the user can mend; its message is one line that says what is wrong and what to do."""

    exit_code = 1


class UsageError(UserError):
    """What cannot be carried out: a configuration or a command line, or on this installation or machine none at all."""

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


# Of several processes that train one run.
NOT_COME = "the other processes of the run have not come; start them all, with the same --coordinator"
GONE = "another process of the run has gone; what was saved stays, the same command continues"


def of_exit_code(code: int) -> type[UserError]:
    """The kind of error that a run ended with, from its exit code; a plain `UserError` where the code tells none."""
    kinds = {error.exit_code: error for error in (UsageError, DataError, CheckpointError, DivergedError)}
    return kinds.get(code, UserError)


def nearest(name: str, valid: Iterable[str]) -> str:
    """Says what `name` could have been: the closest valid name first, then all of them."""
    valid = sorted(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.4)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}there are: {', '.join(valid)}"


def one_line(error: BaseException) -> str:
    """The message of an error, folded into a single line."""
    return " ".join(_HELD.sub("", str(error)).split())


def printable(text: str) -> str:
    """A text without what would end a line or move a cursor; such characters as Python writes them."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def described(error: BaseException, most: int = 300) -> str:
    """The type and the message of somebody else's error, cut before they fill the screen."""
    message = one_line(error)
    return f"{type(error).__name__}: {message[:most]}" if message else type(error).__name__


@contextlib.contextmanager
def blaming(what: str, then: str) -> Iterator[None]:
    """While entered, whatever comes out of code that is not ours is one line that says whose it is.

    A `UserError` passes as it is, and so does Ctrl-C; `sys.exit` in somebody's module does not end the program.

    Args:
      what: opens the line: what could not be done, and with whose code.
      then: closes it: what to do.

    Raises:
      UsageError: for anything that was raised.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise _too_little_memory(error) or UsageError(f"{what} ({described(error)}); {then}") from error


def excused(error: BaseException) -> UsageError | None:
    """What kept a library from looking at a file at all, so that the file is not to blame.

    Args:
      error: what the library raised.

    Returns:
      An error that names an installation that lacks something, or full memory; None where it may be the file.
    """
    return next((found for cause in _causes(error) if (found := _too_little_memory(cause) or _incomplete(cause))), None)


def not_given(error: BaseException) -> str:
    """Why a file was not given at all, by the system or for want of open files or memory; empty where it may have been.

    By an error's number; by its text, which is all that libraries in C++ tell, only where the file system cannot be
    asked afterwards.
    """
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in _NOT_GIVEN:
            return _HELD.sub("", f"{cause.filename}: {cause.strerror}") if cause.filename else one_line(cause)
    return one_line(error)[:200] if any(os.strerror(number) in str(error) for number in _TOO_FEW) else ""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error:
        yield error
        error = error.__cause__


def installation(error: BaseException) -> UsageError:
    """The error for a library that cannot do what it is there for."""
    what = "-r requirements.txt" if (_PACKAGE.parent / "requirements.txt").is_file() else "cutnmix-jax"
    mend = f"run `{sys.executable} -m pip install {what}`, with --force-reinstall if it finds all in place"
    return UsageError(f"the installation is incomplete ({described(error)}); {mend}")


def _too_little_memory(error: BaseException) -> UsageError | None:
    if isinstance(error, MemoryError):
        return UsageError("the machine has too little memory; free some, or use fewer images or a smaller network")
    if type(error).__name__ == "JaxRuntimeError" and "RESOURCE_EXHAUSTED" in str(error):  # JAX is not imported here
        return UsageError("the device has too little memory; lower config.batch_size or config.eval_batch_size")
    return None


def _incomplete(error: BaseException) -> UsageError | None:
    """Whether something failed to import that is not ours: a fault of ours stays a traceback."""
    if isinstance(error, ValueError) and "JAX flag" in str(error):  # read while JAX is imported
        return UsageError(
            f"a setting of JAX has no meaning ({described(error)}); mend the variable JAX_..., or leave it out"
        )
    imported = isinstance(error, ImportError) and (error.name or "").partition(".")[0] != _PACKAGE.name
    return installation(error) if imported or _out_of_an_import(error) else None


def _out_of_an_import(error: BaseException) -> bool:
    """Whether an error, of any type, left the body of somebody else's module while that was imported."""
    for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
        if Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
            return False
        if frame.f_code.co_name == "<module>":
            return True
    return False
