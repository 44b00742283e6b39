"""What the classifiers of a run or of an export say to the test images of a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import compiler, console, data, digests, environment
from cutnmix_jax.data._facts import Facts
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.engine import assemble, peers
from cutnmix_jax.engine.evaluation import Evaluator
from cutnmix_jax.engine.placement import choose, placed
from cutnmix_jax.errors import CheckpointError, DataError, UsageError, one_line
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.student import exported
from cutnmix_jax.student.of_run import Run, saved_arrays
from cutnmix_jax.types import Dataset, ImageShape, Spec, TrainState

Counts = tuple[int | None, int | None]  # of training and test images that are read; None for all


class Evaluated(NamedTuple):
    """What classifiers say to M images.

    Attributes:
      title: whose classifiers they are.
      dataset: which images.
      labels: [M] int32.
      class_names: K of them.
      logits: a classifier's name -> [M, K]; of an ensemble the logarithm of the mean of probabilities.
      features: a peer's name -> [M, D]; empty for an export.
    """

    title: str
    dataset: str
    labels: np.ndarray
    class_names: tuple[str, ...]
    logits: dict[str, np.ndarray]
    features: dict[str, np.ndarray]


class Images(NamedTuple):
    """Which test images are asked for.

    Attributes:
      dataset: the data set; None for the one that was trained on.
      data_dir: where prepared data sets lie; None for the usual place.
    """

    dataset: str | None = None
    data_dir: str | None = None


def of_run(run: Run, which: str, images: Images) -> Evaluated:
    """Asks every peer of a run, their ensemble, and what else its rows report.

    Args:
      run: from `of_run.look`.
      which: `last` or `best` epoch.
      images: of the data set.

    Raises:
      UsageError, DataError: there is no such data set, or it has other classes.
      CheckpointError: the checkpoint is gone or damaged.
    """
    settings, epoch, seen = run.settings, run.results[which], run.results["data"]
    classes = tuple(seen["class_names"])
    images = images._replace(data_dir=images.data_dir or settings.data_dir)
    counts = settings.train_examples, settings.test_examples
    dataset = _images(images, settings.dataset, classes, tuple(seen["image_shape"]), counts)
    if dataset.name == settings.dataset:
        _check_same(run, digests.of_data(dataset))
    dataset = dataset._replace(mean=np.asarray(seen["mean"], np.float32), std=np.asarray(seen["std"], np.float32))
    # Not asked of the data set: what is written in a folder must not choose what code is run.
    trained_on = run.results["train_examples"]  # of the images that the run began with, see `kept_back`
    known = Facts({"train": trained_on + assemble.kept_back(settings)}, len(classes), tuple(seen["image_shape"]))
    networks = assemble.networks(settings, len(classes), known=known)
    environment.check_code(run.folder, settings.own_backbones)
    joined = peers.make(networks.backbones, "unroll", settings.share_trunk)
    arrays = saved_arrays(run, epoch["step"])
    companions = assemble.companions(settings, joined, None)
    spec = Spec(len(classes), networks.sizes, trained_on, networks.trunk_size)
    evaluator = Evaluator(settings.loss, joined, companions, dataset, settings.eval_batch_size)
    with set_up_jax(CHOICES[settings.precision]):
        compiler.check()
        try:
            state = _state(arrays, evaluator, spec)
        except (ValueError, KeyError) as error:
            why = one_line(error)
            raise CheckpointError(f"{run.folder}: its checkpoint is not that of its networks ({why})") from error
        where = choose(dataset._replace(train_images=dataset.train_images[:0]), None)
        found = evaluator.answers(state, placed(dataset.test_images, dataset.test_labels, where))
    logits = {f"peer_{j}": out.logits for j, out in enumerate(found.peers)} | {"ensemble": found.ensemble} | found.heads
    logits = {name: np.asarray(values) for name, values in logits.items()}
    title = f"{data.title(settings.dataset)}, {settings.backbone_name}, {settings.method}, seed {settings.seed}, "
    title += f"{which} epoch ({epoch['epoch']})"
    features = {f"peer_{j}": np.asarray(out.features) for j, out in enumerate(found.peers)}
    return Evaluated(title, data.title(dataset.name), dataset.test_labels, classes, logits, features)


def _check_same(run: Run, sha256: str) -> None:
    """Warns where the images of a data set are not those that a run was trained and tested with."""
    if environment.read(run.folder).get("data_sha256") != sha256:
        console.warn(f"the images of {run.settings.dataset} may be others than those that the run was tested with")


def _state(arrays: Mapping[str, Any], evaluator: Evaluator, spec: Spec) -> TrainState:
    """What of a run's state its classifiers are made of."""

    def shapes(key: jax.Array) -> tuple:
        params, batch_stats = evaluator.peers.init(key)
        method, method_state = evaluator.method.init(key, spec)
        taught = evaluator.companions.init(params, batch_stats)
        return {"peers": params, "method": method}, batch_stats, method_state, taught

    like = jax.eval_shape(shapes, jax.eval_shape(jax.random.key, 0))
    names = ("params", "batch_stats", "method_state", "teachers")
    params, batch_stats, method_state, taught = (
        digests.part_of(dict(arrays), f"state.{name}", part) for name, part in zip(names, like, strict=True)
    )
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, method_state, (), taught)


def of_export(folder: Path, images: Images) -> Evaluated:
    """Asks an exported student; raises as `of_run` and `exported.read`."""
    student = exported.read(folder)
    described = student.description
    dataset = _images(images, described.dataset, student.class_names, described.image_shape)
    name = "student" if len(described.backbones) == 1 else "ensemble"
    logits = {name: student.logits(dataset.test_images)}
    return Evaluated(described.title, data.title(dataset.name), dataset.test_labels, student.class_names, logits, {})


def _images(
    images: Images, trained_on: str, classes: tuple[str, ...], shape: ImageShape, counts: Counts = (None, None)
) -> Dataset:
    """A data set, if its classes and the size of its images are those of a student.

    Args:
      images: which ones are asked for.
      trained_on: the data set of the student.
      classes: of the student.
      shape: of its images.
      counts: how many images of its own data set are read.
    """
    name = data.canonical(images.dataset or trained_on)
    # What is written in a folder must not choose what code is run.
    if data.is_own(name) and not images.dataset:
        raise UsageError(f"the data set is {name}, code of somebody's own; to run that code say --dataset={name}")
    own = name == trained_on
    # Others that are in memory are not resized unasked.
    size = shape[0] if (own or data.is_prepared(name)) and shape[0] == shape[1] else None
    found = data.facts(name, images.data_dir, size).image_shape
    if found != tuple(shape):
        seen, asked = ("x".join(map(str, one)) for one in (shape, found))
        raise DataError(f"{name} has images of {asked}, and what is evaluated takes {seen}; choose another --dataset")
    dataset = data.load(name, images.data_dir, *(counts if own else (None, None)), image_size=size)
    if dataset.class_names != classes:
        raise DataError(f"{name} has other classes than what is evaluated was trained on; choose another --dataset")
    return dataset
