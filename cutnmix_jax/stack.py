"""Variables of networks held together: of alike ones in one array for all of them, with an axis [J] in front.

What is saved, and what a teacher or a person is given, is a tuple with a tree per network, whatever a run trains with.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax import packed
from cutnmix_jax.packed import Packed
from cutnmix_jax.types import Tree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Apart:
    """An array of each of J networks, in the place of a leaf of a `Stack`."""

    parts: tuple[jax.Array, ...]

    def __getitem__(self, number: int) -> jax.Array:
        """That of one network."""
        return self.parts[number]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tree"], meta_fields=["count"])
@dataclasses.dataclass(frozen=True)
class Stack:
    """J trees of one structure as one.

    Attributes:
      tree: each leaf [J, ...], but arrays with four axes, as kernels of convolutions [h, w, in, out], are `Apart`: a
        convolution takes that of one network, and a GPU would launch a kernel to take it out, and one to put it back.
        Those of one pixel are products, which take all networks at once.
      count: J.
    """

    tree: Tree
    count: int


def of(trees: tuple[Tree, ...]) -> Stack:
    """Joins trees of one structure."""

    def joined(*leaves: jax.Array) -> Any:
        return Apart(leaves) if is_kernel(leaves[0]) else jnp.stack(leaves)

    return Stack(jax.tree.map(joined, *trees), len(trees))


def of_arrays(tree: Tree, count: int) -> Stack:
    """Makes a `Stack` of a tree whose leaves are [J, ...] already, as from `jax.vmap`."""

    def held(leaf: jax.Array) -> Any:
        return Apart(tuple(leaf)) if is_kernel(leaf[0]) else leaf

    return Stack(jax.tree.map(held, tree), count)


def arrays(stacked: Stack) -> Tree:
    """A tree whose leaves are all [J, ...], as for `jax.vmap`."""

    def array(leaf: Any) -> jax.Array:
        return jnp.stack(leaf.parts) if _is_apart(leaf) else leaf

    return jax.tree.map(array, stacked.tree, is_leaf=_is_apart)


def apart(tree: Tree) -> Tree:
    """A tree with each `Stack` or `Packed` in it replaced by a tuple of its J trees."""

    def tuple_of(node: Any) -> Any:
        if isinstance(node, Packed):
            return packed.trees(node)
        if not isinstance(node, Stack):
            return node
        each = range(node.count)
        return tuple(jax.tree.map(lambda leaf, j=j: leaf[j], node.tree, is_leaf=_is_apart) for j in each)

    return jax.tree.map(tuple_of, tree, is_leaf=is_held)


def together(tree: Tree, like: Tree) -> Tree:
    """The opposite of `apart`, where `like` has what holds them."""

    def joined(model: Any, *leaves: jax.Array) -> Any:
        return Apart(leaves) if _is_apart(model) else jnp.stack(leaves)

    def as_there(node: Any, part: Any) -> Any:
        if isinstance(node, Packed):
            return packed.like(part, node)
        if not isinstance(node, Stack):
            return part
        return Stack(jax.tree.map(joined, node.tree, *part, is_leaf=_is_apart), node.count)

    return jax.tree.map(as_there, like, tree, is_leaf=is_held)


def is_held(node: Any) -> bool:
    """Whether a part of a tree is that of all networks."""
    return isinstance(node, Stack | Packed)


def is_kernel(leaf: Any) -> bool:
    """Whether an array of one network is the kernel of a convolution, but not of one pixel."""
    return jnp.ndim(leaf) == 4 and leaf.shape[:2] != (1, 1)


def _is_apart(node: Any) -> bool:
    return isinstance(node, Apart)
