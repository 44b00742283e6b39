"""Every array of a state has the same type before and after a step, whatever types a network's parameters have."""

import warnings

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from cutnmix_jax import backbones, digests, main, methods, stack
from cutnmix_jax.engine import optim, peers
from cutnmix_jax.engine.companions import RunningMean
from cutnmix_jax.errors import CheckpointError, DivergedError, UsageError
from cutnmix_jax.methods.kdcl import KDCL
from cutnmix_jax.settings import Optimizer
from cutnmix_jax.types import Spec
from tests.runs import Made, Stop, assert_same, few, stopped_after, with_train_steps
from tests.test_run import ONE_STEP, TINY, rows_of
from tests.test_step import KEY, K, begun, build, linear_backbone
from tests.tiny import Tiny, TinyNNX


class Odd(nn.Module):
    """Statistics in a type of their own, a number of Python's for a parameter, and an array that counts."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train, part="whole"):
        x = images
        if part != "tail":
            x = nn.Dense(6, name="body")(images[:, ::16, ::16].reshape(-1, 12)) * self.param("scale", lambda key: 1.0)
            mean = self.variable("batch_stats", "mean", jnp.zeros, 6, jnp.bfloat16)
            size = self.variable("batch_stats", "size", lambda: jnp.asarray(1.0))  # weakly typed
            seen = self.variable("batch_stats", "seen", jnp.zeros, (), jnp.int32)
            if train and not self.is_initializing():
                mean.value = 0.9 * mean.value + 0.1 * x.mean(0)
                size.value = 0.9 * size.value + 0.1 * jnp.abs(x).mean()
                seen.value = seen.value + 1
            x = ((x - mean.value) / size.value)[:, None, None]
        if part == "trunk":
            return x
        features = nn.relu(x[:, 0, 0])
        return nn.Dense(self.num_classes, name="last")(features), features


class Mixed(nn.Module):
    """Parameters of three types."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train, part="whole"):
        x = images
        if part != "tail":
            x = nn.Dense(6, param_dtype=jnp.bfloat16, name="body")(images[:, ::16, ::16].reshape(-1, 12))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)[:, None, None]
        if part == "trunk":
            return x
        features = nn.relu(x[:, 0, 0])
        return nn.Dense(self.num_classes, param_dtype=jnp.float16, name="last")(features), features


def float16(num_classes):
    return Tiny(num_classes, param_dtype=jnp.float16)


def float64(num_classes):
    return Tiny(num_classes, param_dtype=jnp.float64)


def float64_nnx(num_classes, rngs):
    return TinyNNX(num_classes, rngs, jnp.float64)


def complex64(num_classes):
    return Tiny(num_classes, param_dtype=jnp.complex64)


class Whole(nn.Module):
    """A parameter that is a whole number."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        times = self.param("times", lambda key: 2)
        return nn.Dense(self.num_classes)(times * images[:, 0, 0])


class WholeNNX(TinyNNX):
    def __init__(self, num_classes, rngs):
        super().__init__(num_classes, rngs)
        self.times = nnx.Param(jnp.ones((), jnp.int32))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float64", "asks for float64; what can be trained is float32, bfloat16, float16"),
        ("float64_nnx", "asks for float64; what can be trained"),
        ("complex64", r"its parameter BatchNorm_0\.bias is complex64; what can be trained is"),
        ("Whole", r"its parameter times is int32; what can be trained is .* belongs into batch_stats"),
        ("WholeNNX", r"its parameter times is int32; .* another Variable than nnx\.Param"),
    ],
)
def test_types_that_cannot_be_trained_are_refused(name, message, recwarn):
    for _ in range(2):  # JAX warns of what it truncates once in a process
        with pytest.raises(UsageError, match=message) as caught:
            backbones.load(f"tests.test_types:{name}", K)
        assert "\n" not in str(caught.value) and f"test_types:{name}" in str(caught.value)
    assert not [warning for warning in recwarn if "float64" in str(warning.message)]


def test_other_warnings_of_a_network_are_passed_on(monkeypatch):
    def make(num_classes):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
        return Tiny(num_classes)

    monkeypatch.setattr("tests.tiny.half", make)
    with pytest.warns(UserWarning, match="mind the gap"):
        backbones.load("tests.tiny:half", K)


class Dotted(nn.Module):
    """A layer `Dense_0` within `a`, and another one called `a.Dense_0`."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        logits, features = Tiny(self.num_classes, name="a")(images, train)
        return logits + nn.Dense(self.num_classes, name="a.Dense_0")(features), features


def test_arrays_that_a_checkpoint_could_not_tell_apart():
    """Such a network trained to its end, and nothing could read what was saved."""
    with pytest.raises(UsageError, match=r"test_types:Dotted': two of its arrays have one name once dots join"):
        backbones.load("tests.test_types:Dotted", K)


NETWORKS = ["tests.tiny:Tiny", "tests.tiny:half", "tests.tiny:half_nnx"]
NETWORKS += [f"tests.test_types:{name}" for name in ("float16", "Mixed", "Odd")]


def of_shapes(tree):
    """What decides which program is compiled for a tree."""
    told = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (leaf.shape, str(leaf.dtype), leaf.weak_type) for path, leaf in told}


def kept(engine):
    """The shapes of the state and the totals, which a step does not change."""
    saved = engine.shapes
    before = saved.state, saved.totals
    after = jax.eval_shape(engine.train_steps, *before, engine.feed_shapes, 1)
    assert of_shapes(before) == of_shapes(after)
    assert not any(weak for *_, weak in of_shapes(before).values())
    return saved.state


ROWS = methods.rows_by_name()
CASES = [(row, name, "unroll") for row in ROWS for name in NETWORKS]
CASES = [case for case in CASES if not (ROWS[case[0]].share_trunk and case[1].endswith("nnx"))]
CASES += [("cutnmix", name, "vmap") for name in NETWORKS]


def is_slow(row, name, mapping):
    """All rows with one network, and all networks with two rows, are enough but for --all."""
    return mapping == "unroll" and name != "tests.test_types:Mixed" and row not in ("cutnmix", "pcl")


@pytest.mark.parametrize(
    ("row", "name", "mapping"), [pytest.param(*case, marks=[pytest.mark.slow] * is_slow(*case)) for case in CASES]
)
def test_a_step_keeps_all_types(row, name, mapping):
    network = backbones.load(name, K)
    state = kept(build(row, backbone=network, features=6, mapping=mapping))
    # As they were asked for, and not all made one.
    asked = of_shapes(jax.eval_shape(network.init, KEY)["params"])
    got = of_shapes(jax.eval_shape(stack.apart, state.params["peers"])[0])
    assert {path: kind[:2] for path, kind in got.items()} == {path: kind[:2] for path, kind in asked.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_another_optimizer_keeps_all_types(optimizer):
    for name in ("half", "half_nnx"):
        kept(build("dml", backbone=backbones.load(f"tests.tiny:{name}", K), features=6, optimizer=Optimizer(optimizer)))


def in_bfloat16():
    """Two linear layers, whose gradients are far from the noise of a sum."""
    plain = linear_backbone()

    def init(key):
        return jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), plain.init(key))

    def apply(variables, images, train, key=None):
        outputs, stats = plain.apply(variables, images, train)
        return outputs._replace(logits=outputs.logits.astype(jnp.float32)), stats

    return plain._replace(init=init, apply=apply)


@pytest.mark.parametrize("name", few(["", "tests.tiny:half", "tests.tiny:half_nnx", "tests.test_types:Mixed"], ()))
def test_a_loop_of_steps_takes_such_a_network(name):
    """A loop wants the types that come out of a step to be those that went in."""
    what = {"backbone": backbones.load(name, K), "features": 6} if name else {"backbone": in_bfloat16()}
    one, many = build("cutnmix", **what), build("cutnmix", **what, loop=True)
    state, totals, feed = begun(one)
    looped_state, looped_totals, _ = begun(many)
    for _ in range(3):
        state, totals = one.train_steps(state, totals, feed, 1)
    looped_state, looped_totals = many.train_steps(looped_state, looped_totals, feed, 3)
    assert of_shapes(state) == of_shapes(looped_state) and int(looped_state.step) == 3
    np.testing.assert_allclose(totals.sums["loss"], looped_totals.sums["loss"], rtol=1e-2)
    if not name:  # by the last of 8 bits, where a sum falls on the other side of a rounding
        chex.assert_trees_all_close(
            *(jax.tree.map(lambda leaf: np.asarray(leaf, float), it.params) for it in (state, looped_state)),
            rtol=2.0**-7, atol=1e-5,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "name", "fields"),
    [
        ("cutnmix", "tests.tiny:half", []),
        pytest.param("dml", "tests.tiny:half_nnx", ["--config.mapping=vmap"], marks=pytest.mark.slow),
        pytest.param("okddip", "tests.tiny:half", ["--config.ramp_up.epochs=2"], marks=pytest.mark.slow),
        pytest.param("pcl", "tests.test_types:Odd", ["--config.ramp_up.epochs=2"], marks=pytest.mark.slow),
        pytest.param("kdcl", "tests.test_types:Mixed", ["--config.precision=bfloat16"], marks=pytest.mark.slow),
    ],
)
def test_stopped_and_continued_it_ends_with_the_same_bits(row, name, fields, tmp_path):
    run = Made(row, f"--config.backbone.name={name}", *fields, "--config.epochs=2", "--config.optimizer.milestones=()")
    run.train(tmp_path / "whole")
    stopped_after(run, tmp_path / "stopped", 5)
    assert run.train(tmp_path / "stopped", Stop()) == 5
    assert_same(run, tmp_path / "stopped", tmp_path / "whole")


def test_on_a_gpu_it_is_trained_in_a_loop(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    fields = ["--config.backbone.name=tests.tiny:half", "--config.steps_per_call=3", "--config.epochs=2"]
    command = [f"{TINY[0]}:digits,baseline", *TINY[1:], *fields, "--config.optimizer.milestones=()"]
    assert main.main([*command, f"--workdir={tmp_path}"]) == 0
    assert [row["step"] for row in rows_of(tmp_path)] == [4, 8]


QUICK = ("resnet8",)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in backbones.names()]
)
@pytest.mark.parametrize("row", ["cutnmix", "pcl"])
def test_ours_have_float32_parameters_in_any_precision(name, row):
    network = backbones.load(name, K, jnp.bfloat16)
    size = jax.eval_shape(lambda: network.apply(network.init(KEY), jnp.zeros((2, 32, 32, 3)), False)[0].features)
    state = kept(build(row, backbone=network, features=size.shape[1]))
    floats = jax.tree.leaves((state.params, state.batch_stats, state.opt_state, state.teachers))
    assert {str(leaf.dtype) for leaf in floats} == {"float32"}


def test_weights_of_kdcl_keep_their_type():
    method = KDCL(target="general")
    _, state = method.init(KEY, Spec(K, (6, 6), 40))
    logits, labels = jnp.zeros((2, 8, K)), jnp.zeros(8, jnp.int32)
    assert of_shapes(jax.eval_shape(method.calibrate, state, logits, labels)) == of_shapes(state)


def nearest(value, dtype):
    """float64 to the nearest number of a type."""
    return np.asarray(value, np.float64).astype(dtype).astype(np.float64)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("nesterov", [True, False])
def test_momentum_and_update_are_float32(dtype, nesterov):
    """By hand in float64: the weights alone are rounded, once a step."""
    weight = nearest([1.0, -2.0, 0.003], dtype)
    params = {"w": jnp.asarray(weight, dtype)}
    optimizer, _ = optim.make(Optimizer(momentum=0.999, weight_decay=5e-4, nesterov=nesterov), 1, 1)
    state, buffer = optimizer.init(params), np.zeros(3)
    for number in range(30):
        # Far smaller than the sum it goes into, after the first one: 16 bits would lose it there.
        gradient = nearest(np.array([0.5, -0.25, 0.125]) * (1 if number == 0 else 2.0**-11), dtype)
        decayed = gradient + 5e-4 * weight
        buffer = 0.999 * buffer + decayed
        weight = nearest(weight - 0.01 * (decayed + 0.999 * buffer if nesterov else buffer), dtype)
        updates, state = optimizer.update({"w": jnp.asarray(gradient, dtype)}, state, params)
        params = optim.apply(params, updates, jnp.float32(0.01))
        assert params["w"].dtype == dtype
        np.testing.assert_allclose(jax.tree.leaves(state)[0], buffer, rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(params["w"], np.float64), weight)


def test_a_mean_teacher_of_bfloat16_weights_moves():
    """1,000 steps at alpha = .999 bring it (1 - .999^1000) of the way; in bfloat16 it would not leave its place."""
    joined = peers.make([backbones.load("tests.tiny:half", K)], "unroll")
    params, stats = joined.init(KEY)
    teachers = RunningMean(joined)
    variables = teachers.init(jax.tree.map(jnp.ones_like, params), stats)
    new = jax.tree.map(lambda leaf: 1.5 * jnp.ones_like(leaf), params)
    follow = jax.jit(lambda variables: jax.lax.fori_loop(
        0, 1000, lambda i, v: teachers.follow(v, new, (), jnp.int32(5000)), variables
    ))  # fmt: skip
    for leaf in jax.tree.leaves(follow(variables)["params"]):
        np.testing.assert_allclose(leaf, 1 + 0.5 * (1 - 0.999**1000), rtol=1e-4)
    outputs, _ = teachers.forward(variables, params, jnp.zeros((1, 2, 32, 32, 3)), KEY)
    assert outputs[0].logits.shape == (2, K)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn", "complex64"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_refused_in_every_type(dtype, value):
    bad = jnp.asarray([0.0, value], dtype)
    if np.isfinite(np.asarray(bad, np.complex64)).all():
        pytest.skip("the type has no infinity")
    digests.of(3, {"w": jnp.asarray([0.0, 1.0], dtype)})
    with pytest.raises(DivergedError, match="by step 3: w is not finite"):
        digests.of(3, {"w": bad})


def test_a_nan_in_bfloat16_is_never_saved(tmp_path):
    run = Made("cutnmix", "--config.backbone.name=tests.tiny:half", "--config.epochs=2")

    def train(state, *rest):
        state, totals = run.engine.train_steps(state, *rest)
        if int(state.step) == 8:  # the last one, after which no loss could tell
            params = jax.tree.map(lambda leaf: leaf.at[...].set(jnp.nan) if leaf.ndim == 4 else leaf, state.params)
            state = state._replace(params=params)
        return state, totals

    with pytest.raises(DivergedError, match=r"by step 8: state\.params\.peers\.0\.Conv_0\.kernel is not finite"):
        run.train(tmp_path, engine=with_train_steps(run.engine, train))


def test_a_teacher_in_bfloat16(tmp_path, monkeypatch):
    half = [*TINY[1:], *ONE_STEP, "--config.optimizer.milestones=()", "--config.backbone.name=tests.tiny:half"]
    file = "--config=configs/quickstart.py:digits,"
    assert main.main([file + "baseline", *half, f"--workdir={tmp_path / 'teacher'}"]) == 0
    student = [file + "kd", *half, f"--config.teacher={tmp_path / 'teacher'}"]
    assert main.main([*student, f"--workdir={tmp_path / 'student'}"]) == 0
    # The same name, and another type by now: nothing of it can be used as it is.
    monkeypatch.setattr("tests.tiny.half", lambda num_classes: Tiny(num_classes))
    with pytest.raises(CheckpointError, match=r"is bfloat16\[6\], not float32\[6\]"):
        _ = Made("kd", f"--config.teacher={tmp_path / 'teacher'}", "--config.backbone.name=tests.tiny:half").first


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_enable_x64", True), ("jax_numpy_rank_promotion", "raise"), ("jax_transfer_guard", "disallow")],
)
def test_settings_of_jax_that_it_cannot_be_run_with(name, value, tmp_path, capsys):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        assert main.main([*TINY, f"--workdir={tmp_path / 'run'}"]) == 2
    finally:
        jax.config.update(name, before)
    [error] = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: JAX runs with {name}={value}") and not (tmp_path / "run").exists()
