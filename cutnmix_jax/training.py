"""A run, from its settings to its results; `train` reads from top to bottom."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cutnmix_jax import (
    console,
    continued,
    data,
    environment,
    finished,
    folder,
    layout,
    loop,
    metrics,
    outcome,
    parts,
    storage,
    summary,
    teacher,
)
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.checkpoint_reader import Restored
from cutnmix_jax.command import folder_of
from cutnmix_jax.continued import Allowed
from cutnmix_jax.device import check_settings, programs_are_kept, set_up_jax
from cutnmix_jax.engine import assemble, devices
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.errors import CheckpointError, StoppedError, UsageError, one_line
from cutnmix_jax.parts import Parts
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import Settings, tree
from cutnmix_jax.settings.check import checked, facts, setup
from cutnmix_jax.signals import Stop, StopRequest
from cutnmix_jax.streams import handlers_kept
from cutnmix_jax.student import start as start_from


@handlers_kept()
def train(
    settings: Settings,
    workdir: str | os.PathLike[str],
    stop: StopRequest | None = None,
    force: bool = False,
    start: float | None = None,
    on_epoch: loop.OnEpoch | None = None,
    extend: bool = False,
) -> dict[str, Any]:
    """Trains, or goes on with, a run and writes its folder; leaves the process as it was.

    Args:
      settings: from `library.configure`, or changed by `dataclasses.replace`; checked here.
      workdir: the run's folder; made if it is not there; `~` is the home.
      stop: says when to stop. Where there is none, Ctrl-C, or a notebook's interrupt, ends the call in progress, saves
        and raises StoppedError; no other signal is listened to.
      force: go on with a run although its fields have changed; not together with `extend`.
      start: `time.monotonic()` when the command was given; now, where nothing is said.
      on_epoch: called with the row of each epoch that this call finishes. What it raises leaves this call, after what
        was trained is saved; another call goes on from there.
      extend: go on with a run that has fewer epochs, finished or not, to end as if it had had these from the start.

    Returns:
      What `results.json` says, see `docs/runs.md`.

    Raises:
      UserError: of the kind that fits; what was saved before stays.
      TypeError: `settings` or `on_epoch` is something else.
    """
    if not isinstance(settings, Settings):
        raise TypeError(f"settings are a {type(settings).__name__}; cutnmix_jax.configure makes Settings")
    if on_epoch is not None and not callable(on_epoch):
        raise TypeError(f"on_epoch is a {type(on_epoch).__name__}, not a function of a row")
    if force and extend:
        raise UsageError("force and extend: leave one of them out")
    workdir = folder_of(os.fspath(workdir), "workdir")
    try:
        start = time.monotonic() if start is None else start
        with contextlib.nullcontext(stop) if stop else StopRequest(only=(signal.SIGINT,)) as asked:
            allowed = Allowed.of(force=force, extend=extend)
            results = run(checked(settings), workdir, asked, allowed, start, on_epoch or loop.nothing)
        if not stop and asked.requested:  # in the last epoch; a loop of the caller's must not go on
            raise StoppedError("stopped after the last epoch: the run has ended, the same call returns its results")
        return results
    except loop.CallerError as error:
        assert error.__cause__
        raise error.__cause__ from None
    finally:
        data.forget()  # the next call may be about other images of the same name


def run(
    settings: Settings,
    workdir: Path,
    stop: Stop,
    allowed: Allowed,
    start: float,
    on_epoch: loop.OnEpoch = loop.nothing,
    made: Parts = parts.ALONE,
) -> dict[str, Any]:
    """Like `train`, of settings that are checked, for a command that has set up its process."""
    # What is wrong with the networks and the data is said before the folder is made or a device is touched.
    networks = plan(settings)
    is_new = not os.path.exists(workdir)  # noqa: PTH110 - it takes any name
    if is_new and settings.init_from:
        start_from.check(settings)
    dataset = made.load(settings, networks) if is_new else None
    with storage.hush(), folder.opened(workdir, settings, allowed) as opened:
        results, why_not = finished.look(workdir)
        if results and not opened.changed:
            if networks.teacher and "teacher_sha256" in results:
                then, now = continued.read_if_any(workdir / layout.CONFIG), tree.of_settings(settings)
                alike = all(then.get(name) == now[name] for name in ("teacher", "teacher_which"))
                teacher.check(networks.teacher, results["teacher_sha256"], named_alike=alike)
            start_from.check_begun(settings, results)
            environment.check_code(workdir, settings.own_backbones)
            outcome.leave_student(workdir)
            console.table(results)
            print(f"finished before: {workdir}", flush=True)
            return results
        counted = devices.counted(settings)  # not above: what is finished is shown wherever it is asked for
        if counted != settings:
            folder.check_fields(workdir, counted, allowed)
        settings = counted
        folder.check_checkpoints(workdir)
        dataset = dataset or made.load(settings, networks)
        with set_up_jax(CHOICES[settings.precision]), _named(workdir):
            engine = made.assemble(settings, dataset, networks)
            return go_on(engine, workdir, stop, opened, start, why_not, on_epoch)


def plan(settings: Settings) -> assemble.Networks:
    """Makes the networks, without a number in them, and finds the trained teacher, before the folder is opened.

    Raises:
      UsageError: the method does not fit them, or a network or the folder of the teacher is not what it should be.
    """
    check_settings()
    classes, trained = facts(settings).num_classes, None
    if settings.teacher:
        trained = teacher.find(settings, classes, CHOICES[settings.precision].activations)
        settings.loss.check(setup(settings, trained.backbone.name))
    return assemble.networks(settings, classes, trained)


def go_on(
    engine: Engine,
    workdir: Path,
    stop: Stop,
    opened: folder.Opened,
    start: float,
    why_not: str,
    on_epoch: loop.OnEpoch,
) -> dict[str, Any]:
    """Trains what is left of a run in a folder that nobody else can start in, and writes its results."""
    settings = engine.settings
    summary.show(engine, workdir)
    print("compiling" + ("; what is compiled is kept for the next start" if programs_are_kept() else ""), flush=True)
    made_with = environment.of_run(engine.dataset, settings.own_backbones)
    if engine.steps_per_call > 1:  # which depends on where the images lie
        made_with["steps_per_call"] = engine.steps_per_call
    if engine.runs_in_program > 1:
        made_with["runs_in_program"] = engine.runs_in_program
    if engine.devices.count > 1:
        made_with["layout"] = engine.devices.described()
    folder.check_images(workdir, made_with)
    keep, fields = settings.checkpoint.keep, tree.of_settings(settings)
    with contextlib.closing(Checkpoints(workdir / layout.CHECKPOINTS, keep, opened.check, fields)) as checkpoints:
        # What was saved, if anything.
        restored, changed = checkpoints.restore(engine.shapes), []
        if restored:
            changed = _check_saved(workdir, engine, restored, opened)
            print(f"continued from step {int(restored.state.state.step)}", flush=True)
        before = continued.read_if_any(workdir / layout.ENVIRONMENT)
        if begun_as := start_from.begun_as(settings, before, is_new=restored is None):
            made_with["init_sha256"] = begun_as
        asked = time.monotonic()
        saved = engine.placed(restored.state) if restored else engine.begin()
        compiling = 0.0 if restored else time.monotonic() - asked
        begun = int(saved.state.step)
        continued.claim(workdir, settings, begun, changed, opened.allowed, why_not)
        with outcome.expendable(layout.ENVIRONMENT, OSError):
            folder.note_environment(workdir, made_with, begun)

        def draw_first_batch() -> None:
            first_batch = engine.first_batch()
            with outcome.expendable(layout.SAMPLES, Exception):
                from cutnmix_jax import pictures  # not above: no error on the command line need wait half a second

                pictures.samples(workdir / layout.SAMPLES, *first_batch, engine.dataset)

        # The epochs.
        rows = restored.rows if restored else []
        with contextlib.closing(metrics.Metrics(workdir, rows, opened.check)) as written:
            began = loop.Began(start, compiling, draw_first_batch)
            ended = loop.train(engine, saved, checkpoints, written, stop, began, on_epoch)

    seconds = float(saved.wall_seconds) + time.monotonic() - start  # of all starts together
    results = outcome.results(engine, ended.state, written.rows, seconds, workdir)
    opened.check()
    outcome.write(results, written.rows, workdir, ended)
    console.table(results)
    print(f"run: {workdir}", flush=True)
    return results


def _check_saved(workdir: Path, engine: Engine, restored: Restored, opened: folder.Opened) -> list[tree.Difference]:
    """The fields that have changed; UserError unless what was saved can go on with them and with this teacher."""
    changed = continued.check_saved(workdir, restored.config, engine.settings, opened.allowed)
    if trained := engine.companions.trained:
        teacher.check(trained, teacher.digest(restored.state.state.teachers["frozen"]))
    begun, total = int(restored.state.state.step), engine.total_steps
    if opened.allowed is not Allowed.NONE and changed and begun >= total:
        raise UsageError(f"nothing is left to train in {workdir}: step {begun} of {total} is saved; give more epochs")
    return changed


@contextlib.contextmanager
def _named(workdir: Path) -> Iterator[None]:
    """A file of the run that cannot be read or written is one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or workdir}: {error.strerror or one_line(error)}"
        raise CheckpointError(f"cannot read or write {what}; what was saved stays") from error
