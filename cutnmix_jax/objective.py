"""What a method minimises, from the outputs of its networks: for a training loop of one's own, and for a run.

J peers, K classes, n images, D features.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cutnmix_jax import arguments, fields, methods
from cutnmix_jax.errors import UsageError
from cutnmix_jax.method import HOW_MANY, Method, Row, Setup, same_images
from cutnmix_jax.names import check_any_weight, check_weights, is_looked_at, term_names
from cutnmix_jax.types import Batch, Clock, Spec, Terms, Tree, Views


def weighted(terms: Terms, weight: Callable[[str], jax.Array | float]) -> jax.Array:
    """The sum over terms of weight times the sum over peers (Eq. 8).

    A term of weight 0 is left out, not multiplied by it: an ablated term that overflows must not spread.

    Args:
      terms: a name -> [J], or a scalar.
      weight: of a name; a Python number where it is 0.
    """
    loss = jnp.zeros(())
    for name, term in terms.items():
        factor = weight(name)
        if isinstance(factor, jax.Array) or factor != 0:
            loss += factor * term.sum()
    return loss


@dataclasses.dataclass(frozen=True, eq=False)  # JAX hashes what it compiles, and a mapping of weights has no hash
class Objective:
    """The loss of a row of the tables for J networks, made by `objective_of`.

    It knows no images, no labels that are not mixed, no steps and no learning rate: a method of one's own that looks at
    them is trained with `train`.

    Attributes:
      method: with its options.
      weights: the name of a term -> its weight.
      spec: K, and D of each network.
    """

    method: Method
    weights: Mapping[str, float]
    spec: Spec

    def init(self, key: jax.Array) -> tuple[Tree, Tree]:
        """The method's own parameters, as those of the peer teacher, which want an optimizer too; and its state."""
        return self.method.init(key, self.spec)

    @functools.cached_property
    def _reads_epochs(self) -> bool:
        return self.method.counts_epochs or bool(is_looked_at(self.method, self.spec)[1].epoch)

    @functools.cached_property
    def _variables(self) -> tuple[Tree, Tree]:
        """What `init` returns, without numbers."""
        return jax.eval_shape(self.init, jax.eval_shape(jax.random.key, 0))

    def __call__(
        self,
        params: Tree,
        state: Tree,
        outputs: Sequence[Any],
        targets: jax.Array,
        *,
        indices: jax.Array | None = None,
        teachers: Mapping[str, Views] | None = None,
        epoch: jax.Array | int | None = None,
        epochs: jax.Array | int | None = None,
    ) -> tuple[jax.Array, tuple[Terms, Tree]]:
        """The loss of a batch, whose gradient goes wherever the method lets it.

        Args:
          params: from `init`, or trained since.
          state: from `init`, or what the last call returned.
          outputs: `Outputs` of each of J networks, logits [n, K] and features [n, D]. For a method with several views
            a sequence of such, one for each view.
          targets: [n, K] for all networks alike, or [J, n, K]; with several views also [views, J, n, K].
          indices: [n] int32, the rows of the training set that the images are, where the method remembers images.
          epoch: 0-based, where its terms depend on it.
          epochs: of the whole training, likewise.
          teachers: the name of a teacher -> for each view its J `Outputs`, where the method has any.

        Returns:
          The loss, a scalar, each term times its weight and summed over peers (Eq. 8); and the terms, a name -> [J]
          or a scalar, with the method's next state.

        Raises:
          ValueError: arrays of other shapes; or something that this method wants is missing, or out of range.
        """
        views = arguments.views_of(self.method, outputs)
        n = arguments.check_outputs(views, self.spec)
        if missing := set(self.method.teachers) - set(teachers or {}):
            raise ValueError(f"teachers: no outputs of the {sorted(missing)[0]!r} one, which this method learns from")
        for name, of_teacher in (teachers or {}).items():
            arguments.check_teacher(name, self.method, of_teacher, views)
        if self.method.remembers and indices is None:
            raise ValueError("indices are missing: this method remembers what it saw of an image")
        if self._reads_epochs:
            arguments.check_epoch(epoch, epochs, self.method.counts_epochs)
        if indices is not None and indices.shape != (n,):
            raise ValueError(f"indices are {list(indices.shape)}, not {[n]}")
        if indices is not None and self.method.remembers:
            arguments.check_rows(indices, self.spec.num_train)
        for what, given, like in zip(("params", "state"), (params, state), self._variables, strict=True):
            arguments.check_like(what, given, like)
        now, total = jnp.asarray(0 if epoch is None else epoch), jnp.asarray(1 if epochs is None else epochs)
        clock = Clock(step=jnp.int32(0), epoch=now, epochs=total, learning_rate=jnp.float32(0))
        whole = arguments.whole_targets(targets, views, n, self.spec.num_classes)
        batch = Batch(
            images=jnp.zeros((*whole.shape[:3], 0, 0, 0)),  # at which the method does not look, see `make`
            targets=whole,
            labels=jnp.zeros(n, jnp.int32),  # likewise
            indices=jnp.zeros(n, jnp.int32) if indices is None else indices,
            teachers=teachers or {},
        )
        terms, state = self.method.loss(params, state, views, batch, clock)
        return weighted(terms, self.weights.__getitem__), (terms, state)


def make(
    row: str, num_classes: int, feature_sizes: Sequence[int], *, num_train: int = 0, weights: Mapping[str, float] = {},
    **options: Any,
) -> Objective:  # fmt: skip
    """The objective of a row of the tables, as `cutnmix` or `dml`.

    Args:
      row: its name.
      num_classes: K.
      feature_sizes: D of each of J networks.
      num_train: images in the training set, for a method that remembers something of each.
      weights: of terms, instead of the row's own.
      **options: of the method, instead of the row's own, as `temperature=1.0`.

    Raises:
      ValueError: there is no such row, option or term.

    Example:
      >>> import cutnmix_jax
      >>> objective = cutnmix_jax.objective_of("dml", 3, (4, 4), temperature=1.0, weights={"dml": 2.0})
      >>> params, state = objective.init(jax.random.key(0))
      >>> outputs = [cutnmix_jax.Outputs(jnp.eye(3) * scale, jnp.zeros((3, 4))) for scale in (1.0, 2.0)]
      >>> loss, (terms, _) = objective(params, state, outputs, jnp.eye(3))
      >>> sorted(terms), terms["dml"].shape
      (['ce', 'dml'], (2,))
    """
    try:
        found = methods.row(row)
    except UsageError as error:
        raise ValueError(str(error)) from error
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: at least 2 are told apart")
    if not len(feature_sizes) or min(feature_sizes) < 1:
        raise ValueError(f"feature_sizes={list(feature_sizes)}: give that of each network, 1 or more")
    known = {field.name: field for field in dataclasses.fields(found.method)}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"{row} has no option {name!r}; it has {', '.join(known) or 'none'}")
        if wrong := known[name].metadata["check"](value):
            raise ValueError(f"{name}={value!r}: {wrong}")
    for name, value in weights.items():
        if name not in found.weights:
            raise ValueError(f"{row} has no term {name!r}; it has {', '.join(found.weights)}")
        if wrong := fields.weight(value):
            raise ValueError(f"weights[{name!r}]={value!r}: {wrong}")
    method = dataclasses.replace(found.method, **options)
    if found.share_trunk:
        raise ValueError(f"{row} is of branches that share a trunk; train it with `train`")
    if found.ramp_up:
        raise ValueError(f"the weights of {row} rise over the epochs; train it with `train`")
    if method.remembers and num_train < 1:
        raise ValueError(f"num_train is missing: {row} remembers what it saw of each image")
    if method.calibrates:
        raise ValueError(
            f"{row} weighs its peers by held-out images after each epoch, with these options; train it with `train`"
        )
    made = Objective(method, {**found.weights, **weights}, Spec(num_classes, tuple(feature_sizes), num_train))
    try:
        _check(row, found, made)
    except UsageError as error:
        raise ValueError(str(error).replace(HOW_MANY, "feature_sizes").removeprefix("config.")) from error
    return made


def _check(name: str, row: Row, made: Objective) -> None:
    """Raises UsageError where the method is not defined for so many networks, or a weight is of no term."""
    spec, names = made.spec, ("a network",) * len(made.spec.feature_sizes)
    same = same_images(row.views, row.mix)
    made.method.check(Setup("the method", spec.num_classes, names, row.share_trunk, row.mix, same, 0, names[0]))
    check_any_weight(made.weights)
    check_weights(name, made.weights, row.weights, term_names(made.method, spec), spec)
    batch, clock = is_looked_at(made.method, spec)
    unknown = {"images": batch.images, "labels": batch.labels, "step": clock.step, "learning_rate": clock.learning_rate}
    if looked_at := [field for field, is_read in unknown.items() if is_read]:
        what = f"the loss of {name} looks at {looked_at[0]!r}, which an objective does not know"
        raise UsageError(f"{what}; train it with `train`")
