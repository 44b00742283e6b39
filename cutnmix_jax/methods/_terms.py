"""Loss terms that several methods share, and what their own parts are made of.

A term has one value per peer. `from_others` stops the gradient at the other peers. `distilled` and `from_all_but` stop
none: who calls them does.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from cutnmix_jax import losses
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import HOW_MANY, Setup
from cutnmix_jax.types import Outputs, Spec, Tree

CE = "cross-entropy with the labels"  # what the term `ce` is, to a person


def cross_entropy(outputs: Sequence[Outputs], targets: jax.Array) -> jax.Array:
    """L_CE^j of Eq. 8: mean over the batch against the peer's own targets [J, n, K] -> [J]."""
    return jnp.stack([losses.soft_cross_entropy(out.logits, targets[j]).mean() for j, out in enumerate(outputs)])


def distilled(outputs: Sequence[Outputs], targets: Sequence[jax.Array], temperature: float) -> jax.Array:
    """Eq. 1 for each peer, mean over the batch; `targets` has the logits [n, K] for each -> [J]."""
    pairs = zip(outputs, targets, strict=True)
    return jnp.stack([losses.tempered_kl(out.logits, target, temperature).mean() for out, target in pairs])


def from_others(outputs: Sequence[Outputs], pair: Callable[[Outputs, Outputs], jax.Array]) -> jax.Array:
    """1/(J-1) sum_{k != j} pair(j, k), the outer sum of Eq. 4 and Eq. 9, with no gradient into peer k.

    Args:
      outputs: of J >= 2 peers.
      pair: from the outputs of peer j and of peer k to a scalar.

    Returns:
      [J] float.
    """
    return from_all_but(outputs, stop_gradient(tuple(outputs)), pair)


def from_all_but(
    outputs: Sequence[Outputs], teachers: Sequence[Outputs], pair: Callable[[Outputs, Outputs], jax.Array]
) -> jax.Array:
    """1/(J-1) sum_{k != j} pair(peer j, teacher k) -> [J]."""
    others = len(outputs) - 1
    return jnp.stack(
        [
            sum((pair(mine, theirs) for k, theirs in enumerate(teachers) if k != j), jnp.zeros(())) / others
            for j, mine in enumerate(outputs)
        ]
    )


def mutual_logits(outputs: Sequence[Outputs], temperature: float) -> jax.Array:
    """L_DML^j of Eq. 4 with tau^2 inside, as in Eq. 1 and 10 (Eq. 4 writes it in front, Eq. 8 drops it) -> [J]."""
    return from_others(outputs, lambda mine, theirs: losses.tempered_kl(mine.logits, theirs.logits, temperature).mean())


def mutual_features(outputs: Sequence[Outputs]) -> jax.Array:
    """L_MMD^j of Eq. 9 -> [J]."""
    return from_others(outputs, lambda mine, theirs: losses.mmd(mine.features, theirs.features))


def peer_teacher(params: Tree, outputs: Sequence[Outputs]) -> jax.Array:
    """z^PT = g(f^1, ..., f^J), one linear layer on the joined features -> [n, K]."""
    return jnp.concatenate([out.features for out in outputs], axis=-1) @ params["kernel"] + params["bias"]


def peer_teacher_init(key: jax.Array, spec: Spec) -> Tree:
    """The parameters of a peer teacher."""
    return linear(key, sum(spec.feature_sizes), spec.num_classes)


def linear(key: jax.Array, inputs: int, outputs: int) -> Tree:
    """Kernel [inputs, outputs] and bias [outputs], both uniform in +-1/sqrt(inputs): PyTorch's default.

    The gate and the attention of the lineage's VGG networks start from N(0, .01) instead, as every linear layer there.
    """
    bound = inputs**-0.5
    kernel_key, bias_key = jax.random.split(key)
    kernel = jax.random.uniform(kernel_key, (inputs, outputs), minval=-bound, maxval=bound)
    return {"kernel": kernel, "bias": jax.random.uniform(bias_key, (outputs,), minval=-bound, maxval=bound)}


def need_peers(setup: Setup, least: int, why: str = "") -> None:
    """Raises UsageError where there are too few networks."""
    count = len(setup.backbones)
    if count < least:
        raise UsageError(f"{HOW_MANY}: {setup.row} needs at least {least} networks{why}, not {count}")


def need_unmixed(setup: Setup) -> None:
    """Raises UsageError where batches are mixed."""
    if setup.mix_kind != "none":
        raise UsageError(
            f"config.mix.kind={setup.mix_kind!r}: {setup.row} is defined for unmixed images; set it to none"
        )


def need_same_images(setup: Setup) -> None:
    """Raises UsageError where the networks see unlike images."""
    if not setup.same_images:
        raise UsageError(
            f"{setup.row} needs all networks to see the same images: set config.views=shared and no cutnmix"
        )


def need_trunk(setup: Setup) -> None:
    """Raises UsageError where the networks share no trunk."""
    if not setup.share_trunk:
        raise UsageError(f"config.share_trunk=False: {setup.row} is defined for networks with one trunk")
