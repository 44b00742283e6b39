"""Loss terms as pure functions of arrays.

Per-example functions return one value per image, so that the caller chooses the mean. Nothing here stops a gradient:
which side of a term is a target is a method's decision. K classes, n images, D features.
"""

import functools
import math

import jax
import jax.numpy as jnp


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy against a distribution over classes: L_CE of Eq. 8 with the mixed labels of Eq. 6.

    -sum_c targets_c log softmax(logits)_c

    Args:
      logits: [..., K] float.
      targets: [..., K] float, rows sum to 1.

    Returns:
      [...] float, in nats.

    Raises:
      ValueError: the shapes differ.

    Example:
      Half of each of two classes, of a network that cannot tell four apart:

      >>> from cutnmix_jax.losses import soft_cross_entropy
      >>> f"{soft_cross_entropy(jnp.zeros(4), jnp.array([0.5, 0.5, 0.0, 0.0])):.4f}"  # log 4
      '1.3863'
    """
    _same(logits=logits, targets=targets)
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def tempered_kl(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """Distillation loss of Eq. 1, also the summand of Eq. 4 and of Eq. 10.

    tau^2 KL(q || p) with q = softmax(teacher / tau) and p = softmax(student / tau). The paper writes the student first,
    in the order of the arguments of PyTorch's `kl_div`, which is this direction. tau^2 keeps the size of the gradient
    the same at every temperature (Hinton et al. 2015).

    It is summed as sum_c q (e^r - 1 - r) with r = log p - log q, the same number because both distributions sum to 1.
    No summand is negative, and none loses its digits where p is close to q, as all are at a high temperature.

    Args:
      student_logits: [..., K] float.
      teacher_logits: [..., K] float, the target.
      temperature: tau > 0, a Python number; right to rounding from 1e-3 to 1e6.

    Returns:
      [...] float >= 0, in nats; 0 where both distributions are equal.

    Raises:
      ValueError: the shapes differ, or the temperature is not above 0.

    Example:
      >>> from cutnmix_jax.losses import tempered_kl
      >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, jnp.log(3.0)]])
      >>> f"{tempered_kl(student, teacher, 1.0)[0]:.4f}"  # of 1/4, 3/4 and 1/2, 1/2
      '0.1308'
      >>> tempered_kl(teacher, teacher, 3.0).tolist()
      [0.0]
    """
    _same(student_logits=student_logits, teacher_logits=teacher_logits)
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: must be above 0")
    return temperature**2 * _divergence(student_logits, teacher_logits, temperature)[0]


@tempered_kl.defjvp
def _tempered_kl_jvp(
    temperature: float, logits: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """The gradients tau (p - q) and tau q (E_q[d] - d), since autodiff would lose the digits of p - q."""
    kl, q, d, p_minus_q = _divergence(*logits, temperature)
    student, teacher = tangents
    # From 0 at the likeliest class: there the mean is nearly d itself, and their difference would lose its digits, too.
    d -= jnp.max(jnp.where(q == jnp.max(q, axis=-1, keepdims=True), d, -jnp.inf), axis=-1, keepdims=True)
    below_mean = q * (jnp.sum(q * d, axis=-1, keepdims=True) - d)
    return temperature**2 * kl, temperature * jnp.sum(p_minus_q * student + below_mean * teacher, axis=-1)


def _divergence(
    student_logits: jax.Array, teacher_logits: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """KL(q || p) [...]; and q, d and p - q, all [..., K]: d is log p - log q but for a number common to all classes."""
    highest = [jnp.max(logits, axis=-1, keepdims=True) for logits in (student_logits, teacher_logits)]
    a, b = [jnp.exp((z - top) / temperature) for z, top in zip((student_logits, teacher_logits), highest, strict=True)]
    total = jnp.sum(b, axis=-1, keepdims=True)
    q = b / total
    d = ((student_logits - teacher_logits) - (highest[0] - highest[1])) / temperature
    # q (e^d - 1), where e^d may overflow and where a - b may lose its digits
    growth = jnp.where(jnp.abs(d) < 1, q * jnp.expm1(jnp.clip(d, -1, 1)), (a - b) / total)
    common = jnp.log1p(jnp.sum(growth, axis=-1, keepdims=True))
    r, p_minus_q = d - common, growth * jnp.exp(-common) + q * jnp.expm1(-common)
    near = jnp.clip(r, -0.5, 0.5)
    series = jnp.zeros(())
    for k in range(9, 1, -1):  # (e^r - 1 - r) / r^2; the next term is below the rounding of a float32
        series = 1 / math.factorial(k) + near * series
    kl = jnp.sum(jnp.where(jnp.abs(r) < 0.5, q * near**2 * series, p_minus_q - q * r), axis=-1)
    return kl, q, d, p_minus_q


def mmd(features: jax.Array, other_features: jax.Array) -> jax.Array:
    """Squared distance of the mean features: the summand of Eq. 9, a linear-kernel MMD.

    || mean_i f_i - mean_i g_i ||_2^2, summed over features and not normalised, so its size grows with D.

    Args:
      features: [n, D] float.
      other_features: [m, D] float.

    Returns:
      Scalar float >= 0; 0 where the means are equal.

    Raises:
      ValueError: they are not of two axes each, or D differs.

    Example:
      >>> from cutnmix_jax.losses import mmd
      >>> float(mmd(jnp.array([[0.0, 0.0], [2.0, 4.0]]), jnp.array([[1.0, 0.0]])))  # of the means 1, 2 and 1, 0
      4.0
    """
    if features.ndim != 2 or other_features.ndim != 2 or features.shape[1] != other_features.shape[1]:
        shapes = f"{list(features.shape)} and {list(other_features.shape)}"
        raise ValueError(f"features and other_features are [n, D] and [m, D], not {shapes}")
    difference = jnp.mean(features, axis=0) - jnp.mean(other_features, axis=0)
    return jnp.sum(difference**2)


def _same(**arrays: jax.Array) -> None:
    """Raises ValueError unless arrays have one shape: JAX would broadcast them, and the number would be another one."""
    (name, array), (other, another) = arrays.items()
    if jnp.shape(array) != jnp.shape(another):
        raise ValueError(f"{name} {list(jnp.shape(array))} and {other} {list(jnp.shape(another))} differ in shape")
