"""Times the whole training step against the bare one: forward, backward and SGD of the same networks, nothing else.

Run from the repository's root with nothing else running on the machine:
  .venv/bin/python -m scripts.bench_step --config=configs/resnet32.py:cifar100,cutnmix
Fields are overridden as in training, for instance --config.mapping=vmap or --config.steps_per_call=50. The images are
made up, the networks real. Whole and bare take turns, so that both see the same drift of the machine.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import backbones, config, losses, metrics, optim, peers, program, step
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.types import Dataset, Tree


class Timed(NamedTuple):
    """Something to time: a call from carry to carry, what it starts from, and how many steps it does."""

    call: Callable[[Tree], Tree]
    carry: Tree
    steps: int


def made_up(num_images: int, num_classes: int) -> Dataset:
    """Random images in the shape of CIFAR."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, num_classes, num_images).astype(np.int32)
    names = tuple(map(str, range(num_classes)))
    third = np.full(3, 1 / 3, np.float32)
    return Dataset("made up", images, labels, images[:64], labels[:64], names, third, third, True)


def whole_step(made: program.Program) -> Timed:
    """Calls of the real program."""
    order = step.epoch_order(made.key, 0, len(made.train_data.labels))
    state, totals, _ = made.init()

    def call(carry: Tree) -> Tree:
        return made.train(*carry, made.train_data, order, jnp.float32(0.01), made.steps_per_call, made.key)

    return Timed(call, (state, totals), made.steps_per_call)


def bare_step(run_config: Any, num_classes: int) -> Timed:
    """Forward, backward and SGD on images that are there already."""
    names = config.peer_names(run_config)
    dtype = jnp.bfloat16 if run_config.precision == "bfloat16" else jnp.float32
    joined = peers.make([backbones.load(name, num_classes, dtype) for name in names], run_config.mapping)
    optimizer = optim.sgd(0.9, 5e-4, True)
    images = jax.random.normal(jax.random.key(1), (len(names), run_config.batch_size, 32, 32, 3))
    targets = jax.nn.one_hot(jnp.arange(run_config.batch_size) % num_classes, num_classes)
    params, stats = jax.jit(joined.init)(jax.random.key(0))

    def one(carry: Tree, images: jax.Array, targets: jax.Array) -> Tree:
        params, stats, opt_state = carry

        def loss(params: Tree) -> tuple[jax.Array, Tree]:
            outputs, new = joined.forward(params, stats, images, True, jax.random.key(0))
            each = [losses.soft_cross_entropy(out.logits, targets).mean() for out in outputs]
            return jnp.stack(each).sum(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optim.apply(params, updates, jnp.float32(0.01)), new, opt_state

    compiled = jax.jit(one, donate_argnums=0)
    return Timed(lambda carry: compiled(carry, images, targets), (params, stats, optimizer.init(params)), 1)


def seconds_per_step(timed: Timed, steps: int) -> tuple[float, Timed]:
    """Wall time of each of some steps, waiting once for the last one; and where they got to."""
    carry, calls = timed.carry, max(1, steps // timed.steps)
    begun = time.perf_counter()
    for _ in range(calls):
        carry = timed.call(carry)
    jax.block_until_ready(carry)
    return (time.perf_counter() - begun) / (calls * timed.steps), timed._replace(carry=carry)


def main() -> None:
    """Prints milliseconds per step, whole and bare, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--windows", type=int, default=9, help="pairs of measurements")
    parser.add_argument("--steps", type=int, default=8, help="steps of each measurement; 200 on a GPU")
    known, overrides = parser.parse_known_args()
    run_config = config.from_flags(known.config, overrides)
    set_up_jax(run_config.precision)
    num_classes = 10 if run_config.dataset in ("cifar10", "digits") else 100
    made = program.assemble(run_config, made_up(64 * run_config.batch_size, num_classes))
    timed = [whole_step(made), bare_step(run_config, num_classes)]
    timed = [seconds_per_step(one, 2 * one.steps)[1] for one in timed]  # compiles, and warms up
    pairs = []
    for _ in range(known.windows):
        (whole, timed[0]), (bare, timed[1]) = (seconds_per_step(one, known.steps) for one in timed)
        pairs.append((whole, bare))
        print(f"whole {1000 * whole:.1f} ms, bare {1000 * bare:.1f} ms, ratio {whole / bare:.3f}", flush=True)
    for name, values in zip(("whole", "bare"), zip(*pairs, strict=True), strict=True):
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: median {1000 * statistics.median(values):.1f} ms, n {len(values)}, std {1000 * spread:.1f} ms")
    print(f"ratio: median {statistics.median(w / b for w, b in pairs):.3f}")
    print(f"device {jax.devices()[0].device_kind}, {metrics.versions()}")


if __name__ == "__main__":
    main()
