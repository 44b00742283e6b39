"""Loss terms as pure functions of arrays.

Per-example functions return one value per image, so that the caller chooses the mean. Nothing here stops a gradient:
which side of a term is a target is a method's decision. K classes, n images, D features.
"""

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
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def tempered_kl(student_logits: jax.Array, teacher_logits: jax.Array, temperature: float) -> jax.Array:
    """Distillation loss of Eq. 1, also the summand of Eq. 4 and of Eq. 10.

    tau^2 KL(q || p) with q = softmax(teacher / tau) and p = softmax(student / tau). The paper writes the student first,
    in the order of the arguments of PyTorch's `kl_div`, which is this direction. tau^2 keeps the size of the gradient
    the same at every temperature (Hinton et al. 2015).

    Args:
      student_logits: [..., K] float.
      teacher_logits: [..., K] float, the target.
      temperature: tau > 0.

    Returns:
      [...] float >= 0, in nats; 0 where both distributions are equal.
    """
    log_p = jax.nn.log_softmax(student_logits / temperature)
    log_q = jax.nn.log_softmax(teacher_logits / temperature)
    return temperature**2 * jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def mmd(features: jax.Array, other_features: jax.Array) -> jax.Array:
    """Squared distance of the mean features: the summand of Eq. 9, a linear-kernel MMD.

    || mean_i f_i - mean_i g_i ||_2^2, summed over features and not normalised, so its size grows with D.

    Args:
      features: [n, D] float.
      other_features: [m, D] float.

    Returns:
      Scalar float >= 0; 0 where the means are equal.
    """
    difference = jnp.mean(features, axis=0) - jnp.mean(other_features, axis=0)
    return jnp.sum(difference**2)
