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
    run = Made("cutnmix", f"--config.epochs={steps // 4}", "--config.checkpoint.every_steps=2")
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
            run.train(tmp_path, program=hooked(run.program, before))
    finally:
        logger.removeHandler(handler)
    warm = seen[len(seen) // 2 :]  # before, Python and the allocator still settle
    growth = warm[-1][1] / warm[0][1] - 1
    print(f"{steps} steps: {warm[0]} -> {warm[-1]} (step, bytes, files, programs), {100 * growth:.2f} %")
    assert compiled and warm[-1][3] == warm[0][3]
    assert {files for _, _, files, _ in warm[::3]} <= {warm[0][2] + delta for delta in (-3, -2, -1, 0, 1, 2, 3)}
    assert growth < 0.02
