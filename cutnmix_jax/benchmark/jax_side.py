"""A worker with our program: the whole training step, or the bare one, forward, backward and SGD and nothing else."""

import contextlib
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import environment, losses, together
from cutnmix_jax.benchmark import flops, kernels, worker
from cutnmix_jax.compiler import compiled
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.engine import assemble, joint, optim, peers
from cutnmix_jax.engine.batches import Data
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.state import Feed, Saved
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import MEMORY, Settings, command_line
from cutnmix_jax.types import Dataset, Tree

_PROCESS = contextlib.ExitStack()  # never left: the process does nothing else

WARM_UP = 2  # calls; the first after compiling may be slower


def made_up(num_images: int, num_classes: int, image_shape: tuple[int, int, int]) -> Dataset:
    """Random images of a shape (H, W, 3)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num_images, *image_shape), dtype=np.uint8)
    labels = rng.integers(0, num_classes, num_images).astype(np.int32)
    names = tuple(map(str, range(num_classes)))
    third = np.full(3, 1 / 3, np.float32)
    return Dataset("made up", images, labels, images[:64], labels[:64], names, third, third, True)


def arranged(engine: Engine, saved: Saved, feed: Feed, seeds: int) -> tuple[Any, Tree, tuple]:
    """The function of the real program, what it carries, and its other arguments but the number of steps.

    Args:
      engine: of one seed.
      saved: what it begins with, or its shapes.
      feed: likewise.
      seeds: whose networks it trains; all begin alike here.
    """
    if seeds == 1:
        return engine.train_steps, saved[:2], (feed,)
    carry = (saved.state,) * seeds, (saved.totals,) * seeds
    return joint.train_steps(engine), carry, (feed.data, (feed[1:],) * seeds)


def whole(engine: Engine, seeds: int) -> tuple[Any, Tree, Callable[[int], tuple], int]:
    """The function of the real program, what it carries, its other arguments by the number of the call, and its steps.

    Images on the device are those of the first epoch all the time; others are read for each call, as in a run.
    """
    per_call, on_device = engine.steps_per_call, isinstance(engine.train_data, Data)
    if seeds > 1 and not on_device:
        raise together.elsewhere(f"--seeds={seeds}")
    feeds, calls = engine.feeds(), max(1, engine.steps_per_epoch // per_call)
    first = feeds.at(0)
    rates = jnp.full_like(first.rates, 0.01)

    def feed(call: int) -> Feed:
        epoch, within = divmod(call, calls)
        found = first if on_device else feeds.at(epoch * engine.steps_per_epoch + within * per_call)
        return found._replace(rates=rates)

    function, carry, rest = arranged(engine, engine.init(), feed(0), seeds)
    carry = jax.tree.map(jnp.copy, carry)  # their memory is used again, each for itself
    steps = jnp.int32(per_call)
    return function, carry, lambda call: (*rest, steps) if on_device else (feed(call), steps), per_call


def bare(settings: Settings, num_classes: int) -> tuple[Any, Tree, Callable[[int], tuple], int]:
    """The same for forward, backward and SGD on images that are there already."""
    backbones = assemble.networks(settings, num_classes).backbones
    joined = peers.make(backbones, settings.mapping, settings.share_trunk)
    optimizer, _ = optim.make(settings.optimizer, 1, 1)
    count = 1 if settings.same_images else len(settings.backbones)  # a shared trunk sees shared images once
    images = jax.random.normal(jax.random.key(1), (count, settings.batch_size, *backbones[0].image_shape))
    targets = jax.nn.one_hot(jnp.arange(settings.batch_size) % num_classes, num_classes)
    params, stats = compiled(joined.init, once=True)(jax.random.key(0))

    def one(params: Tree, stats: Tree, opt_state: Tree, images: jax.Array, targets: jax.Array) -> Tree:
        def loss(params: Tree) -> tuple[jax.Array, Tree]:
            outputs, new = joined.forward(params, stats, images, True, jax.random.key(0))
            each = [losses.soft_cross_entropy(out.logits, targets).mean() for out in outputs]
            return jnp.stack(each).sum(), new

        grads, new = jax.grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optim.apply(params, updates, jnp.float32(0.01)), new, opt_state

    return compiled(one, donate=(0, 1, 2)), (params, stats, optimizer.init(params)), lambda call: (images, targets), 1


def prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], worker.Window, Callable[[], dict[str, Any]]]:
    """Compiles twice, tracing included, without and with what the first time left in the cache, and warms up.

    The cache is where JAX_COMPILATION_CACHE_DIR says; a new folder makes the first time a cold one.
    """
    settings = command_line.from_flags(spec["config"], spec["overrides"])
    _PROCESS.enter_context(set_up_jax(CHOICES[settings.precision]))
    if spec["bare"]:
        function, carry, rest_of, per_call = bare(settings, spec["classes"])
        count, images_in = 1, None
    else:
        found_networks = assemble.networks(settings, spec["classes"])
        dataset = made_up(spec["images"], spec["classes"], found_networks.backbones[0].image_shape)
        engine = assemble.engine(settings, dataset, found_networks)
        function, carry, rest_of, per_call = whole(engine, spec["seeds"])
        count = engine.devices.count
        images_in = None if isinstance(engine.train_data, Data) else MEMORY  # where made-up ones are
    rest, number = rest_of(0), 0
    begun = time.perf_counter()
    traced = function.trace(*carry, *rest)
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    lowered.compile()
    compiled_at = time.perf_counter()
    jax.clear_caches()
    again_at = time.perf_counter()
    compiled = function.lower(*carry, *rest).compile()
    cached_at = time.perf_counter()
    memory, on_gpu = compiled.memory_analysis(), jax.default_backend() == "gpu"

    def call(steps: int) -> None:
        nonlocal carry, number
        for _ in range(math.ceil(steps / per_call)):
            carry = compiled(*carry, *rest_of(number))
            number += 1
        jax.block_until_ready(carry)

    call(WARM_UP * per_call)
    found = {
        "steps_per_call": per_call,
        "trace_s": lowered_at - begun,
        "compile_cold_s": compiled_at - begun,
        "compile_cached_s": cached_at - again_at,
        "memory_mib": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20,
        "gflop_per_step": flops.count(traced.jaxpr) / 1e9,
        "kernels_per_step": sum(kernels.counts(compiled.as_text()).values()) if on_gpu else None,
        "device": jax.devices()[0].device_kind,
        "devices": count,
        "images_in": images_in,
        "versions": environment.versions(),
    }
    # Whole calls are done; of a last one that does more, its share is counted.
    return found, lambda steps: worker.timed(call, steps) * steps / (math.ceil(steps / per_call) * per_call), after


def after() -> dict[str, Any]:
    """The most memory that was in use at once, where the device tells."""
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return {"peak_memory_mib": peak / 2**20 if peak else None}


def trace(spec: dict[str, Any], folder: str, steps: int) -> None:
    """Writes a profile of some steps for Perfetto or TensorBoard."""
    _, window, _ = prepare(spec)
    with jax.profiler.trace(folder, create_perfetto_trace=True):
        window(steps)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        worker.serve(prepare)
