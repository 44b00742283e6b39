"""Networks beside the peers that no gradient trains: a trained one, running means that teach, averages that do not."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cutnmix_jax.engine.mappings import are_shared
from cutnmix_jax.engine.optim import as_float32, as_types_of
from cutnmix_jax.engine.peers import Peers
from cutnmix_jax.types import Backbone, Tree

MEAN_DECAY = 0.999  # as PCL (Wu and Gong 2021) has it


class Trained(NamedTuple):
    """A trained network: peer 0 of a finished run, or an exported one; `teacher.find` makes it.

    Attributes:
      backbone: the network.
      load: reads its variables, {'params': tree, 'batch_stats': tree}.
      folder: of the run, or of the export.
      weights_sha256: `digests.of_network` of them; None where they are gone, and nothing else tells it.
      is_there: whether its weights are.
      seen: `class_names`, `mean` and `std` of the images that it was trained on; empty where nothing tells them.
    """

    backbone: Backbone
    load: Callable[[], dict[str, Tree]]
    folder: str
    weights_sha256: str | None
    is_there: Callable[[], bool]
    seen: Mapping[str, Any] = MappingProxyType({})


class Companion:
    """A kind of network beside the peers. With `init` alone it never changes, teaches nobody and reports nothing.

    Its variables are an entry of `TrainState.teachers`; `params` and `batch_stats` are those of the peers.
    """

    def init(self, params: Tree, batch_stats: Tree) -> Tree:
        """Its variables before the first step, from those of the peers."""
        raise NotImplementedError

    def forward(self, variables: Tree, params: Tree, images: jax.Array, key: jax.Array) -> tuple[tuple, Tree]:
        """What it teaches: J `Outputs` for the images [J or 1, n, H, W, C], or none; and its next variables.

        Args:
          variables: its own.
          params: of the peers, for their types.
          images: of the peers; 1 where all see the same.
          key: of the forward pass.
        """
        del params, images, key
        return (), variables

    def follow(self, variables: Tree, params: Tree, batch_stats: Tree, step: jax.Array) -> Tree:
        """Its variables after the update of the peers number `step`, from 0."""
        del params, batch_stats, step
        return variables

    def heads(self, variables: Tree, params: Tree, batch_stats: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """What evaluation reports of it: a name -> logits [n, K], for images [n, H, W, C]."""
        del variables, params, batch_stats, images
        return {}


@dataclasses.dataclass(frozen=True)
class Frozen(Companion):
    """A trained network that does not change; `init` gives the shapes, `Companions.with_loaded` puts its variables in.

    It has no heads: its accuracy is that of its own run.
    """

    trained: Trained
    num_peers: int

    def init(self, params: Tree, batch_stats: Tree) -> Tree:
        del params, batch_stats
        return {name: (tree,) for name, tree in self.trained.backbone.init(jax.random.key(0)).items()}

    def forward(self, variables: Tree, params: Tree, images: jax.Array, key: jax.Array) -> tuple[tuple, Tree]:
        del params, key
        shared = are_shared(images, self.num_peers)
        own = {name: trees[0] for name, trees in variables.items()}
        outputs = [self.trained.backbone.apply(own, seen, False)[0] for seen in images]
        return tuple(outputs * self.num_peers if shared else outputs), variables


@dataclasses.dataclass(frozen=True)
class RunningMean(Companion):
    """A running mean of the parameters of every peer (Tarvainen and Valpola 2017), as PCL (Wu and Gong 2021) has it.

    alpha = min(1 - 1 / (step + 1), 0.999); the means keep batch statistics of their own, from batches as in training.
    They are float32 whatever the type of the parameters, and rounded to it where the networks are run: a mean in
    bfloat16 would stand still, because a thousandth of a difference is less than its last bit.
    """

    peers: Peers

    def init(self, params: Tree, batch_stats: Tree) -> Tree:
        return {"params": as_float32(params), "batch_stats": batch_stats}

    def forward(self, variables: Tree, params: Tree, images: jax.Array, key: jax.Array) -> tuple[tuple, Tree]:
        means = as_types_of(params, variables["params"])
        outputs, stats = self.peers.forward(means, variables["batch_stats"], images, True, key)
        return outputs, variables | {"batch_stats": stats}

    def follow(self, variables: Tree, params: Tree, batch_stats: Tree, step: jax.Array) -> Tree:
        alpha = jnp.minimum(1 - 1 / (step + 1.0), MEAN_DECAY)
        return variables | {"params": _moved(variables["params"], params, alpha)}

    def heads(self, variables: Tree, params: Tree, batch_stats: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """`mean_teacher_0`, ...: the mean of each peer."""
        means = as_types_of(params, variables["params"])
        return _evaluated("mean_teacher", self.peers, means, variables["batch_stats"], images)


@dataclasses.dataclass(frozen=True)
class Average(Companion):
    """A running average of every peer, its batch statistics too, that teaches nobody and is evaluated beside the peers.

    The decay grows with the steps t that were done, min(decay, (1 + t) / (10 + t)), so that the first weights are soon
    forgotten. It is float32, as `RunningMean` is, and costs no pass in training.
    """

    peers: Peers
    decay: float

    def init(self, params: Tree, batch_stats: Tree) -> Tree:
        return {"params": as_float32(params), "batch_stats": jax.tree.map(_float32_or_as_it_is, batch_stats)}

    def follow(self, variables: Tree, params: Tree, batch_stats: Tree, step: jax.Array) -> Tree:
        done = step + 1.0
        decay = jnp.minimum(self.decay, (1 + done) / (10 + done))
        return {
            "params": _moved(variables["params"], params, decay),
            "batch_stats": _moved(variables["batch_stats"], batch_stats, decay),
        }

    def heads(self, variables: Tree, params: Tree, batch_stats: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """`average_0`, ...: the average of each peer."""
        averages = as_types_of(params, variables["params"]), as_types_of(batch_stats, variables["batch_stats"])
        return _evaluated("average", self.peers, *averages, images)


def _evaluated(name: str, peers: Peers, params: Tree, batch_stats: Tree, images: jax.Array) -> dict[str, jax.Array]:
    outputs, _ = peers.forward(params, batch_stats, images[None], False, jax.random.key(0))  # nothing is drawn
    return {f"{name}_{j}": out.logits for j, out in enumerate(outputs)}


def _moved(mean: Tree, towards: Tree, decay: jax.Array) -> Tree:
    def move(old: jax.Array, new: jax.Array) -> jax.Array:
        new = _float32_or_as_it_is(new)
        return decay * old + (1 - decay) * new if new.dtype == jnp.float32 else new

    return jax.tree.map(move, mean, towards)


def _float32_or_as_it_is(array: jax.Array) -> jax.Array:
    """A count or a random key among batch statistics, as a network in NNX may have one, has no mean."""
    return jnp.asarray(array, jnp.float32) if jnp.issubdtype(array.dtype, jnp.floating) else array


class Companions(NamedTuple):
    """Those of a run by their kind: the ones of `Method.teachers`, and `average` where config.average is set."""

    kinds: Mapping[str, Companion]

    def init(self, params: Tree, batch_stats: Tree) -> dict[str, Tree]:
        """The variables of all, before the first step."""
        return {name: one.init(params, batch_stats) for name, one in self.kinds.items()}

    @property
    def trained(self) -> Trained | None:
        """The trained network among them; None where there is none."""
        frozen = self.kinds.get("frozen")
        return frozen.trained if isinstance(frozen, Frozen) else None

    def with_loaded(self, variables: dict[str, Tree]) -> dict[str, Tree]:
        """The variables of all, those of the trained network read from its folder; not to be compiled."""
        if self.trained is None:
            return variables
        return variables | {"frozen": {name: (tree,) for name, tree in self.trained.load().items()}}

    def forward(
        self, variables: Tree, params: Tree, images: jax.Array, key: jax.Array
    ) -> tuple[dict[str, tuple], Tree]:
        """What each says to one view, and the next variables of all."""
        found = {name: one.forward(variables[name], params, images, key) for name, one in self.kinds.items()}
        return {name: outputs for name, (outputs, _) in found.items()}, {name: own for name, (_, own) in found.items()}

    def follow(self, variables: Tree, params: Tree, batch_stats: Tree, step: jax.Array) -> Tree:
        """The variables of all after an update of the peers."""
        return {name: one.follow(variables[name], params, batch_stats, step) for name, one in self.kinds.items()}

    def heads(self, variables: Tree, params: Tree, batch_stats: Tree, images: jax.Array) -> dict[str, jax.Array]:
        """What evaluation reports of all."""
        each = [one.heads(variables[name], params, batch_stats, images) for name, one in self.kinds.items()]
        return {name: logits for heads in each for name, logits in heads.items()}
