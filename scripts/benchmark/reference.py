"""Steps of our program written down, for another program to repeat: weights, images, targets and losses."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from cutnmix_jax import backbones, batches, config, optim, peers, step
from cutnmix_jax.compiler import compiled
from cutnmix_jax.errors import UsageError
from cutnmix_jax.types import Batch, Mix, Spec

KINDS = {nn.Conv: "conv", nn.BatchNorm: "norm", nn.Dense: "dense"}


def description(run_config: ConfigDict, classes: int) -> dict[str, Any]:
    """What a configuration trains, as `scripts/bench_torch/training.py` wants to be told.

    Raises:
      UsageError: the PyTorch program cannot do it.
    """
    if run_config.mix.box != "cutmix":
        raise UsageError(f"config.mix.box={run_config.mix.box}: the PyTorch program has only cutmix")
    return {
        "networks": config.peer_names(run_config),
        "classes": classes,
        "batch": run_config.batch_size,
        "precision": run_config.precision,
        "views": run_config.views,
        "mix": run_config.mix.to_dict(),
        "weights": run_config.weights.to_dict(),
        "temperature": run_config.loss.get("temperature", 1.0),
        "teacher_moves_peers": run_config.loss.get("teacher_moves_peers", False),
        "momentum": run_config.optimizer.momentum,
        "nesterov": run_config.optimizer.nesterov,
        "weight_decay": run_config.optimizer.weight_decay,
    }


@jax.default_matmul_precision("highest")  # whatever the process has chosen
def write(path: Path, run_config: ConfigDict, steps: int, classes: int, share: float) -> None:
    """Trains on made-up images as they are, without crops and boxes, and writes a file for `bench_torch.parity`.

    Args:
      path: of the .npz file.
      run_config: its backbone, peers, batch and loss; on mixed targets whatever its `mix` says.
      steps: how many.
      classes: K.
      share: of the first loss that its gradient, followed without momentum, takes away in a step: what sets the
        learning rate. A rate for all networks does not exist: where one barely moves, another is chaotic, so that
        PyTorch in float32 and in float64 part within three steps.
    """
    names, n = config.peer_names(run_config), run_config.batch_size
    networks = [backbones.load(name, classes) for name in names]
    method = config.make_method(run_config)
    joined = peers.make(networks, "unroll")
    sizes = tuple(outputs_of(network).features.shape[1] for network in networks)
    spec = Spec(classes, sizes, steps * n)
    o = run_config.optimizer
    optimizer = optim.sgd(o.momentum, o.weight_decay, o.nesterov)
    images, targets = made_up(steps, len(names), n, classes)

    def make_batch(key: jax.Array, data: batches.Data, index: jax.Array) -> tuple[Batch, Mix]:
        number = index[0] // n
        seen = jax.lax.dynamic_index_in_dim(data.images, number, keepdims=False)
        target = jax.lax.dynamic_index_in_dim(jnp.asarray(targets), number, keepdims=False)
        target = jnp.broadcast_to(target, (len(names), *target.shape))
        nothing = Mix(index, jnp.zeros(len(names)), jnp.zeros((len(names), 4), jnp.int32))
        return Batch(seen, target, data.labels[index], index), nothing

    train = step.make_trainer(
        peers=joined,
        method=method,
        weights=run_config.weights.to_dict(),
        optimizer=optimizer,
        make_batch=make_batch,
        batch_size=n,
        steps_per_epoch=steps,
        epochs=1,
        loop=False,
    )
    data = batches.Data(jnp.asarray(images), jnp.zeros(steps * n, jnp.int32))
    key = jax.random.key(run_config.seed)
    start = compiled(
        lambda: step.init_state(key, peers=joined, method=method, optimizer=optimizer, spec=spec), once=True
    )
    zero, order = step.zero_totals(method, spec), jnp.arange(steps * n)
    moved, totals = train(start(), zero, data, order, jnp.float32(1.0), 1, key)  # away by (1 + momentum) gradients
    state = start()
    ahead = 1 + o.momentum if o.nesterov else 1.0
    gradient = jax.tree.map(lambda a, b: (a - b) / ahead, moved.params, state.params)
    squared = optax.tree.norm(gradient, squared=True)
    learning_rate = share * float(totals.sums["loss"]) / float(squared)
    arrays = weights(networks, state.params["peers"])
    arrays |= {f"teacher/{name}": np.asarray(array) for name, array in state.params["method"].items()}
    losses = []
    for _ in range(steps):
        state, totals = train(state, zero, data, order, jnp.float32(learning_rate), 1, key)
        losses.append(float(totals.sums["loss"]))
    told = json.dumps(description(run_config, classes) | {"learning_rate": learning_rate})
    np.savez(path, images=images, targets=targets, losses=np.array(losses), spec=np.array(told), **arrays)


def outputs_of(network: Any) -> Any:
    """Shapes of what a backbone returns."""
    images = jnp.zeros((1, 32, 32, 3))
    return jax.eval_shape(lambda key: network.apply(network.init(key), images, False)[0], jax.random.key(0))


def made_up(steps: int, num_peers: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Random images [steps, J, n, 32, 32, 3] around a picture of their class, and mixed targets [steps, n, K]."""
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(classes, 32, 32, 3))
    labels = rng.integers(0, classes, (steps, n))
    images = 0.5 * pictures[labels][:, None] + rng.normal(size=(steps, num_peers, n, 32, 32, 3))
    amount = rng.uniform(size=(steps, 1, 1))
    own = np.eye(classes)[labels]
    return images.astype(np.float32), ((1 - amount) * own + amount * own[:, ::-1]).astype(np.float32)


def weights(networks: list[Any], params: tuple[Any, ...]) -> dict[str, np.ndarray]:
    """The weights of all peers by the order in which layers run: see `scripts/bench_torch/weights.py`."""
    arrays = {}
    for j, (network, tree) in enumerate(zip(networks, params, strict=True)):
        ran: list[tuple[str, tuple[str, ...]]] = []

        def note(function: Any, args: tuple, kwargs: dict, context: Any, ran: list = ran) -> Any:
            if type(context.module) in KINDS and context.method_name == "__call__":
                ran.append((KINDS[type(context.module)], context.module.path))
            return function(*args, **kwargs)

        shapes = jax.eval_shape(network.init, jax.random.key(0))
        with nn.intercept_methods(note):
            jax.eval_shape(lambda v, apply=network.apply: apply(v, jnp.zeros((1, 32, 32, 3)), False)[0], shapes)
        for number, (kind, path) in enumerate(ran):
            layer = tree
            for name in path:
                layer = layer[name]
            arrays |= {f"{j}/{number}/{kind}/{part}": np.asarray(array) for part, array in layer.items()}
    return arrays
