"""Runs without the command around them: assembled once, then begun, stopped, broken and continued many times."""

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import data, digests, loop, metrics, storage, training
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.engine import assemble
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.errors import StoppedError
from cutnmix_jax.settings import command_line, tree

TEN_EPOCHS = [
    "--config.backbone.name=tests.tiny:Tiny",
    "--config.train_examples=64",
    "--config.test_examples=30",
    "--config.eval_batch_size=16",
    "--config.batch_size=16",
    "--config.epochs=10",
    "--config.optimizer.milestones=(5,8)",  # so the rate falls at steps 20 and 32
]


class Made:
    """An assembled run, its first state, and how to train it in a folder."""

    def __init__(self, row="cutnmix", *more):
        self.settings = command_line.from_flags(f"configs/quickstart.py:digits,{row}", [*TEN_EPOCHS, *more])
        examples = self.settings.train_examples, self.settings.test_examples
        dataset = data.load(self.settings.dataset, None, *examples)
        self.engine = assemble.engine(self.settings, dataset, training.plan(self.settings))

    @functools.cached_property
    def first(self):
        return jax.device_get(self.engine.init())

    @functools.cached_property
    def shapes(self):
        """Kept, because each time the networks are traced."""
        return self.engine.shapes

    def train(self, workdir, stop=None, engine=None, began=None):
        """Begins or goes on; returns the step it went on from."""
        stop, engine = stop or Stop(), engine or self.engine
        (workdir / "tensorboard").mkdir(parents=True, exist_ok=True)
        fields = tree.of_settings(engine.settings)
        checkpoints = Checkpoints(workdir / "checkpoints", engine.settings.checkpoint.keep, config=fields)
        restored = checkpoints.restore(self.shapes)
        saved = restored.state if restored else jax.tree.map(jnp.array, self.first)
        begun = int(saved.state.step)
        files = metrics.Metrics(workdir, restored.rows if restored else [])
        try:
            with storage.hush():
                loop.train(engine, saved, checkpoints, files, stop, began)
        finally:
            files.close()
            checkpoints.close()
        return begun

    def saved(self, workdir, step=None):
        """The newest checkpoint, or the one of a step, without the time it took."""
        if step is not None:
            alone = Path(workdir) / "alone"
            shutil.copytree(Path(workdir) / "checkpoints" / str(step), alone / str(step))
        reader = Reader(Path(workdir) / "checkpoints" if step is None else alone)
        saved = reader.restore(self.shapes).state
        reader.close()
        if step is not None:
            shutil.rmtree(alone)
        return jax.device_get(saved._replace(seconds=0, wall_seconds=0))


@dataclasses.dataclass
class Stop:
    """A request to stop that a test makes itself."""

    requested: bool = False

    def defer(self):
        pass


def wrapped(around):
    """Lets every engine that is made from now on train by `around(train_steps)`; returns how to undo that."""
    before = Engine.train_steps

    def train_steps(engine):
        trains = before.func(engine)
        other = around(trains)
        other.lower = trains.lower
        return other

    Engine.train_steps = functools.cached_property(train_steps)
    Engine.train_steps.__set_name__(Engine, "train_steps")
    return lambda: setattr(Engine, "train_steps", before)


def with_train_steps(engine, train_steps):
    """An engine that trains by another function."""
    other = dataclasses.replace(engine)
    vars(other)["train_steps"] = train_steps  # where a cached property keeps its value
    return other


def hooked(engine, before):
    """An engine that calls `before(number, state, totals)` ahead of every step; it may return other ones."""
    steps = []

    def train_step(state, totals, *rest):
        steps.append(1)
        state, totals = before(len(steps), state, totals) or (state, totals)
        return engine.train_steps(state, totals, *rest)

    return with_train_steps(engine, train_step)


def stopped_after(made, workdir, steps):
    """Begins or goes on, and is stopped by request in the call that does so many more steps."""
    stop = Stop()

    def before(number, state, totals):
        stop.requested = number >= steps

    with pytest.raises(StoppedError):
        made.train(workdir, stop, hooked(made.engine, before))


def rows_in(workdir):
    """The rows without what differs from run to run."""
    rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    return timeless(rows)


def rows_saved(workdir, step):
    """The same of the rows that a checkpoint holds."""
    return timeless(digests.read(Path(workdir) / "checkpoints", step)["rows"])


def timeless(rows):
    """Rows without what differs from run to run."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def untimed_results(workdir):
    """What the results say, without what differs from run to run."""
    results = json.loads((Path(workdir) / "results.json").read_text())
    return {name: value for name, value in results.items() if name not in ("seconds", "wall_seconds")}


def wait_for(condition, seconds=120):
    """Waits until it is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.02)


def killed_at_random(arguments, workdir, chance, steps):
    """Gives the command of a run that saves each of its `steps` steps, and kills it at a random moment."""
    least = chance.randrange(-3, steps)
    command = [sys.executable, "-m", "cutnmix_jax.main", *arguments]
    process = subprocess.Popen(command, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
    if least > 0:
        wait_for(lambda: process.poll() is not None or (steps_in(workdir) or [0])[-1] >= least)
    time.sleep(chance.uniform(0, 0.3 if least > 0 else 5))
    process.send_signal(signal.SIGKILL)
    assert process.wait() in (-signal.SIGKILL, 0)  # it may have ended by then
    print(f"killed with {steps_in(workdir)} saved")


def write_finished(folder, fields, rows, **told):
    """What a finished run leaves behind but for its checkpoints, made up so that all of it belongs together.

    Args:
      folder: made if it is not there.
      fields: of its configuration.
      rows: its epochs; each has at least an `epoch`, a `step` and a `test/accuracy`.
      told: other fields of its results, or other values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "dataset": fields["dataset"], "backbone": "made up", "method": fields["method"], "seed": fields["seed"],
        "epochs": len(rows), "data": {"sha256": digests.of_json({})}, "backbones": ["made up"],
        "train_examples": 1500, "test_examples": 297, "last": metrics.summary(rows[-1]),
        "best": metrics.summary(metrics.ranked(rows)[0]), "seconds": 10.0, "wall_seconds": 11.0, "device": "cpu",
        "versions": {"jax": "1.2.3"}, "config_sha256": digests.of_json(fields), "weights_sha256": "0" * 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(fields))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "results.json").write_text(json.dumps(results | told))


def steps_in(workdir):
    """The steps whose checkpoints are there, oldest first."""
    return sorted(int(path.name) for path in Path(workdir, "checkpoints").glob("*") if path.name.isdigit())


def assert_same(made, one, other):
    """Two folders hold the same run, bit for bit."""
    chex.assert_trees_all_equal(made.saved(one), made.saved(other))
    assert rows_in(one) == rows_in(other)
    for folder in (one, other):
        assert rows_saved(folder, steps_in(folder)[-1]) == rows_in(folder)
    assert [row["epoch"] for row in rows_in(one)] == list(range(1, made.settings.epochs + 1))


def few(values, often):
    """Parameters of which some are tried whenever the tests are run, and the others with --all."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (value not in often)) for value in values]


@functools.cache
def made(row="cutnmix"):
    """An assembled run of a row, one for all tests of a process."""
    return Made(row)


@functools.cache
def whole(row, folder):
    """A folder with an undisturbed run of a row."""
    made(row).train(folder)
    return folder


def leaves(tree):
    """Its arrays by name."""
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
