"""Classifies pictures: `cutnmix predict RUN_OR_EXPORT PICTURE...`."""

import csv
import itertools
import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cutnmix_jax import process, storage
from cutnmix_jax.command import CommandLine, before_jax, exit_code_of, folder_of, given
from cutnmix_jax.errors import DataError, UsageError, one_line, printable
from cutnmix_jax.student import choice

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from cutnmix_jax.student.network import Student

_DESCRIPTION = "Says what is on pictures: of any size and usual format, files or whole folders."
_EPILOG = """examples:
  {command} my-student cat.jpg dog.png
  {command} runs/cifar10/resnet32/cutnmix/seed95 photos/ --top=5
  {command} my-student photos/ --csv > photos.csv
  {command} my-student photos/ --json --sheet=photos.png

A picture is scaled until it covers the size of the network's images, and its middle is cut out. --json gives a line of
JSON for each picture, --csv a header and a line. What cannot be read is a line on stderr, and the rest go on.
Exit codes: 0 done, 2 usage, 3 a picture that cannot be read, 4 a run or an export that cannot be read."""


class Classified(NamedTuple):
    """What is said of a picture: its most probable classes, and the picture as the network saw it, [H, W, 3] uint8."""

    path: "Path"
    classes: list[tuple[str, float]]
    picture: "np.ndarray"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    parser = CommandLine("python -m cutnmix_jax.predict", _DESCRIPTION, _EPILOG)
    choice.add(parser)
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="a file, or a folder of such")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="how many classes are named (3)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each picture")
    parser.add_argument("--csv", action="store_true", help="comma-separated values")
    parser.add_argument("--sheet", type=given, metavar="FILE.png", help="draw the pictures, with what is said of them")
    if not arguments:
        print(f"{_DESCRIPTION}\n\n{parser.epilog}")
        return
    known = parser.parse_args(arguments)
    if known.top < 1:
        raise UsageError(f"--top={known.top}: at least 1")
    if known.json and known.csv:
        raise UsageError("--json and --csv: leave one of them out")
    sheet = folder_of(known.sheet, "--sheet") if known.sheet else None

    # After the arguments are read, because it takes a second.
    from cutnmix_jax import images
    from cutnmix_jax.student import load
    from cutnmix_jax.student import sheet as sheets

    paths = images.find(known.pictures)
    student = load.chosen(known)
    total, failed = 0, 0
    shown: list[tuple[str, np.ndarray, list[tuple[str, float]]]] = []
    say = _say_csv(min(known.top, len(student.class_names))) if known.csv else _say_json if known.json else _say_text
    with process.ignored(module=r"PIL\."):  # of tags that are damaged, where the picture is not
        for answer in answers(student, paths, known.top):
            total += 1
            if isinstance(answer, DataError):
                failed += 1
                print(f"error: {one_line(answer)}", file=sys.stderr)
                continue
            say(answer)
            if sheet and len(shown) < sheets.MOST:
                shown.append((str(answer.path), answer.picture, answer.classes))
    if sheet and shown:
        try:
            sheets.draw(sheet, shown, total - failed - len(shown))
        except OSError as error:
            raise UsageError(f"cannot write {sheet}: {error.strerror}; choose another --sheet") from error
    if failed:
        raise DataError(f"{failed} of {total} pictures cannot be read")


def answers(student: "Student", paths: Sequence["Path"], top: int) -> Iterator[Classified | DataError]:
    """What a student says of each picture, in their order; the next ones are read while it computes."""
    import numpy as np

    from cutnmix_jax import images
    from cutnmix_jax.student.network import MOST_AT_ONCE

    size, resampling = student.description.image_shape[:2], student.description.resampling
    stream = images.stream(paths, size, resampling)
    while some := list(itertools.islice(stream, MOST_AT_ONCE)):
        read = [picture for _, picture in some if not isinstance(picture, DataError)]
        said = iter(student.predict(np.stack(read)).probabilities if read else [])
        for path, picture in some:
            if isinstance(picture, DataError):
                yield picture
            else:
                yield Classified(path, _best(student.class_names, next(said), top), picture)


def _best(names: Sequence[str], probabilities: "np.ndarray", top: int) -> list[tuple[str, float]]:
    order = (-probabilities).argsort(kind="stable")[:top]
    return [(names[i], float(probabilities[i])) for i in order]


def _say_text(answer: Classified) -> None:
    classes = ", ".join(f"{name} {100 * share:.1f} %" for name, share in answer.classes)
    print(printable(f"{_encodable(answer.path)}: {classes}"))


def _say_json(answer: Classified) -> None:
    (best, _), *_ = answer.classes
    print(json.dumps({"file": _encodable(answer.path), "class": best, "probabilities": dict(answer.classes)}))


def _say_csv(top: int) -> Any:
    write = csv.writer(sys.stdout).writerow
    write(["file", *(f"{what}_{i + 1}" for i in range(top) for what in ("class", "probability"))])
    return lambda answer: write([_encodable(answer.path), *itertools.chain(*answer.classes)])


def _encodable(path: "Path") -> str:
    """The name of a file, whatever bytes it is made of."""
    return str(path).encode("utf-8", "backslashreplace").decode()


if __name__ == "__main__":
    before_jax()
    storage.hush()
    sys.exit(main())
