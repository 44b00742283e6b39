"""The folder of a run: made, kept from others, and shown to belong to a configuration."""

import contextlib
import fnmatch
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cutnmix_jax import console, continued, digests, environment, files, lock, metrics
from cutnmix_jax.continued import Allowed, read_if_any, reading
from cutnmix_jax.errors import CheckpointError, DataError, UsageError
from cutnmix_jax.layout import (
    CHECKPOINTS,
    CONFIG,
    CURVES,
    DAMAGED,
    ENVIRONMENT,
    EVENTS,
    EXTENDED,
    FORCED,
    RESULTS,
    ROWS,
    SAMPLES,
    STUDENT,
)
from cutnmix_jax.settings import Settings, tree

_FOLDERS = (CHECKPOINTS, DAMAGED, EVENTS, STUDENT)
# Written once the folder is known to be a run's.
_WRITTEN = (CONFIG, RESULTS, FORCED, EXTENDED, ENVIRONMENT, ROWS, SAMPLES, CURVES)
_READ = (CONFIG, RESULTS, FORCED, EXTENDED, ENVIRONMENT, ROWS)
_FILES = (lock.LOCK, lock.OWNER, *_WRITTEN)
# What may lie in a new folder without a word: a table's log, what was put aside, and what others put anywhere.
_BESIDE = ("log.txt", "*-before-*", ".*", "lost+found", "*.out", "*.err", "*.log")


class Opened(NamedTuple):
    """A folder that nobody else can start in.

    Attributes:
      allowed: which fields of a run in it may have changed.
      changed: whether its `config.json` has other fields.
      check: raises CheckpointError where it was moved, removed or replaced.
    """

    allowed: Allowed
    changed: bool
    check: Callable[[], None]


@contextmanager
def opened(workdir: Path, settings: Settings, allowed: Allowed) -> Iterator[Opened]:
    """Makes the folder, keeps others out of it and checks that it belongs to this run.

    Args:
      workdir: the folder.
      settings: of the run.
      allowed: which fields may have changed; some can never change.

    Yields:
      The folder.

    Raises:
      UsageError: it cannot be made, somebody else is in it, it holds a run with other fields, or files of no run.
      CheckpointError: something in it is not what a run has under that name, its `config.json` cannot be read, or its
        checkpoints are gone. Nothing in it was changed.
    """
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:  # TensorStore would refuse it after the first epoch
        raise UsageError(
            f"the run's folder {workdir} has a name that is not UTF-8; choose another --workdir"
        ) from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        found = files.kind(workdir).replace("file", "a file")
        raise UsageError(f"{workdir} is {found} and no folder; choose another --workdir") from error
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    _check_kinds(workdir)
    with lock.held(workdir) as check:  # which writes in it, so that it is seen as it is
        files.look_anew(workdir / CHECKPOINTS)
        if not files.kind(workdir / CONFIG):
            _check_new(workdir)
        changed = check_fields(workdir, settings, allowed)
        try:
            for name in (CHECKPOINTS, EVENTS):
                (workdir / name).mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_write(workdir, error) from error
        yield Opened(allowed, changed, check)


def check_fields(workdir: Path, settings: Settings, allowed: Allowed) -> bool:
    """Whether the run in a folder goes on with other fields than those of its `config.json`; False where there is none.

    Raises:
      UsageError: other fields, that may not have changed.
      CheckpointError: the file cannot be read.
    """
    if not files.kind(workdir / CONFIG):
        return False
    return continued.check_file(workdir, settings, begun=_begun(workdir), allowed=allowed)


def check_images(workdir: Path, made_with: dict[str, Any]) -> None:
    """Raises DataError where a run would go on with other images, in another order, or taken for others.

    Args:
      workdir: the folder.
      made_with: from `environment.of_run`.
    """
    if not _saved(workdir):
        return
    path = workdir / ENVIRONMENT
    before = read_if_any(path)
    if before.get("data_sha256") is None:
        console.warn(f"{path} does not tell which images the run was begun with; they may be others now")
    elif before["data_sha256"] != made_with["data_sha256"]:
        raise DataError(
            f"the images are not those that the run in {workdir} was begun with; give it the same ones by "
            "--config.data_dir, or choose another --workdir"
        )
    elif before.get("facts_sha256", made_with["facts_sha256"]) != made_with["facts_sha256"]:
        raise DataError(
            f"the class names, mean, deviation or mirroring of the images are not those that the run in {workdir} was "
            "begun with; give it the same ones, or choose another --workdir"
        )


def note_environment(workdir: Path, made_with: dict[str, Any], step: int) -> None:
    """Writes `environment.json`; what a run was made with before it goes on stays there, where it decides about bits.

    Args:
      workdir: the folder.
      made_with: from `environment.of_run`.
      step: at which the run goes on.

    Raises:
      OSError: the file cannot be written.
    """
    path = workdir / ENVIRONMENT
    before = read_if_any(path) if step else {}
    earlier = before.pop("earlier", [])
    earlier = earlier if isinstance(earlier, list) else []
    old, new = environment.deciding(before), environment.deciding(made_with)
    if before and (changed := tree.differences(old, new)):
        changed.sort(key=lambda one: not one.path.startswith("versions."))  # other versions have other settings
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        first = changed[0].shown("environment")
        console.warn(f"from step {step} on the bits need not be those of a run that nobody disturbed ({first}{more})")
        earlier.append({**before, "until_step": step})
    files.write_json(path, {**made_with, "earlier": earlier} if earlier else made_with)


def _cannot_write(workdir: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write in the run's folder {workdir}: {error.strerror}; choose another --workdir")


def _check_kinds(workdir: Path) -> None:
    """Raises CheckpointError unless what has the name of a file of a run is a file, and of a folder a folder."""
    with reading(workdir):
        for name in _FILES:
            files.refuse_other(workdir / name, "file")
            if files.kind(aside := workdir / f"{name}.tmp") == "folder":  # under which it will be written
                files.refuse_other(aside, "file")
        for name in _READ:
            with contextlib.suppress(FileNotFoundError):
                files.check_readable(workdir / name)
        for name in _FOLDERS:
            files.refuse_other(workdir / name, "folder")
        digests.steps_in(workdir / CHECKPOINTS)


def _check_new(workdir: Path) -> None:
    """Raises UserError unless a folder without `config.json`, which is written before all else, can be a new run's."""
    if _begun(workdir):
        raise CheckpointError(
            f"{workdir / CONFIG} is gone, which says how the run was begun; restore it or choose another --workdir"
        )
    if others := [name for name in (*_WRITTEN, *_FOLDERS) if _holds(workdir / name)]:
        raise UsageError(f"{workdir} holds {others[0]} and no {CONFIG}, so it is no run's; choose another --workdir")
    if others := [name for name in _names(workdir) if not _is_known(name)]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        console.warn(f"{workdir} holds {others[0]!r}{more}, which is no run's; the files of the run go beside it")


def _is_known(name: str) -> bool:
    """Whether a run has a file by that name, or a scheduler, a shell or a file system may have put one there."""
    ours = (*_FOLDERS, *_FILES, *(f"{name}.tmp" for name in _FILES))
    return name in ours or any(fnmatch.fnmatch(name, pattern) for pattern in _BESIDE)


def _names(folder: Path) -> list[str]:
    with reading(folder):
        return sorted(path.name for path in folder.iterdir())


def _holds(path: Path) -> bool:
    """Whether something has the name, and is more than an empty folder."""
    found = files.kind(path)
    return not all(_is_known(name) for name in _names(path)) if found == "folder" else bool(found)


def _saved(workdir: Path) -> bool:
    """Whether there are checkpoints, whole or not."""
    return bool(digests.steps_in(workdir / CHECKPOINTS))


def _begun(workdir: Path) -> bool:
    return _saved(workdir) or bool(_rows(workdir))


def _rows(workdir: Path) -> list[metrics.EpochRow]:
    path = workdir / ROWS
    with reading(path):
        return metrics.read_rows(path)


def check_checkpoints(workdir: Path) -> None:
    """Raises CheckpointError where a run has rows that no kill can explain, and no checkpoint: it would begin again."""
    rows = len(_rows(workdir))
    # The first epoch is the best so far, and so is saved; and the first checkpoint is on disk before the second epoch.
    if rows > 1 and not _saved(workdir):
        raise CheckpointError(
            f"{workdir} has rows of {rows} epochs and no checkpoint; restore {workdir / CHECKPOINTS}, or choose "
            "another --workdir"
        )
