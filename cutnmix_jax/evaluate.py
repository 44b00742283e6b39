"""Measures the classifiers of a run or of an export: `cutnmix evaluate RUN_OR_EXPORT`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cutnmix_jax import files, storage
from cutnmix_jax.command import CommandLine, before_jax, exit_code_of, folder_of, given
from cutnmix_jax.errors import UsageError
from cutnmix_jax.student import choice

if TYPE_CHECKING:
    from cutnmix_jax.student.evaluated import Evaluated
    from cutnmix_jax.student.measures import Measured

_DESCRIPTION = "Measures each peer of a finished run, their ensemble and every other head, or an exported student."
_EPILOG = """examples:
  {command} runs/digits/resnet8/cutnmix/seed95
  {command} RUN --which=best --out=DIR
  {command} my-student --dataset=digits --out=DIR

Exact top-1 and top-5 accuracy on all test images; nll, the mean negative log-likelihood of the true class, in nats;
ece, the expected calibration error: over 15 bins of the highest probability, the mean gap between that probability and
the share of right answers (Guo et al. 2017, Eq. 3). Between peers: the share of images for which they say the same
class, and linear CKA of their features (Kornblith et al. 2019), 1 where they are the same but for a rotation and scale.
With --out also evaluation.json, confusion_NAME.png of each classifier and reliability.png.
Exit codes: 0 done, 2 usage, 3 data, 4 a run or an export that cannot be read."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    return exit_code_of(lambda: _run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: Sequence[str]) -> None:
    parser = CommandLine("python -m cutnmix_jax.evaluate", _DESCRIPTION, _EPILOG)
    choice.add_source(parser)
    parser.add_argument("--which", choices=(choice.LAST, choice.BEST), help="of a run: this epoch (last)")
    parser.add_argument("--dataset", type=given, metavar="NAME", help="another data set with the same classes")
    parser.add_argument("--data_dir", type=given, metavar="DIR", help="where prepared data sets lie")
    parser.add_argument("--out", type=given, metavar="DIR", help="where JSON and pictures go")
    if not arguments:
        print(f"{_DESCRIPTION}\n\n{parser.epilog}")
        return
    known = parser.parse_args(arguments)
    out = folder_of(known.out, "--out") if known.out else None

    # After the arguments are read, because it takes a second.
    from cutnmix_jax.student import evaluated, exported, measures, of_run
    from cutnmix_jax.student.description import check_consent

    folder, images = folder_of(known.source, "RUN_OR_EXPORT"), evaluated.Images(known.dataset, known.data_dir)
    if exported.is_export(folder):
        if known.which:
            raise UsageError(f"--which={known.which}: {folder} is an export, which is of one epoch; leave it out")
        answers = evaluated.of_export(folder, images)
    else:
        run = of_run.look(folder)
        check_consent(run.settings.backbones, known.backbone, folder)
        answers = evaluated.of_run(run, known.which or choice.LAST, images)
    measured = {name: measures.measure(logits, answers.labels) for name, logits in answers.logits.items()}
    pairs = _pairs(answers)
    _show(answers, measured, pairs)
    if out is None:
        print("with --out=DIR also JSON, confusion matrices and a reliability diagram")
    else:
        _write(out, answers, measured, pairs)


def _pairs(answers: "Evaluated") -> list[dict[str, Any]]:
    """Of each two peers how alike they are."""
    import numpy as np

    from cutnmix_jax.student import measures

    names = list(answers.features)
    if len(names) < 2:
        return []
    predicted = [answers.logits[name].argmax(axis=1) for name in names]
    same = measures.agreement(np.stack(predicted))
    return [
        {
            "peers": [names[i], names[j]],
            "agreement": float(same[i, j]),
            "cka": measures.linear_cka(answers.features[names[i]], answers.features[names[j]]),
        }
        for i in range(len(names))
        for j in range(i + 1, len(names))
    ]


def _show(answers: "Evaluated", measured: Mapping[str, "Measured"], pairs: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{answers.title}: {len(answers.labels):,} test images of {answers.dataset}"))
    for column in ("", "accuracy %", "top-5 %", "nll", "ece %"):
        table.add_column(column, justify="right" if column else "left")
    for name, found in measured.items():
        top5 = "" if found.top5 is None else f"{100 * found.top5:.2f}"
        table.add_row(
            name.replace("_", " "), f"{100 * found.accuracy:.2f}", top5, f"{found.nll:.4f}", f"{100 * found.ece:.2f}"
        )
    Console().print(table)
    for pair in pairs:
        one, other = (name.replace("_", " ") for name in pair["peers"])
        same = f"the same class for {100 * pair['agreement']:.2f} % of the images"
        print(f"{one} and {other}: {same}, CKA {pair['cka']:.3f}")


def _write(
    out: Path, answers: "Evaluated", measured: Mapping[str, "Measured"], pairs: Sequence[Mapping[str, Any]]
) -> None:
    from cutnmix_jax.student import charts

    try:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / "evaluation.json", _fields(answers, measured, pairs))
        written = [out / "evaluation.json"]
        for name, found in measured.items():
            written.append(out / f"confusion_{name}.png")
            charts.confusion(written[-1], found.confusion, answers.class_names, f"{answers.title}: {name}")
        written.append(out / "reliability.png")
        charts.reliability(written[-1], measured, answers.title)
    except OSError as error:
        raise UsageError(f"cannot write in {out}: {error.strerror}; choose another --out") from error
    print("written: " + ", ".join(map(str, written)))


def _fields(
    answers: "Evaluated", measured: Mapping[str, "Measured"], pairs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `evaluation.json` says; what is not defined is null."""

    def numbers(values: Any) -> list:
        return [None if value != value else value for value in values.tolist()]

    classifiers = {
        name: {
            "accuracy": found.accuracy,
            "top5": found.top5,
            "nll": found.nll,
            "ece": found.ece,
            "per_class": dict(zip(answers.class_names, numbers(found.per_class), strict=True)),
            "confusion": found.confusion.tolist(),
            "bins": {part: numbers(values) for part, values in found.bins._asdict().items()},
        }
        for name, found in measured.items()
    }
    of = {"of": answers.title, "dataset": answers.dataset, "images": len(answers.labels)}
    cka = [{**pair, "cka": None if pair["cka"] != pair["cka"] else pair["cka"]} for pair in pairs]
    return {**of, "class_names": list(answers.class_names), "classifiers": classifiers, "pairs": cka}


if __name__ == "__main__":
    before_jax()
    storage.hush()
    sys.exit(main())
