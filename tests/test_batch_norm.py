"""Batch norm's own gradient against numpy, differences and Flax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cutnmix_jax.backbones.batch_norm import BatchNorm, batch_norm

EPSILON = 1e-5
RNG = np.random.default_rng(0)
X = RNG.normal(1.5, 2.0, (4, 3, 2, 5))
SCALE, BIAS = RNG.normal(1, 0.3, 5), RNG.normal(0, 0.3, 5)
# A loss that weighs every output apart, the statistics too.
WEIGHTS = RNG.normal(size=X.shape), RNG.normal(size=5), RNG.normal(size=5)


def np_batch_norm(x, scale, bias):
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / np.sqrt(var + EPSILON) * scale + bias, mean, var


def np_loss(x, scale, bias):
    return sum((w * out).sum() for w, out in zip(WEIGHTS, np_batch_norm(x, scale, bias), strict=True))


def single(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


@pytest.fixture(params=["cpu", "gpu"])
def device(request, monkeypatch):
    """The sums of a CPU, and those of a GPU, which a CPU can take as well."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def test_a_gpu_takes_both_sums_at_once(device):
    program = str(jax.make_jaxpr(lambda x: batch_norm(x, *single(SCALE, BIAS), EPSILON))(jnp.asarray(X, jnp.float32)))
    assert program.count("reduce_sum") == (2 if device == "cpu" else 0)


def test_values_equal_numpy(device):
    for got, wanted in zip(batch_norm(*single(X, SCALE, BIAS), EPSILON), np_batch_norm(X, SCALE, BIAS), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_equal_differences(device):
    def loss(*args):
        outputs = batch_norm(*args, EPSILON)
        return sum((jnp.float32(w) * out).sum() for w, out in zip(WEIGHTS, outputs, strict=True))

    gradients = jax.grad(loss, argnums=(0, 1, 2))(*single(X, SCALE, BIAS))
    for number, gradient in enumerate(gradients):
        wanted = np.zeros(gradient.shape)
        for at in np.ndindex(*wanted.shape):
            ends = []
            for sign in (1, -1):
                arguments = [X.copy(), SCALE.copy(), BIAS.copy()]
                arguments[number][at] += sign * 1e-5
                ends.append(np_loss(*arguments))
            wanted[at] = (ends[0] - ends[1]) / 2e-5
        np.testing.assert_allclose(gradient, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_in_training_it_is_flax(dtype, device):
    """Values, gradients and running statistics of `nn.BatchNorm`, which autodiff goes through."""
    x = jnp.asarray(X, dtype)
    variables = {
        "params": dict(zip(("scale", "bias"), single(SCALE, BIAS), strict=True)),
        "batch_stats": {"mean": jnp.full(5, 0.3), "var": jnp.full(5, 2.0)},
    }
    ours = BatchNorm(momentum=0.8, epsilon=EPSILON, dtype=dtype)
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.8, epsilon=EPSILON, dtype=dtype)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, variables)

    def run(module):
        def loss(params, x):
            y, changed = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y.astype(jnp.float32) * jnp.float32(WEIGHTS[0])).sum(), (y, changed)

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], x)

    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.05}
    got, wanted = run(ours), run(theirs)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), got) == jax.tree.map(lambda a: (a.shape, a.dtype), wanted)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(np.float32(a), np.float32(b), **tolerance),  # bfloat16 to compare
        got,
        wanted,
    )


def test_a_bias_before_it_moves_the_running_mean_alone():
    """Flax, which adds the bias first, has the same output and statistics, and the bias no gradient."""
    before, weights = jnp.float32(RNG.normal(size=5)), jnp.float32(WEIGHTS[0])
    ours = BatchNorm(momentum=0.8, epsilon=EPSILON, dtype=jnp.float32)
    theirs = nn.BatchNorm(use_running_average=False, momentum=0.8, epsilon=EPSILON)
    x = jnp.float32(X)
    variables = theirs.init(jax.random.key(0), x)
    got = ours.apply(variables, x, before, mutable=["batch_stats"])

    def loss(bias):
        y, changed = theirs.apply(variables, x + bias, mutable=["batch_stats"])
        return (y * weights).sum(), (y, changed)

    gradient, wanted = jax.grad(loss, has_aux=True)(before)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)
    np.testing.assert_allclose(gradient, np.zeros(5), atol=1e-4)


def test_a_constant_channel_has_no_infinite_gradient():
    x = jnp.asarray(X, jnp.float32).at[..., 2].set(7.0)
    y, gradients = jax.value_and_grad(lambda *args: batch_norm(*args, EPSILON)[0][..., 2].sum(), argnums=(0, 1, 2))(
        x, *single(SCALE, BIAS)
    )
    assert np.isfinite(y)
    assert all(np.isfinite(leaf).all() for leaf in gradients)
    np.testing.assert_allclose(batch_norm(x, *single(SCALE, BIAS), EPSILON)[0][..., 2], BIAS[2], rtol=1e-2)
