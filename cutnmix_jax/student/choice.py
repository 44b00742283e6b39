"""The arguments of a command that say which student is meant; nothing else is imported, so that `--help` is quick."""

from cutnmix_jax.command import CommandLine, given

FORMATS = ("jax", "torch", "onnx")
LAST, BEST, AVERAGE = WHICH = ("last", "best", "average")


def add(parser: CommandLine) -> None:
    """Adds the folder, and which network of a run is meant."""
    add_source(parser)
    parser.add_argument("--which", choices=WHICH, help="of a run: its last epoch (the default), best one, or average")
    parser.add_argument("--peer", type=int, metavar="J", help="of a run: this peer (the best one of that epoch)")
    parser.add_argument("--ensemble", action="store_true", help="of a run: all peers, the mean of their probabilities")


def add_source(parser: CommandLine) -> None:
    """Adds the folder, and the leave to run code of a person's own."""
    parser.add_argument("source", type=given, metavar="RUN_OR_EXPORT", help="a finished run, or an export")
    parser.add_argument(
        "--backbone",
        type=given,
        metavar="my_pkg.nets:make",
        help="of a run with networks of your own: their code",
    )
