"""The program as a part of another one: what it leaves behind in the process, and what it does with its signals."""

import contextlib
import io
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import pytest
import tensorboardX  # noqa: F401  the import of which sets variables

from cutnmix_jax import device, evaluate, load_student, main, process, storage, training
from cutnmix_jax.backbones import foreign
from cutnmix_jax.data import _library
from cutnmix_jax.errors import StoppedError, UsageError
from cutnmix_jax.settings import command_line
from cutnmix_jax.signals import SIGNALS, StopRequest
from cutnmix_jax.streams import handlers_kept, labelled, unbreakable
from tests.runs import few
from tests.test_run import ONE_STEP, ROOT, TINY, rows_of

SMALL = ["configs/quickstart.py:digits,baseline", *TINY[1:], *ONE_STEP, "--config.optimizer.milestones=()"]


def state_of_process():
    """What belongs to the program around this one."""
    return {
        "loggers": {
            name: logging.getLogger(name).level for name in ("", "absl", "asyncio", "jax", "orbax", "matplotlib")
        },
        "handlers": list(logging.getLogger().handlers),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "hooks": (sys.unraisablehook, sys.excepthook, threading.excepthook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "signals": {number: signal.getsignal(number) for number in SIGNALS},
        "environment": dict(os.environ),
        "place": (Path.cwd(), list(sys.path)),
        "jax": {name: value for name, value in jax.config.values.items() if "absl" not in name},
        "threads": sorted(thread.name for thread in threading.enumerate() if "TestReader" in thread.name),
    }


def settings_of(*more):
    return command_line.from_flags(TINY[0].removeprefix("--config="), [*TINY[1:], *more])


def test_a_run_leaves_nothing_behind(tmp_path, monkeypatch):
    """Also without a cache of its own for compiled programs, where the program chooses one."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    try:
        warm = state_of_process()
        training.train(command_line.from_flags(SMALL[0], [*SMALL[1:], "--config.precision=float32"]), tmp_path / "run")
        assert state_of_process() == warm
        assert main.main([f"--config={SMALL[0]}", *SMALL[1:], f"--workdir={tmp_path / 'command'}"]) == 0
        assert state_of_process() == warm
        assert main.main([*TINY, "--config.epochs=0"]) == 2
        assert state_of_process() == warm
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_what_overlaps_in_two_threads_is_undone_after_the_last():
    """Each restored what it had found: the program's own settings were those of another thread for good."""

    def found():
        levels = [logging.getLogger(name).level for name in ("absl", "asyncio", "matplotlib")]
        callbacks = logging.getLogger("jax._src.callback").disabled
        return (
            callbacks,
            levels,
            sys.unraisablehook,
            warnings.showwarning,
            list(warnings.filters),
            dict(jax.config.values),
        )

    changes = (
        storage.hush,
        lambda: device._PROGRAMS_KEPT.held(),
        lambda: device.blamed(()),
        _library.quiet,
        lambda: foreign.types_as_asked_for("a"),
        lambda: process.ignored(module="PIL"),
    )
    before = found()
    for one, other in itertools.product(changes, repeat=2):
        stacks = contextlib.ExitStack(), contextlib.ExitStack()
        for stack, change in zip(stacks, (one, other), strict=True):
            in_a_thread(lambda stack=stack, change=change: stack.enter_context(change()))
        within = found()
        assert within != before
        in_a_thread(stacks[0].close)
        assert found() == within or one is not other
        in_a_thread(stacks[1].close)
        assert found() == before


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_networks_of_two_threads_are_checked_each_for_itself():
    """A network of float64 was trained as float32 where another was looked at meanwhile, which was refused for it."""
    both, said = threading.Barrier(2), {}

    def check(name, dtype):
        try:
            with foreign.types_as_asked_for(name):
                both.wait(60)
                jax.eval_shape(lambda: jnp.zeros(2, dtype))
                both.wait(60)
        except UsageError as error:
            said[name] = str(error)

    threads = [threading.Thread(target=check, args=one) for one in (("double", "float64"), ("single", "float32"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(said) == ["double"] and "asks for float64" in said["double"]


@pytest.mark.parametrize("where", ["within", "after"])
def test_who_listens_is_told_whatever_became_of_the_one_before(where):
    """A run goes on in the process, and somebody's `catch_warnings` has put aside what listens for it."""
    heard, others = [], []
    with contextlib.ExitStack() as stack:
        around = stack.enter_context(contextlib.ExitStack())
        if where == "after":
            around.enter_context(warnings.catch_warnings())
        stack.enter_context(process.heard("a run", others.append))
        if where == "after":
            around.close()
        else:
            stack.enter_context(warnings.catch_warnings(record=True))
        with process.heard("a network", heard.append, own_thread=True):
            warnings.warn("a network", stacklevel=1)
    assert heard == ["a network"]


def test_filters_of_the_program_around_stay():
    mine = {"message": "coroutine .* was never awaited", "category": RuntimeWarning}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", **mine)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        before = list(warnings.filters)
        with storage.hush(), process.ignored(module=r"PIL\."), process.ignored(module=r"PIL\."):
            assert len(warnings.filters) > len(before)
        assert warnings.filters == before


def test_what_nobody_listens_to_is_shown_as_ever():
    heard = []
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with process.heard("a b", heard.append), process.heard("c", heard.append, own_thread=True):
            for text in ("a bit", "c 1", "d"):
                warnings.warn(text, stacklevel=1)
            in_a_thread(lambda: warnings.warn("c 2", stacklevel=1))
            in_a_thread(lambda: warnings.warn("a b 2", stacklevel=1))
        warnings.warn("a b 3", stacklevel=1)
    assert heard == ["a bit", "c 1", "a b 2"]
    assert [str(one.message) for one in shown] == ["d", "c 2", "a b 3"]


def test_what_reads_a_student_adds_no_handler(tmp_path, monkeypatch, capsys):
    """`load_student` of a run left absl's, so that the program's own `basicConfig` did nothing."""
    command = [f"--config={SMALL[0]}", *SMALL[1:], "--config.backbone.name=resnet8", f"--workdir={tmp_path / 'run'}"]
    assert main.main(command) == 0
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    load_student(tmp_path / "run")
    assert logging.getLogger().handlers == []
    assert evaluate.main([str(tmp_path / "run"), f"--out={tmp_path / 'out'}"]) == 0
    assert logging.getLogger().handlers == []


def test_handlers_of_the_program_around_stay(tmp_path, monkeypatch):
    """Those that it added while a run went on in another thread were taken away with absl's."""
    root, mine = logging.getLogger(), [logging.FileHandler(tmp_path / "log"), logging.StreamHandler()]
    monkeypatch.setattr(root, "handlers", [])
    with handlers_kept():
        absl.logging.info("which adds one")
        assert len(root.handlers) == 1
        for handler in mine:
            root.addHandler(handler)
    assert root.handlers == mine
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    with handlers_kept():
        logging.basicConfig(level=logging.INFO)
    assert len(root.handlers) == 1


@pytest.mark.parametrize("active", [True, False])
def test_progress_bars_of_tfds_are_as_before(active):
    import tensorflow_datasets as tfds

    class Builder:
        def download_and_prepare(self, **_):
            print("not shown")

    bars = tfds.core.utils.tqdm_utils
    tfds.display_progress_bar(active)
    try:
        _library.build(Builder())
        assert bars._active == active
    finally:
        tfds.display_progress_bar(True)


def test_a_logger_that_follows_a_quiet_one_is_as_quiet():
    parent, logger = logging.getLogger("cutnmix.of"), logging.getLogger("cutnmix.of.another")
    parent.setLevel(logging.CRITICAL)
    with process.quieter(logger.name, logging.WARNING):
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.NOTSET


def test_a_logger_is_as_quiet_as_the_quietest_wants_and_never_louder_than_it_was():
    logger = logging.getLogger("cutnmix.of.a.test")
    logger.setLevel(logging.ERROR)
    with process.quieter(logger.name, logging.WARNING):
        assert logger.level == logging.ERROR
        with process.quieter(logger.name, logging.CRITICAL):
            assert logger.level == logging.CRITICAL
        assert logger.level == logging.ERROR
    assert logger.level == logging.ERROR


def test_reading_records_leaves_no_level_behind():
    logger = logging.getLogger("absl")
    for level in (logging.NOTSET, logging.CRITICAL, 17):
        logger.setLevel(level)
        with _library.quiet():
            assert logger.getEffectiveLevel() >= logging.ERROR
        assert logger.level == level
    logger.setLevel(logging.NOTSET)


def test_importing_it_changes_nothing():
    code = """
import importlib, json, logging, pkgutil, signal, sys, warnings
import jax, orbax.checkpoint, flax, ml_collections, absl.logging, tensorboardX, matplotlib.figure, rich  # theirs
def state():
    levels = [logging.getLogger(name).level for name in ("", "absl", "asyncio", "jax", "orbax")]
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    return [levels, list(warnings.filters), sys.unraisablehook, sys.excepthook, signals, dict(jax.config.values)]
before = state()
import cutnmix_jax
for module in pkgutil.walk_packages(cutnmix_jax.__path__, "cutnmix_jax."):
    if not module.name.endswith(("__main__", "on_ray", "on_slurm")):  # which want libraries that few have
        importlib.import_module(module.name)
names = ("loggers", "warnings", "unraisable", "excepthook", "signals", "jax")
print([name for name, one, other in zip(names, before, state()) if one != other])
from jax._src import xla_bridge
print(xla_bridge._backends)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "{}"], done.stdout


def test_a_program_s_own_logging_can_be_set_up_afterwards(tmp_path):
    """Orbax and tfds write to absl's log, which gives the root logger a handler and `basicConfig` nothing to do."""
    code = """
import importlib, logging, pkgutil, sys
import cutnmix_jax
for module in pkgutil.walk_packages(cutnmix_jax.__path__, "cutnmix_jax."):
    if not module.name.endswith(("__main__", "on_ray", "on_slurm")):  # which want libraries that few have
        importlib.import_module(module.name)
        assert not logging.getLogger().handlers, module.name
from cutnmix_jax.settings import command_line
cutnmix_jax.train(command_line.from_flags(sys.argv[1], sys.argv[3:]), sys.argv[2])
assert not logging.getLogger().handlers
logging.basicConfig(level=logging.INFO)
assert logging.getLogger().level == logging.INFO
"""
    command = [sys.executable, "-c", code, SMALL[0], str(tmp_path / "run"), *SMALL[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", few(SIGNALS, (signal.SIGINT, signal.SIGHUP)))
def test_a_signal_stops_a_run_and_is_the_caller_s_again(number, tmp_path, capfd):
    """Sent while it compiles: here it ends no process, but the run stops as soon as it can, and begins later."""
    before = signal.getsignal(number)
    with pytest.raises(StoppedError), StopRequest() as stop:
        os.kill(os.getpid(), number)
        training.train(settings_of(), tmp_path / "run", stop)
    assert signal.getsignal(number) == before
    assert "stopping: what has begun, steps or compiling, is finished and saved" in capfd.readouterr().err
    assert not list((tmp_path / "run" / "checkpoints").iterdir())  # another seed may be trained there now
    training.train(settings_of("--config.seed=96"), tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 3
    assert json.loads((tmp_path / "run" / "results.json").read_text())["epochs"] == 3


def test_a_second_signal_is_the_caller_s():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever runs the tests has turned it off
    with pytest.raises(KeyboardInterrupt), StopRequest():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # within a second: passed on twice by somebody
        time.sleep(1.1)
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler


@pytest.mark.parametrize("ours", [unbreakable, labelled])
def test_a_stream_that_somebody_elses_code_has_put_in_place_stays(ours, monkeypatch):
    """A network's module with a stream of its own ended a run, which was trained and saved, with a traceback."""
    before, own = (io.StringIO(), io.StringIO()), io.StringIO()
    monkeypatch.setattr(sys, "stdout", before[0])
    monkeypatch.setattr(sys, "stderr", before[1])
    with ours():
        print("one")
        sys.stdout = own
        print("two")
    assert sys.stdout is own and sys.stderr is before[1]
    assert (before[0].getvalue(), own.getvalue()) == ("one\n", "two\n")
    with ours():
        pass
    assert sys.stdout is own
