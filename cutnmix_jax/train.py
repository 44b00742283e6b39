"""A run, from its configuration to its results; `run` reads from top to bottom."""

import json
import math
import time
from collections import deque
from pathlib import Path

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cutnmix_jax import config as configuration
from cutnmix_jax import console, data, lock, metrics, pictures, step, summary
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.errors import CheckpointError, DivergedError, StoppedError, UsageError
from cutnmix_jax.evaluate import accuracies
from cutnmix_jax.program import Program, Saved, assemble
from cutnmix_jax.signals import StopRequest
from cutnmix_jax.types import Dataset, Totals

CALLS_IN_FLIGHT = 4  # how far the host may run ahead of the device


def run(config: ConfigDict, workdir: Path) -> None:
    """Trains, or goes on with, a run and writes its folder.

    Args:
      config: checked, from `config.from_flags`.
      workdir: the run's folder; made if it is not there.

    Raises:
      UserError: of the kind that fits; what was saved before stays.
    """
    # The data, the networks and the folder: what is wrong with them is said before anything is compiled.
    dataset = data.load(config.dataset, config.data_dir, config.train_examples, config.test_examples)
    if config.batch_size > len(dataset.train_labels):
        raise UsageError(f"config.batch_size={config.batch_size} is more than the {len(dataset.train_labels)} images")
    set_up_jax(config.precision)
    program = assemble(config, dataset)
    make_folder(workdir)
    with lock.held(workdir):
        _run_in(workdir, config, dataset, program)


def _run_in(workdir: Path, config: ConfigDict, dataset: Dataset, program: Program) -> None:
    """The run itself, once nobody else can start in its folder."""
    open_folder(config, workdir)
    if results := metrics.read_results(workdir):
        console.table(results)
        print(f"finished before: {workdir}", flush=True)
        return
    summary.show(config, dataset, program, workdir)
    print("compiling; what is compiled is kept for the next start", flush=True)

    # What was saved, if anything.
    checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
    saved = checkpoints.restore(program.shapes())
    if saved is None:
        saved = program.init()
    else:
        print(f"continued from step {int(saved.state.step)}", flush=True)
    files = metrics.Metrics(workdir, int(saved.state.step) // program.steps_per_epoch)
    metrics.write_json(workdir / "environment.json", metrics.environment())
    _draw_first_batch(workdir / "samples.png", program, dataset)

    # The epochs.
    try:
        _train(program, saved, config, checkpoints, files)
    finally:
        files.close()
        checkpoints.close()

    # The results.
    results = metrics.results(config, configuration.backbone_name(config), dataset, files.rows)
    title = f"{results['dataset']}, {results['backbone']}, {results['method']}, seed {results['seed']}"
    pictures.curves(workdir / "curves.png", files.rows, title)
    metrics.write_json(workdir / "results.json", results)
    console.table(results)
    print(f"run: {workdir}", flush=True)


def make_folder(workdir: Path) -> None:
    """Makes the run's folder.

    Raises:
      UsageError: it cannot be made.
    """
    try:
        for folder in (workdir, workdir / "checkpoints", workdir / "tensorboard"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(workdir, error) from error


def _cannot_write(workdir: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write in the run's folder {workdir}: {error.strerror}; choose another --workdir")


def open_folder(config: ConfigDict, workdir: Path) -> None:
    """Writes `config.json`, or checks that the folder belongs to this configuration.

    Raises:
      UsageError: it cannot be written, or holds a run with other fields.
      CheckpointError: its `config.json` cannot be read.
    """
    path = workdir / "config.json"
    new = metrics.config_json(config)
    try:
        old = json.loads(path.read_text()) if path.exists() else new
        if not isinstance(old, dict):
            raise ValueError("it holds no fields")
        changed = configuration.changes(old, new)
        # A run that saved nothing may begin again with other fields; a file of somebody else's is left alone.
        begun = any((workdir / "checkpoints").iterdir()) or metrics.read_rows(workdir / "metrics.jsonl")
        if changed and (begun or set(old) != set(new)):
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            raise UsageError(f"{workdir} holds a run with other fields ({changed[0]}{more}); choose another --workdir")
        metrics.write_json(path, new)
    except OSError as error:
        raise _cannot_write(workdir, error) from error
    except ValueError as error:  # not JSON, or not text
        raise CheckpointError(f"{path} is damaged: {error}; restore it or choose another --workdir") from error


def _train(
    program: Program, saved: Saved, config: ConfigDict, checkpoints: Checkpoints, files: metrics.Metrics
) -> None:
    """Trains what is left of a run, an epoch and its row and its checkpoint at a time."""
    done = int(saved.state.step)
    display = console.Display(program.epochs * program.steps_per_epoch, done, program.batch_size)
    with display, StopRequest() as stop:
        for epoch in range(done // program.steps_per_epoch, program.epochs):
            saved, speed = _train_epoch(program, saved, epoch, display, stop)
            reached = int(saved.state.step)
            finished = reached == (epoch + 1) * program.steps_per_epoch
            means = _means(program, saved.totals, reached - epoch * program.steps_per_epoch)
            _check_finite(means, epoch)
            if finished:
                row = _epoch_row(program, saved, epoch, means, speed, config.eval_batch_size)
                # Before the checkpoint: a row without its checkpoint is made again, the reverse would be a gap.
                files.append(row)
                display.epoch_done(row, program.epochs)
                state = program.calibrate(saved.state) if program.calibrate else saved.state
                saved = Saved(state, step.zero_totals(program.method, program.spec), jnp.zeros(()))
            last = reached == program.epochs * program.steps_per_epoch
            stopping = stop.requested and not last  # read once: the signal may come at any time
            if stopping or last or (finished and (epoch + 1) % config.checkpoint.every_epochs == 0):
                checkpoints.save(reached, saved)
            if stopping:
                checkpoints.wait()
                raise StoppedError(f"stopped and saved at step {reached}; the same command continues")


def _train_epoch(
    program: Program, saved: Saved, epoch: int, display: console.Display, stop: StopRequest
) -> tuple[Saved, float]:
    """Trains to the end of an epoch, or to the end of the call in which a stop was requested.

    Returns:
      What to save, and images per second, the first call, which may compile, left out where there are others.
    """
    state, totals, seconds = saved
    begun = timed = time.monotonic()
    order = step.epoch_order(program.key, epoch, len(program.train_data.labels))
    rate = jnp.float32(program.learning_rate(epoch))
    before = epoch * program.steps_per_epoch
    position = first = int(state.step) - before
    in_flight: deque[tuple[int, Totals]] = deque()
    while position < program.steps_per_epoch and not stop.requested:
        count = min(program.steps_per_call, program.steps_per_epoch - position)
        state, totals = program.train(state, totals, program.train_data, order, rate, count, program.key)
        position += count
        in_flight.append((position, totals))
        if position - count == first and position < program.steps_per_epoch:
            jax.block_until_ready(totals)
            timed, first = time.monotonic(), position
            display.started(before + position)
        # Waiting for an older call bounds how late a stop is noticed, and leaves the device enough to do meanwhile.
        if len(in_flight) > CALLS_IN_FLIGHT:
            done, reached = in_flight.popleft()
            jax.block_until_ready(reached)
            if display.due:
                display.update(epoch, program.epochs, before + done, _means(program, reached, done))
    jax.block_until_ready(totals)
    now = time.monotonic()
    speed = (position - first) * program.batch_size / max(now - timed, 1e-9)
    return Saved(state, totals, seconds + (now - begun)), speed


def _means(program: Program, totals: Totals, steps: int) -> dict[str, float]:
    found = jax.device_get(totals)
    return {name: float(found[name]) / max(steps, 1) for name in step.metric_names(program.method, program.spec)}


def _check_finite(means: dict[str, float], epoch: int) -> None:
    broken = [name for name, value in means.items() if not math.isfinite(value)]
    if broken:
        raise DivergedError(
            f"training diverged in epoch {epoch + 1}: {', '.join(broken)} not finite; "
            "lower config.optimizer.learning_rate and start in another --workdir"
        )


def _epoch_row(
    program: Program, saved: Saved, epoch: int, means: dict[str, float], speed: float, eval_batch_size: int
) -> metrics.Row:
    """The row of `metrics.jsonl` for an epoch that was just finished."""
    begun = time.monotonic()
    tested = accuracies(program.evaluate, saved.state, program.test_data, eval_batch_size)
    seconds = float(saved.seconds) + time.monotonic() - begun
    return {
        "epoch": epoch + 1,
        "step": int(saved.state.step),
        "learning_rate": float(f"{program.learning_rate(epoch):.7g}"),
        **{f"train/{name}": value for name, value in means.items()},
        **{f"test/{name if name == 'accuracy' else 'accuracy_' + name}": value for name, value in tested.items()},
        "seconds": round(seconds, 3),
        "images_per_second": round(speed, 1),
    }


def _draw_first_batch(path: Path, program: Program, dataset: Dataset) -> None:
    """Draws the batch of step 0 as training sees it."""
    index = step.epoch_order(program.key, 0, len(program.train_data.labels))[: program.batch_size]
    batch_key, _ = jax.random.split(step.step_key(program.key, 0))
    batch, how = jax.jit(program.make_batch)(batch_key, program.train_data, index)
    pictures.samples(path, batch, how, dataset)
