"""What a finished run came to, and whether the results in its folder are those of what lies beside them."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from cutnmix_jax import data, digests, environment, files, metrics
from cutnmix_jax.errors import CheckpointError, one_line
from cutnmix_jax.layout import CHECKPOINTS, CONFIG, RESULTS, ROWS
from cutnmix_jax.settings import Settings, tree
from cutnmix_jax.types import Dataset, EpochRow

_TESTED = ("test/", "validation/")
_TYPES: dict[str, type | tuple[type, ...]] = {
    "dataset": str, "data": dict, "backbone": str, "backbones": list, "method": str, "seed": int, "epochs": int,
    "train_examples": int, "test_examples": int, "last": dict, "best": dict, "seconds": (int, float),
    "wall_seconds": (int, float), "device": str, "versions": dict, "config_sha256": str, "weights_sha256": str,
}  # fmt: skip


class Looked(NamedTuple):
    """What was found in a folder.

    Attributes:
      results: of its run; None where there are none, or none that are to be used.
      why_not: why what is there is not used; empty where nothing is there, or it is used.
    """

    results: dict[str, Any] | None
    why_not: str = ""


def read(folder: Path) -> dict[str, Any] | None:
    """The results of a finished run; None where there are none that belong to what lies beside them."""
    return look(folder).results


def look(folder: Path) -> Looked:
    """Reads the results of a run and compares them with its configuration, its rows and its newest weights.

    The weights may be gone, to save room; other ones may not be there.
    """
    try:
        if folder.exists() and not folder.is_dir():
            return Looked(None, "it is no folder")
        if not files.kind(folder / RESULTS):
            return Looked(None)
        results = files.read_fields(folder / RESULTS)
        why_not = _wrong(results) or _other(results, folder)
    except OSError as error:
        return Looked(None, f"{error.strerror}: {error.filename or folder}")
    # What texts of other shapes lead to.
    except (CheckpointError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        return Looked(None, one_line(error) or type(error).__name__)
    return Looked(None, why_not) if why_not else Looked(results)


def results(settings: Settings, dataset: Dataset, num_train: int, rows: Sequence[EpochRow]) -> dict[str, Any]:
    """What `results.json` says of what was trained, on which images, and of the last epoch and the best one.

    The best is that with the highest mean accuracy of the peers, on the images that `best_by` names.

    Args:
      settings: of the run.
      dataset: all of it; what a network has to know of its images stands in the results.
      num_train: how many images it trained on.
      rows: of all epochs.
    """
    seen = {
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.train_images.shape[1:]),
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "resampling": data.resampling(settings.dataset),
    }
    return {
        "dataset": settings.dataset,
        "data": {**seen, "sha256": digests.of_json(seen)},
        "backbone": settings.backbone_name,
        "backbones": list(settings.backbones),
        "method": settings.method,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "train_examples": num_train,
        "test_examples": len(dataset.test_labels),
        "last": metrics.summary(rows[-1]),
        "best": metrics.summary(metrics.ranked(rows)[0]),
        "best_by": metrics.chosen_by(rows),
        "seconds": sum(row["seconds"] for row in rows),
        "device": jax.local_devices()[0].device_kind,
        "versions": environment.versions(),
        "config_sha256": digests.of_json(tree.of_settings(settings)),
    }


def _wrong(results: dict[str, Any]) -> str:
    """What some results lack; empty where nothing."""
    for name, wanted in _TYPES.items():
        if not isinstance(results.get(name), wanted) or isinstance(results[name], bool):
            return f"{RESULTS} has no {name}"
    if not all(math.isfinite(results[name]) for name in ("seconds", "wall_seconds")):
        return f"{RESULTS} has no seconds"
    seen = {name: value for name, value in results["data"].items() if name != "sha256"}
    if results["data"].get("sha256") != digests.of_json(seen):  # nothing else beside them says it
        return f"what {RESULTS} says of the images was changed"
    if not all(isinstance(text, str) for text in (*results["versions"], *results["versions"].values())):
        return f"{RESULTS} has no versions"
    return ""


def _other(results: dict[str, Any], folder: Path) -> str:
    """What beside some results is of another run; empty where nothing is."""
    config = files.read_fields(folder / CONFIG)
    named = [(results[name], config[name]) for name in ("dataset", "method", "seed", "epochs")]
    if results["config_sha256"] != digests.of_json(config) or any(one != other for one, other in named):
        return f"{RESULTS} is of another configuration than {CONFIG}"
    rows = metrics.read_rows(folder / ROWS)
    if len(rows) != results["epochs"] or not are_whole(rows):
        return f"{ROWS} does not have the rows of {results['epochs']} epochs"
    if results["last"] != metrics.summary(rows[-1]) or results["best"] != metrics.summary(metrics.ranked(rows)[0]):
        return f"{RESULTS} has other accuracies than {ROWS}"
    if steps := digests.steps_in(folder / CHECKPOINTS):
        record = digests.read(folder / CHECKPOINTS, steps[-1])
        if steps[-1] != rows[-1]["step"] or digests.of_saved_network(record) != results["weights_sha256"]:
            return f"{RESULTS} is of other weights than the newest checkpoint, that of step {steps[-1]}"
        if record["rows"] != rows:
            return f"{ROWS} has other rows than the newest checkpoint"
    return ""


def are_whole(rows: Sequence[EpochRow]) -> bool:
    """Whether rows are sound and end as those of a finished run do, with an epoch that was evaluated."""
    return are_sound(rows) and "test/accuracy" in rows[-1]


def are_sound(rows: Sequence[EpochRow]) -> bool:
    """Whether rows are of epochs 1, 2, ... and finite numbers, the accuracies fractions of the same networks in all."""
    if [row.get("epoch") for row in rows] != list(range(1, len(rows) + 1)):
        return False
    values = [(name, value) for row in rows for name, value in row.items()]
    tested = {frozenset(name for name in row if name.startswith(_TESTED)) for row in rows}
    if len(tested - {frozenset()}) > 1:  # an epoch may not be evaluated
        return False
    if not all(type(value) in (int, float) and abs(value) <= sys.float_info.max for _, value in values):
        return False
    return all(0 <= value <= 1 for name, value in values if name.startswith(_TESTED))
