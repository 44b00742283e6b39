"""A row of the paper's tables: a method with its options, and what its networks see."""

import dataclasses
from collections.abc import Mapping

from cutnmix_jax.method import Method


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
      headline: the accuracy that the tables show; that of the peers' mean, or `accuracy_` and the name of a head.
    """

    method: Method
    weights: Mapping[str, float]
    num_peers: int = 2
    views: str = "shared"
    mix: str = "none"
    share_trunk: bool = False
    ramp_up: tuple[str, ...] = ()
    headline: str = "accuracy"
