"""What a run was made from, for a comparison: its images, and trained networks that it began as or learned from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cutnmix_jax import digests, files, finished, layout
from cutnmix_jax.errors import UserError
from cutnmix_jax.settings import tree
from cutnmix_jax.student import exported


def seen(made_with: Mapping[str, Any]) -> str:
    """What tells the images of a run, by its `environment.json`, from others; empty where nothing does."""
    return " ".join(str(made_with.get(name, ""))[:12] for name in ("data_sha256", "facts_sha256")).strip()


def code(made_with: Mapping[str, Any], networks: Sequence[str]) -> str:
    """What tells the code of networks of a user's own from other code of the same name, likewise."""
    then = made_with.get("source")
    modules = sorted({name.partition(":")[0] for name in networks})
    return " ".join(str(then[name])[:12] for name in modules if name in then) if isinstance(then, dict) else ""


def recipe(field: str, folder: str | None) -> dict[str, str]:
    """What tells how the trained network of a field was trained, whatever its seed; nothing where it is no run."""
    try:
        fields = tree.deciding(files.read_fields(Path(folder or "") / layout.CONFIG))
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
    return {
        f"{field}.recipe": digests.of_json({path: str(value) for path, value in fields.items() if path != "seed"})[:12]
    }


def trained(folder: str | None, sha256: str | None) -> str:
    """What a trained network is, as `cifar100/resnet110/baseline`, or else by its digest; empty where there is none.

    Args:
      folder: of a run or an export; None for none.
      sha256: the digest that the run knows it by; None where it has not ended.
    """
    unknown = sha256[:12] if sha256 else folder or ""
    path = Path(folder or "")
    if not folder:
        return unknown
    try:
        if exported.is_export(path):
            found = exported.read_description(path)
            name = "/".join((found.dataset, "+".join(found.backbones), found.method))
            known = {found.networks_sha256[0], digests.of_json(found.networks_sha256)}
        elif results := finished.read(path):
            name = "/".join(results[part] for part in ("dataset", "backbone", "method"))
            known = {results["weights_sha256"], _best_sha256(path, results)}
        else:
            return unknown
    except (UserError, OSError, ValueError, LookupError, TypeError):
        return unknown
    return name if sha256 is None or sha256 in known else unknown


def _best_sha256(folder: Path, results: dict[str, Any]) -> str:
    """The digest of peer 0 of the best epoch; empty where its checkpoint is gone."""
    checkpoints, step = folder / layout.CHECKPOINTS, results["best"]["step"]
    return digests.of_saved_network(digests.read(checkpoints, step)) if step in digests.steps_in(checkpoints) else ""
