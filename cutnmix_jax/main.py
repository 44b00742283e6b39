"""Trains a run: `python -m cutnmix_jax.main --config=configs/resnet110.py[:dataset,method]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cutnmix_jax.errors import UsageError, exit_code_of

_EPILOG = """examples:
  python -m cutnmix_jax.main --config=configs/quickstart.py
  python -m cutnmix_jax.main --config=configs/resnet110.py:cifar10,dml
  python -m cutnmix_jax.main --config=configs/resnet32.py --config.seed=96 --config.epochs=2 --workdir=runs/trial

The same command again continues a run that was stopped. Fields: configs/common.py.
Exit codes: 0 done, 2 configuration or usage, 3 data, 4 checkpoint, 5 diverged, 75 stopped by a signal and saved."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    parser = _Parser(
        prog="python -m cutnmix_jax.main",
        description="Train peer networks together, by a row of the paper's tables.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="FILE[:DATASET,METHOD]", help="a file of configs/")
    parser.add_argument("--config.FIELD", dest="field", metavar="VALUE", help="override any field of the configuration")
    parser.add_argument("--workdir", type=Path, help="the run's folder (runs/DATASET/BACKBONE/METHOD/seedSEED)")
    known, overrides = parser.parse_known_args(arguments)

    from cutnmix_jax import config, train  # after the arguments are read: importing JAX takes seconds

    run_config = config.from_flags(known.config, overrides)
    train.run(run_config, known.workdir or config.default_workdir(run_config))


if __name__ == "__main__":
    sys.exit(main())
