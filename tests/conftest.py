"""Settings for all tests: a CPU, a compilation cache of their own, nothing read from or left in a home folder."""

import collections
import dataclasses
import functools
import gc
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ["JAX_PLATFORMS"] = os.environ.get("CUTNMIX_TEST_PLATFORM", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as the command does, for what is run in a process of a test's own
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup no run that a test starts would hear it

if "--all" not in sys.argv:
    # Programs of a few steps take longer to compile than to run.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# What JAX traces makes objects by the million, and to look through all of them again and again is a tenth of the time.
gc.set_threshold(20_000, 20, 20)

import pytest  # noqa: E402

BLANK = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a4944415478da63f80f00010101001cb08c990000000049454e44ae426082"
)  # a PNG of one white pixel


def pytest_addoption(parser):
    parser.addoption(
        "--all", action="store_true", help="also run the tests that take long or are like others, and all rounds"
    )


@pytest.fixture(autouse=True)
def signals_as_before():
    """A run that was asked to stop leaves its process deaf, because it is about to end; this one is not."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def process_as_before(monkeypatch):
    """A command holds to its end what it changes of its process: run in this one, its test's end is its own.

    Held on, it is not made for the next, and pytest undoes what of it are filters of warnings after each test.
    """
    from cutnmix_jax import device, storage
    from cutnmix_jax.process import Shared

    places = (storage, "_HUSHED"), (device, "_PROGRAMS_KEPT"), (device, "_LOGGED_ONCE")
    changes = [Shared(getattr(module, name)._change) for module, name in places]
    for (module, name), change in zip(places, changes, strict=True):
        monkeypatch.setattr(module, name, change)
    yield
    for change in reversed(changes):
        change._undo.close()


@pytest.fixture(scope="session", autouse=True)
def pictures_are_not_drawn():
    """Runs in a test's own process make their figures and write a blank picture: to draw it is a quarter of a tiny run.

    Of the first batch they show one image, not eight. Those in processes of their own draw all, and `test_run` looks at
    what they have drawn.
    """
    from cutnmix_jax import files, pictures
    from cutnmix_jax.paper import figures  # noqa: F401  which draws tables by the function as it is, and so does
    from cutnmix_jax.student import charts  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save", lambda figure, path: files.write(path, BLANK))
        patch.setattr(pictures, "samples", functools.partial(pictures.samples, count=1))
        yield


PROGRAMS: dict = {}  # what was traced for the engines of runs, by all that it depends on
LOOKED_AT: dict = {}  # networks that were found right, likewise
ANEW: list = []  # not empty while a test wants none of them


@pytest.fixture(scope="module")
def programs_kept():
    """Has runs whose programs are the same use what was traced before: two thirds of a tiny run in this process.

    For tests that change nothing of what is traced; not for those that count what is compiled, and are `traced_anew`.
    Seeds, rates and images are arguments of a program, and the number of epochs is none of it for most methods.
    Networks that were looked at, and are right, are not looked at again, which is half of what is left.
    """
    from cutnmix_jax.engine import assemble
    from cutnmix_jax.engine.engine import Engine
    from cutnmix_jax.settings.check import facts

    make, traced, networks, check = assemble.engine, Engine.train_steps, assemble.networks, assemble.check

    def alike(settings):
        optimizer = dataclasses.replace(settings.optimizer, learning_rate=1.0, milestones=())
        found = dataclasses.replace(settings, seed=0, optimizer=optimizer, teacher=None, init_from=None)
        return found if settings.loss.counts_epochs else dataclasses.replace(found, epochs=1)

    def taught_by(teacher):
        return teacher and (teacher.backbone.name, teacher.backbone.image_shape)

    def once(key, look):
        """What `look` returns, which is not kept where it raises."""
        if ANEW:
            return look()
        if (key := repr(key)) not in LOOKED_AT:
            LOOKED_AT[key] = look()
        return LOOKED_AT[key]

    def networks_once(settings, num_classes, teacher=None, known=None):
        known = known or facts(settings)
        found = once((alike(settings), num_classes, known), lambda: networks(settings, num_classes, None, known))
        return found._replace(teacher=teacher)

    def check_once(settings, found, dataset):
        seen = dataset.train_images.shape[1:], dataset.num_classes
        once((alike(settings), taught_by(found.teacher), seen), lambda: check(settings, found, dataset))

    def engine(settings, dataset, found, load_start=None):
        made = make(settings, dataset, found, load_start)
        if ANEW:
            return made
        arrays = [(array.shape, str(array.dtype)) for array in dataset if hasattr(array, "shape")]
        pixels = dataset.mean.tobytes(), dataset.std.tobytes(), dataset.flip, dataset.class_names
        of = alike(settings), found.sizes, found.trunk_size, taught_by(found.teacher)
        key = repr((*of, arrays, pixels, made.steps_per_call))
        if key not in PROGRAMS:
            own = {name: getattr(made, name) for name in ("_fresh", "shapes", "_evaluator")}
            PROGRAMS[key] = own | {"steps_kept": traced.func(made)}, made._epochs._draw
        own, draw = PROGRAMS[key]
        vars(made).update(own)
        vars(made._epochs)["_draw"] = draw
        return made

    steps = functools.cached_property(lambda engine: vars(engine).get("steps_kept") or traced.func(engine))
    steps.__set_name__(Engine, "train_steps")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "engine", engine)
        patch.setattr(assemble, "networks", networks_once)
        patch.setattr(assemble, "check", check_once)
        patch.setattr(Engine, "train_steps", steps)
        yield


@pytest.fixture
def traced_anew():
    """For a test that counts what is compiled."""
    ANEW.append(True)
    yield
    ANEW.clear()


def pytest_generate_tests(metafunc):
    if rounds := metafunc.definition.get_closest_marker("rounds"):
        few, many = rounds.args
        metafunc.parametrize("number", range(many if metafunc.config.getoption("--all") else few))


# What takes longest comes first: a file that began near the end would leave the other processes without work.
LONGEST = (
    "test_distributed", "test_run", "test_devices", "test_signals", "test_hostile", "test_types", "test_seeds",
    "test_config", "test_own_data", "test_environment",
)  # fmt: skip


def pytest_collection_modifyitems(config, items):
    tests = collections.Counter(item.path.stem for item in items)
    place = {stem: number for number, stem in enumerate(LONGEST)}
    items.sort(key=lambda item: (place.get(item.path.stem, len(place)), -tests[item.path.stem], item.path.stem))
    if not config.getoption("--all"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="scripts/test --all runs it"))
