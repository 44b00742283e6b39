"""The optimizer against steps computed by hand in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import optim


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_pytorch_sgd_by_hand(nesterov):
    # torch.optim.SGD: g = grad + wd * w; buffer = mu * buffer + g; step by lr * (g + mu * buffer) or lr * buffer
    weight, buffer = np.array([1.0, -2.0]), np.zeros(2)
    optimizer = optim.sgd(0.9, 5e-4, nesterov)
    params = {"w": jnp.array(weight)}
    state = optimizer.init(params)
    for step in range(4):
        gradient, rate = np.array([0.5, -0.1]) * (step + 1), 0.05 / (step + 1)
        decayed = gradient + 5e-4 * weight
        buffer = 0.9 * buffer + decayed
        weight = weight - rate * (decayed + 0.9 * buffer if nesterov else buffer)
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optim.apply(params, updates, jnp.float32(rate))
        np.testing.assert_allclose(params["w"], weight, rtol=1e-6)


def test_first_step_hand_value():
    optimizer = optim.sgd(0.9, 0.1, True)
    params = jnp.array([2.0])
    updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    # g = 1 + 0.1 * 2 = 1.2; 1.2 + 0.9 * 1.2 = 2.28; 2 - 0.5 * 2.28 = 0.86
    np.testing.assert_allclose(optim.apply(params, updates, jnp.float32(0.5)), 0.86, rtol=1e-6)


def test_schedule_at_the_paper_s_milestones():
    rate = optim.schedule(0.05, (150, 180, 210), 0.1)
    found = [rate(epoch) for epoch in (0, 149, 150, 179, 180, 209, 210, 239)]
    np.testing.assert_allclose(found, [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5], rtol=1e-6)


def test_schedule_without_milestones_is_constant():
    rate = optim.schedule(0.05, (), 0.1)
    np.testing.assert_allclose([rate(0), rate(10_000)], 0.05, rtol=1e-6)
