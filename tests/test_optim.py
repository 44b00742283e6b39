"""The optimizers against steps computed by hand in float64, and the learning rate of each step."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cutnmix_jax import stack
from cutnmix_jax.engine import optim
from cutnmix_jax.settings.optimizer import OPTIMIZERS, SCHEDULES, Optimizer


def make(**fields):
    return optim.make(Optimizer(**fields), 1, 1)[0]


def rates(steps, steps_per_epoch=1, total_steps=240, **fields):
    return optim.make(Optimizer(**fields), steps_per_epoch, total_steps)[1](np.array(steps))


@pytest.mark.parametrize("nesterov", [True, False])
def test_steps_equal_pytorch_sgd_by_hand(nesterov):
    # torch.optim.SGD: g = grad + wd * w; buffer = mu * buffer + g; step by lr * (g + mu * buffer) or lr * buffer
    weight, buffer = np.array([1.0, -2.0]), np.zeros(2)
    optimizer = make(momentum=0.9, weight_decay=5e-4, nesterov=nesterov)
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


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_first_step_hand_value(device, monkeypatch):
    """On a GPU the rate is read out of an array, and kernels are held apart from what computes their gradients."""
    monkeypatch.setattr(jax, "default_backend", lambda: device)
    optimizer = make(momentum=0.9, weight_decay=0.1)
    params = jnp.array([2.0])
    updates, _ = optimizer.update(jnp.array([1.0]), optimizer.init(params), params)
    # g = 1 + 0.1 * 2 = 1.2; 1.2 + 0.9 * 1.2 = 2.28; 2 - 0.5 * 2.28 = 0.86
    np.testing.assert_allclose(optim.apply(params, updates, jnp.float32(0.5)), 0.86, rtol=1e-6)
    kernel = params.reshape(1, 1, 1)
    updates, _ = optimizer.update(kernel / 2, optimizer.init(kernel), kernel)
    np.testing.assert_allclose(optim.apply(kernel, updates, jnp.float32(0.5)), [[[0.86]]], rtol=1e-6)


def test_steps_equal_adamw_by_hand():
    # Loshchilov and Hutter 2019: m and v are divided by 1 - beta^t; the decay goes past them, times the rate alone.
    weight, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    optimizer = make(name="adamw", weight_decay=0.01, beta_1=0.8, beta_2=0.95, epsilon=1e-3)
    params = {"w": jnp.array(weight)}
    state = optimizer.init(params)
    for step in range(1, 5):
        gradient, rate = np.array([0.5, -0.1]) * step, 0.05 / step
        m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
        update = m / (1 - 0.8**step) / (np.sqrt(v / (1 - 0.95**step)) + 1e-3)
        weight = weight - rate * (update + 0.01 * weight)
        updates, state = optimizer.update({"w": jnp.array(gradient)}, state, params)
        params = optim.apply(params, updates, jnp.float32(rate))
        np.testing.assert_allclose(params["w"], weight, rtol=1e-5)


def test_steps_equal_lars_by_hand():
    # You et al. 2017: a matrix moves by a share of its own norm; what has one axis is as in SGD without a decay.
    weight = {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.3, -0.4])}
    gradient = {"kernel": np.array([[0.5, 0.1], [-0.2, 0.4]]), "bias": np.array([2.0, 1.0])}
    buffer = {name: np.zeros_like(value) for name, value in weight.items()}
    optimizer = make(name="lars", momentum=0.9, nesterov=False, weight_decay=0.01, trust=0.02)
    params = {name: jnp.array(value) for name, value in weight.items()}
    state = optimizer.init(params)
    for step in range(1, 4):
        scaled = {name: value * step for name, value in gradient.items()}
        grads = {name: jnp.array(value) for name, value in scaled.items()}
        decayed = scaled["kernel"] + 0.01 * weight["kernel"]
        scaled["kernel"] = 0.02 * np.linalg.norm(weight["kernel"]) / np.linalg.norm(decayed) * decayed
        buffer = {name: 0.9 * buffer[name] + scaled[name] for name in weight}
        weight = {name: weight[name] - 0.05 * buffer[name] for name in weight}
        updates, state = optimizer.update(grads, state, params)
        params = optim.apply(params, updates, jnp.float32(0.05))
        for name, value in weight.items():
            np.testing.assert_allclose(params[name], value, rtol=1e-5, err_msg=name)


def test_schedule_at_the_paper_s_milestones():
    found = rates([0, 149, 150, 179, 180, 209, 210, 239], learning_rate=0.05, milestones=(150, 180, 210), decay=0.1)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [0.05, 0.05, 0.005, 0.005, 5e-4, 5e-4, 5e-5, 5e-5], rtol=1e-6)


def test_milestones_are_epochs():
    found = rates([0, 20, 21, 27, 28], steps_per_epoch=7, learning_rate=1.0, milestones=(3, 4), decay=0.5)
    np.testing.assert_allclose(found, [1, 1, 0.5, 0.5, 0.25], rtol=1e-6)


def test_schedule_without_milestones_is_constant():
    np.testing.assert_allclose(rates([0, 10_000], learning_rate=0.05, milestones=()), 0.05, rtol=1e-6)


def test_a_cosine_falls_to_nothing():
    found = rates([0, 25, 50, 75, 100, 150], total_steps=100, learning_rate=0.2, schedule="cosine")
    half = 0.5**0.5
    np.testing.assert_allclose(found, [0.2, 0.1 * (1 + half), 0.1, 0.1 * (1 - half), 0, 0], rtol=1e-6, atol=1e-9)


def test_a_ramp_up_by_hand():
    found = [float(optim.ramp_up(jnp.float32(epoch), 80)) for epoch in (0, 40, 72, 80, 200)]
    np.testing.assert_allclose(found, [np.exp(-5), np.exp(-1.25), np.exp(-0.05), 1, 1], rtol=1e-6)


def test_a_warm_up_rises_in_equal_steps():
    more = {"steps_per_epoch": 4, "total_steps": 40, "learning_rate": 0.8, "warm_up_epochs": 0.5}
    found = rates([0, 1, 2, 19, 20], milestones=(5,), decay=0.1, **more)
    np.testing.assert_allclose(found, [0.4, 0.8, 0.8, 0.8, 0.08], rtol=1e-6)
    # A cosine has what is left.
    np.testing.assert_allclose(rates([1, 2, 21, 40], schedule="cosine", **more), [0.8, 0.8, 0.4, 0], atol=1e-7)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_stacked_networks_take_the_steps_of_each_alone(name):
    """Also where a norm is that of an array, and where arrays of one axis are left out."""
    chance = np.random.default_rng(0)

    def trees(scale):
        return tuple(
            {"kernel": jnp.array(scale * (j + 1) * chance.normal(size=(2, 3)), jnp.float32),
             "bias": jnp.array(scale * chance.normal(size=3), jnp.float32)}
            for j in range(2)
        )  # fmt: skip

    optimizer, apart = make(name=name, weight_decay=0.1), trees(1.0)
    held = stack.of(apart)
    state, held_state = optimizer.init(apart), optimizer.init(held)
    for _ in range(3):
        grads = trees(0.1)
        updates, state = optimizer.update(grads, state, apart)
        apart = optim.apply(apart, updates, jnp.float32(0.5))
        updates, held_state = optimizer.update(stack.of(grads), held_state, held)
        held = optim.apply(held, updates, jnp.float32(0.5))
    chex.assert_trees_all_close(stack.apart(held), apart, rtol=1e-6)


def taken(optimizer):
    """What two steps do to a matrix, and the rates of four."""
    transformation, schedule = optim.make(optimizer, 1, 4)
    params = {"w": jnp.array([[1.0, -2.0], [0.5, 3.0]])}
    state = transformation.init(params)
    for gradient in (0.5, -0.3):
        updates, state = transformation.update({"w": jnp.full((2, 2), gradient)}, state, params)
        params = optim.apply(params, updates, jnp.float32(0.1))
    return [*np.asarray(params["w"]).ravel(), *schedule(np.arange(4))]


@pytest.mark.parametrize(("name", "schedule"), [*((name, "stepwise") for name in OPTIMIZERS), ("sgd", "cosine")])
def test_what_a_field_is_said_to_be_of_looks_at_it_and_nothing_else_does(name, schedule):
    others = {"milestones": (1,), "decay": 0.5, "momentum": 0.5, "nesterov": False, "beta_1": 0.5, "beta_2": 0.5,
              "epsilon": 0.5, "trust": 0.5}  # fmt: skip
    of_each = {field.name: field.metadata["of"] for field in dataclasses.fields(Optimizer)}
    assert {path for path, of in of_each.items() if of} == set(others)
    assert {value for of in of_each.values() for value in of.get("name", ())} == set(OPTIMIZERS)
    assert {value for of in of_each.values() for value in of.get("schedule", ())} < set(SCHEDULES)
    plain = Optimizer(name=name, schedule=schedule, milestones=(2,))
    chosen = {"name": name, "schedule": schedule}
    for field, value in others.items():
        changed = taken(dataclasses.replace(plain, **{field: value})) != taken(plain)
        assert changed == all(chosen[other] in values for other, values in of_each[field].items()), field
