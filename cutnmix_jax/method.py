"""What a training method is, and what a row of the tables says of one. The methods themselves are in `methods/`."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax

from cutnmix_jax.types import Batch, Clock, Outputs, Spec, Terms, Tree, Views


class View(NamedTuple):
    """One of the views of an image that each network sees in a step.

    Attributes:
      same_class: whether it is another training image of the class; otherwise it is the image of the batch.
      crop: whether it is cropped, mirrored and coloured anew; otherwise it is the image as it lies in the data set.
    """

    same_class: bool = False
    crop: bool = True


TEACHERS = ("frozen", "mean")  # what `Method.teachers` may name
HOW_MANY = "config.num_peers or config.peers"  # what sets the number of networks, as messages name it


class Setup(NamedTuple):
    """What a method is asked to train with.

    Attributes:
      row: what a person calls it.
      num_classes: K.
      backbones: the name of each of J networks.
      share_trunk: whether they share a trunk.
      mix_kind: how batches are mixed, one of `augment.MIX_KINDS`.
      same_images: whether all networks see the same images.
      held_out_examples: how many images are held out of training and shown to `calibrate`.
      teacher: the backbone of the trained teacher; None where there is none.
    """

    row: str
    num_classes: int
    backbones: tuple[str, ...]
    share_trunk: bool
    mix_kind: str
    same_images: bool
    held_out_examples: int
    teacher: str | None


@dataclasses.dataclass(frozen=True)
class Method:
    """A training method: its options are fields, what it needs and computes are attributes and pure functions.

    Attributes:
      views: what each network sees of an image in a step.
      teachers: networks that are not trained by a gradient: `frozen`, the one that `config.teacher` names, and `mean`,
        a running mean of the parameters of every peer.
      meanings: the name of a loss term -> what it is, or what it learns from, for those who read its name for the first
        time; any may be left out.
      remembers: whether it learns from what was said of an image in earlier epochs, so that its terms depend on which
        images of the training set they are.
      counts_epochs: whether its terms depend on the epoch and on how many the run has, so that a longer run is another
        one from its first epoch on.
    """

    views: ClassVar[tuple[View, ...]] = (View(),)
    teachers: ClassVar[tuple[str, ...]] = ()
    meanings: ClassVar[Mapping[str, str]] = {}
    remembers: ClassVar[bool] = False
    counts_epochs: ClassVar[bool] = False

    @property
    def needs_teacher(self) -> bool:
        """Whether one of its teachers is a trained network."""
        return "frozen" in self.teachers

    @property
    def calibrates(self) -> bool:
        """Whether `calibrate` is called after each epoch."""
        return False

    def check(self, setup: Setup) -> None:
        """Raises UsageError where the method is not defined for what it is asked to train with."""

    def init(self, key: jax.Array, spec: Spec) -> tuple[Tree, Tree]:
        """Its own trained parameters, and its other state."""
        del key, spec
        return {}, {}

    def loss(self, params: Tree, state: Tree, views: Views, batch: Batch, clock: Clock) -> tuple[Terms, Tree]:
        """Its terms, each [J] or a scalar, and the next state.

        Args:
          params: its own.
          state: its own.
          views: of each view the outputs of J networks.
          batch: what they saw.
          clock: where in the run the step stands.
        """
        raise NotImplementedError

    def students(self, outputs: tuple[Outputs, ...]) -> tuple[Outputs, ...]:
        """The outputs of those networks that count as peers, which are the first ones; accuracies are theirs."""
        return outputs

    def heads(self, params: Tree, state: Tree, outputs: tuple[Outputs, ...]) -> dict[str, jax.Array]:
        """Classifiers besides the peers that evaluation reports: a name -> logits [n, K]."""
        del params, state, outputs
        return {}

    def calibrate(self, state: Tree, logits: jax.Array, labels: jax.Array) -> Tree:
        """The next state, from what the peers say, [J, M, K], of M images that are not trained on, and their labels."""
        del logits, labels
        return state


def same_images(views: str, mix_kind: str) -> bool:
    """Whether all networks see the same images, one crop and flip, and one box: of `Row.views` and `Row.mix`."""
    return views == "shared" and mix_kind != "cutnmix"


@dataclasses.dataclass(frozen=True)
class Row:
    """What a row of the tables says of a run; all else follows one recipe (section 3.2).

    Attributes:
      method: with its options.
      weights: a term's name -> its weight; with 0 it is measured and not trained on.
      num_peers: J.
      views: `per_peer`, a crop and flip for each peer, or `shared`, one for all.
      mix: how batches are mixed.
      share_trunk: whether the peers share one trunk.
      ramp_up: the terms whose weights rise over the first `config.ramp_up.epochs` epochs.
      headline: the accuracy that the tables show: `accuracy`, the peers' mean, `accuracy_ensemble`, or `accuracy_` and
        the name of one of the method's heads.
    """

    method: Method
    weights: Mapping[str, float]
    num_peers: int = 2
    views: str = "shared"
    mix: str = "none"
    share_trunk: bool = False
    ramp_up: tuple[str, ...] = ()
    headline: str = "accuracy"
