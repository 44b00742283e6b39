"""From settings and a data set to an engine: the networks are made and looked at before a device is asked for."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import backbones, compiler, console, methods, precision
from cutnmix_jax.backbones.foreign import is_always_evaluated, is_foreign
from cutnmix_jax.data._facts import Facts
from cutnmix_jax.engine import batches, devices, feeding, peers, placement
from cutnmix_jax.engine.companions import Average, Companion, Companions, Frozen, RunningMean, Trained
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.errors import UsageError
from cutnmix_jax.names import check_weights, head_names, term_names
from cutnmix_jax.settings import DEVICE, Settings
from cutnmix_jax.settings.check import check_names, facts
from cutnmix_jax.types import CIFAR, Backbone, Dataset, Spec

GPU_STEPS_PER_CALL = 50  # enough that starting a call costs nothing beside it


class Networks(NamedTuple):
    """What the settings say of the networks, before there are data or a device.

    Attributes:
      backbones: of each peer; those of one architecture are the same object, so that it is traced once.
      sizes: D of each.
      trunk_size: C, channels of the shared trunk; None where there is none.
      teacher: the trained network that teaches them; None where there is none.
    """

    backbones: tuple[Backbone, ...]
    sizes: tuple[int, ...]
    trunk_size: int | None
    teacher: Trained | None


def networks(
    settings: Settings, num_classes: int, teacher: Trained | None = None, known: Facts | None = None
) -> Networks:
    """Makes the networks, without a number in them, and checks that the method fits them.

    Args:
      settings: of the run.
      num_classes: K.
      teacher: the trained one, if any, from `teacher.find`.
      known: of the data set; where it is not given the data set is asked, which may be somebody's code.

    Raises:
      UsageError: it does not, or a network is not what it should be.
    """
    known = known or facts(settings)
    with backbones.shapes_only():
        dtype, shape = precision.CHOICES[settings.precision].activations, known.image_shape
        made = {name: backbones.load(name, num_classes, dtype, shape) for name in set(settings.backbones)}
        size_of = {name: _feature_size(network, num_classes) for name, network in made.items()}
        if empty := [name for name in sorted(size_of) if not size_of[name]]:
            seen = "x".join(map(str, shape))
            raise UsageError(f"backbone {empty[0]!r} has no features on images of {seen}: they are too small for it")
        for name in filter(is_foreign, made):
            if is_always_evaluated(made[name]):
                console.warn(f"{name} has batch statistics that training does not change; is `train` looked at?")
        trunk_size = _trunk_size(made[settings.backbones[0]]) if settings.share_trunk else None
        sizes = tuple(size_of[name] for name in settings.backbones)
        spec = Spec(num_classes, sizes, _num_train(settings, known), trunk_size)
        terms, heads = term_names(settings.loss, spec), head_names(settings.loss, spec)
    check_names(settings, terms, heads)
    check_weights(settings.method, settings.weights, methods.row(settings.method).weights, terms, spec)
    return Networks(tuple(made[name] for name in settings.backbones), sizes, trunk_size, teacher)


def check(settings: Settings, found: Networks, dataset: Dataset) -> None:
    """Traces the networks as a run will call them, without a device; ours on 32x32 images are known to be right.

    Raises:
      UsageError: they, or the teacher, cannot take the images or the batches, or they have no gradient.
    """
    if found.teacher:
        _check_teacher(found.teacher, dataset)
    image, names = dataset.train_images.shape[1:], settings.backbones
    if image == CIFAR and not settings.own_backbones:
        return
    count, classes = 1 if settings.same_images else len(names), dataset.num_classes
    with backbones.shapes_only():
        joined = peers.make(found.backbones, settings.mapping, settings.share_trunk)
        peers.check(joined, names, classes, found.sizes, (count, settings.batch_size, *image), train=True)
        peers.check(joined, names, classes, found.sizes, (1, settings.eval_batch_size, *image), train=False)
        if found.teacher:
            alone, seen = peers.make([found.teacher.backbone], "unroll"), (1, settings.batch_size, *image)
            peers.check(alone, [found.teacher.backbone.name], classes, None, seen, train=False)


def _check_teacher(trained: Trained, dataset: Dataset) -> None:
    """Raises UsageError where a teacher learned other classes, or saw pixels that were normalised otherwise."""
    ours = {"class_names": dataset.class_names, "mean": dataset.mean.tolist(), "std": dataset.std.tolist()}
    for name, value in ours.items():
        theirs = trained.seen.get(name)  # a run of an earlier version does not tell it
        if theirs is not None and list(theirs) != list(value):
            there, here = (", ".join(map(str, list(one)[:5])) for one in (theirs, value))
            raise UsageError(
                f"config.teacher={trained.folder} was trained on images with other {name} ({there}; here {here}); "
                "train it on these"
            )


def engine(
    settings: Settings,
    dataset: Dataset,
    found: Networks,
    load_start: Callable[[], Mapping[str, jax.Array]] | None = None,
) -> Engine:
    """Puts the data on the device; nothing is compiled before it is called.

    Args:
      settings: of the run.
      dataset: what it names.
      found: from `networks`.
      load_start: reads what the peers begin as.

    Raises:
      UsageError: JAX computes wrong numbers here, or the method learns from a trained teacher and there is none.
    """
    compiler.check()
    if "frozen" in settings.loss.teachers and found.teacher is None:
        raise UsageError(f"{settings.method} learns from a trained teacher, and there is none here; choose another row")
    train, held_out, validation = _split(len(dataset.train_labels), settings)
    classes, where = dataset.num_classes, placement.choose(dataset, settings.images_in)
    lies = devices.choose(settings)
    joined = peers.make(found.backbones, settings.mapping, settings.share_trunk, lies, found.sizes)
    of_class = any(view.same_class for view in settings.loss.views)
    steps = 1 if jax.default_backend() == "cpu" else settings.steps_per_call or GPU_STEPS_PER_CALL
    if where != DEVICE:
        shape = dataset.train_images.shape[1:]
        steps = feeding.steps_per_call(math.prod(shape), settings.batch_size, settings.loss.views, steps)

    images, labels = placement.held(dataset.train_images, where), dataset.train_labels  # once for all parts of them

    def of_training(rows: np.ndarray, num_classes: int | None = None) -> placement.Placed | None:
        return placement.placed(images, labels, where, rows, num_classes, lies) if len(rows) else None

    train_data = of_training(train, classes if of_class else None)
    assert train_data
    return Engine(
        settings=settings,
        dataset=dataset,
        spec=Spec(classes, found.sizes, len(train), found.trunk_size),
        peers=joined,
        companions=companions(settings, joined, found.teacher),
        devices=lies,
        make_batch=batches.make_batch_maker(dataset, settings, lies),
        train_data=train_data,
        test_data=placement.placed(dataset.test_images, dataset.test_labels, where, devices=lies),
        held_out=of_training(held_out),
        validation_data=of_training(validation),
        load_start=load_start,
        steps_per_call=steps,
    )


def companions(settings: Settings, joined: peers.Peers, trained: Trained | None) -> Companions:
    """The networks beside the peers that a run asks for.

    Args:
      settings: of the run.
      joined: its peers.
      trained: its trained teacher; None leaves that out, for an evaluation, in which it says nothing.
    """
    known: dict[str, Companion] = {"mean": RunningMean(joined)}
    if trained:
        known["frozen"] = Frozen(trained, len(settings.backbones))
    kinds = {name: known[name] for name in settings.loss.teachers if trained or name != "frozen"}
    if settings.average is not None:
        kinds["average"] = Average(joined, settings.average)
    return Companions(kinds)


def _split(count: int, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which training images are trained on, weigh peers, and choose an epoch; the same ones for the same seed."""
    if not kept_back(settings):
        return np.arange(count), np.arange(0), np.arange(0)
    rows = np.random.default_rng(settings.seed).permutation(count)
    held_out, validation, train = np.split(rows, [settings.held_out_examples or 0, kept_back(settings)])
    return np.sort(train), np.sort(held_out), np.sort(validation)


def _num_train(settings: Settings, known: Facts) -> int:
    """How many images are trained on, as is known before they are read."""
    return (settings.train_examples or known.counts["train"]) - kept_back(settings)


def kept_back(settings: Settings) -> int:
    """How many training images are not trained on, but weigh peers or choose an epoch."""
    return (settings.held_out_examples or 0) + (settings.validation_examples or 0)


def _feature_size(network: Backbone, num_classes: int) -> int:
    seen = _traced(network, network.apply)
    logits, features = seen.logits.shape, seen.features.shape
    if logits != (2, num_classes) or len(features) != 2:
        raise UsageError(
            f"backbone {network.name!r}: of 2 images its logits are {logits} and its features {features}; they must be "
            f"{(2, num_classes)} and [2, D]"
        )
    return features[1]


def _trunk_size(network: Backbone) -> int:
    where = f"config.share_trunk=True: {network.name}"
    if network.split is None:
        raise UsageError(f"{where} has no trunk; a Linen module has one whose __call__ takes `part`")
    maps = getattr(_traced(network, network.split.trunk), "shape", None)
    if maps is None or len(maps) != 4 or maps[0] != 2:
        raise UsageError(f"{where}: of 2 images its trunk returns {maps}; feature maps must be (2, h, w, C)")
    return maps[-1]


def _traced(network: Backbone, part: Callable) -> Any:
    """The shapes of what a part of a network, or all of it, returns in evaluation."""

    def call(key: jax.Array) -> Any:
        return part(network.init(key), jnp.zeros((2, *network.image_shape)), False)[0]

    return jax.eval_shape(call, jax.eval_shape(jax.random.key, 0))
