"""Steps of a run on devices that are made up, in a process of their own: `python -m tests.on_devices OUT COUNT CASES`.

JAX is told how many devices there are before it begins, so no test can ask for them in its own process.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cutnmix_jax import backbones, stack
from cutnmix_jax.checkpoint import Checkpoints
from cutnmix_jax.checkpoint_reader import Reader
from cutnmix_jax.compiler import compiled
from cutnmix_jax.engine import devices, peers
from cutnmix_jax.types import Backbone, Outputs
from tests.runs import Made


def trained(row, steps, *more, folder=None):
    """What a run has after some steps: its arrays by their names, its first batch, its accuracies.

    With a folder it begins with what is saved there, and saves where it ends.
    """
    engine = Made(row, "--config.precision=float32", "--config.epochs=20", *more).engine
    restored = Reader(folder).restore(engine.shapes) if folder else None
    saved, feeds = engine.placed(restored.state) if restored else engine.begin(), engine.feeds()
    state, totals = saved.state, saved.totals
    for step in range(int(state.step), steps):
        state, totals = engine.train_steps(state, totals, feeds.at(step), 1)
        jax.block_until_ready(totals)  # a thousand steps ahead, devices of a busy CPU wait for each other for good
    batch, mix = engine.first_batch()
    tested = engine.evaluate(state)
    state = engine.calibrate(state)
    collected = engine.collected(saved._replace(state=state, totals=totals))
    if folder:
        checkpoints = Checkpoints(folder, 1)
        checkpoints.finish(steps, collected, [])
        checkpoints.close()
    kept = stack.apart(collected)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(kept))
    tree = {"state": kept.state, "totals": kept.totals, "batch": batch, "mix": mix, "tested": tested}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def handed_on(row, steps, *more):
    """The same, begun as it is asked for, continued on one device and brought to an end as it was begun."""
    alone = [field for field in more if "devices" not in field and "mapping" not in field]
    with tempfile.TemporaryDirectory() as folder:
        for number, fields in enumerate((more, alone, more)):
            arrays = trained(row, steps * (number + 1) // 3, *fields, folder=Path(folder))
    return arrays


def within_branches(row, steps, *more):
    """The groups of devices whose numbers meet within a branch of the program that not all devices take."""
    engine = Made(row, "--config.precision=float32", "--config.epochs=20", *more).engine
    shapes = engine.shapes
    program = engine.train_steps.lower(shapes.state, shapes.totals, engine.feed_shapes, steps).compile().as_text()
    branches = re.findall(r"[\w.\-]+", " ".join(re.findall(r"branch_computations=\{(.*?)\}", program)))
    bodies = dict(re.findall(r"^%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    meet = [line for name in branches for line in bodies[name].splitlines() if "channel_id" in line]
    return {"groups": np.asarray([re.search(r"(replica_groups|source_target_pairs)=(\S+),", line)[2] for line in meet])}


def local_gradients(mapping, groups):
    """Gradients of a loss over 4 devices, each of which normalises its own images; on one, part by part; and whole."""
    networks = [backbones.load("tests.tiny:Tiny", 10)] * 2
    images = jax.random.normal(jax.random.key(3), (2, 16, 32, 32, 3))
    targets = jax.random.normal(jax.random.key(4), (2, 16, 10))
    parts = 4 // groups
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(groups, parts), (devices.PEERS, devices.DATA))
    spread = peers.make(networks, mapping, False, devices.Devices(mesh, groups > 1, True))
    alone = peers.make(networks, "unroll")

    def gradients(joined, count):
        params, stats = joined.init(jax.random.key(0))

        def loss(params):
            found = 0.0
            for rows in np.split(np.arange(16), count):
                outputs, _ = joined.forward(params, stats, images[:, rows], True, jax.random.key(1))
                pairs = zip(outputs, targets[:, rows], strict=True)
                found += sum((out.logits * target).sum() + (out.features**2).sum() for out, target in pairs)
                found += (outputs[0].logits * outputs[1].logits).sum()  # what each learns from the other
            return found

        return jax.tree.leaves(stack.apart(compiled(jax.grad(loss))(params)))

    of = {"spread": gradients(spread, 1), "parts": gradients(alone, parts), "whole": gradients(alone, 1)}
    return {f"{name}.{number}": leaf for name, leaves in of.items() for number, leaf in enumerate(leaves)}


def drawing(size):
    """A network whose features, `size` of them, are nothing but random numbers."""

    def init(key):
        return {"params": {"scale": jnp.ones(1)}, "batch_stats": {"count": jnp.zeros(1)}}

    def apply(variables, images, train, key=None):
        features = variables["params"]["scale"] * jax.random.uniform(key, (len(images), size))
        return Outputs(features[:, :3], features), variables["batch_stats"]

    return Backbone(f"drawing {size}", init, apply)


def drawn(mapping, groups, local, sizes):
    """What two networks draw for 16 images on 4 devices, beside what they draw on one."""
    networks = [drawing(size) for size in sizes]
    networks = networks[:1] * 2 if sizes[0] == sizes[1] else networks
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(groups, 4 // groups), (devices.PEERS, devices.DATA))
    spread = peers.make(networks, mapping, False, devices.Devices(mesh, groups > 1, local), sizes)
    alone, images = peers.make(networks, "unroll"), jnp.zeros((1, 16, 32, 32, 3))

    def features(joined):
        params, stats = joined.init(jax.random.key(0))
        outputs, _ = compiled(lambda *of: joined.forward(*of, images, True, jax.random.key(1)))(params, stats)
        return [np.asarray(out.features) for out in outputs]

    found = {"spread": features(spread), "alone": features(alone)}
    return {f"{name}.{j}": array for name, arrays in found.items() for j, array in enumerate(arrays)}


HOW = {"drawn": drawn, "local gradients": local_gradients, "handed on": handed_on, "within branches": within_branches}


def main(out, count, cases):
    jax.config.update("jax_num_cpu_devices", int(count))
    found = {}
    for name, (row, steps, *more) in json.loads(cases).items():
        arrays = HOW[row](steps, *more) if row in HOW else trained(row, steps, *more)
        found |= {f"{name}:{path}": leaf for path, leaf in arrays.items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
