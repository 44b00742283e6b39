"""A student in memory: its networks, and what they say to images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cutnmix_jax import compiler, digests, own_code
from cutnmix_jax.backbones import shapes_only
from cutnmix_jax.device import set_up_jax
from cutnmix_jax.engine.batches import normalised
from cutnmix_jax.engine.evaluation import log_mean
from cutnmix_jax.errors import UsageError, one_line
from cutnmix_jax.precision import CHOICES
from cutnmix_jax.student.description import Description, check_consent
from cutnmix_jax.types import Backbone, Tree

MOST_AT_ONCE = 256  # images that a network is shown at once

Arrays = Mapping[str, Any]  # the weights of all networks by their names, as `0.params.Conv_0.kernel`
Answer = Callable[[Arrays, jax.Array], jax.Array]  # from weights and images [n, H, W, C] uint8 to logits [n, K]


class Predictions(NamedTuple):
    """What a student says of n images.

    Attributes:
      names: of the most probable class of each image, n of them.
      labels: [n] int64, its number.
      probabilities: [n, K] float32, rows sum to 1.
      logits: [n, K] float32; of an ensemble the logarithm of the mean of its networks' probabilities.
    """

    names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """A trained network, or an ensemble of some, ready for images.

    Attributes:
      description: what is known of it.
      arrays: its weights by their names.
      answer: what its networks compute, a pure function of the weights and of images.
    """

    description: Description
    arrays: Arrays
    answer: Answer

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names, in the order of the logits."""
        return self.description.class_names

    def predict(self, images: Any) -> Predictions:
        """What it says of images.

        Args:
          images: [n, H, W, C] uint8, of `description.image_shape`, with values from 0 to 255.

        Raises:
          ValueError: they are of another shape or type.
        """
        logits = self.logits(images)
        # In float64, so that rows sum to 1 to the last digit of a float32.
        shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        probabilities = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
        labels = logits.argmax(axis=1)
        return Predictions(tuple(self.class_names[label] for label in labels), labels, probabilities, logits)

    def logits(self, images: Any) -> np.ndarray:
        """Its logits for images [n, H, W, C] uint8: [n, K] float32. Raises ValueError as `predict` does."""
        images = np.asarray(images)
        shape = tuple(self.description.image_shape)
        if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
            wanted = f"uint8[n, {', '.join(map(str, shape))}]"
            raise ValueError(f"images are {images.dtype}{list(images.shape)}, not {wanted} with values from 0 to 255")
        parts = [images[start : start + MOST_AT_ONCE] for start in range(0, len(images), MOST_AT_ONCE)]
        answers = [self._program(len(part))(self._on_device, part) for part in parts]
        return np.concatenate(jax.device_get(answers))

    @functools.cached_property
    def _on_device(self) -> dict[str, jax.Array]:
        return {name: jnp.asarray(array) for name, array in self.arrays.items()}

    @functools.cached_property
    def _programs(self) -> dict[int, Any]:
        return {}

    def _program(self, count: int) -> Any:
        """The compiled program for so many images. The last digits depend on their number, so none are made up."""
        if count not in self._programs:
            images = jax.ShapeDtypeStruct((count, *self.description.image_shape), jnp.uint8)
            with set_up_jax(CHOICES[self.description.precision]):
                compiler.check()
                weights = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in self._on_device.items()}
                self._programs[count] = compiler.compiled(self.answer).lower(weights, images).compile()
        return self._programs[count]

    def networks(self, backbone: str | None = None) -> tuple[dict[str, Tree], ...]:
        """The variables of each network, {'params': tree, 'batch_stats': tree}.

        Args:
          backbone: a network of somebody's own, `my_pkg.nets:make`, whose code may be run because the caller says so.

        Raises:
          UsageError: a network is somebody's own and was not named, cannot be made, or is another one now.
        """
        check_consent(self.description.own_backbones, backbone, "the student")
        return networks_of(self)


def make(description: Description, arrays: Arrays) -> Student:
    """A student whose networks are made from their description.

    Args:
      description: of it.
      arrays: its weights by their names.

    Raises:
      UsageError: a network is not known.
      ValueError, KeyError: the weights are not those of its networks.
    """
    backbones = description.make()
    shapes = [shapes_of(network) for network in backbones]
    for j, like in enumerate(shapes):
        variables_of(arrays, j, like)
    return Student(description, arrays, functools.partial(_answered, description, backbones, shapes))


def networks_of(student: Student) -> tuple[dict[str, Tree], ...]:
    """The variables of each network of a student, {'params': tree, 'batch_stats': tree}.

    Raises:
      UsageError: one cannot be made, or its code, which is somebody's own, makes another network now.
    """
    described, found = student.description, []
    made = described.make()
    own_code.check_same(described.run.get("code"), described.own_backbones, "the student")
    for j, network in enumerate(made):
        try:
            found.append(variables_of(student.arrays, j, shapes_of(network)))
        except (ValueError, KeyError) as error:
            raise UsageError(
                f"{network.name} is another network than the one that was saved ({one_line(error)}); use its code of "
                "then"
            ) from error
    return tuple(found)


def named(networks: Sequence[dict[str, Tree]]) -> dict[str, np.ndarray]:
    """The variables of networks by their names, as `0.params.Conv_0.kernel`."""
    return {name: np.asarray(leaf) for name, leaf in digests.flat(jax.device_get(tuple(networks))).items()}


def shapes_of(network: Backbone) -> dict[str, Tree]:
    """Shapes and types of the variables of a network."""
    with shapes_only():
        return jax.eval_shape(network.init, jax.eval_shape(jax.random.key, 0))


def variables_of(arrays: Arrays, j: int, like: dict[str, Tree]) -> dict[str, Tree]:
    """The variables of network j as a tree; ValueError or KeyError where they are not among the arrays."""
    return {part: digests.part_of(dict(arrays), f"{j}.{part}", shapes) for part, shapes in like.items()}


def _answered(
    description: Description,
    backbones: Sequence[Backbone],
    shapes: Sequence[dict[str, Tree]],
    arrays: Arrays,
    images: jax.Array,
) -> jax.Array:
    seen = normalised(images, *description.pixels)
    logits = [
        network.apply(variables_of(arrays, j, like), seen, False)[0].logits
        for j, (network, like) in enumerate(zip(backbones, shapes, strict=True))
    ]
    return logits[0] if len(logits) == 1 else log_mean(logits)
