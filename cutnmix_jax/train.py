"""A run, from its configuration to its results; `run` reads from top to bottom."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cutnmix_jax import batches, console, data, environment, folder, loop, metrics, step, summary, teacher
from cutnmix_jax import config as configuration
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.errors import UsageError, one_line
from cutnmix_jax.program import Program, assemble, plan
from cutnmix_jax.signals import StopRequest
from cutnmix_jax.types import Batch, Dataset, Mix


def run(config: ConfigDict, workdir: Path, stop: StopRequest, force: bool = False) -> None:
    """Trains, or goes on with, a run and writes its folder.

    Args:
      config: checked, from `config.from_flags`.
      workdir: the run's folder; made if it is not there.
      stop: says when to stop.
      force: go on with a run although its fields have changed.

    Raises:
      UserError: of the kind that fits; what was saved before stays.
    """
    # What is wrong with the networks and the folder is said before anything is loaded or a device is touched.
    planned = plan(config, data.num_classes(config.dataset))
    with folder.opened(workdir, config, force) as forced:
        if not forced and (results := metrics.read_results(workdir)):
            if planned.trained and "teacher_sha256" in results:
                teacher.check(planned.trained, results["teacher_sha256"])
            console.table(results)
            print(f"finished before: {workdir}", flush=True)
            return
        dataset = data.load(config.dataset, config.data_dir, config.train_examples, config.test_examples)
        set_up_jax(config.precision)
        go_on(config, workdir, dataset, assemble(config, dataset, planned), stop, forced)


def go_on(
    config: ConfigDict, workdir: Path, dataset: Dataset, program: Program, stop: StopRequest, forced: bool
) -> None:
    """Trains what is left of a run in a folder that nobody else can start in, and writes its results."""
    summary.show(config, dataset, program, workdir)
    print("compiling; what is compiled is kept for the next start", flush=True)

    # What was saved, if anything.
    made_with = environment.of_run(dataset, configuration.peer_names(config))
    folder.check_images(workdir, made_with["data_sha256"])
    checkpoints = Checkpoints(workdir / folder.CHECKPOINTS, config.checkpoint.keep)
    saved = checkpoints.restore(program.shapes())
    if saved is None:
        saved = program.init()
    else:
        if program.trained:
            teacher.check(program.trained, teacher.digest(saved.state.teachers))
        print(f"continued from step {int(saved.state.step)}", flush=True)
    begun, total = int(saved.state.step), program.epochs * program.steps_per_epoch
    if forced and begun >= total:
        raise UsageError(f"nothing is left to train in {workdir}: step {begun} of {total} is saved; give more epochs")
    done = begun // program.steps_per_epoch
    metrics.rows_done(workdir / metrics.ROWS, done)  # before the folder is changed
    with _expendable("environment.json"):
        folder.note_environment(workdir, made_with, begun)
    folder.claim(workdir, config, begun)
    files = metrics.Metrics(workdir, done)
    with _expendable("samples.png"):
        from cutnmix_jax import pictures  # not before: no error on the command line need wait half a second for it

        pictures.samples(workdir / "samples.png", *_first_batch(program), dataset)

    # The epochs.
    try:
        state = loop.train(program, saved, config, checkpoints, files, stop).state
    finally:
        files.close()
        checkpoints.close()

    # The results.
    results = metrics.results(config, configuration.backbone_name(config), dataset, program.spec.num_train, files.rows)
    results["weights_sha256"] = teacher.digest({"params": state.params["peers"], "batch_stats": state.batch_stats})
    if program.trained:
        results["teacher_sha256"] = teacher.digest(state.teachers)
    if changes := folder.forced(workdir):
        results["forced"] = changes
    metrics.write_json(workdir / "results.json", results)
    title = f"{results['dataset']}, {results['backbone']}, {results['method']}, seed {results['seed']}"
    with _expendable("curves.png"):
        from cutnmix_jax import pictures

        pictures.curves(workdir / "curves.png", files.rows, title)
    console.table(results)
    print(f"run: {workdir}", flush=True)


@contextmanager
def _expendable(name: str) -> Iterator[None]:
    """What a run can do without is not worth ending it for: a full disk is a warning here."""
    try:
        yield
    except OSError as error:
        console.warn(f"cannot write {name} ({error.strerror or one_line(error)})")


def _first_batch(program: Program) -> tuple[Batch, Mix]:
    """The batch of step 0 as training sees it."""
    index = batches.epoch_order(program.key, 0, len(program.train_data.labels))[: program.batch_size]
    batch_key, _ = jax.random.split(step.step_key(program.key, 0))
    return jax.jit(program.make_batch)(batch_key, program.train_data, index)
