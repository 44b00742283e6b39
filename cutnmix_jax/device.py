"""Settings of JAX that hold while a run goes on."""

import contextlib
import logging
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

from cutnmix_jax import cache, console, process
from cutnmix_jax.errors import UsageError, described, excused, one_line
from cutnmix_jax.precision import Precision

_TROUBLE = r"Error (reading|writing) persistent compilation cache entry for '(.*?)'"
_CACHE, _SHORTEST = "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"


@contextlib.contextmanager
def set_up_jax(precision: Precision) -> Iterator[None]:
    """While entered, chooses the precision of products and keeps compiled programs for the next start.

    Args:
      precision: of the run.

    Raises:
      UsageError: JAX finds no device of the kind that it was told to use.
    """
    find_devices()
    with jax.default_matmul_precision(precision.products), _PROGRAMS_KEPT.held():
        yield


@contextlib.contextmanager
def _programs_kept() -> Iterator[None]:
    chosen = jax.config.values[_CACHE]  # JAX_COMPILATION_CACHE_DIR
    if chosen is None:
        kept = cache.folder()
        settings = {_CACHE: str(kept / "compiled"), _SHORTEST: 0.5} if kept else {}
    else:  # an address is no folder
        settings = {} if "://" in chosen or cache.usable(Path(chosen), "compiled") else {_CACHE: None}
    before = {name: jax.config.values[name] for name in settings}
    _change(settings)
    folder = jax.config.values[_CACHE]
    try:
        with process.heard(_TROUBLE, _mender(Path(folder))) if folder else contextlib.nullcontext():
            yield
    finally:
        _change(before)


_PROGRAMS_KEPT = process.Shared(_programs_kept)


def programs_are_kept() -> bool:
    """Whether what is compiled now is there at the next start."""
    folder, on = jax.config.values[_CACHE], jax.config.values["jax_enable_compilation_cache"]
    return bool(folder and on) and not cache.takes_nothing(Path(folder))


def _change(settings: dict[str, Any]) -> None:
    if settings:
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # JAX looks at its settings once


def check_settings() -> None:
    """Raises UsageError where JAX was told something that the program cannot be run with."""
    wrong = {
        "jax_enable_x64": ("True", "trains in float32"),
        "jax_numpy_rank_promotion": ("raise", "joins arrays of unlike rank"),
        "jax_transfer_guard": ("disallow", "moves numbers to and from the device"),
    }
    for name, (begins, does) in wrong.items():
        value = getattr(jax.config, name)
        if str(value).startswith(begins):
            raise UsageError(f"JAX runs with {name}={value}, and this program {does}; leave {name.upper()} out")


def find_devices() -> None:
    """Raises UsageError where JAX finds no device of the kind that it was told to use, or XLA refuses its flags."""
    _check_flags()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second without a word, for a GPU's driver that is not there
        wanted = f"{one_line(error)[:200]}; " if str(error) else ""
        what = f"{wanted}JAX_PLATFORMS is {os.environ.get('JAX_PLATFORMS', '')!r}, leave it out or name what is there"
        raise UsageError(f"JAX finds no device: {what}") from error


def _check_flags() -> None:
    """Has another process read XLA_FLAGS, because XLA ends the one in which it reads a flag that it does not know."""
    if "XLA_FLAGS" not in os.environ:
        return
    read = "from jaxlib import xla_client; xla_client.CompileOptions().executable_build_options.debug_options"
    try:
        command = [sys.executable, "-c", read]
        ended = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
    except (OSError, subprocess.TimeoutExpired):  # then XLA says it itself
        return
    if ended.returncode and "XLA_FLAGS" in ended.stderr:
        refused = ended.stderr.strip().splitlines()[0].rpartition("] ")[2]
        raise UsageError(f"XLA refuses its flags ({refused[:300]}); mend XLA_FLAGS, or leave it out")


@contextlib.contextmanager
def blamed(names: Sequence[str]) -> Iterator[None]:
    """While entered, a compiled program that fails is one line that says whose it is, and nothing is logged beside it.

    Args:
      names: of the networks of a user's own.

    Raises:
      UsageError: it has failed.
    """
    try:
        with _LOGGED_ONCE.held():
            yield
    except jax.errors.JaxRuntimeError as error:
        raise excused(error) or _failure(error, names) from error


def _failure(error: jax.errors.JaxRuntimeError, names: Sequence[str]) -> UsageError:
    """A network fails that calls back to Python, or JAX or the device."""
    left = "what was saved stays, and the same command goes on from there"
    own = " and ".join(sorted(set(names)))
    if own and "Traceback (most recent call last)" in str(error):  # JAX hands it on as text
        raised = str(error).strip().splitlines()[-1]
        return UsageError(f"backbone {own!r} fails in a function that it calls back ({raised[:300]}); mend it: {left}")
    what = f"JAX or the device fails on {jax.local_devices()[0].device_kind} ({described(error)})"
    return UsageError(f"{what}; {left}, where the cause is mended")


@contextlib.contextmanager
def _logged_once() -> Iterator[None]:
    """While entered, JAX does not log the traceback of a function that fails when it is called back: it raises, too."""
    loggers = [logging.getLogger(f"jax._src.{name}") for name in ("callback", "debugging")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


_LOGGED_ONCE = process.Shared(_logged_once)


def _mender(folder: Path) -> Callable[[str], None]:
    """What is called with JAX's warnings of the cache, and removes a program that was cut off while it was written.

    JAX alone compiles such a program again at every start, and never writes it again because its file is there.
    """
    full = False

    def mend(text: str) -> None:
        nonlocal full
        match = re.match(_TROUBLE, text)
        assert match
        if match[1] == "reading":
            console.warn(f"trouble with reading the compiled program {match[2]} in {folder}; it is compiled again")
            for path in folder.glob(f"{match[2]}-*-cache"):
                with contextlib.suppress(OSError):  # another user's, or removed by another run
                    if not _is_whole(path):
                        path.unlink()
        elif not full and not cache.takes_nothing(folder):  # a disk that is full for one program is full for the next
            full = True
            why = " ".join(text.rpartition(": ")[2].split())[:120]
            console.warn(f"cannot keep compiled programs in {folder} ({why}); they are compiled in each start")

    return mend


def _is_whole(path: Path) -> bool:
    """Whether a file of the cache holds what was written; never where JAX has used another compression than zlib's."""
    content, reader = path.read_bytes(), zlib.decompressobj()
    if content[:1] != b"\x78":  # with which all that zlib writes begins
        return False
    try:
        reader.decompress(content)
    except zlib.error:
        return False
    return reader.eof
