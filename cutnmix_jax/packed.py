"""Variables of unlike networks held together: those of one network are one row, and all rows are equally long.

So that each device of several can have a network of its own: an array over devices has parts of one shape, whatever the
networks. A row is cut into a network's arrays where the network is run; an optimizer moves it as it is.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax.types import Tree


class Layout(NamedTuple):
    """Where the arrays of a network lie in its row.

    Attributes:
      structure: of its tree.
      arrays: the type and the shape of each leaf. Those of one type follow each other, in a row of that type.
    """

    structure: jax.tree_util.PyTreeDef
    arrays: tuple[tuple[str, tuple[int, ...]], ...]

    def length(self, kind: str) -> int:
        """How many numbers of a type there are."""
        return sum(math.prod(shape) for of, shape in self.arrays if of == kind)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["rows"], meta_fields=["layouts"])
@dataclasses.dataclass(frozen=True)
class Packed:
    """J trees of any structures as one.

    Attributes:
      rows: the name of a type -> the numbers that have it in the networks, [J, P], zeros behind a shorter network's.
        What is derived from them, as float32 moments of bfloat16 weights, stands at the same places in another type.
      layouts: of each network.
    """

    rows: dict[str, jax.Array]
    layouts: tuple[Layout, ...]


def of(trees: Sequence[Tree]) -> Packed:
    """Joins trees."""
    layouts = tuple(_layout(tree) for tree in trees)
    return Packed(rows(trees, layouts, layouts), layouts)


def like(trees: Sequence[Tree], model: Packed) -> Packed:
    """Joins trees that lie as those of `model`, whatever their types."""
    return Packed(rows(trees, model.layouts, model.layouts), model.layouts)


def rows(trees: Sequence[Tree], layouts: Sequence[Layout], beside: Sequence[Layout]) -> dict[str, jax.Array]:
    """The rows of some of the networks, [number of them, P].

    Args:
      trees: of these networks.
      layouts: of these.
      beside: of all networks, the longest of which says how long a row is.
    """
    found = {}
    for kind in sorted({kind for one in beside for kind, _ in one.arrays}):
        length, each = max(one.length(kind) for one in beside), []
        for tree, layout in zip(trees, layouts, strict=True):
            leaves = zip(jax.tree.leaves(tree), layout.arrays, strict=True)
            flat = [leaf.reshape(-1) for leaf, (of, _) in leaves if of == kind] or [jnp.zeros(0, kind)]
            row = jnp.concatenate(flat)
            each.append(jnp.pad(row, (0, length - len(row))))
        found[kind] = jnp.stack(each)
    return found


def tree_of(row: dict[str, jax.Array], layout: Layout) -> Tree:
    """The tree of a network, from its row of each type, [P]."""
    parts = {}
    for kind, numbers in row.items():
        shapes = [shape for of, shape in layout.arrays if of == kind]
        # One cut, whose gradient is one row; that of a slice for each array would be as many rows, and their sum.
        sizes = [*map(math.prod, shapes), len(numbers) - layout.length(kind)]
        pairs = zip(jax.lax.split(numbers, sizes), shapes, strict=False)
        parts[kind] = iter([part.reshape(shape) for part, shape in pairs])
    return jax.tree.unflatten(layout.structure, [next(parts[kind]) for kind, _ in layout.arrays])


def trees(packed: Packed) -> tuple[Tree, ...]:
    """The opposite of `of`."""
    each = [{kind: numbers[j] for kind, numbers in packed.rows.items()} for j in range(len(packed.layouts))]
    return tuple(tree_of(row, layout) for row, layout in zip(each, packed.layouts, strict=True))


def _layout(tree: Tree) -> Layout:
    leaves, structure = jax.tree.flatten(tree)
    return Layout(structure, tuple((str(leaf.dtype), leaf.shape) for leaf in leaves))
