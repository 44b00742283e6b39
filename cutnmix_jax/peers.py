"""J networks as one thing: a tuple of their variables and one forward pass."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax.types import Backbone, Outputs, Tree

MAPPINGS = ("unroll", "vmap")

Forward = Callable[..., tuple[tuple[Outputs, ...], tuple[Tree, ...]]]


class Peers(NamedTuple):
    """J networks.

    Attributes:
      init: `init(key) -> (params, batch_stats)`, tuples with one tree per peer, each from a key of its own.
      forward: `forward(params, batch_stats, images, train, key) -> (outputs, batch_stats)`, tuples again; images
        [J, n, H, W, 3], or [n, H, W, 3] for all peers alike.
    """

    init: Callable[[jax.Array], tuple[tuple[Tree, ...], tuple[Tree, ...]]]
    forward: Forward


def make(backbones: Sequence[Backbone], mapping: str) -> Peers:
    """Joins networks.

    Args:
      backbones: one per peer; their architectures may differ.
      mapping: `unroll` runs one after the other in the same program. `vmap` stacks them, which makes grouped
        convolutions of theirs: several times slower on a CPU, and only for networks of one architecture.
    """

    def init(key: jax.Array) -> tuple[tuple[Tree, ...], tuple[Tree, ...]]:
        variables = [backbone.init(jax.random.fold_in(key, j)) for j, backbone in enumerate(backbones)]
        return tuple(v["params"] for v in variables), tuple(v["batch_stats"] for v in variables)

    return Peers(init, _vmapped(backbones) if mapping == "vmap" and len(backbones) > 1 else _unrolled(backbones))


def _unrolled(backbones: Sequence[Backbone]) -> Forward:
    def forward(
        params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], tuple[Tree, ...]]:
        results = [
            backbone.apply(
                {"params": params[j], "batch_stats": batch_stats[j]},
                images[j] if images.ndim == 5 else images,
                train,
                jax.random.fold_in(key, j),
            )
            for j, backbone in enumerate(backbones)
        ]
        return tuple(outputs for outputs, _ in results), tuple(stats for _, stats in results)

    return forward


def _vmapped(backbones: Sequence[Backbone]) -> Forward:
    apply, count = backbones[0].apply, len(backbones)

    def forward(
        params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array, train: bool, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], tuple[Tree, ...]]:
        keys = jnp.stack([jax.random.fold_in(key, j) for j in range(count)])
        variables = {"params": _stack(params), "batch_stats": _stack(batch_stats)}
        mapped = jax.vmap(
            lambda v, x, k: apply(v, x, train, k), in_axes=(0, 0 if images.ndim == 5 else None, 0), out_axes=0
        )
        outputs, stats = mapped(variables, images, keys)
        return _unstack(outputs, count), _unstack(stats, count)

    return forward


def _stack(trees: Sequence[Tree]) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: Tree, count: int) -> tuple[Tree, ...]:
    return tuple(jax.tree.map(lambda leaf, j=j: leaf[j], tree) for j in range(count))
