"""J networks as one thing: their variables and one forward pass."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax import digests, packed, stack
from cutnmix_jax.backbones.foreign import is_foreign
from cutnmix_jax.engine import mappings, spread
from cutnmix_jax.engine.devices import ONE, Devices
from cutnmix_jax.engine.mappings import Forward
from cutnmix_jax.errors import UsageError, blaming
from cutnmix_jax.settings import SHARD, UNROLL
from cutnmix_jax.stack import Stack
from cutnmix_jax.types import Backbone, Tree


class Peers(NamedTuple):
    """J networks.

    Attributes:
      init: `init(key) -> (params, batch_stats)`, each network from a key of its own: a `Stack` of alike networks that
        are mapped, a `Packed` of unlike ones that have devices of their own, else a tuple with one tree per peer. With
        a shared trunk the tree of peer 0 is a whole network and those of the others are tails alone.
      forward: `forward(params, batch_stats, images, train, key) -> (outputs, batch_stats)`, a tuple of `Outputs` and
        what `init` gives; images [J, n, H, W, C], or [1, n, H, W, C] where all peers see the same, and nothing else,
        see `mappings.are_shared`.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    forward: Forward


def make(
    backbones: Sequence[Backbone],
    mapping: str,
    share_trunk: bool = False,
    devices: Devices = ONE,
    sizes: Sequence[int] = (),
) -> Peers:
    """Joins networks.

    Args:
      backbones: one per peer; their architectures may differ unless something is shared or stacked.
      mapping: `unroll` runs one after the other in the same program; `vmap` stacks them, so that all but their
        convolutions is one operation for all of them, see `backbones.convolution`; `shard` holds them so, too, with
        every array [J, ...], for peers on devices of their own; on one device it is `unroll` for unlike ones.
      share_trunk: whether all use the trunk of peer 0, and each a tail of its own.
      devices: of the run.
      sizes: D of each, where unlike ones have devices of their own.
    """
    split = backbones[0].split if share_trunk else None
    unlike = mapping == SHARD and len(set(backbones)) > 1
    stacked = mapping != UNROLL and len(backbones) > 1 and not split and not unlike

    def held(joined: Stack) -> Stack:
        return Stack(stack.arrays(joined), joined.count) if mapping == SHARD else joined

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        *each, _ = mappings.keys(key, len(backbones))
        # Mapped, a network is compiled once, however many there are; but what somebody's own network calls in its first
        # pass may not be to be mapped.
        if len(set(backbones)) == 1 and not is_foreign(backbones[0].name):
            drawn = jax.vmap(backbones[0].init)(jnp.stack(each))
            if stacked:
                of = {name: held(stack.of_arrays(tree, len(backbones))) for name, tree in drawn.items()}
                return of["params"], of["batch_stats"]
            variables = list(stack.apart(Stack(drawn, len(backbones))))
        else:
            variables = [backbone.init(own) for backbone, own in zip(backbones, each, strict=True)]
        if split:
            variables[1:] = [
                {name: mappings.tail_of(split, tree) for name, tree in own.items()} for own in variables[1:]
            ]
        params, batch_stats = tuple(v["params"] for v in variables), tuple(v["batch_stats"] for v in variables)
        if unlike and devices.by_peer:
            return packed.of(params), packed.of(batch_stats)
        if not stacked:
            return params, batch_stats
        return held(stack.of(params)), held(stack.of(batch_stats))

    if split:
        forward = mappings.branched(split, len(backbones))
    elif devices.by_peer:
        by_peer = spread.by_unlike_peer(backbones, devices, sizes) if unlike else spread.by_peer(backbones, devices)
        return Peers(init, by_peer)
    else:
        forward = mappings.vmapped(backbones) if stacked else mappings.unrolled(backbones)
    return Peers(init, spread.by_part(forward, devices) if devices.local_norm else forward)


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
