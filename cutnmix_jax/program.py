"""What a configuration makes of a data set: the networks and the programs that train and evaluate them."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cutnmix_jax import backbones, batches, compiler, evaluate, optim, peers, step, teacher
from cutnmix_jax import config as configuration
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import Backbone, Dataset, Method, Spec, Totals, TrainState

GPU_STEPS_PER_CALL = 50  # enough that starting a call costs nothing beside it


class Saved(NamedTuple):
    """What a checkpoint holds: all that is needed to go on as if nothing had happened."""

    state: TrainState
    totals: Totals
    seconds: jax.Array  # that the unfinished epoch has taken so far
    wall_seconds: jax.Array  # that all starts together have taken up to this save, whatever they did


class Program(NamedTuple):
    """What a configuration makes of a data set: functions ready to be called, and their constants."""

    spec: Spec
    method: Method
    init: Callable[[], Saved]
    shapes: Callable[[], Saved]  # of what `init` returns
    make_batch: batches.BatchMaker
    train: step.Trainer
    evaluate: evaluate.Evaluator
    calibrate: Callable[[TrainState], TrainState] | None  # after each epoch, where the method asks for it
    learning_rate: Callable[[int], float]
    key: jax.Array
    train_data: batches.Data
    test_data: batches.Data
    epochs: int
    steps_per_epoch: int
    steps_per_call: int
    batch_size: int
    trained: teacher.Trained | None


class Plan(NamedTuple):
    """What a configuration says of the networks and the method, before there are data or a device.

    Attributes:
      names: the backbone of each peer.
      networks: each architecture once: tracing a deep one takes a second, and peers of one kind share its functions.
      sizes: D of each peer.
      trunk_size: C, channels of the shared trunk; 0 where there is none.
      method: the method.
      trained: the network that teaches, where the method has a trained teacher.
    """

    names: list[str]
    networks: dict[str, Backbone]
    sizes: tuple[int, ...]
    trunk_size: int
    method: Method
    trained: teacher.Trained | None


def plan(config: ConfigDict, num_classes: int) -> Plan:
    """Makes the networks, without a number in them, and checks that the method fits them.

    Args:
      config: of the run.
      num_classes: K.

    Raises:
      UsageError: it does not, or a network or the teacher's folder is not what it should be.
    """
    _check_settings()
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else jnp.float32
    names, method = configuration.peer_names(config), configuration.make_method(config)
    trained = None
    if method.teacher.startswith("frozen"):
        with backbones.shapes_only():
            same = method.teacher == "frozen_self"
            trained = teacher.find(config.teacher, config.dataset, num_classes, names, same, dtype)
    with backbones.shapes_only():
        networks = {name: backbones.load(name, num_classes, dtype) for name in set(names)}
        found = {name: _feature_size(network) for name, network in networks.items()}
        trunk_size = _trunk_size(networks[names[0]]) if config.share_trunk else 0
    sizes = tuple(found[name] for name in names)
    configuration.check_weights(config.weights, method, sizes)
    return Plan(names, networks, sizes, trunk_size, method, trained)


def check(config: ConfigDict, planned: Plan, dataset: Dataset) -> None:
    """Traces the networks as a run will call them, without a device; ours on 32x32 images are known to be right.

    Raises:
      UsageError: they, or the teacher, cannot take the images or the batches, or they have no gradient.
    """
    image, names = dataset.train_images.shape[1:], planned.names
    if image == (32, 32, 3) and not any(":" in name for name in names):
        return
    batch, test_batch = (config.batch_size, *image), (config.eval_batch_size, *image)
    seen = batch if configuration.same_images(config) else (len(names), *batch)
    classes, sizes = dataset.num_classes, planned.sizes
    with backbones.shapes_only():
        joined = peers.make([planned.networks[name] for name in names], config.mapping, config.share_trunk)
        peers.check(joined, names, classes, sizes, seen, train=True)
        peers.check(joined, names, classes, sizes, test_batch, train=False)
        if trained := planned.trained:
            teacher.check_there(trained)
            alone = peers.make([trained.backbone], config.mapping)
            peers.check(alone, [trained.backbone.name], classes, None, batch, train=False)


def _check_settings() -> None:
    """Raises UsageError where JAX was told something that the program cannot be run with."""
    wrong = {
        "jax_enable_x64": ("True", "trains in float32"),
        "jax_numpy_rank_promotion": ("raise", "joins arrays of unlike rank"),
        "jax_transfer_guard": ("disallow", "moves numbers to and from the device"),
    }
    for name, (begins, does) in wrong.items():
        told = getattr(jax.config, name)
        if str(told).startswith(begins):
            raise UsageError(f"JAX runs with {name}={told}, and this program {does}; leave {name.upper()} out")


def assemble(config: ConfigDict, dataset: Dataset, planned: Plan | None = None) -> Program:
    """Makes the programs of a run; nothing is compiled before it is called.

    Args:
      config: of the run.
      dataset: what it names.
      planned: what `plan` made of `config`, if it was called before.

    Raises:
      UsageError: from `plan`; or JAX computes wrong numbers here.
    """
    compiler.check()
    names, networks, sizes, trunk_size, method, trained = planned or plan(config, dataset.num_classes)
    dataset, held_out = _held_out(dataset, config)
    spec = Spec(dataset.num_classes, sizes, len(dataset.train_labels), trunk_size)
    joined = peers.make([networks[name] for name in names], config.mapping, config.share_trunk)
    teachers = _teachers(method, joined, trained, len(names))
    optimizer = optim.sgd(config.optimizer.momentum, config.optimizer.weight_decay, config.optimizer.nesterov)
    key = jax.random.key(config.seed)
    make_batch = batches.make_batch_maker(
        dataset,
        num_peers=len(names),
        views=config.views,
        mix=config.mix.to_dict(),
        views_per_peer=method.views,
        same_class=method.same_class,
    )
    steps_per_epoch = len(dataset.train_labels) // config.batch_size
    # XLA compiles the gradient of a convolution inside a loop to something some 20 times slower for a CPU.
    steps_per_call = 1 if jax.default_backend() == "cpu" else config.steps_per_call or GPU_STEPS_PER_CALL

    def fresh() -> Saved:
        state = step.init_state(key, peers=joined, method=method, optimizer=optimizer, spec=spec, teachers=teachers)
        return Saved(state, step.zero_totals(method, spec), jnp.zeros(()), jnp.zeros(()))

    train_data = batches.Data(jnp.asarray(dataset.train_images), jnp.asarray(dataset.train_labels))
    return Program(
        spec=spec,
        method=method,
        init=functools.partial(_first, fresh, trained),
        shapes=functools.partial(jax.eval_shape, fresh),
        make_batch=make_batch,
        train=step.make_trainer(
            peers=joined,
            method=method,
            weights=config.weights.to_dict(),
            optimizer=optimizer,
            make_batch=make_batch,
            batch_size=config.batch_size,
            steps_per_epoch=steps_per_epoch,
            epochs=config.epochs,
            loop=steps_per_call > 1,
            same_images=configuration.same_images(config),
            teachers=teachers,
        ),
        evaluate=evaluate.make_evaluator(
            peers=joined, method=method, dataset=dataset, batch_size=config.eval_batch_size, teachers=teachers
        ),
        calibrate=evaluate.make_calibrator(
            peers=joined, method=method, dataset=dataset, held_out=held_out, batch_size=config.eval_batch_size
        )
        if held_out
        else None,
        learning_rate=optim.schedule(
            config.optimizer.learning_rate, config.optimizer.milestones, config.optimizer.decay
        ),
        key=key,
        train_data=batches.with_classes(train_data, dataset.num_classes) if method.same_class else train_data,
        test_data=batches.Data(jnp.asarray(dataset.test_images), jnp.asarray(dataset.test_labels)),
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        steps_per_call=steps_per_call,
        batch_size=config.batch_size,
        trained=trained,
    )


def _first(fresh: Callable[[], Saved], trained: teacher.Trained | None) -> Saved:
    """The state of step 0, with the teacher's own weights where there is a trained one."""
    saved = compiler.compiled(fresh, once=True)()
    if trained is None:
        return saved
    variables = {name: (tree,) for name, tree in trained.load().items()}
    return saved._replace(state=saved.state._replace(teachers=variables))


def _held_out(dataset: Dataset, config: ConfigDict) -> tuple[Dataset, batches.Data | None]:
    """Takes images out of the training set, the same ones for the same seed."""
    count, size = config.held_out_examples, len(dataset.train_labels)
    if not count:
        return dataset, None
    rows = np.random.default_rng(config.seed).permutation(size)
    out, left = np.sort(rows[:count]), np.sort(rows[count:])
    held_out = batches.Data(jnp.asarray(dataset.train_images[out]), jnp.asarray(dataset.train_labels[out]))
    return dataset._replace(train_images=dataset.train_images[left], train_labels=dataset.train_labels[left]), held_out


def _teachers(method: Method, joined: peers.Peers, trained: teacher.Trained | None, students: int) -> peers.Teachers:
    if trained:
        return peers.frozen_teacher(trained.backbone, students)
    return peers.mean_teachers(joined) if method.teacher == "mean" else peers.no_teachers()


def _trunk_size(network: Backbone) -> int:
    if network.split is None:
        raise UsageError(
            f"config.share_trunk=True: {network.name} has no trunk; a Linen module has one whose __call__ takes `part`"
        )

    def maps(key: jax.Array) -> jax.Array:
        assert network.split
        return network.split.trunk(network.init(key), jnp.zeros((2, 32, 32, 3)), False)[0]

    return jax.eval_shape(maps, jax.eval_shape(jax.random.key, 0)).shape[-1]


def _feature_size(network: Backbone) -> int:
    def features(key: jax.Array) -> jax.Array:
        images = jnp.zeros((2, 32, 32, 3))
        return network.apply(network.init(key), images, False)[0].features

    return jax.eval_shape(features, jax.eval_shape(jax.random.key, 0)).shape[1]
