"""The folder of a run: made, kept from others, and shown to belong to a configuration."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from cutnmix_jax import config as configuration
from cutnmix_jax import console, environment, lock, metrics
from cutnmix_jax.errors import CheckpointError, DataError, UsageError

CHECKPOINTS, FORCED = "checkpoints", "forced.json"


@contextmanager
def opened(workdir: Path, config: ConfigDict, force: bool) -> Iterator[bool]:
    """Makes the folder, keeps others out of it and checks that it belongs to this run.

    Args:
      workdir: the folder.
      config: of the run.
      force: go on although fields have changed, as far as they leave the state and its place in the data alone.

    Yields:
      Whether it holds a run with other fields, which is gone on with by force.

    Raises:
      UsageError: it cannot be made, somebody else is in it, or it holds a run with other fields.
      CheckpointError: its `config.json` cannot be read, or its checkpoints are gone.
    """
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:  # TensorStore would refuse it after the first epoch
        raise UsageError(
            f"the run's folder {workdir} has a name that is not UTF-8; choose another --workdir"
        ) from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    with lock.held(workdir):
        forced = _is_changed(config, workdir, force)
        try:
            for name in (CHECKPOINTS, "tensorboard"):
                (workdir / name).mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_write(workdir, error) from error
        _check_checkpoints(workdir)
        yield forced


def claim(workdir: Path, config: ConfigDict, step: int) -> None:
    """Writes `config.json`, once it is sure that the run can go on with it.

    Where it had other fields, its results are put aside and `forced.json` gets a line that stays with the run.

    Args:
      workdir: the folder.
      config: of the run.
      step: at which it goes on.
    """
    path, results = workdir / "config.json", workdir / "results.json"
    new = metrics.config_json(config)
    old = json.loads(path.read_text()) if path.exists() else new
    if changed := configuration.changes(old, new) if step else []:
        if results.exists():
            results.rename(workdir / f"results-before-{time.strftime('%Y%m%d-%H%M%S')}.json")
        metrics.write_json(workdir / FORCED, {"changes": [*forced(workdir), {"step": step, "changed": changed}]})
    if path.exists() and old == new:
        return
    metrics.write_json(path, new)


def check_images(workdir: Path, sha256: str) -> None:
    """Raises DataError where a run would go on with other images, or with the same ones in another order.

    Args:
      workdir: the folder.
      sha256: `digests.of_data` of the images.
    """
    if not _saved(workdir):
        return
    path = workdir / "environment.json"
    before = _fields(path).get("data_sha256")
    if before is None:
        console.warn(f"{path} does not tell which images the run was begun with; they may be others now")
    elif before != sha256:
        raise DataError(
            f"the images are not those that the run in {workdir} was begun with; give it the same ones by "
            "--config.data_dir, or choose another --workdir"
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
    path = workdir / "environment.json"
    before = _fields(path) if step else {}
    earlier = before.pop("earlier", [])
    old, new = environment.deciding(before), environment.deciding(made_with)
    if before and (changed := configuration.difference(old, new, "environment")):
        changed.sort(key=lambda line: "environment.versions." not in line)  # other versions have other settings
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        console.warn(
            f"from step {step} on the bits need not be those of a run that nobody disturbed ({changed[0]}{more})"
        )
        earlier.append({**before, "until_step": step})
    metrics.write_json(path, {**made_with, "earlier": earlier} if earlier else made_with)


def _fields(path: Path) -> dict[str, Any]:
    """What a file of JSON says; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def forced(workdir: Path) -> list[dict[str, Any]]:
    """The changes of fields that the run was made to go on with, oldest first: at which `step`, and what `changed`."""
    path = workdir / FORCED
    return _fields(path).get("changes", [{"changed": [f"{FORCED} cannot be read"]}]) if path.exists() else []


def _cannot_write(workdir: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write in the run's folder {workdir}: {error.strerror}; choose another --workdir")


def _is_changed(config: ConfigDict, workdir: Path, force: bool) -> bool:
    """Whether something was saved with other fields; raises UsageError unless the run may go on with these."""
    path, new = workdir / "config.json", metrics.config_json(config)
    if not path.exists() and _begun(workdir):  # it is written before anything else
        raise CheckpointError(
            f"{path} is gone, which says how the run was begun; restore it or choose another --workdir"
        )
    try:
        old = json.loads(path.read_text()) if path.exists() else new
        if not isinstance(old, dict):
            raise ValueError("it holds no fields")
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is damaged: {error}; restore it or choose another --workdir") from error
    changed, ours = configuration.changes(old, new), set(old) == set(new)
    if not changed or (ours and not _begun(workdir)):
        return False  # nothing was saved, so nothing is lost by beginning again
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    what = f"{workdir} holds a run with other fields ({changed[0]}{more})"
    if fixed := [line for line in changed if line.startswith(configuration.FIXED_FIELDS)]:
        raise UsageError(
            f"{what}, and {fixed[0].partition(':')[0]} cannot change within a run; choose another --workdir"
        )
    if not force or not ours:
        raise UsageError(f"{what}; choose another --workdir" + (", or --force to go on with these" if ours else ""))
    console.warn(f"{what}; going on with the new ones, as forced")
    return True


def _saved(workdir: Path) -> bool:
    """Whether there are checkpoints, whole or not."""
    folder = workdir / CHECKPOINTS
    return folder.is_dir() and any(path.name.isdigit() for path in folder.iterdir())


def _begun(workdir: Path) -> bool:
    return _saved(workdir) or bool(metrics.read_rows(workdir / "metrics.jsonl"))


def _check_checkpoints(workdir: Path) -> None:
    """Raises CheckpointError where a run has rows that no kill can explain, and no checkpoint: it would begin again."""
    rows = len(metrics.read_rows(workdir / "metrics.jsonl"))
    # The first epoch is the best so far, and so is saved; and the first checkpoint is on disk before the second epoch.
    if rows > 1 and not _saved(workdir):
        raise CheckpointError(
            f"{workdir} has rows of {rows} epochs and no checkpoint; restore {workdir / CHECKPOINTS}, or choose "
            "another --workdir"
        )
