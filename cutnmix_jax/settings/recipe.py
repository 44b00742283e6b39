"""The recipe of the paper (section 3) for a row of its tables, a short one for a first look, and one for ImageNet."""

import os
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from cutnmix_jax import backbones, data, methods
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import Row
from cutnmix_jax.settings import Architecture, Mixing, Optimizer, RampUp, Settings, tree

QUICKSTART = "quickstart"
IMAGENET = {"imagenet_resnet18": "resnet18_imagenet", "imagenet_resnet50": "resnet50_imagenet"}


def names() -> list[str]:
    """The configurations that the package has: one for each backbone, `quickstart`, and those for ImageNet."""
    return [QUICKSTART, *IMAGENET, *backbones.names()]


def shipped(name: str, argument: str | None) -> ConfigDict:
    """A configuration by its name, one of `names`; `argument` as in `make`."""
    if name in IMAGENET:
        return imagenet(IMAGENET[name], argument)
    return quickstart(argument) if name == QUICKSTART else make(name, argument)


def all_of(method: str) -> Iterator[Settings]:
    """Those of all configurations that the package has for a row, on the digits, made one by one."""
    return (tree.to_settings(shipped(name, f"digits,{method}").to_dict()) for name in names())


def quickstart(argument: str | None) -> ConfigDict:
    """A small run that needs no download, a minute and a half on two CPU cores; digits,cutnmix by default."""
    config = make("resnet8", argument, dataset="digits")
    config.epochs = 20
    config.optimizer.milestones = (13, 17)
    config.batch_size = 32  # 1,500 images are too few for enough steps of 64
    if config.ramp_up.terms:
        config.ramp_up.epochs = ramp_up_epochs(config.epochs)
    return config


def imagenet(backbone: str, argument: str | None) -> ConfigDict:
    """The recipe that is usual for ImageNet; `argument` as in `make`, but the data set has to be named.

    90 epochs of 256 images a step, the rate 0.1 and a tenth of it from epochs 30, 60 and 80 on each, weight decay 1e-4
    (Goyal et al. 2017, arXiv 1706.02677, section 5.1, who leave batch norm out of the decay, and take random parts of
    the whole picture, not of its middle, which is what is prepared). Labels, mixing and loss follow from the row, crops
    from the size of the images.

    Raises:
      UsageError: no data set is named; and as `make` does.
    """
    if not (argument or "").partition(",")[0]:
        raise UsageError("--config: the recipe for ImageNet has no data set of its own; name one, NAME:DATASET,METHOD")
    config = make(backbone, argument)
    config.image_size = 224
    config.epochs, config.batch_size, config.eval_batch_size = 90, 256, 250
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.1, 1e-4
    config.optimizer.milestones = (30, 60, 80)
    if config.ramp_up.terms:
        config.ramp_up.epochs = ramp_up_epochs(config.epochs)
    return config


def ramp_up_epochs(epochs: int) -> int:
    """In how many of so many epochs weights rise: the share that 80 are of the paper's 240."""
    return max(1, epochs * RampUp.epochs // Settings.epochs)


def milestones(epochs: int) -> tuple[int, ...]:
    """Those of the paper's 240 epochs, in proportion for so many; fewer where they fall together."""
    return tuple(sorted({milestone * epochs // Settings.epochs for milestone in Optimizer.milestones} - {0}))


def make(backbone: str, argument: str | None, dataset: str = "cifar100", method: str = "cutnmix") -> ConfigDict:
    """Makes the configuration of a run, for a file of `configs/` to return.

    Args:
      backbone: a name of `cutnmix_jax.backbones`, or `my_pkg.nets:make`.
      argument: what follows the colon of `--config=NAME:dataset,method`; either part, or both, may be left out.
      dataset: where the argument names none.
      method: where the argument names none; a row.

    Raises:
      UsageError: the method is no row, or the argument has more than two parts.
    """
    parts = (argument or "").split(",")
    if len(parts) > 2 or _is_path(argument or "", parts):
        hint = "; a path with a comma stands in --config.dataset=folder:PATH" if data.is_prepared(parts[0]) else ""
        raise UsageError(f"--config=NAME:{argument}: the argument is dataset,method, for instance cifar10,dml{hint}")
    if len(parts) == 1 and parts[0] not in data.names() and methods.has_row(parts[0]):
        name = parts[0]
        raise UsageError(f"--config=NAME:{name}: {name} is a method; the data set comes first, NAME:{dataset},{name}")
    dataset = parts[0] or dataset
    method = (parts[1] if len(parts) == 2 else "") or method
    return tree.to_config_dict(of_row(backbone, dataset, method))


def _is_path(argument: str, parts: list[str]) -> bool:
    """Whether the comma of two parts is, or may be, one of a path."""
    if len(parts) < 2 or not data.is_prepared(parts[0]):
        return False
    return bool(parts[1] and not methods.has_row(parts[1])) or os.path.isdir(argument.partition(":")[2])  # noqa: PTH112


def of_row(backbone: str, dataset: str, method: str) -> Settings:
    """The settings of a row by the paper's recipe.

    Raises:
      UsageError: there is no such row.
    """
    row = methods.row(method)
    return Settings(
        dataset=dataset,
        method=method,
        backbone=Architecture(backbone),
        num_peers=row.num_peers,
        share_trunk=row.share_trunk,
        loss=row.method,
        weights=row.weights,
        ramp_up=RampUp(row.ramp_up),
        views=row.views,
        mix=Mixing(row.mix),
    )


def other_row(settings: Settings) -> str:
    """Another row whose weights, views and mixing a run has, and not those of its own; empty for none.

    Options of the method count where they tell the two rows apart.
    """
    own, given = _of(methods.row(settings.method)), _of(settings)
    for name, row in methods.rows_beside(settings.loss).items():
        other = _of(row)
        unlike = [path for path in own.keys() | other.keys() if own.get(path) != other.get(path)]
        asked = unlike + [path for path in other | given if not path.startswith("loss.")]
        if unlike and all(given.get(path) == other.get(path) for path in asked):
            return name
    return ""


def _of(it: Row | Settings) -> dict[str, Any]:
    """What follows from a row; a term that is not trained on is none, and the number of peers is free."""
    mix, terms = (it.mix, it.ramp_up) if isinstance(it, Row) else (it.mix.kind, it.ramp_up.terms)
    method = vars(it.method if isinstance(it, Row) else it.loss)
    weights = {f"weights.{name}": weight for name, weight in it.weights.items() if weight}
    rest = {"views": it.views, "mix.kind": mix, "share_trunk": it.share_trunk, "ramp_up.terms": tuple(terms)}
    return {f"loss.{name}": value for name, value in method.items()} | weights | rest
