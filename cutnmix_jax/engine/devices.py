"""How a run lies on devices: which of them computes which part of a batch, and which peers.

One compiled program for all of them, which XLA splits (`jax.jit` over a mesh): its numbers are those of one device but
for rounding. What is random is drawn as on one device, and batch norm sees the whole batch unless it is told otherwise.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cutnmix_jax import stack
from cutnmix_jax.compiler import compiled
from cutnmix_jax.device import find_devices
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import SHARD, Settings
from cutnmix_jax.types import Tree

if TYPE_CHECKING:
    from cutnmix_jax.engine.state import Feed, Saved

PEERS, DATA = "peers", "data"  # the axes of a mesh


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a run.

    Attributes:
      mesh: [peers, data] devices; None of a run on one.
      by_peer: whether each computes peers of its own, or all of them.
      local_norm: whether batch norm sees the images of a device alone.
    """

    mesh: Mesh | None = None
    by_peer: bool = False
    local_norm: bool = False

    @property
    def count(self) -> int:
        """How many there are."""
        return self.mesh.size if self.mesh else 1

    @property
    def parts(self) -> int:
        """Into how many parts a batch is split."""
        return self.mesh.shape[DATA] if self.mesh else 1

    @property
    def peer_groups(self) -> int:
        """Into how many groups the peers are split."""
        return self.mesh.shape[PEERS] if self.mesh else 1

    def whole_parts(self, count: int) -> int:
        """The next number of images that is split into equal parts."""
        return -(-count // self.parts) * self.parts

    def described(self) -> dict[str, int]:
        """What decides about the last bits of the numbers, as JSON can hold it."""
        return {"peer_groups": self.peer_groups, "parts": self.parts, "processes": jax.process_count()}

    def sharding(self, *axes: str | None) -> NamedSharding:
        """How an array lies on them: for each of its axes that of the mesh that it is split over; whole without any."""
        assert self.mesh
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def split(self, tree: Tree, *axes: str | None) -> Tree:
        """Within a compiled program: has XLA hold arrays in this way, see `sharding`."""
        if self.mesh is None:
            return tree
        where = self.sharding(*axes)
        return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, where), tree)

    def split_batch(self, tree: Tree, axis: int) -> Tree:
        """The same of arrays whose axis number `axis` is that of the images of a batch."""
        return self.split(tree, *(None,) * axis, DATA)

    def of_state(self, tree: Tree) -> Tree:
        """How each array of a state lies: whole, but for peers that have devices of their own."""

        def of(node: Any) -> Any:
            where = self.sharding(PEERS) if self.by_peer and stack.is_held(node) else self.sharding()
            return jax.tree.map(lambda _: where, node)

        return jax.tree.map(of, tree, is_leaf=stack.is_held)

    def of_feed(self, feed: "Feed") -> "Feed":
        """How what the steps are made of lies: whole, but for images of a call, of which each device has its part."""
        whole = jax.tree.map(lambda _: self.sharding(), feed)
        if feed.draws.images is None:
            return whole
        return whole._replace(draws=whole.draws._replace(images=self.sharding(None, None, DATA)))

    @property
    def whole_results(self) -> dict[str, Any]:
        """For `compiled`: what comes out is whole on every device."""
        return {"out_shardings": self.sharding()} if self.mesh else {}

    def of_steps(self, state: Tree, feed: "Feed") -> dict[str, Any]:
        """For `compiled`, of a program from a state, totals, a feed and a count to the next state and totals."""
        if self.mesh is None:
            return {}
        lies, whole = self.of_state(state), self.sharding()
        return {"in_shardings": (lies, whole, self.of_feed(feed), whole), "out_shardings": (lies, whole)}

    def put_state(self, saved: "Saved") -> "Saved":
        """A state, which is whole on one device, as the steps take it."""
        if self.mesh is None:
            return saved
        state = jax.tree.map(put, saved.state, self.of_state(saved.state))
        return saved._replace(state=state, totals=self.put_whole(saved.totals))

    def put_whole(self, tree: Tree) -> Tree:
        """The same arrays on every device."""
        return tree if self.mesh is None else jax.tree.map(lambda leaf: put(leaf, self.sharding()), tree)

    def collected(self, tree: Tree) -> Tree:
        """The same arrays whole on one device, as a run on one has them."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, self._collect(tree) if self.by_peer else tree)

    @functools.cached_property
    def _collect(self) -> Any:
        return compiled(lambda tree: tree, out_shardings=self.sharding())

    def images(self, shape: tuple[int, ...], axis: int, read: Callable[[slice], np.ndarray]) -> jax.Array:
        """Images of which each device has its part, and each part is read once.

        Args:
          shape: of all of them.
          axis: number of the axis along which they are split.
          read: reads those of a part of that axis.
        """
        if self.mesh is None:
            return jnp.asarray(read(slice(0, shape[axis])))
        parts: dict[tuple[int, int], np.ndarray] = {}

        def of(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index
            start, end, _ = index[axis].indices(shape[axis])
            if (start, end) not in parts:
                parts[start, end] = read(slice(start, end))
            return parts[start, end]

        return jax.make_array_from_callback(shape, self.sharding(*(None,) * axis, DATA), of)


def put(leaf: Any, where: NamedSharding) -> jax.Array:
    """Puts an array, or a part of it, on each of the devices."""
    if jax.process_count() == 1:
        return jax.device_put(leaf, where)
    # Each process puts its own devices' part there; `device_put` would compare all of it over all processes.
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


ONE = Devices()


def counted(settings: Settings) -> Settings:
    """The settings with the number of devices, where they say `all` and the numbers depend on how many that are.

    Raises:
      UsageError: JAX finds no device of the kind that it was told to use.
    """
    if settings.bn != "local" or settings.devices:
        return settings
    find_devices()
    return dataclasses.replace(settings, devices=len(jax.devices()))


def choose(settings: Settings) -> Devices:
    """The devices of a run.

    Raises:
      UsageError: there are not so many, or the batch or the peers do not divide over them.
    """
    there = jax.devices()
    count = settings.devices or len(there)
    if count > len(there):
        raise UsageError(f"config.devices={count}: JAX finds {len(there)} here; give fewer, or 0 for all")
    if count < jax.device_count() and jax.process_count() > 1:
        raise UsageError(f"config.devices={count}: several processes train with all their {len(there)}; leave it out")
    if count == 1:
        return ONE
    peers = len(settings.backbones)
    groups = min(count, peers) if settings.mapping == SHARD else 1
    if count % groups or peers % groups:
        raise UsageError(
            f"config.mapping={SHARD!r}: {peers} peers do not divide over {count} devices; choose config.devices a "
            f"multiple of {peers}, or one of its divisors"
        )
    parts = count // groups
    if settings.batch_size % parts:
        raise UsageError(
            f"config.batch_size={settings.batch_size} does not divide over {parts} devices; choose a multiple of "
            f"{parts} (--config.batch_size), or other --config.devices"
        )
    if settings.bn == "local" and parts == 1:
        raise UsageError(f"config.bn='local': no batch is split over {count} devices with {groups} groups of peers")
    mesh = Mesh(np.asarray(there[:count]).reshape(groups, parts), (PEERS, DATA))
    return Devices(mesh, groups > 1, settings.bn == "local")
