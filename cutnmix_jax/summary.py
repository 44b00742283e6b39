"""What is about to be trained, on what, and where it is kept: a few lines at the start of a run."""

import math
from pathlib import Path

import jax

from cutnmix_jax import console, stack
from cutnmix_jax.engine.engine import Engine
from cutnmix_jax.engine.placement import OnHost, Stored
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.settings import Settings, recipe, unused
from cutnmix_jax.types import Tree


def show(engine: Engine, workdir: Path) -> None:
    """Prints the summary, and warns of what a person may not have meant.

    Args:
      engine: that trains it.
      workdir: where the run is kept.
    """
    settings, dataset = engine.settings, engine.dataset
    weights = " + ".join(f"{weight:g} {name}" for name, weight in settings.weights.items() if weight)
    steps = (
        f"{_plural(settings.epochs, 'epoch')} of {_plural(engine.steps_per_epoch, 'step')}, batch {settings.batch_size}"
    )
    parts = {
        "training": engine.spec.num_train,
        "held-out": settings.held_out_examples,
        "validation": settings.validation_examples,
    }
    images = ", ".join(f"{count:,} {name}" for name, count in parts.items() if count)
    images += f" and {len(dataset.test_labels):,} test images of "
    images += "x".join(map(str, dataset.train_images.shape[1:3]))
    console.summary(
        {
            "data": f"{dataset.name}, {images}, {dataset.num_classes} classes{_place(engine)}",
            "networks": _networks(engine),
            "method": f"{settings.method}: {weights}; views {settings.views}, mix {settings.mix.kind}",
            **_terms(settings),
            "recipe": f"{steps}, learning rate {settings.optimizer.learning_rate:g}, seed {settings.seed}",
            "device": f"{_device(engine)}, {_plural(engine.steps_per_call, 'step')} per call{_idle(engine)}",
            **_layout(engine),
            "run": str(workdir),
        }
    )
    if settings.mapping == "vmap" and settings.own_backbones:
        console.warn("mapping=vmap makes grouped convolutions of a network of your own, 10 to 20 times slower on a CPU")
    for who, paths in unused.set_in_vain(settings).items():
        console.warn(f"{', '.join(f'config.{path}' for path in paths)}: {who} does not look at that")
    if other := recipe.other_row(settings):
        console.warn(f"weights, views and mixing are those of the row {other}; the run is filed as {settings.method}")
    optimizer = settings.optimizer
    if optimizer.schedule == "stepwise" and optimizer.milestones and optimizer.milestones[0] >= settings.epochs:
        console.warn(
            "the learning rate never decays: config.optimizer.milestones lie beyond "
            f"{_plural(settings.epochs, 'epoch')}{_scaled(settings.epochs)}"
        )
    rising = [name for name in settings.ramp_up.terms if settings.weights[name]]
    if rising and settings.ramp_up.epochs >= settings.epochs:
        console.warn(
            f"the weight of {' and '.join(rising)} never has its full size: it rises for config.ramp_up.epochs="
            f"{settings.ramp_up.epochs}, of {_plural(settings.epochs, 'epoch')}"
        )


def _place(engine: Engine) -> str:
    data = engine.train_data
    if not isinstance(data, OnHost):
        return ""
    return ", read from disk" if isinstance(data.images, Stored) else ", kept in memory"


def _terms(settings: Settings) -> dict[str, str]:
    meanings = settings.loss.meanings
    known = [f"{name}: {meanings[name]}" for name in settings.weights if name in meanings]
    return {"terms": "; ".join(known)} if known else {}


def _networks(engine: Engine) -> str:
    params = engine.shapes.state.params
    pairs = zip(engine.settings.backbones, jax.eval_shape(stack.apart, params["peers"]), strict=True)
    sizes = [f"{name}, {_count(tree):,} parameters" for name, tree in pairs]
    networks = f"{len(sizes)} x {sizes[0]}" if len(set(sizes)) == 1 else "; ".join(sizes)
    own = _count(params["method"])
    return f"{networks}; the method's own: {own:,}" if own else networks


def _device(engine: Engine) -> str:
    settings, device, count = engine.settings, jax.local_devices()[0], engine.devices.count
    is_cpu = device.platform == "cpu"
    kind = f"{count} x {device.device_kind}" if count > 1 else "cpu" if is_cpu else device.device_kind
    processes = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{kind}{processes}, {CHOICES[settings.precision].activations if is_cpu else settings.precision}"


def _layout(engine: Engine) -> dict[str, str]:
    """What lies where, of a run on several devices."""
    devices, batch, peers = engine.devices, engine.settings.batch_size, len(engine.settings.backbones)
    if devices.count == 1:
        return {}
    groups, each = devices.peer_groups, batch // devices.parts
    split = (
        f"batches of {batch} in {devices.parts} parts of {each}" if devices.parts > 1 else f"whole batches of {batch}"
    )
    seen = f"the {each} of its device" if devices.local_norm else f"all {batch}"
    if groups > 1:
        split = f"{groups} groups of devices with {_plural(peers // groups, 'peer')} each, and in each {split}"
    return {"layout": f"{split}; batch norm sees {seen}"}


def _idle(engine: Engine) -> str:
    """What is said of the devices that the run does not use."""
    more = jax.device_count() - engine.devices.count
    if not more:
        return ""
    choose = " (config.devices=0 trains on all)"
    return f"; {_plural(more, 'further device')} stay{'s' if more == 1 else ''} idle{choose}"


def _plural(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def _count(params: Tree) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def _scaled(epochs: int) -> str:
    """Which milestones fewer epochs would have in proportion to the paper's; nothing where there are none."""
    listed = ",".join(map(str, recipe.milestones(epochs)))
    return f"; in proportion they would be --config.optimizer.milestones={listed}" if listed else ""
