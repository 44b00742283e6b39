"""Steps of our program written down, for another program to repeat: weights, images, targets and losses."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cutnmix_jax import stack
from cutnmix_jax.backbones.running_order import in_running_order
from cutnmix_jax.benchmark import jax_side
from cutnmix_jax.engine import assemble, batches
from cutnmix_jax.engine.state import Feed
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import Settings
from cutnmix_jax.types import Batch, Mix, TrainState, Tree

# Of the methods that the PyTorch program has, those of the rows of Table 1 and 2.
_TERMS = {"ce", "dml", "mmd", "pt", "peer_teacher_ce"}
_OPTIONS = {"temperature", "teacher_moves_peers"}


def description(settings: Settings, classes: int) -> dict[str, Any]:
    """What a configuration trains, as `scripts/bench_torch/training.py` wants to be told.

    Raises:
      UsageError: the PyTorch program cannot do it.
    """
    if settings.devices != 1:
        raise UsageError(f"config.devices={settings.devices}: the PyTorch program takes one device")
    if settings.mix.box != "cutmix":
        raise UsageError(f"config.mix.box={settings.mix.box}: the PyTorch program has only cutmix")
    if settings.crop == "resized" or any(dataclasses.astuple(settings.jitter)):
        raise UsageError("config.crop=resized, config.jitter: the PyTorch program only pads by 4 and crops")
    if settings.image_size not in (None, 32):
        raise UsageError(f"config.image_size={settings.image_size}: the PyTorch program has only images of 32x32")
    if settings.optimizer.name != "sgd":
        raise UsageError(f"config.optimizer.name={settings.optimizer.name}: the PyTorch program has only sgd")
    if lacking := _lacking(settings):
        raise UsageError(f"{settings.method}: the PyTorch program has {lacking}; choose another row, as cutnmix or dml")
    return {
        "networks": list(settings.backbones),
        "classes": classes,
        "batch": settings.batch_size,
        "precision": settings.precision,
        "views": settings.views,
        "mix": dataclasses.asdict(settings.mix),
        "weights": dict(settings.weights),
        **dataclasses.asdict(settings.loss),
        "momentum": settings.optimizer.momentum,
        "nesterov": settings.optimizer.nesterov,
        "weight_decay": settings.optimizer.weight_decay,
    }


def _lacking(settings: Settings) -> str:
    """What the PyTorch program does not have of a method, or of what its row says; empty where it has all of it."""
    method = settings.loss
    weighted = [name for name, weight in settings.weights.items() if weight]
    if unknown := sorted(set(weighted) - _TERMS):
        return f"no loss term {unknown[0]}"
    if unknown := sorted(set(dataclasses.asdict(method)) - _OPTIONS):
        return f"no config.loss.{unknown[0]}"
    if settings.share_trunk:
        return "no shared trunk"
    if method.teachers or settings.average is not None:
        return "no networks beside the peers"
    if len(method.views) > 1:
        return "no second view"
    if method.remembers or method.counts_epochs:
        return "no memory of an image and no number of the epoch"
    return "no weights that rise" if set(weighted) & set(settings.ramp_up.terms) else ""


@jax.default_matmul_precision("highest")  # whatever the process has chosen
def write(path: Path, settings: Settings, steps: int, classes: int, share: float) -> None:
    """Trains on made-up images as they are, without crops and boxes, and writes a file for `bench_torch.parity`.

    Args:
      path: of the .npz file.
      settings: its backbone, peers, batch and loss; on mixed targets whatever its `mix` says.
      steps: how many.
      classes: K.
      share: of the first loss that its gradient, followed without momentum, takes away in a step: what sets the
        learning rate. A rate for all networks does not exist: where one barely moves, another is chaotic, so that
        PyTorch in float32 and in float64 part within three steps.
    """
    described = description(settings, classes)  # before anything is compiled
    n, num_peers = settings.batch_size, len(settings.backbones)
    images, targets = made_up(steps, num_peers, n, classes)

    def make_batch(data: batches.Data, index: jax.Array, draws: Tree) -> tuple[Batch, Mix]:
        number = index[0] // n
        seen = jax.lax.dynamic_index_in_dim(jnp.asarray(images), number)
        target = jax.lax.dynamic_index_in_dim(jnp.asarray(targets), number)
        target = jnp.broadcast_to(target[:, None], (1, num_peers, *target.shape[1:]))
        nothing = Mix(index, jnp.zeros((1, num_peers)), jnp.zeros((1, num_peers, 4), jnp.int32))
        return Batch(seen, target, data.labels[index], index), nothing

    found = assemble.networks(settings, classes)
    engine = dataclasses.replace(
        assemble.engine(settings, jax_side.made_up(steps * n, classes, found.backbones[0].image_shape), found),
        make_batch=batches.BatchMaker(lambda *_: (), make_batch),
        steps_per_call=1,
    )
    # The step's row of the images is its number.
    feed = engine.feed(0)._replace(rows=jnp.arange(steps * n).reshape(steps, n))

    def at(rate: float) -> Feed:
        return feed._replace(rates=jnp.full_like(feed.rates, rate))

    def start() -> TrainState:
        return engine.init().state

    zero, o = engine.zero_totals(), settings.optimizer
    moved, totals = engine.train_steps(start(), zero, at(1.0), 1)  # away by (1 + momentum) gradients
    state = start()
    ahead = 1 + o.momentum if o.nesterov else 1.0
    gradient = jax.tree.map(lambda a, b: (a - b) / ahead, moved.params, state.params)
    squared = optax.tree.norm(gradient, squared=True)
    learning_rate = share * float(totals.sums["loss"]) / float(squared)
    arrays = weights(found.backbones, stack.apart(state.params["peers"]))
    arrays |= {f"teacher/{name}": np.asarray(array) for name, array in state.params["method"].items()}
    losses = []
    for _ in range(steps):
        state, totals = engine.train_steps(state, zero, at(learning_rate), 1)
        losses.append(float(totals.sums["loss"]))
    spec = json.dumps(described | {"learning_rate": learning_rate})
    arrays |= {"images": images, "targets": targets, "losses": np.array(losses), "spec": np.array(spec)}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def made_up(steps: int, num_peers: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images [steps, J, n, 32, 32, 3] around a picture of their class, and mixed targets [steps, n, K]."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(classes, 32, 32, 3))
    labels = rng.integers(0, classes, (steps, n))
    images = 0.5 * pictures[labels][:, None] + rng.normal(size=(steps, num_peers, n, 32, 32, 3))
    amount = rng.uniform(size=(steps, 1, 1))
    own = np.eye(classes)[labels]
    return images.astype(np.float32), ((1 - amount) * own + amount * own[:, ::-1]).astype(np.float32)


def weights(networks: Sequence[Any], params: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """The weights of all peers by the order in which layers run: see `scripts/bench_torch/weights.py`."""
    arrays: dict[str, np.ndarray] = {}
    for j, (network, tree) in enumerate(zip(networks, params, strict=True)):
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        for number, (kind, path) in enumerate(in_running_order(network, shapes)):
            layer = tree
            for name in path:
                layer = layer[name]
            arrays |= {f"{j}/{number}/{kind}/{part}": np.asarray(array) for part, array in layer.items()}
    return arrays
