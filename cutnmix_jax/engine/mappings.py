"""The ways to run J networks on one device, or on several that all have all networks."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cutnmix_jax import stack
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Backbone, Outputs, Split, Tree

Passed = tuple[tuple[Outputs, ...], Tree]  # what the networks say, and their next batch statistics
Forward = Callable[..., Passed]


def keys(key: jax.Array, count: int) -> list[jax.Array]:
    """A key for each of J networks, and a last one for a trunk that they share."""
    return [jax.random.fold_in(key, j) for j in range(count + 1)]


def are_shared(images: jax.Array, count: int) -> bool:
    """Whether the images of a forward pass are one set for all of `count` networks, or one for each.

    Raises:
      ValueError: they are neither; JAX reads the last row where an index is beyond it, without a word.
    """
    if len(images) not in (1, count):
        raise ValueError(f"images are {list(images.shape)}: for {count} networks their first axis must be 1 or {count}")
    return len(images) == 1


def unrolled(backbones: Sequence[Backbone]) -> Forward:
    """One after the other in the same program."""

    def forward(params: Tree, batch_stats: Tree, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        shared, each = are_shared(images, len(backbones)), keys(key, len(backbones))
        results = [
            backbone.apply(
                {"params": params[j], "batch_stats": batch_stats[j]},
                images[0 if shared else j],
                train,
                each[j],
            )
            for j, backbone in enumerate(backbones)
        ]
        return tuple(outputs for outputs, _ in results), tuple(stats for _, stats in results)

    return forward


def branched(split: Split, count: int) -> Forward:
    """One trunk with J tails; images that differ over peers go through the trunk as one batch of J n images."""

    def forward(params: Tree, batch_stats: Tree, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        shared = are_shared(images, count)
        *each, trunk_key = keys(key, count)
        trunk = {"params": trunk_of(split, params[0]), "batch_stats": trunk_of(split, batch_stats[0])}
        joined = images.reshape(-1, *images.shape[-3:])
        maps, trunk_stats = split.trunk(trunk, joined, train, trunk_key)
        pooled = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        outputs, stats = [], []
        for j in range(count):
            n = images.shape[1]
            own = slice(None) if shared else slice(j * n, (j + 1) * n)
            tail = {"params": tail_of(split, params[j]), "batch_stats": tail_of(split, batch_stats[j])}
            out, tail_stats = split.tail(tail, maps[own], train, each[j])
            outputs.append(out._replace(trunk=pooled[own]))
            stats.append(tail_stats)
        stats[0] = trunk_stats | stats[0]
        return tuple(outputs), tuple(stats)

    return forward


def vmapped(backbones: Sequence[Backbone]) -> Forward:
    """Stacked ones at once."""
    count = len(backbones)

    def forward(params: Stack, batch_stats: Stack, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        *each, _ = keys(key, count)
        variables = {"params": stack.arrays(params), "batch_stats": stack.arrays(batch_stats)}
        outputs, stats = at_once(backbones[0], variables, images, are_shared(images, count), train, jnp.stack(each))
        return stack.apart(Stack(outputs, count)), stack.of_arrays(stats, count)

    return forward


def at_once(
    backbone: Backbone, variables: dict[str, Tree], images: jax.Array, shared: bool, train: bool, each: jax.Array
) -> tuple[Outputs, Tree]:
    """J networks at once: variables [J, ...], images [J or 1, n, H, W, C] and keys [J]."""
    mapped = jax.vmap(lambda v, x, k: backbone.apply(v, x, train, k), in_axes=(0, None if shared else 0, 0))
    return mapped(variables, images[0] if shared else images, each)


def trunk_of(split: Split, tree: Tree) -> Tree:
    """The part of a network's variables that its trunk has."""
    return {name: leaf for name, leaf in tree.items() if name in split.names()}


def tail_of(split: Split, tree: Tree) -> Tree:
    """The part of a network's variables that its tail has."""
    return {name: leaf for name, leaf in tree.items() if name not in split.names()}
