"""What a run leaves in its folder when it has ended: its results, its student, its curves."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import console, continued, digests, files, finished, layout, stack, teacher
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.state import Saved
from cutnmix_jax.errors import described, one_line
from cutnmix_jax.student import exported, of_run
from cutnmix_jax.types import EpochRow, TrainState


def results(
    engine: Engine, state: TrainState, rows: Sequence[EpochRow], seconds: float, workdir: Path
) -> dict[str, Any]:
    """What `results.json` says, see `docs/runs.md`.

    Args:
      engine: of the run.
      state: at the end.
      rows: of all epochs.
      seconds: that all starts took together.
      workdir: the run's folder.
    """
    found = finished.results(engine.settings, engine.dataset, engine.spec.num_train, rows)
    found["wall_seconds"] = round(seconds, 1)
    found["weights_sha256"] = teacher.digest(
        stack.apart({"params": state.params["peers"], "batch_stats": state.batch_stats})
    )
    if engine.companions.trained:
        found["teacher_sha256"] = teacher.digest(state.teachers["frozen"])
    if begun_as := continued.read_if_any(workdir / layout.ENVIRONMENT).get("init_sha256"):
        found["init_sha256"] = begun_as
    for name in (layout.FORCED, layout.EXTENDED):
        if changes := continued.recorded(workdir, name):
            found[Path(name).stem] = changes
    return found


def write(results: dict[str, Any], rows: Sequence[EpochRow], workdir: Path, saved: Saved) -> None:
    """Writes the results; and beside them the student and the curves, which a run can do without.

    Args:
      results: from `results`.
      rows: of all epochs.
      workdir: the run's folder.
      saved: the state at the end.
    """
    files.write_json(workdir / layout.RESULTS, results)
    leave_student(workdir, saved)
    title = f"{results['dataset']}, {results['backbone']}, {results['method']}, seed {results['seed']}"
    with expendable(layout.CURVES, Exception):
        from cutnmix_jax import pictures  # not above: no error on the command line need wait half a second

        pictures.curves(workdir / layout.CURVES, rows, title)


def leave_student(workdir: Path, saved: Saved | None = None) -> None:
    """Writes the student of a finished run, where there is none and the run still has its weights.

    Args:
      workdir: the run's folder.
      saved: the state at the end, where it is at hand.
    """
    if exported.is_export(workdir / layout.STUDENT) or not digests.steps_in(workdir / layout.CHECKPOINTS):
        return
    with expendable(layout.STUDENT, Exception):
        arrays = None if saved is None else digests.flat(saved)
        exported.write(of_run.load(of_run.look(workdir), arrays=arrays), workdir / layout.STUDENT)


@contextlib.contextmanager
def expendable(name: str, failure: type[Exception]) -> Iterator[None]:
    """What a run can do without is not worth ending it for: a full disk, or a Matplotlib that fails, is a warning."""
    try:
        yield
    except failure as error:
        reason = error.strerror or one_line(error) if isinstance(error, OSError) else described(error)
        console.warn(f"cannot write {name} ({reason})")
