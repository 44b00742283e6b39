"""Variables of alike networks held together: one array for all of them, with an axis [J] in front.

What is saved, and what a teacher or a person is given, is a tuple with a tree per network, whatever a run trains with.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax.types import Tree


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tree"], meta_fields=["count"])
@dataclasses.dataclass(frozen=True)
class Stack:
    """J trees of one structure as one.

    Attributes:
      tree: each leaf [J, ...].
      count: J.
    """

    tree: Tree
    count: int


def of(trees: tuple[Tree, ...]) -> Stack:
    """Joins trees of one structure."""
    return Stack(jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees), len(trees))


def apart(tree: Tree) -> Tree:
    """A tree with each `Stack` in it replaced by a tuple of its J trees."""

    def tuple_of(node: Any) -> Any:
        if not _is_stack(node):
            return node
        return tuple(jax.tree.map(lambda leaf, j=j: leaf[j], node.tree) for j in range(node.count))

    return jax.tree.map(tuple_of, tree, is_leaf=_is_stack)


def together(tree: Tree, like: Tree) -> Tree:
    """The opposite of `apart`, where `like` has its stacks."""
    return jax.tree.map(lambda node, part: of(part) if _is_stack(node) else part, like, tree, is_leaf=_is_stack)


def _is_stack(node: Any) -> bool:
    return isinstance(node, Stack)
