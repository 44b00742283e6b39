"""`python -m cutnmix_jax.data prepare|verify --dataset=NAME`: data sets made ready and checked."""

import argparse
import sys
from collections.abc import Sequence

from cutnmix_jax import data, process
from cutnmix_jax.command import CommandLine, exit_code_of, given
from cutnmix_jax.errors import UsageError, printable

MOST_PIXELS_A_SIDE = 4096  # of an image
EXAMPLES = """examples:
  {command} prepare --dataset=cifar100
  {command} prepare --dataset=cifar100 --archive=cifar-100-binary.tar.gz   (without a network)
  {command} verify --dataset=cifar100 --data_dir=/data/tensorflow_datasets
  {command} prepare --dataset=folder:PATH --size=64 --skip-damaged   (PATH/train/CLASS/*.jpg, or PATH/CLASS/*.jpg)
  {command} prepare --dataset=tfds:beans --size=224

Pictures are decoded once and brought to SxS pixels as `predict` does it: turned as EXIF says, on white where they are
transparent, the first frame where they have several, scaled until they cover the size, and the middle cut out.

exit codes: 0 done, 2 usage or installation, 3 data missing or damaged"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` without the program's name. Returns the exit code."""
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    description = "Makes a data set ready to load (prepare), or checks every image of a ready one (verify)."
    parser = CommandLine("python -m cutnmix_jax.data", description, EXAMPLES)
    parser.add_argument("command", choices=("prepare", "verify"), help="what to do")
    known = f"one of {', '.join(data.names())}; folder:PATH, tfds:NAME[/CONFIG]"
    parser.add_argument("--dataset", required=True, metavar="NAME", help=known)
    parser.add_argument("--archive", type=given, metavar="FILE", help="the official archive, instead of a download")
    parser.add_argument("--size", type=int, metavar="S", help="of folder: and tfds:, pixels a side")
    parser.add_argument("--skip-damaged", action="store_true", help="leave out pictures that cannot be read")
    parser.add_argument("--no-flip", action="store_true", help="a mirror image is of another class, as of letters")
    parser.add_argument(
        "--data_dir", type=given, metavar="DIR", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
    )
    options = parser.parse_args(argv)
    if wrong := data.problem(options.dataset):
        raise UsageError(f"--dataset={printable(options.dataset)[:300]}: {wrong}")
    _check_options(options)
    if data.is_prepared(options.dataset):
        with process.ignored(module=r"PIL\."):  # of tags that are damaged, where the picture is not
            _pictures(options)
    else:
        _shipped(options)


def _check_options(options: argparse.Namespace) -> None:
    """Raises UsageError at an option that goes with something else."""
    if options.archive and options.command == "verify":
        raise UsageError("--archive goes with prepare, not with verify: it checks what was prepared")
    pictures = data.is_prepared(options.dataset)
    if options.archive and (pictures or data.is_own(options.dataset)):
        raise UsageError(f"--archive={options.archive}: {options.dataset} is not made of an archive; leave it out")
    for flag, value in (("--skip-damaged", options.skip_damaged), ("--no-flip", options.no_flip)):
        if value and not (pictures and options.command == "prepare"):
            raise UsageError(f"{flag} goes with prepare of folder:PATH and tfds:NAME; leave it out")
    if options.size is not None and not pictures:
        raise UsageError("--size goes with folder:PATH and tfds:NAME; --config.image_size resizes others in training")
    if options.size is not None and not 1 <= options.size <= MOST_PIXELS_A_SIDE:
        raise UsageError(f"--size={options.size}: give a number from 1 to {MOST_PIXELS_A_SIDE}")


def _pictures(options: argparse.Namespace) -> None:
    from cutnmix_jax.data import _preparing  # here: what it needs may not be installed

    name, data_dir = data.canonical(options.dataset), options.data_dir or ""
    if options.command == "verify":
        print(_preparing.verify(name, data_dir, options.size))
    else:
        print(_preparing.prepare(name, data_dir, options.size, not options.no_flip, options.skip_damaged))


def _shipped(options: argparse.Namespace) -> None:
    from cutnmix_jax.data.prepare import prepare, verify  # here, likewise

    if data.is_own(options.dataset):
        print(f"{options.dataset}: nothing to {options.command}")
        return
    if options.command == "verify":
        print(verify(options.dataset, options.data_dir or ""))
        return
    if hasattr(data.find(options.dataset), "SOURCE"):  # a minute of silence would look like a program that hangs
        print(f"preparing {options.dataset}; about a minute once the archive is here", flush=True)
    print(prepare(options.dataset, options.data_dir or "", options.archive or ""))


if __name__ == "__main__":
    sys.exit(main())
