"""`python -m cutnmix_jax.data prepare|verify --dataset=NAME`: data sets made ready and checked."""

import sys
from collections.abc import Sequence

from cutnmix_jax import data
from cutnmix_jax.command import CommandLine, exit_code_of, given
from cutnmix_jax.errors import UsageError

EXAMPLES = """examples:
  {command} prepare --dataset=cifar100
  {command} prepare --dataset=cifar100 --archive=cifar-100-binary.tar.gz   (without a network)
  {command} verify --dataset=cifar100 --data_dir=/data/tensorflow_datasets

exit codes: 0 done, 2 usage or installation, 3 data missing or damaged"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; `argv` without the program's name. Returns the exit code."""
    return exit_code_of(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    description = "Makes a data set ready to load (prepare), or checks every image of a ready one (verify)."
    parser = CommandLine("python -m cutnmix_jax.data", description, EXAMPLES)
    parser.add_argument("command", choices=("prepare", "verify"), help="what to do")
    parser.add_argument("--dataset", required=True, metavar="NAME", help=f"one of: {', '.join(data.names())}")
    parser.add_argument("--archive", type=given, metavar="FILE", help="the official archive, instead of a download")
    parser.add_argument(
        "--data_dir", type=given, metavar="DIR", help="default: $TFDS_DATA_DIR, else ~/tensorflow_datasets"
    )
    options = parser.parse_args(argv)
    from cutnmix_jax.data.prepare import prepare, verify  # here: what it needs may not be installed

    module = data.find(options.dataset)
    if options.command == "verify":
        if options.archive:
            raise UsageError("--archive goes with prepare, not with verify: it checks what was prepared")
        print(verify(options.dataset, options.data_dir or ""))
        return
    if hasattr(module, "SOURCE"):  # a minute of silence would look like a program that hangs
        print(f"preparing {options.dataset}; about a minute once the archive is here", flush=True)
    print(prepare(options.dataset, options.data_dir or "", options.archive or ""))


if __name__ == "__main__":
    sys.exit(main())
