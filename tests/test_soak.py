"""A long run does not grow: neither in memory, nor in open files, nor in compiled programs."""

import logging
import os
import re
from pathlib import Path

import jax
import pytest

from tests.runs import Made, hooked

PAGE = os.sysconf("SC_PAGE_SIZE")


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("steps", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_nothing_grows(steps, tmp_path, caplog):
    # Evaluated and saved every 25 steps; Orbax and TensorStore keep 30 to 40 kB of every save.
    run = Made("cutnmix", "--config.train_examples=400", f"--config.epochs={steps // 25}")
    compiled, seen = [], []

    def before(number, *_):
        if number % 40 == 0:
            seen.append((number, resident(), open_files(), len(compiled)))

    class Count(logging.Handler):
        def emit(self, record):
            if re.match(r"Compiling ", record.getMessage()):
                compiled.append(record.getMessage())

    logger, handler = logging.getLogger("jax._src.interpreters.pxla"), Count()
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            run.train(tmp_path, engine=hooked(run.engine, before))
    finally:
        logger.removeHandler(handler)
    warm = seen[len(seen) // 2 :]  # before, Python and the allocator still settle
    growth = warm[-1][1] / warm[0][1] - 1
    print(f"{steps} steps: {warm[0]} -> {warm[-1]} (step, bytes, files, programs), {100 * growth:.2f} %")
    assert compiled and warm[-1][3] == warm[0][3]
    # A save in the background holds some; one that is never closed would add up.
    files, half = [count for _, _, count, _ in seen], len(seen) // 2
    assert max(files[half:]) <= max(files[:half]) + 6
    assert growth < 0.02
