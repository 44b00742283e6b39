"""Steps of a run on devices that are made up, in a process of their own: `python -m tests.on_devices OUT COUNT CASES`.

JAX is told how many devices there are before it begins, so no test can ask for them in its own process.
"""

import json
import sys

import jax
import numpy as np

from cutnmix_jax import stack
from tests.runs import Made


def trained(row, steps, *more):
    """What a run has after some steps: its arrays by their names, its first batch, its accuracies."""
    made = Made(row, "--config.precision=float32", "--config.epochs=20", *more)
    engine = made.engine
    saved, feeds = engine.begin(), engine.feeds()
    state, totals = saved.state, saved.totals
    for step in range(steps):
        state, totals = engine.train_steps(state, totals, feeds.at(step), 1)
    batch, mix = engine.first_batch()
    tested = engine.evaluate(state)
    state = engine.calibrate(state)
    kept = stack.apart(engine.collected(saved._replace(state=state, totals=totals)))
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(kept))
    tree = {"state": kept.state, "totals": kept.totals, "batch": batch, "mix": mix, "tested": tested}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf) for path, leaf in leaves}


def main(out, count, cases):
    jax.config.update("jax_num_cpu_devices", int(count))
    found = {}
    for name, (row, steps, *more) in json.loads(cases).items():
        found |= {f"{name}:{path}": leaf for path, leaf in trained(row, steps, *more).items()}
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
