"""Whether a run goes on with the fields that it was begun with, and what its folder says of it."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import console, files
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.fields import Change
from cutnmix_jax.finished import CONFIG, RESULTS
from cutnmix_jax.settings import Settings, tree

FORCED = "forced.json"


def check_file(workdir: Path, settings: Settings, *, begun: bool, force: bool) -> bool:
    """Compares the fields of a run with those of the `config.json` in its folder.

    Args:
      workdir: the folder, with a `config.json`.
      settings: of the run.
      begun: whether something was saved there.
      force: go on although fields have changed.

    Returns:
      Whether it goes on with other fields, by force.

    Raises:
      UsageError: other fields, and no force, or one that cannot change within a run.
      CheckpointError: the file cannot be read.
    """
    path, new = workdir / CONFIG, tree.of_settings(settings)
    try:
        with reading(path):
            old = files.read_fields(path)
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is damaged: {error}; restore it or choose another --workdir") from error
    changed, ours = tree.changes(old, new), set(old) == set(new)
    if not changed or (ours and not begun):
        return False  # nothing was saved, so nothing is lost by beginning again
    if not ours:
        other = sorted(set(old) ^ set(new))[0]
        raise UsageError(
            f"{path} is not the configuration of a run of this version (config.{other} is "
            f"{'not known' if other in old else 'missing'}); choose another --workdir"
        )
    what = f"{workdir} holds a run with other fields {_first(changed)}"
    _check_fixed(changed, what)
    if not force:
        raise UsageError(f"{what}; choose another --workdir, or --force to go on with the new values")
    console.warn(f"{what}; going on with the new values, as forced")
    return True


def check_saved(workdir: Path, saved: Mapping[str, Any], settings: Settings, *, force: bool) -> list[tree.Difference]:
    """Compares the fields of a run with those that its checkpoint was trained with, whatever `config.json` says.

    Args:
      workdir: the folder.
      saved: the fields that stand in the checkpoint.
      settings: of the run.
      force: go on although fields have changed.

    Returns:
      The fields that it goes on with other values of.

    Raises:
      UsageError: one of them cannot change within a run.
      CheckpointError: they are others than `config.json` says, and nobody has forced the run to go on with them.
    """
    changed = tree.changes(dict(saved), tree.of_settings(settings))
    what = f"what is saved in {workdir} was trained with other fields than its {CONFIG} says {_first(changed)}"
    _check_fixed(changed, what)
    if (
        changed
        and not force
        and not any(change.get("changed") == list(map(str, changed)) for change in forced(workdir))
    ):
        raise CheckpointError(
            f"{what}; restore config.json, choose another --workdir, or --force to go on with the new values"
        )
    return changed


def claim(workdir: Path, settings: Settings, step: int, changed: Sequence[tree.Difference], why_not: str = "") -> None:
    """Writes `config.json`, before all else, to tell whose folder it is, once it is sure that the run can go on.

    Results that are there are of something else, and put aside. Where the checkpoint has other fields, `forced.json`
    gets a line that stays with the run.

    Args:
      workdir: the folder.
      settings: of the run.
      step: at which it goes on.
      changed: from `check_saved`, of the checkpoint of that step; empty where there is none.
      why_not: why results that are there are not its own, from `finished.look`.
    """
    path, results = workdir / CONFIG, workdir / RESULTS
    new = tree.of_settings(settings)
    if files.kind(results):
        aside = files.put_aside(results, workdir / "results-before.json")
        if why_not:
            console.warn(f"the results in {workdir} are not those of this run ({why_not[:300]}); now in {aside.name}")
    # This file first: should a kill come between the two, a start without --force is refused.
    if read_if_any(path) != new:
        files.write_json(path, new)
    if changed:
        before, change = forced(workdir), {"step": step, "changed": list(map(str, changed))}
        if before[-1:] != [change]:
            files.write_json(workdir / FORCED, {"changes": [*before, change]})


def forced(workdir: Path) -> list[dict[str, Any]]:
    """The changes of fields that the run was made to go on with, oldest first: at which `step`, and what `changed`."""
    path = workdir / FORCED
    if not files.kind(path):
        return []
    changes = read_if_any(path).get("changes")
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        return [{"changed": [f"{FORCED} cannot be read"]}]
    return changes


def read_if_any(path: Path) -> dict[str, Any]:
    """What a file of JSON says; nothing where it says nothing.

    Raises:
      CheckpointError: it cannot be read.
    """
    with reading(path), contextlib.suppress(FileNotFoundError, ValueError):
        return files.read_fields(path)
    return {}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """While entered, what cannot be read in a run's folder, `path` if nothing else is named, is a CheckpointError."""
    try:
        yield
    except OSError as error:
        what = f"cannot read {error.filename or path}: {error.strerror}"
        raise CheckpointError(f"{what}; let it be read, or choose another --workdir") from error


def _first(changed: Sequence[tree.Difference]) -> str:
    return f"({changed[0]}{f' and {len(changed) - 1} more' if len(changed) > 1 else ''})" if changed else ""


def _check_fixed(changed: Sequence[tree.Difference], what: str) -> None:
    if fixed := [one.path for one in changed if one.change is Change.NEVER]:
        raise UsageError(f"{what}, and config.{fixed[0]} cannot change within a run; choose another --workdir")
