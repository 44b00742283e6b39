"""Loss terms against hand values, float64 numpy, limits and numerical gradients."""

import decimal
from decimal import Decimal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import losses

RANDOM = np.random.default_rng(0)
STUDENT, TEACHER = RANDOM.normal(size=(2, 5, 7)) * 3
TARGETS = RANDOM.dirichlet(np.ones(7), size=5)


def softmax64(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def kl64(target, student):
    return (target * np.log(target / student)).sum(axis=-1)


def numerical_gradient(function, x, h=1e-5):
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[at] += h
        down[at] -= h
        gradient[at] = (function(up) - function(down)) / (2 * h)
    return gradient


def test_cross_entropy_hand_values():
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))  # probabilities 1/4, 3/4 and 1/2, 1/2
    targets = jnp.array([[0.0, 1.0], [0.3, 0.7]])
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, targets), [np.log(4 / 3), np.log(2)], rtol=1e-6)


def test_cross_entropy_against_numpy():
    expected = [
        -sum(t * np.log(p) for t, p in zip(*row, strict=True)) for row in zip(TARGETS, softmax64(STUDENT), strict=True)
    ]
    np.testing.assert_allclose(losses.soft_cross_entropy(jnp.array(STUDENT), jnp.array(TARGETS)), expected, rtol=1e-5)


def test_cross_entropy_of_a_mixed_label_is_the_mix_of_cross_entropies():
    logits = jnp.array(STUDENT)
    one, other = (jnp.broadcast_to(jax.nn.one_hot(label, 7), logits.shape) for label in (2, 5))
    mixed = losses.soft_cross_entropy(logits, 0.3 * one + 0.7 * other)
    apart = 0.3 * losses.soft_cross_entropy(logits, one) + 0.7 * losses.soft_cross_entropy(logits, other)
    np.testing.assert_allclose(mixed, apart, rtol=1e-5)


def test_kl_hand_value_and_direction():
    student, teacher = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.9, 0.1]))
    towards_student = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)  # KL(teacher || student), not its reverse
    np.testing.assert_allclose(losses.tempered_kl(student, teacher, 1.0), towards_student, rtol=1e-5)
    assert abs(towards_student - (0.5 * np.log(0.5 / 0.9) + 0.5 * np.log(0.5 / 0.1))) > 0.1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0, 20.0])
def test_kl_against_numpy(temperature):
    expected = temperature**2 * kl64(softmax64(TEACHER / temperature), softmax64(STUDENT / temperature))
    found = losses.tempered_kl(jnp.array(STUDENT), jnp.array(TEACHER), temperature)
    np.testing.assert_allclose(found, expected, rtol=2e-4)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_kl_of_equals_is_exactly_zero_and_ignores_shifts(temperature):
    logits = jnp.array(STUDENT)
    np.testing.assert_array_equal(losses.tempered_kl(logits, logits, temperature), 0.0)
    np.testing.assert_allclose(losses.tempered_kl(logits, logits + 5.0, temperature), 0.0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0, -3.0, float("nan")])
def test_a_temperature_is_above_0(temperature):
    with pytest.raises(ValueError, match=f"temperature={temperature}: must be above 0"):
        losses.tempered_kl(jnp.array(STUDENT), jnp.array(TEACHER), temperature)


def test_kl_scales_with_the_square_of_the_temperature():
    at_three = losses.tempered_kl(jnp.array(3 * STUDENT), jnp.array(3 * TEACHER), 3.0)
    at_one = losses.tempered_kl(jnp.array(STUDENT), jnp.array(TEACHER), 1.0)
    np.testing.assert_allclose(at_three, 9 * at_one, rtol=1e-5)


def test_kl_at_high_temperature_is_half_the_variance_of_the_difference():
    # tau^2 KL -> 1/2 Var_c(z_student - z_teacher) as tau -> infinity (Hinton et al. 2015, section 2.1)
    limit = 0.5 * (STUDENT - TEACHER).var(axis=-1)
    np.testing.assert_allclose(losses.tempered_kl(jnp.array(STUDENT), jnp.array(TEACHER), 100.0), limit, rtol=0.05)


TEMPERATURES = [1e-3, 0.1, 1.0, 3.0, 20.0, 1e3, 1e6]  # from one end of the accepted range to the other


def exact_kl(student, teacher, tau):
    """tau^2 KL and its gradients tau (p - q) and -tau q (log p - log q + KL), with sixty digits."""
    with decimal.localcontext() as context:
        context.prec, context.Emin = 60, decimal.MIN_EMIN
        tau = Decimal(tau)
        scaled = [[Decimal(float(z)) / tau for z in logits] for logits in (student, teacher)]
        p, q = ([(z - max(row)).exp() for z in row] for row in scaled)
        p, q = ([x / sum(row) for x in row] for row in (p, q))
        r = [x.ln() - y.ln() for x, y in zip(p, q, strict=True)]
        kl = -sum(x * y for x, y in zip(q, r, strict=True))
        to_student = [float(tau * (x - y)) for x, y in zip(p, q, strict=True)]
        to_teacher = [float(-tau * x * (y + kl)) for x, y in zip(q, r, strict=True)]
        return float(tau * tau * kl), np.array(to_student), np.array(to_teacher)


def kl_and_slopes(student, teacher, temperature):
    """For each row its divergence [n], and the gradients of both arguments [n, K]."""
    return jax.vmap(jax.value_and_grad(losses.tempered_kl, (0, 1)), (0, 0, None))(student, teacher, temperature)


@pytest.mark.parametrize("close", [1, 1e-3, 1e-6])
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_and_its_gradients_over_the_whole_range(temperature, close):
    """Logits from nearly equal to nearly one-hot, a student far from its teacher and all but equal to it."""
    rng = np.random.default_rng(int(1e3 * temperature))
    spread = np.array([1e-3, 1, 10, 100, 1e4])[:, None]
    teacher = np.float32(spread * rng.normal(size=(5, 12)))
    student = np.float32(teacher + close * spread * rng.normal(size=(5, 12)))

    for run in (kl_and_slopes, jax.jit(kl_and_slopes, static_argnums=2)):
        value, gradients = run(student, teacher, temperature)
        for i in range(5):
            expected = exact_kl(student[i], teacher[i], temperature)
            np.testing.assert_allclose(value[i], expected[0], rtol=1e-5, atol=1e-30)
            for found, wanted in zip(gradients, expected[1:], strict=True):
                np.testing.assert_allclose(found[i], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max() + 1e-30)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_is_never_negative_and_nothing_is_nan(temperature):
    rng = np.random.default_rng(1)
    logits = np.float32(rng.normal(size=(2, 400, 100)) * 10.0 ** rng.uniform(-6, 6, (1, 400, 1)))
    logits[1, :200] = np.nextafter(logits[0, :200], np.float32(np.inf))  # the closest that two can be
    logits[:, -2:, 0] = [[1e30, -1e30], [-1e30, -1e30]]
    value, slopes = jax.jit(kl_and_slopes, static_argnums=2)(*logits, temperature)
    assert np.isfinite(value).all() and np.all(value >= 0)
    assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_kl_of_equals_has_no_gradient(temperature):
    for logits in (jnp.array(STUDENT), jnp.zeros((2, 4)), jnp.array([[1e4, 0.0, -1e4]])):
        value, slopes = jax.jit(kl_and_slopes, static_argnums=2)(logits, logits, temperature)
        assert not np.any(value) and not any(np.any(slope) for slope in slopes)


def test_kl_limits_at_the_ends_of_the_range():
    # (1 / 2K) sum_c (dz_c - mean dz)^2, and its gradient, at a high temperature
    difference = STUDENT - TEACHER
    centred = difference - difference.mean(axis=-1, keepdims=True)
    found, (slope, _) = kl_and_slopes(jnp.array(STUDENT), jnp.array(TEACHER), 1e6)
    np.testing.assert_allclose(found, (centred**2).sum(axis=-1) / 14, rtol=2e-5)
    np.testing.assert_allclose(slope, centred / 7, rtol=1e-4, atol=2e-5)
    # At a low one: tau times how far the student's logit of the teacher's class is below its highest
    rows = np.arange(5)
    behind = STUDENT.max(axis=-1) - STUDENT[rows, TEACHER.argmax(axis=-1)]
    found = losses.tempered_kl(jnp.array(STUDENT), jnp.array(TEACHER), 1e-3)
    np.testing.assert_allclose(found, 1e-3 * behind, rtol=1e-5, atol=1e-9)


def test_kl_in_every_mode_of_differentiation():
    s, t = jnp.array(STUDENT[0]), jnp.array(TEACHER[0])

    def kl(s, t):
        return losses.tempered_kl(s, t, 3.0)

    for argument in (0, 1):
        forward, backward = (jax.jit(of(kl, argument))(s, t) for of in (jax.jacfwd, jax.jacrev))
        np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-7)
    p = softmax64(STUDENT[0] / 3)
    np.testing.assert_allclose(jax.jit(jax.hessian(kl))(s, t), np.diag(p) - np.outer(p, p), atol=1e-6)


def test_kl_gradient_against_its_formula():
    # d/dz tau^2 KL(q || softmax(z / tau)) = tau (p - q)
    found = jax.grad(lambda z: losses.tempered_kl(z, jnp.array(TEACHER), 3.0).sum())(jnp.array(STUDENT))
    np.testing.assert_allclose(found, 3 * (softmax64(STUDENT / 3) - softmax64(TEACHER / 3)), atol=1e-5)


def test_gradients_against_differences():
    found = jax.grad(lambda z: losses.soft_cross_entropy(z, jnp.array(TARGETS)).sum())(jnp.array(STUDENT))
    expected = numerical_gradient(lambda z: -(TARGETS * np.log(softmax64(z))).sum(), STUDENT)
    np.testing.assert_allclose(found, expected, atol=1e-4)

    def kl_to(z):
        return 4 * kl64(softmax64(z / 2), softmax64(STUDENT / 2)).sum()

    found = jax.grad(lambda z: losses.tempered_kl(jnp.array(STUDENT), z, 2.0).sum())(jnp.array(TEACHER))
    np.testing.assert_allclose(found, numerical_gradient(kl_to, TEACHER), atol=1e-3)  # nothing is stopped in here

    def squared(f):
        return sum((sum(row[d] for row in f) / 5 - TEACHER[:, d].mean()) ** 2 for d in range(7))

    found = jax.grad(lambda f: losses.mmd(f, jnp.array(TEACHER)))(jnp.array(STUDENT))
    np.testing.assert_allclose(found, numerical_gradient(squared, STUDENT), atol=1e-4)


def test_mmd_hand_value():
    one = jnp.array([[1.0, 0.0], [3.0, 2.0]])  # mean (2, 1)
    other = jnp.array([[0.0, 4.0], [0.0, 4.0], [3.0, 1.0]])  # mean (1, 3)
    np.testing.assert_allclose(losses.mmd(one, other), 5.0, rtol=1e-6)


def test_mmd_limits():
    features = jnp.array(STUDENT)
    assert losses.mmd(features, features) == 0
    np.testing.assert_allclose(losses.mmd(features, features[::-1]), 0, atol=1e-10)  # only means matter
    np.testing.assert_allclose(
        losses.mmd(3 * features, 0 * features), 9 * losses.mmd(features, 0 * features), rtol=1e-5
    )
    np.testing.assert_allclose(losses.mmd(features + 2.0, features), 4.0 * 7, rtol=1e-4)  # summed over features


def test_jit_equals_eager():
    arrays = [jnp.array(a) for a in (STUDENT, TEACHER, TARGETS)]

    def every(student, teacher, targets):
        kl, ce = losses.tempered_kl(student, teacher, 3.0), losses.soft_cross_entropy(student, targets)
        return {"kl": kl, "ce": ce, "mmd": losses.mmd(student, teacher)}

    chex.assert_trees_all_close(jax.jit(every)(*arrays), every(*arrays), rtol=1e-5)


def test_large_logits_stay_finite():
    large = jnp.array([[1e4, -1e4, 0.0]])
    for value in (losses.tempered_kl(large, -large, 3.0), losses.soft_cross_entropy(large, jnp.ones((1, 3)) / 3)):
        assert jnp.isfinite(value).all()
