"""What is about to be trained, on what, and where it is kept: a few lines at the start of a run."""

import math
from pathlib import Path

import jax
from ml_collections import ConfigDict

from cutnmix_jax import config as configuration
from cutnmix_jax import console
from cutnmix_jax.program import Program
from cutnmix_jax.types import Dataset, Tree


def show(config: ConfigDict, dataset: Dataset, program: Program, workdir: Path) -> None:
    """Prints the summary, and warns of what a person may not have meant.

    Args:
      config: checked.
      dataset: what it names.
      program: what was made of both.
      workdir: where the run is kept.
    """
    weights = " + ".join(f"{weight:g} {name}" for name, weight in config.weights.items() if weight)
    steps = (
        f"{_plural(program.epochs, 'epoch')} of {_plural(program.steps_per_epoch, 'step')}, batch {config.batch_size}"
    )
    images = f"{len(dataset.train_labels):,} training and {len(dataset.test_labels):,} test images"
    console.summary(
        {
            "data": f"{dataset.name}, {images}, {dataset.num_classes} classes",
            "networks": _networks(config, program),
            "method": f"{config.method}: {weights}; views {config.views}, mix {config.mix.kind}",
            "recipe": f"{steps}, learning rate {config.optimizer.learning_rate:g}, seed {config.seed}",
            "device": f"{_device(config)}, {_plural(program.steps_per_call, 'step')} per call{_idle()}",
            "run": str(workdir),
        }
    )
    if jax.default_backend() == "cpu" and config.mapping == "vmap":
        console.warn("mapping=vmap makes the steps of a CPU 10 to 20 times slower than unroll")
    if config.optimizer.milestones and config.optimizer.milestones[0] >= config.epochs:
        console.warn(
            f"the learning rate never decays: config.optimizer.milestones lie beyond {_plural(config.epochs, 'epoch')}"
        )


def _networks(config: ConfigDict, program: Program) -> str:
    params = program.shapes().state.params
    pairs = zip(configuration.peer_names(config), params["peers"], strict=True)
    sizes = [f"{name}, {_count(tree):,} parameters" for name, tree in pairs]
    networks = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else "; ".join(sizes)
    own = _count(params["method"])
    return f"{networks}; the method's own: {own:,}" if own else networks


def _device(config: ConfigDict) -> str:
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.device_kind}, {config.precision}"
    return "cpu, bfloat16" if config.precision == "bfloat16" else "cpu, float32"


def _idle() -> str:
    """What is said of the devices that the run does not use: it has one, whatever their number."""
    more = jax.device_count() - 1
    if not more:
        return ""
    choose = "" if jax.default_backend() == "cpu" else " (CUDA_VISIBLE_DEVICES chooses which is used)"
    return f"; {_plural(more, 'further device')} stay{'s' if more == 1 else ''} idle{choose}"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _count(params: Tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
