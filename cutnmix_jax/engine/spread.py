"""Passes of J networks in which a device does not compute what another one does: peers, or parts of a batch, apart."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from cutnmix_jax import packed, stack
from cutnmix_jax.engine.devices import DATA, PEERS, Devices
from cutnmix_jax.engine.mappings import Forward, Passed, are_shared, at_once, keys
from cutnmix_jax.packed import Packed
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Backbone, Outputs, Tree

_Passes = Callable[..., tuple[Outputs, Tree]]  # of networks at once, all arrays [number of them, ...]


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
            if alone:
                variables, key = jax.tree.map(lambda leaf: leaf[0], (variables, each))
                return jax.tree.map(lambda leaf: leaf[None], backbone.apply(variables, images[0], train, key))
            return at_once(backbone, variables, images, shared, train, each)

        variables = {"params": params.tree, "batch_stats": batch_stats.tree}
        outputs, stats = _on_devices(own, devices, shared, local_now)(variables, images, jnp.stack(each))
        return stack.apart(Stack(outputs, count)), Stack(stats, count)

    return forward


def by_unlike_peer(backbones: Sequence[Backbone], devices: Devices, sizes: Sequence[int]) -> Forward:
    """The same of networks of several architectures, `Packed`; `sizes` is D of each.

    The program has a branch for each kind of group of networks that a device has, and each device takes its own, in the
    gradient, too. A branch cuts the rows of its networks into arrays, and returns what all branches have in one shape:
    logits, features with zeros behind those of a network that has fewer, and the next statistics, as rows again. So the
    gradient of a row comes out on the device that has the row and updates it.

    JAX has a branch return, too, what the gradient needs of the others' forward passes, as zeros: they take memory and
    the time to write them, but where networks have arrays of one shape, which share.

    Where a batch is split, batch norm sums within a branch: over devices of one group, all of which take it.
    """
    count, local = len(backbones), devices.local_norm
    each_has = count // devices.peer_groups
    groups = [tuple(backbones[first : first + each_has]) for first in range(0, count, each_has)]
    kinds = list(dict.fromkeys(groups))

    def forward(params: Packed, batch_stats: Packed, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        *each, _ = keys(key, count)
        shared, local_now = are_shared(images, count), local and train

        def branch(kind: tuple[Backbone, ...]) -> _Passes:
            place = groups.index(kind) * each_has
            own = slice(place, place + each_has)
            layouts = params.layouts[own], batch_stats.layouts[own]

            def pass_of(rows: list[Tree], images: jax.Array, each: jax.Array) -> tuple[Outputs, Tree]:
                outputs, stats = [], []
                for j, backbone in enumerate(kind):
                    row = jax.tree.map(lambda leaf, j=j: leaf[j], rows)
                    trees = [packed.tree_of(numbers, of[j]) for numbers, of in zip(row, layouts, strict=True)]
                    variables = dict(zip(("params", "batch_stats"), trees, strict=True))
                    out, after = backbone.apply(variables, images[0 if shared else j], train, each[j])
                    beyond = max(sizes) - out.features.shape[1]
                    outputs.append(out._replace(features=jnp.pad(out.features, ((0, 0), (0, beyond)))))
                    stats.append(after)
                joined = jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
                return joined, packed.rows(stats, layouts[1], batch_stats.layouts)

            return pass_of

        def own(variables: Tree, images: jax.Array, each: jax.Array) -> tuple[Outputs, Tree]:
            *rows, which = variables
            return jax.lax.switch(which[0], [branch(kind) for kind in kinds], rows, images, each)

        variables = params.rows, batch_stats.rows, jnp.asarray([kinds.index(group) for group in groups])
        outputs, stats = _on_devices(own, devices, shared, local_now)(variables, images, jnp.stack(each))
        every = stack.apart(Stack(outputs, count))
        every = tuple(out._replace(features=out.features[:, :size]) for out, size in zip(every, sizes, strict=True))
        return every, Packed(stats, batch_stats.layouts)

    return forward


def _on_devices(own: _Passes, devices: Devices, shared: bool, local: bool) -> _Passes:
    """Peers' passes over all devices.

    Args:
      own: from variables, images and keys of the peers that a device has to their `Outputs` and next statistics, arrays
        [their number, ...].
      devices: of the run.
      shared: whether all peers see the same images.
      local: whether each device has its part of the batch to itself.
    """

    def apart(variables: Tree, images: jax.Array, keys: Tree) -> tuple[Outputs, Tree]:
        if local:
            keys = jax.vmap(_of_part)(keys)
        outputs, stats = own(variables, images, keys)
        return outputs, _mean_of_parts(stats) if local else stats

    by_peer, part = PartitionSpec(PEERS), DATA if local else None
    spread = jax.shard_map(
        apart,
        mesh=devices.mesh,
        in_specs=(by_peer, PartitionSpec(None if shared else PEERS, part), by_peer),
        out_specs=(PartitionSpec(PEERS, part), by_peer),
        axis_names={PEERS, DATA} if local else {PEERS},
        check_vma=False,
    )

    def passes(variables: Tree, images: jax.Array, keys: Tree) -> tuple[Outputs, Tree]:
        outputs, stats = spread(variables, images, keys)
        # Here they travel: all peers' to all devices at once, and not one after the other where a term looks at one.
        return devices.split_batch(outputs, 1), stats

    return passes


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
