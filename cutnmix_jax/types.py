"""The types of the data that the modules pass to one another; no logic.

J peers, K classes, n images in a batch, D features; images are NHWC.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Tree = Any  # a pytree of arrays
ImageShape = tuple[int, int, int]  # (H, W, C)
CIFAR: ImageShape = (32, 32, 3)
Size = tuple[int, int]  # (H, W)
EpochRow = dict[str, Any]  # a line of metrics.jsonl: what was measured in an epoch


class Dataset(NamedTuple):
    """A whole data set, in host memory or in files that are mapped into it.

    Attributes:
      name: as in `--config=FILE:name,method`.
      train_images: [N, H, W, 3] uint8.
      train_labels: [N] int32 in [0, K).
      test_images: [M, H, W, 3] uint8.
      test_labels: [M] int32 in [0, K).
      class_names: K names, in the order of the labels.
      mean: [3] float32 mean of the training pixels in [0, 1], per channel.
      std: [3] float32 standard deviation likewise.
      flip: whether a mirror image keeps its class; false for digits.
      sha256: what tells the whole set from others, where that is known without reading it; empty elsewhere.
    """

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: np.ndarray
    std: np.ndarray
    flip: bool
    sha256: str = ""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)


class Outputs(NamedTuple):
    """What one network returns for a batch.

    Attributes:
      logits: [n, K] float32.
      features: [n, D] float32, the pooled features before the classifier (x_f in the paper's sources).
      trunk: [n, C] float32, the pooled output of the trunk that the networks share; None where they share none.
    """

    logits: jax.Array
    features: jax.Array
    trunk: jax.Array | None = None


Views = tuple[tuple[Outputs, ...], ...]  # of each view the outputs of J networks


class Backbone(NamedTuple):
    """A network as two pure functions.

    Attributes:
      name: how the user asked for it.
      init: `init(key) -> {'params': tree, 'batch_stats': tree}`.
      apply: `apply(variables, images, train, key=None) -> (Outputs, batch_stats)`, with images [n, H, W, C] float32,
        already normalised; `train` a Python bool; `key` for networks with dropout. In evaluation the returned
        `batch_stats` are those that went in.
      image_shape: (H, W, C), of the images that it is made for.
      split: how the network falls into a trunk that peers can share and a tail; None where it does not.
    """

    name: str
    init: Callable[[jax.Array], dict[str, Tree]]
    apply: Callable[..., tuple[Outputs, Tree]]
    image_shape: ImageShape = CIFAR
    split: "Split | None" = None


class Split(NamedTuple):
    """A network in two parts; `apply` of the network is its tail after its trunk.

    Attributes:
      names: tells the trunk's entries at the top of the trees of parameters and of batch statistics; traces it once.
      trunk: as `Backbone.apply`, but returns the feature maps [n, h, w, C] instead of `Outputs`; reads the trunk's
        variables alone, and returns its batch statistics alone.
      tail: as `Backbone.apply`, but takes the feature maps instead of images; the tail's variables alone, likewise.
    """

    names: Callable[[], frozenset[str]]
    trunk: Callable[..., tuple[jax.Array, Tree]]
    tail: Callable[..., tuple[Outputs, Tree]]


class Batch(NamedTuple):
    """One training batch as the peers see it.

    Attributes:
      images: [views, J, n, H, W, C] float32, normalised; [views, 1, n, H, W, C] where all peers see the same.
      targets: [views, J, n, K] float32, rows sum to 1. Equal over peers wherever Eq. 7 holds.
      labels: [n] int32, the class of the image before mixing.
      indices: [n] int32, the image's row in the training set.
      teachers: the name of a teacher -> for each view its J `Outputs`, on the images of each peer.
    """

    images: jax.Array
    targets: jax.Array
    labels: jax.Array
    indices: jax.Array
    teachers: "Mapping[str, Views]" = {}  # an empty one that nobody writes into


class Mix(NamedTuple):
    """How a batch was mixed; what the picture of the first batch shows.

    The axes of lambda and of the boxes are those of the images before n: [B] from `augment.mix`; [views, J] of a batch
    of a run, or [views, 1] where all peers see the same; [J], or none at all, from the functions of `mixing`.

    Attributes:
      partner: [n] int32, k of Eq. 5: the row of the batch that is mixed into each row.
      amount: float32, lambda of Eq. 6: the share of the partner in the image and in the target.
      boxes: [..., 4] int32 as (top, left, height, width); a box may wrap around only where `mix.box` says so. All zero
        for MixUp and where nothing was mixed.
    """

    partner: jax.Array
    amount: jax.Array
    boxes: jax.Array


class Clock(NamedTuple):
    """Where a step stands in the run; scalars.

    Attributes:
      step: int32, optimizer steps done before this one.
      epoch: int32, 0-based.
      epochs: int32, how many the run has.
      learning_rate: float32, of this step.
    """

    step: jax.Array
    epoch: jax.Array
    epochs: jax.Array
    learning_rate: jax.Array


class TrainState(NamedTuple):
    """Everything that training changes; a step changes no array's type.

    What is said to be a tuple with a tree for each peer is a `Stack` or a `Packed` where the peers are mapped, see
    `engine.peers`.

    Attributes:
      step: int32 scalar, optimizer steps done.
      params: {'peers': (tree of peer 0, ...), 'method': tree}; float32, or the types that a user's network gives them.
      batch_stats: (tree of peer 0, ...), likewise.
      method_state: what a method carries along without a gradient.
      opt_state: the optimizer's, over `params`; float32.
      teachers: the name of a teacher -> {'params': (tree, ...), 'batch_stats': (tree, ...)}: of the frozen one, of the
        mean of every peer, or of their average, whose params are float32.
    """

    step: jax.Array
    params: dict[str, Tree]
    batch_stats: Tree
    method_state: Tree
    opt_state: Tree
    teachers: Tree


class Spec(NamedTuple):
    """What a method may want to know before it makes its parameters.

    Attributes:
      num_classes: K.
      feature_sizes: D of each peer.
      num_train: N, examples in the training set.
      trunk_size: C, channels of the shared trunk; None where there is none.
    """

    num_classes: int
    feature_sizes: tuple[int, ...]
    num_train: int
    trunk_size: int | None = None


class Totals(NamedTuple):
    """What training has seen in the steps of the epoch so far.

    Attributes:
      sums: a metric's name -> its float32 sum over the steps.
      broken: likewise -> int32, the first step, counted from 1, in which it was not finite, or `NEVER`.
    """

    sums: dict[str, jax.Array]
    broken: dict[str, jax.Array]


NEVER = 2**31 - 1
Terms = dict[str, jax.Array]  # a loss term's name -> [J], one value per peer, or a scalar
