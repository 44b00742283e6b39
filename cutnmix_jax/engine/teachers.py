"""Networks beside the peers that no gradient trains: a trained one, running means that teach, averages that do not."""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from cutnmix_jax.engine.optim import as_float32, as_types_of
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.types import Backbone, Outputs, Tree

MEAN_DECAY = 0.999  # as PCL (Wu and Gong 2021) has it


class Teacher(Protocol):
    """One kind of teacher; its variables are an entry of `TrainState.teachers`."""

    def init(self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...]) -> Tree:
        """Its variables before the first step, from those of the peers."""

    def forward(
        self, variables: Tree, params: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], Tree]:
        """J `Outputs` for the images [J or 1, n, H, W, C], and its next variables.

        Args:
          variables: its own.
          params: of the peers, for their types.
          images: of the peers; 1 where all see the same.
          key: of the forward pass.
        """

    def follow(self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], step: jax.Array) -> Tree:
        """Its variables after the update of the peers number `step`, from 0."""

    def heads(
        self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array
    ) -> dict[str, jax.Array]:
        """What evaluation reports of it: a name -> logits [n, K], for images [n, H, W, C]."""


class Frozen(NamedTuple):
    """A trained network that does not change; `init` gives the shapes, `Engine.init` puts its variables in."""

    backbone: Backbone
    num_peers: int

    def init(self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...]) -> Tree:
        """See `Teacher`."""
        del params, batch_stats
        return {name: (tree,) for name, tree in self.backbone.init(jax.random.key(0)).items()}

    def forward(
        self, variables: Tree, params: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], Tree]:
        """See `Teacher`."""
        del params, key
        own = {name: trees[0] for name, trees in variables.items()}
        outputs = [self.backbone.apply(own, seen, False)[0] for seen in images]
        return tuple(outputs * self.num_peers if len(images) == 1 else outputs), variables

    def follow(self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], step: jax.Array) -> Tree:
        """See `Teacher`."""
        del params, batch_stats, step
        return variables

    def heads(
        self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array
    ) -> dict[str, jax.Array]:
        """None: its accuracy is that of its own run."""
        del variables, params, batch_stats, images
        return {}


class RunningMean(NamedTuple):
    """A running mean of the parameters of every peer (Tarvainen and Valpola 2017), as PCL (Wu and Gong 2021) has it.

    alpha = min(1 - 1 / (step + 1), 0.999); the means keep batch statistics of their own, from batches as in training.
    They are float32 whatever the type of the parameters, and rounded to it where the networks are run: a mean in
    bfloat16 would stand still, because a thousandth of a difference is less than its last bit.
    """

    peers: Peers

    def init(self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...]) -> Tree:
        """See `Teacher`."""
        return {"params": as_float32(params), "batch_stats": batch_stats}

    def forward(
        self, variables: Tree, params: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], Tree]:
        """See `Teacher`."""
        means = as_types_of(params, variables["params"])
        outputs, stats = self.peers.forward(means, variables["batch_stats"], images, True, key)
        return outputs, variables | {"batch_stats": stats}

    def follow(self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], step: jax.Array) -> Tree:
        """See `Teacher`."""
        del batch_stats
        alpha = jnp.minimum(1 - 1 / (step + 1.0), MEAN_DECAY)
        return variables | {"params": _moved(variables["params"], params, alpha)}

    def heads(
        self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array
    ) -> dict[str, jax.Array]:
        """`mean_teacher_0`, ...: the mean of each peer."""
        del batch_stats
        means = as_types_of(params, variables["params"])
        outputs, _ = self.peers.forward(means, variables["batch_stats"], images[None], False, jax.random.key(0))
        return {f"mean_teacher_{j}": out.logits for j, out in enumerate(outputs)}


class Average(NamedTuple):
    """A running average of every peer, its batch statistics too, that teaches nobody and is evaluated beside the peers.

    The decay grows with the steps t that were done, min(decay, (1 + t) / (10 + t)), so that the first weights are soon
    forgotten. It is float32, as `RunningMean` is.
    """

    peers: Peers
    decay: float

    def init(self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...]) -> Tree:
        """See `Teacher`."""
        return {"params": as_float32(params), "batch_stats": jax.tree.map(_float32_or_as_it_is, batch_stats)}

    def forward(
        self, variables: Tree, params: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[tuple[Outputs, ...], Tree]:
        """Nothing: it costs no pass in training."""
        del params, images, key
        return (), variables

    def follow(self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], step: jax.Array) -> Tree:
        """See `Teacher`."""
        done = step + 1.0
        decay = jnp.minimum(self.decay, (1 + done) / (10 + done))
        return {
            "params": _moved(variables["params"], params, decay),
            "batch_stats": _moved(variables["batch_stats"], batch_stats, decay),
        }

    def heads(
        self, variables: Tree, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array
    ) -> dict[str, jax.Array]:
        """`average_0`, ...: the average of each peer."""
        averages = as_types_of(params, variables["params"]), as_types_of(batch_stats, variables["batch_stats"])
        outputs, _ = self.peers.forward(*averages, images[None], False, jax.random.key(0))
        return {f"average_{j}": out.logits for j, out in enumerate(outputs)}


def _moved(mean: Tree, towards: Tree, decay: jax.Array) -> Tree:
    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        new = _float32_or_as_it_is(new)
        return decay * old + (1 - decay) * new if new.dtype == jnp.float32 else new

    return jax.tree.map(move, mean, towards)


def _float32_or_as_it_is(array: jax.Array) -> jax.Array:
    """A count or a random key among batch statistics, as a network in NNX may have one, has no mean."""
    return jnp.asarray(array, jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


class Teachers(NamedTuple):
    """The teachers of a run by their kind: those of `Method.teachers`, and `average` where config.average is set."""

    kinds: Mapping[str, Teacher]

    def init(self, params: tuple[Tree, ...], batch_stats: tuple[Tree, ...]) -> dict[str, Tree]:
        """The variables of all, before the first step."""
        return {name: teacher.init(params, batch_stats) for name, teacher in self.kinds.items()}

    def forward(
        self, variables: dict[str, Tree], params: tuple[Tree, ...], images: jax.Array, key: jax.Array
    ) -> tuple[dict[str, tuple[Outputs, ...]], dict[str, Tree]]:
        """What each says to one view, and the next variables of all."""
        found = {name: teacher.forward(variables[name], params, images, key) for name, teacher in self.kinds.items()}
        return {name: outputs for name, (outputs, _) in found.items()}, {name: own for name, (_, own) in found.items()}

    def follow(
        self, variables: dict[str, Tree], params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], step: jax.Array
    ) -> dict[str, Tree]:
        """The variables of all after an update of the peers."""
        return {
            name: teacher.follow(variables[name], params, batch_stats, step) for name, teacher in self.kinds.items()
        }

    def heads(
        self, variables: dict[str, Tree], params: tuple[Tree, ...], batch_stats: tuple[Tree, ...], images: jax.Array
    ) -> dict[str, jax.Array]:
        """What evaluation reports of all."""
        found: dict[str, jax.Array] = {}
        for name, teacher in self.kinds.items():
            found |= teacher.heads(variables[name], params, batch_stats, images)
        return found
