"""Whether a run goes on with the fields that it was begun with, and what its folder says of it."""

import contextlib
import enum
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import console, files
from cutnmix_jax.errors import CheckpointError, UsageError
from cutnmix_jax.fields import Change
from cutnmix_jax.layout import CONFIG, EXTENDED, FORCED, RESULTS, STUDENT
from cutnmix_jax.settings import Settings, tree, unused


class Allowed(enum.Enum):
    """Which fields of a run may have changed when it goes on, besides those that change no numbers."""

    NONE = "none"
    EPOCHS = "more epochs, which end as if the run had had them from the start"
    ANY = "any that can change within a run"

    @classmethod
    def of(cls, *, force: bool, extend: bool) -> "Allowed":
        """What the flags of a command allow."""
        return cls.ANY if force else cls.EPOCHS if extend else cls.NONE


def check_file(workdir: Path, settings: Settings, *, begun: bool, allowed: Allowed) -> bool:
    """Compares the fields of a run with those of the `config.json` in its folder.

    Args:
      workdir: the folder, with a `config.json`.
      settings: of the run.
      begun: whether something was saved there.
      allowed: which fields may have changed.

    Returns:
      Whether it goes on with other fields.

    Raises:
      UsageError: other fields, that may not have changed.
      CheckpointError: the file cannot be read.
    """
    path, new = workdir / CONFIG, tree.of_settings(settings)
    try:
        with reading(path):
            old = files.read_fields(path)
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is damaged: {error}; restore it or choose another --workdir") from error
    changed, ours = unused.changes(old, new), set(old) == set(new)
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
    _check_allowed(changed, settings, allowed, what)
    if allowed is Allowed.EPOCHS:
        print(f"extended from {changed[0].before} to {changed[0].after} epochs", flush=True)
    else:
        console.warn(f"{what}; going on with the new values, as forced")
    return True


def check_saved(workdir: Path, saved: Mapping[str, Any], settings: Settings, allowed: Allowed) -> list[tree.Difference]:
    """Compares the fields of a run with those that its checkpoint was trained with, whatever `config.json` says.

    Args:
      workdir: the folder.
      saved: the fields that stand in the checkpoint.
      settings: of the run.
      allowed: which fields may have changed.

    Returns:
      The fields that it goes on with other values of.

    Raises:
      UsageError: one of them cannot change within a run.
      CheckpointError: they are others than `config.json` says, and nobody has forced the run to go on with them.
    """
    changed = unused.changes(dict(saved), tree.of_settings(settings))
    what = f"what is saved in {workdir} was trained with other fields than its {CONFIG} says {_first(changed)}"
    _check_fixed(changed, what)
    before = [change for name in (FORCED, EXTENDED) for change in recorded(workdir, name)]
    known = any(_tells_of(change, changed) for change in before)
    fits = allowed is Allowed.ANY or (allowed is Allowed.EPOCHS and not _why_not_extended(changed, settings))
    if changed and not fits and not known:
        raise CheckpointError(
            f"{what}; restore config.json, choose another --workdir, or "
            f"{'--force' if _why_not_extended(changed, settings) else '--extend'} to go on with the new values"
        )
    return changed


def claim(
    workdir: Path,
    settings: Settings,
    step: int,
    changed: Sequence[tree.Difference],
    allowed: Allowed,
    why_not: str,
) -> None:
    """Writes `config.json`, before all else, to tell whose folder it is, once it is sure that the run can go on.

    Results and a student that are there are of something else, and put aside. Where the checkpoint has other fields,
    `forced.json`, or `extended.json` where only more epochs were allowed, gets a line that stays with the run.

    Args:
      workdir: the folder.
      settings: of the run.
      step: at which it goes on.
      changed: from `check_saved`, of the checkpoint of that step; empty where there is none.
      allowed: which fields may have changed.
      why_not: why results that are there are not its own, from `finished.look`.
    """
    path, results = workdir / CONFIG, workdir / RESULTS
    new = tree.of_settings(settings)
    if files.kind(results):
        aside = files.put_aside(results, workdir / "results-before.json")
        if why_not:
            console.warn(f"the results in {workdir} are not those of this run ({why_not[:300]}); now in {aside.name}")
    if files.kind(workdir / STUDENT):
        files.put_aside(workdir / STUDENT, workdir / f"{STUDENT}-before")
    # This file first: should a kill come between the two, a start without --force is refused.
    if read_if_any(path) != new:
        files.write_json(path, new)
    if changed:
        # What was an extension is one again, from an earlier checkpoint, too, where the newest is damaged.
        was_extended = any(_tells_of(record, changed) for record in recorded(workdir, EXTENDED))
        name = EXTENDED if allowed is Allowed.EPOCHS or was_extended else FORCED
        if not _ends_with(recorded(workdir, name), step, changed):
            change = {"step": step, "changed": [_plain(one) for one in changed]}
            files.write_json(workdir / name, {"changes": [*recorded(workdir, name), change]})


def _plain(one: tree.Difference) -> dict[str, Any]:
    """A change as a file keeps it."""
    return {"path": one.path, "before": one.before, "after": one.after}


def _ends_with(records: Sequence[Mapping[str, Any]], step: int, changed: Sequence[tree.Difference]) -> bool:
    return any(record.get("step") == step and _tells_of(record, changed) for record in records[-1:])


def _tells_of(record: Mapping[str, Any], changed: Sequence[tree.Difference]) -> bool:
    """Whether a record is of these changes; earlier versions wrote each as a person reads it."""
    noted = record.get("changed")
    if not isinstance(noted, list) or len(noted) != len(changed):
        return False
    return all(one in (_plain(change), str(change)) for one, change in zip(noted, changed, strict=True))


def recorded(workdir: Path, name: str) -> list[dict[str, Any]]:
    """The changes of fields that the run went on with, oldest first: at which `step`, and what `changed`.

    Args:
      workdir: the folder.
      name: `FORCED` or `EXTENDED`.
    """
    path = workdir / name
    if not files.kind(path):
        return []
    changes = read_if_any(path).get("changes")
    if not isinstance(changes, list) or not all(isinstance(change, dict) for change in changes):
        return [{"changed": [f"{name} cannot be read"]}]
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


def _why_not_extended(changed: Sequence[tree.Difference], settings: Settings) -> str:
    """Why changed fields are more than the number of epochs, or change the steps before; empty where they do not."""
    if [one.change for one in changed] != [Change.EXTENDED]:
        return "it changes config.epochs alone"
    before = changed[0].before
    if not isinstance(before, int) or before > settings.epochs:
        return "it takes more epochs, not fewer"
    if not settings.is_evaluated(before):
        return f"with eval_every_epochs={settings.eval_every_epochs} its last epoch would not have been evaluated"
    if settings.optimizer.schedule != "stepwise" or settings.loss.counts_epochs:
        what = settings.method if settings.loss.counts_epochs else f"schedule={settings.optimizer.schedule}"
        return f"with {what} the earlier epochs depend on how many there are"
    return ""


def _check_allowed(changed: Sequence[tree.Difference], settings: Settings, allowed: Allowed, what: str) -> None:
    why = _why_not_extended(changed, settings)
    if allowed is Allowed.EPOCHS and why:
        raise UsageError(f"{what}; --extend is refused: {why}; choose another --workdir")
    if allowed is Allowed.NONE:
        how = "--force to go on with the new values" if why else "--extend to train on to the new number of epochs"
        raise UsageError(f"{what}; choose another --workdir, or {how}")
