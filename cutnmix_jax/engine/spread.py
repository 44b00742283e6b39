"""Passes of J networks in which a device does not compute what another one does: peers, or parts of a batch, apart."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cutnmix_jax import stack
from cutnmix_jax.engine.devices import DATA, PEERS, Devices
from cutnmix_jax.engine.mappings import Forward, Passed, are_shared, at_once, keys
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Backbone, Outputs, Tree


def by_peer(backbones: Sequence[Backbone], devices: Devices) -> Forward:
    """Each device has some of the peers, or one; logits and features alone go to the others.

    Within, XLA knows nothing of the peers on other devices, so that of one peer convolutions are plain ones. The images
    of a batch are split over the rest of the devices as ever, but where batch norm is local each device has them to
    itself, too.
    """
    backbone, count, local = backbones[0], len(backbones), devices.local_norm
    alone = count == devices.peer_groups  # whether each device has one peer

    def forward(params: Stack, batch_stats: Stack, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        *each, _ = keys(key, count)
        shared, local_now = are_shared(images, count), local and train

        def own(variables: dict[str, Tree], images: jax.Array, each: jax.Array) -> tuple[Outputs, Tree]:
            if local_now:
                each = jax.vmap(_of_part)(each)
            if alone:
                variables, key = jax.tree.map(lambda leaf: leaf[0], (variables, each))
                outputs, stats = jax.tree.map(lambda leaf: leaf[None], backbone.apply(variables, images[0], train, key))
            else:
                outputs, stats = at_once(backbone, variables, images, shared, train, each)
            return outputs, _mean_of_parts(stats) if local_now else stats

        by_peer, part = PartitionSpec(PEERS), DATA if local_now else None
        spread = jax.shard_map(
            own,
            mesh=devices.mesh,
            in_specs=(by_peer, PartitionSpec(None if shared else PEERS, part), by_peer),
            out_specs=(PartitionSpec(PEERS, part), by_peer),
            axis_names={PEERS, DATA} if local_now else {PEERS},
            check_vma=False,
        )
        outputs, stats = spread({"params": params.tree, "batch_stats": batch_stats.tree}, images, jnp.stack(each))
        # Here they travel: all peers' to all devices at once, and not one after the other where a term looks at one.
        return stack.apart(Stack(devices.split_batch(outputs, 1), count)), Stack(stats, count)

    return forward


def by_part(forward: Forward, devices: Devices) -> Forward:
    """In training each device computes with its part of the batch as if there were no other; statistics are averaged.

    That is what data parallel training in PyTorch does unless it is told otherwise, but that it keeps the statistics of
    one device.
    """

    def spread(params: Tree, batch_stats: Tree, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        if not train:
            return forward(params, batch_stats, images, train, key)

        def own(params: Tree, batch_stats: Tree, images: jax.Array, key: jax.Array) -> Passed:
            outputs, stats = forward(params, batch_stats, images, train, _of_part(key))
            return outputs, _mean_of_parts(stats)

        whole, parts = PartitionSpec(), PartitionSpec(DATA)
        by_part = jax.shard_map(
            own,
            mesh=devices.mesh,
            in_specs=(whole, whole, PartitionSpec(None, DATA), whole),
            out_specs=(parts, whole),
            check_vma=False,
        )
        return by_part(params, batch_stats, images, key)

    return spread


def _of_part(key: jax.Array) -> jax.Array:
    """A key for the part of a batch that a device has."""
    return jax.random.fold_in(key, jax.lax.axis_index(DATA))


def _mean_of_parts(stats: Tree) -> Tree:
    """Statistics, which each device has of its part, averaged; a count or a random key is that of any."""

    def mean(leaf: jax.Array) -> jax.Array:
        return jax.lax.pmean(leaf, DATA) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(mean, stats)
