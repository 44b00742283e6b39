"""A run, from its configuration to its results; `run` reads from top to bottom."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cutnmix_jax import (
    batches,
    console,
    continued,
    data,
    environment,
    files,
    finished,
    folder,
    loop,
    metrics,
    step,
    storage,
    summary,
    teacher,
)
from cutnmix_jax import config as configuration
from cutnmix_jax.checkpoint import Checkpoints, Restored
from cutnmix_jax.compiler import compiled
from cutnmix_jax.device import programs_are_kept, set_up_jax
from cutnmix_jax.errors import CheckpointError, UsageError, one_line, told
from cutnmix_jax.program import Plan, Program, Saved, assemble, check, plan
from cutnmix_jax.signals import StopRequest
from cutnmix_jax.types import Batch, Dataset, Mix


def run(
    config: ConfigDict, workdir: Path, stop: StopRequest | None = None, force: bool = False, start: float | None = None
) -> None:
    """Trains, or goes on with, a run and writes its folder; leaves the process as it was.

    Args:
      config: checked, from `config.from_flags`.
      workdir: the run's folder; made if it is not there.
      stop: says when to stop; never, where there is none.
      force: go on with a run although its fields have changed.
      start: `time.monotonic()` when the command was given; now, where nothing is said.

    Raises:
      UserError: of the kind that fits; what was saved before stays.
    """
    stop, start = stop or StopRequest(), time.monotonic() if start is None else start
    # What is wrong with the networks and the data is said before the folder is made or a device is touched.
    planned = plan(config, data.num_classes(config.dataset))
    dataset = None if os.path.exists(workdir) else _load(config, planned)  # noqa: PTH110 - it takes any name
    with storage.hushed(), folder.opened(workdir, config, force) as opened:
        results, why_not = finished.look(workdir)
        if results and not opened.forced:
            if planned.trained and "teacher_sha256" in results:
                teacher.check(planned.trained, results["teacher_sha256"])
            console.table(results)
            print(f"finished before: {workdir}", flush=True)
            return
        folder.check_checkpoints(workdir)
        dataset = dataset or _load(config, planned)
        with set_up_jax(config.precision), _told(workdir):
            go_on(config, workdir, dataset, assemble(config, dataset, planned), stop, opened, start, why_not)


def _load(config: ConfigDict, planned: Plan) -> Dataset:
    dataset = data.load(config.dataset, config.data_dir, config.train_examples, config.test_examples)
    check(config, planned, dataset)
    return dataset


def go_on(
    config: ConfigDict,
    workdir: Path,
    dataset: Dataset,
    program: Program,
    stop: StopRequest,
    opened: folder.Opened,
    start: float,
    why_not: str,
) -> None:
    """Trains what is left of a run in a folder that nobody else can start in, and writes its results."""
    summary.show(config, dataset, program, workdir)
    print("compiling" + ("; what is compiled is kept for the next start" if programs_are_kept() else ""), flush=True)
    made_with = environment.of_run(dataset, configuration.peer_names(config))
    folder.check_images(workdir, made_with["data_sha256"])
    keep, fields = config.checkpoint.keep, metrics.config_json(config)
    with contextlib.closing(Checkpoints(workdir / finished.CHECKPOINTS, keep, opened.check, fields)) as checkpoints:
        # What was saved, if anything.
        restored = checkpoints.restore(program.shapes())
        if restored:
            _check_saved(workdir, config, program, restored, opened)
            print(f"continued from step {int(restored.state.state.step)}", flush=True)
        saved, compiling = (restored.state, 0.0) if restored else _new(program)
        begun = int(saved.state.step)
        continued.claim(workdir, config, begun, restored.config if restored else {}, why_not)
        with _expendable(folder.ENVIRONMENT, OSError):
            folder.note_environment(workdir, made_with, begun)

        def draw_first_batch() -> None:
            first_batch = _first_batch(program)
            with _expendable(folder.SAMPLES, Exception):
                from cutnmix_jax import pictures  # not above: no error on the command line need wait half a second

                pictures.samples(workdir / folder.SAMPLES, *first_batch, dataset)

        # The epochs.
        rows = restored.rows if restored else []
        with contextlib.closing(metrics.Metrics(workdir, rows, opened.check)) as written:
            began = loop.Began(start, compiling, draw_first_batch)
            state = loop.train(program, saved, config, checkpoints, written, stop, began).state

    # The results.
    num_train = program.spec.num_train
    results = metrics.results(config, configuration.backbone_name(config), dataset, num_train, written.rows)
    results["wall_seconds"] = round(float(saved.wall_seconds) + time.monotonic() - start, 1)  # of all starts together
    results["weights_sha256"] = teacher.digest({"params": state.params["peers"], "batch_stats": state.batch_stats})
    if program.trained:
        results["teacher_sha256"] = teacher.digest(state.teachers)
    if changes := continued.forced(workdir):
        results["forced"] = changes
    opened.check()
    files.write_json(workdir / finished.RESULTS, results)
    title = f"{results['dataset']}, {results['backbone']}, {results['method']}, seed {results['seed']}"
    with _expendable(folder.CURVES, Exception):
        from cutnmix_jax import pictures

        pictures.curves(workdir / folder.CURVES, written.rows, title)
    console.table(results)
    print(f"run: {workdir}", flush=True)


def _check_saved(
    workdir: Path, config: ConfigDict, program: Program, restored: Restored, opened: folder.Opened
) -> None:
    """Raises UserError unless what was saved can go on with the fields and the teacher of this start."""
    changed = continued.check_saved(workdir, restored.config, config, force=opened.force)
    if program.trained:
        teacher.check(program.trained, teacher.digest(restored.state.state.teachers))
    begun, total = int(restored.state.state.step), program.epochs * program.steps_per_epoch
    if opened.force and changed and begun >= total:
        raise UsageError(f"nothing is left to train in {workdir}: step {begun} of {total} is saved; give more epochs")


def _new(program: Program) -> tuple[Saved, float]:
    """The state of step 0, with the step compiled meanwhile; and the seconds that both took."""
    asked = time.monotonic()
    with loop.compiled_beside(program):
        saved = jax.block_until_ready(program.init())
    return saved, time.monotonic() - asked


@contextlib.contextmanager
def _told(workdir: Path) -> Iterator[None]:
    """A file of the run that cannot be read or written is one line."""
    try:
        yield
    except OSError as error:
        what = f"{error.filename or workdir}: {error.strerror or one_line(error)}"
        raise CheckpointError(f"cannot read or write {what}; what was saved stays") from error


@contextlib.contextmanager
def _expendable(name: str, failure: type[Exception]) -> Iterator[None]:
    """What a run can do without is not worth ending it for: a full disk, or a Matplotlib that fails, is a warning."""
    try:
        yield
    except failure as error:
        reason = error.strerror or one_line(error) if isinstance(error, OSError) else told(error)
        console.warn(f"cannot write {name} ({reason})")


def _first_batch(program: Program) -> tuple[Batch, Mix]:
    """The batch of step 0 as training sees it."""
    index = batches.epoch_order(program.key, 0, len(program.train_data.labels))[: program.batch_size]
    batch_key, _ = jax.random.split(step.step_key(program.key, 0))
    return compiled(program.make_batch, once=True)(batch_key, program.train_data, index)
