"""Networks that the peers of a new run begin as: those of another run, or exported ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import backbones, digests
from cutnmix_jax.errors import UsageError, UserError
from cutnmix_jax.method import same_images
from cutnmix_jax.settings import Settings
from cutnmix_jax.student import exported, of_run
from cutnmix_jax.student.choice import LAST
from cutnmix_jax.student.description import Description
from cutnmix_jax.student.network import Student, networks_of, shapes_of
from cutnmix_jax.types import Backbone, Dataset, Tree


def check(settings: Settings) -> None:
    """Raises UsageError where there is nothing that the peers of a run can begin as, CheckpointError if damaged."""
    folder = Path(settings.init_from or "")
    if exported.is_export(folder):
        _check(settings, exported.read_description(folder).backbones)
    else:
        run = of_run.look(folder)
        _check(settings, [run.settings.backbones[number] for number in _numbers(settings, run)])


def _numbers(settings: Settings, run: of_run.Run) -> tuple[int, ...]:
    """Which networks of another run those of this one begin as: the ones that count as peers, or all, with a leader."""
    count, every = len(settings.backbones), len(run.settings.backbones)
    return tuple(range(run.num_counted if every != count and run.num_counted in (1, count) else every))


def _check(settings: Settings, names: Sequence[str]) -> None:
    where, count = f"config.init_from={settings.init_from}", len(settings.backbones)
    if len(names) not in (1, count):
        raise UsageError(f"{where} has {len(names)} networks, and the run has {count}; one, or one for each")
    for j, name in enumerate(settings.backbones):
        if (other := names[j % len(names)]) != name:
            raise UsageError(f"{where}: network {j} is a {name}, and would begin as a {other}")


def sha256(init_from: str) -> str | None:
    """What tells the networks of an export or a run from others; None where they are not there."""
    folder = Path(init_from)
    try:
        if exported.is_export(folder):
            return digests.of_json(exported.read_description(folder).networks_sha256)
        return of_run.look(folder).results["weights_sha256"]
    except UserError:
        return None


def began_otherwise(init_from: str | None, before: Mapping[str, Any]) -> str:
    """Why a run did not begin as `config.init_from` says, as far as can be told; empty where it did.

    Args:
      init_from: a folder, or None for random weights; one that is gone is taken for what it was.
      before: the `environment.json` of the run, or its results.
    """
    then = before.get("init_sha256")
    if not init_from:
        return "the run was begun as other networks, by config.init_from" if then else ""
    if not then:
        return f"config.init_from={init_from}: the run was begun at random"
    if sha256(init_from) in (None, then):
        return ""
    return f"config.init_from={init_from} holds other networks than the run was begun as"


def begun_as(settings: Settings, before: Mapping[str, Any], is_new: bool) -> str | None:
    """The `sha256` of the networks that the peers of a run began as; None for random weights.

    Args:
      settings: of the run.
      before: its `environment.json`.
      is_new: whether it begins now.

    Raises:
      UsageError: it goes on, and did not begin as `settings.init_from` says.
    """
    if is_new:
        return settings.init_from and sha256(settings.init_from)
    check_begun(settings, before)
    return before.get("init_sha256")


def check_begun(settings: Settings, before: Mapping[str, Any]) -> None:
    """Raises UsageError where a run that is there did not begin as these settings say, see `began_otherwise`."""
    if before and (why := began_otherwise(settings.init_from, before)):
        raise UsageError(f"{why}; give it as it was then, or choose another --workdir")


def load(settings: Settings, dataset: Dataset, networks: Sequence[Backbone]) -> dict[str, jax.Array]:
    """What the peers of a run begin as.

    Its head is left out, and so begins at random, where the classes are others.

    Args:
      settings: of the run.
      dataset: that it trains on, for the names of its classes.
      networks: of its peers.

    Returns:
      Arrays by their names, see `engine.peers.begun`.

    Raises:
      UsageError: there are no such networks, or of other shapes.
      CheckpointError: they are damaged.
    """
    check(settings)
    folder = Path(settings.init_from or "")
    if exported.is_export(folder):
        student = exported.read(folder)
    else:
        run = of_run.look(folder)
        student = of_run.load_networks(run, LAST, _numbers(settings, run))
    same_classes = student.class_names == dataset.class_names
    found: dict[str, jax.Array] = {}
    begun = networks_of(student)
    for j, network in enumerate(networks):
        found |= _of_peer(student, begun, j, network, same_classes, settings)
    if settings.share_trunk:
        _check_trunks(found, networks, settings)
    count = len(networks)
    same = same_images(settings.views, settings.mix.kind if settings.mix.prob else "none")
    if same_classes and same and len(student.description.backbones) < count:
        raise UsageError(
            f"config.init_from={settings.init_from} is one network, and {settings.method} shows all {count} peers the "
            f"same images, so that they would stay one network; name a run of {count}, or set config.views=per_peer"
        )
    return found


def _check_trunks(found: Mapping[str, jax.Array], networks: Sequence[Backbone], settings: Settings) -> None:
    """Raises UsageError where peers would have the trunk of the first of unlike networks, and tails of others."""
    split = networks[0].split
    names = split.names() if split else frozenset()
    for name, array in found.items():
        part, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        if rest.partition(".")[0] in names and not np.array_equal(array, found[f"{part}.0.{rest}"]):
            raise UsageError(
                f"config.init_from={settings.init_from}: its networks 0 and {number} have trunks of their own, and "
                "those of this run share one; name one network, or set config.share_trunk=false"
            )


def _of_peer(
    student: Student, begun: Sequence[Tree], j: int, network: Backbone, same_classes: bool, settings: Settings
) -> dict[str, jax.Array]:
    described, number = student.description, j % len(student.description.backbones)
    left_out = set() if same_classes else head_of(described, number)
    wanted = digests.flat(shapes_of(network))
    found = {}
    for name, array in digests.flat(begun[number]).items():
        if name in left_out or not jnp.issubdtype(array.dtype, jnp.floating):  # a random key is the run's own
            continue
        if name not in wanted or wanted[name].shape != array.shape:
            raise UsageError(
                f"config.init_from={settings.init_from}: {name} is {list(array.shape)} there, and not in the networks "
                "of this run; its images have another size"
            )
        part, _, rest = name.partition(".")
        found[f"{part}.{j}.{rest}"] = jnp.asarray(array, wanted[name].dtype)
    return found


def head_of(described: Description, number: int) -> set[str]:
    """The names of those arrays of a network whose shape the number of classes decides."""
    name, shape = described.backbones[number], described.image_shape
    of_classes: list[Mapping] = [
        digests.flat(shapes_of(backbones.load(name, classes, image_shape=shape)))
        for classes in (described.num_classes, described.num_classes + 1)
    ]
    return {name for name, leaf in of_classes[0].items() if leaf.shape != of_classes[1][name].shape}
