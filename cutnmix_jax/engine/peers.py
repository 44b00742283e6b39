"""J networks as one thing: their variables and one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import digests, stack
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.errors import UsageError, blaming
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Backbone, Outputs, Split, Tree

Passed = tuple[tuple[Outputs, ...], Tree]  # what the networks say, and their next batch statistics
Forward = Callable[..., Passed]


class Peers(NamedTuple):
    """J networks.

    Attributes:
      init: `init(key) -> (params, batch_stats)`, each network from a key of its own: a `Stack` of alike networks that
        are mapped, else a tuple with one tree per peer. With a shared trunk the tree of peer 0 is a whole network and
        those of the others are tails alone.
      forward: `forward(params, batch_stats, images, train, key) -> (outputs, batch_stats)`, a tuple of `Outputs` and
        what `init` gives; images [J, n, H, W, C], or [1, n, H, W, C] where all peers see the same, and nothing else,
        see `are_shared`.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    forward: Forward


def make(backbones: Sequence[Backbone], mapping: str, share_trunk: bool = False) -> Peers:
    """Joins networks.

    Args:
      backbones: one per peer; their architectures may differ unless something is shared or stacked.
      mapping: `unroll` runs one after the other in the same program; `vmap` stacks them, so that all but their
        convolutions is one operation for all of them, see `backbones.convolution`.
      share_trunk: whether all use the trunk of peer 0, and each a tail of its own.
    """
    split = backbones[0].split if share_trunk else None
    stacked = mapping == "vmap" and len(backbones) > 1 and not split

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        *each, _ = keys(key, len(backbones))
        # Mapped, a network is compiled once, however many there are; but what somebody's own network calls in its first
        # pass may not be to be mapped.
        alike = len(set(backbones)) == 1 and not is_foreign(backbones[0].name)
        if alike:
            drawn = jax.vmap(backbones[0].init)(jnp.stack(each))
            if stacked:
                of = {name: stack.of_arrays(tree, len(backbones)) for name, tree in drawn.items()}
                return of["params"], of["batch_stats"]
            variables = list(stack.apart(Stack(drawn, len(backbones))))
        else:
            variables = [backbone.init(own) for backbone, own in zip(backbones, each, strict=True)]
        if split:
            variables[1:] = [{name: _tail(split, tree) for name, tree in own.items()} for own in variables[1:]]
        params, batch_stats = tuple(v["params"] for v in variables), tuple(v["batch_stats"] for v in variables)
        return (stack.of(params), stack.of(batch_stats)) if stacked else (params, batch_stats)

    if split:
        return Peers(init, _branched(split, len(backbones)))
    return Peers(init, _vmapped(backbones) if stacked else _unrolled(backbones))


def check(
    joined: Peers,
    names: Sequence[str],
    num_classes: int,
    sizes: Sequence[int] | None,
    images: tuple[int, ...],
    train: bool,
) -> None:
    """Traces networks on images as a run gives them, in training with the gradient, and looks at what they return.

    Args:
      joined: from `make`.
      names: of the networks.
      num_classes: K.
      sizes: D of each; None where it does not matter.
      images: their shape, [J, n, H, W, C], or [1, n, H, W, C] where all peers see the same.
      train: whether to train or to evaluate.

    Raises:
      UsageError: they fail, or return something else than logits [n, K] and features [n, D].
    """

    def total(params: Tree, batch_stats: Tree, images: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        outputs, _ = joined.forward(params, batch_stats, images, train, key)
        return jnp.stack([out.logits.sum() + out.features.sum() for out in outputs]).sum(), outputs

    *_, n, height, width, channels = images
    what = f"backbone {' and '.join(sorted(set(names)))!r} cannot be {'trained' if train else 'evaluated'}"
    what += f" on batches of {n} images of {height}x{width}x{channels}"
    with blaming(what, "mend the network, or choose another one or another size of the batch"):
        key = jax.eval_shape(jax.random.key, 0)
        variables = jax.eval_shape(joined.init, key)
        seen = jax.ShapeDtypeStruct(images, jnp.float32)
        _, outputs = jax.eval_shape(jax.grad(total, has_aux=True) if train else total, *variables, seen, key)
    for out, size in zip(outputs, sizes or [out.features.shape[-1] for out in outputs], strict=True):
        for of, shape, wanted in (("logits", out.logits.shape, num_classes), ("features", out.features.shape, size)):
            if shape != (n, wanted):
                raise UsageError(f"{what}: its {of} are {list(shape)}, not {[n, wanted]}")


def begun(variables: tuple[Tree, Tree], start: Mapping[str, jax.Array]) -> tuple[Tree, Tree]:
    """Peers that begin as other networks, where those have an array.

    Args:
      variables: from `Peers.init`.
      start: arrays by their names in {'params': (tree, ...), 'batch_stats': (tree, ...)}; what the peers do not have,
        as the trunk of a peer that shares one, is left out.
    """
    if not start:
        return variables
    like = dict(zip(("params", "batch_stats"), variables, strict=True))
    leaves = [start.get(name, leaf) for name, leaf in digests.flat(like).items()]
    apart = jax.tree.unflatten(jax.tree.structure(stack.apart(like)), leaves)
    joined = stack.together(apart, like)
    return joined["params"], joined["batch_stats"]


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


def _unrolled(backbones: Sequence[Backbone]) -> Forward:
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


def _branched(split: Split, count: int) -> Forward:
    """One trunk with J tails; images that differ over peers go through the trunk as one batch of J n images."""

    def forward(params: Tree, batch_stats: Tree, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        shared = are_shared(images, count)
        *each, trunk_key = keys(key, count)
        trunk = {"params": _trunk(split, params[0]), "batch_stats": _trunk(split, batch_stats[0])}
        joined = images.reshape(-1, *images.shape[-3:])
        maps, trunk_stats = split.trunk(trunk, joined, train, trunk_key)
        pooled = jnp.mean(maps, axis=(1, 2), dtype=jnp.float32)
        outputs, stats = [], []
        for j in range(count):
            n = images.shape[1]
            own = slice(None) if shared else slice(j * n, (j + 1) * n)
            tail = {"params": _tail(split, params[j]), "batch_stats": _tail(split, batch_stats[j])}
            out, tail_stats = split.tail(tail, maps[own], train, each[j])
            outputs.append(out._replace(trunk=pooled[own]))
            stats.append(tail_stats)
        stats[0] = trunk_stats | stats[0]
        return tuple(outputs), tuple(stats)

    return forward


def _vmapped(backbones: Sequence[Backbone]) -> Forward:
    apply, count = backbones[0].apply, len(backbones)

    def forward(params: Stack, batch_stats: Stack, images: jax.Array, train: bool, key: jax.Array) -> Passed:
        *each, _ = keys(key, count)
        variables = {"params": stack.arrays(params), "batch_stats": stack.arrays(batch_stats)}
        shared = are_shared(images, count)
        mapped = jax.vmap(lambda v, x, k: apply(v, x, train, k), in_axes=(0, None if shared else 0, 0), out_axes=0)
        outputs, stats = mapped(variables, images[0] if shared else images, jnp.stack(each))
        return stack.apart(Stack(outputs, count)), stack.of_arrays(stats, count)

    return forward


def _trunk(split: Split, tree: Tree) -> Tree:
    return {name: leaf for name, leaf in tree.items() if name in split.names()}


def _tail(split: Split, tree: Tree) -> Tree:
    return {name: leaf for name, leaf in tree.items() if name not in split.names()}
