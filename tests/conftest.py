"""Settings for all tests: a CPU, a compilation cache of their own, nothing read from or left in a home folder."""

import os
import signal
from pathlib import Path

ROOT = Path(__file__).parent.parent
os.environ["JAX_PLATFORMS"] = os.environ.get("CUTNMIX_TEST_PLATFORM", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # as the command does, for what is run in a process of a test's own
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup no run that a test starts would hear it

import pytest  # noqa: E402


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


def pytest_generate_tests(metafunc):
    if rounds := metafunc.definition.get_closest_marker("rounds"):
        few, many = rounds.args
        metafunc.parametrize("number", range(many if metafunc.config.getoption("--all") else few))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="scripts/test --all runs it"))
