"""Networks of a user's own package as backbones: Linen and NNX, with features and without, trained and refused."""

import functools
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from cutnmix_jax import backbones
from cutnmix_jax.backbones import foreign, nnx_adapter
from cutnmix_jax.errors import UsageError

CLASSES = 5


def tile(images):
    """[n, 32, 32, 3] -> [n, 48]: means over 8x8 tiles, so that the networks below stay tiny."""
    return images.reshape(-1, 4, 8, 4, 8, 3).mean((2, 4)).reshape(-1, 48)


class LinenBoth(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(16, use_bias=False)(tile(images))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = nn.Dropout(0.2, deterministic=not train)(x)
        return nn.Dense(self.num_classes)(x), x


class LinenLogits(nn.Module):
    num_classes: int
    cast: bool = False

    @nn.compact
    def __call__(self, images):
        x = nn.relu(nn.Dense(16)(tile(images)))
        logits = nn.Dense(self.num_classes, name="last")(x)
        return 2.0 * logits if self.cast else logits


class NnxBoth(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.layers = nnx.List([nnx.Linear(48, 16, rngs=rngs)])
        self.last = nnx.Linear(16, num_classes, rngs=rngs)
        self.scale = jnp.full((16,), 2.0)  # an array that is no Variable

    def __call__(self, images):
        x = nnx.relu(self.layers[0](tile(images))) * self.scale
        return self.last(x), x


class NnxLogits(nnx.Module):
    def __init__(self, num_classes, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(48, 16, rngs=rngs)
        self.last = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.last(nnx.relu(self.first(tile(images))))


class NnxNorm(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.first = nnx.Linear(48, 16, use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(16, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.last = nnx.Linear(16, num_classes, rngs=rngs)

    def __call__(self, images, train):
        assert self.norm.use_running_average is (not train)
        return self.last(self.dropout(nnx.relu(self.norm(self.first(tile(images))))))


GOOD = {
    "linen_both": LinenBoth,
    "linen_logits": LinenLogits,
    "linen_function": lambda num_classes: LinenLogits(num_classes, cast=True),
    "nnx_both": NnxBoth,
    "nnx_logits": NnxLogits,
    "nnx_norm": NnxNorm,
    "nnx_partial": functools.partial(NnxNorm),
    "nnx_function": lambda num_classes, rngs: NnxLogits(num_classes, rngs=rngs),
}


class Returns(nn.Module):
    """What it is told to return, of images [n, 32, 32, 3]."""

    function: object

    @nn.compact
    def __call__(self, images):
        return self.function(images)


class ConvHead(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        return nn.Conv(self.num_classes, (8, 8), strides=8)(images).mean((1, 2))


class MapHead(nnx.Module):
    """Its last layer works on every pixel, so what goes into it is [n, 4, 4, 3]."""

    def __init__(self, num_classes, rngs):
        self.last = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, images):
        return self.last(images[:, ::8, ::8]).mean((1, 2))


class FlatHead(MapHead):
    def __call__(self, images):
        return self.last(images[:, 0, 0]), images


class Counting(nn.Module):
    num_classes: int

    @nn.compact
    def __call__(self, images):
        self.variable("counters", "calls", lambda: jnp.zeros(()))
        return nn.Dense(self.num_classes)(tile(images))


class Late(nn.Module):
    """Its batch statistics appear in training only."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        if train:
            self.variable("batch_stats", "mean", lambda: jnp.zeros(()))
        return nn.Dense(self.num_classes)(tile(images))


def logits_of(shape):
    return lambda num_classes: Returns(lambda x: (jnp.zeros(shape), x[:, 0, 0]))


def fails(num_classes):
    raise RuntimeError("no such\nwidth")


class Moded(nn.Module):
    """Left at its default, it was never trained as what it is: no dropout, and the statistics of the start for ever."""

    @nn.compact
    def __call__(self, images, training=False):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=not training)(tile(images)))


class ModedField(nn.Module):
    """Made once, it is for ever as it was made."""

    train: bool = False

    @nn.compact
    def __call__(self, images):
        return nn.Dense(CLASSES)(nn.BatchNorm(use_running_average=not self.train)(tile(images)))


class ModedNnx(nnx.Module):
    """What an argument says counts, whatever `model.train()` has set."""

    def __init__(self, num_classes, rngs):
        self.norm, self.last = nnx.BatchNorm(48, rngs=rngs), nnx.Linear(48, num_classes, rngs=rngs)

    def __call__(self, images, deterministic=True):
        return self.last(self.norm(tile(images), use_running_average=deterministic))


class Unasked(nn.Module):
    """Takes `train` and does not look at it."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(nn.BatchNorm(use_running_average=True)(tile(images)))


class Drawing(nn.Module):
    """Drops units in evaluation, too."""

    num_classes: int

    @nn.compact
    def __call__(self, images, train):
        return nn.Dense(self.num_classes)(nn.Dropout(0.5, deterministic=False)(tile(images)))


class SideHead(nn.Module):
    """The features were those of the side head, which was made last."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        x = tile(images)
        return nn.Dense(self.num_classes)(x) + 0.1 * nn.Dense(self.num_classes)(x[:, :5])


BAD = {
    "fails": (fails, "RuntimeError: no such width"),
    "takes_nothing": (lambda: None, "TypeError"),
    "array": (lambda num_classes: jnp.zeros(3), "not a flax.linen.Module"),
    "linen_with_rngs": (lambda num_classes, rngs: LinenLogits(num_classes), "not a flax.nnx.Module"),
    "nnx_without_rngs": (lambda num_classes: NnxLogits(num_classes, rngs=nnx.Rngs(0)), "not a flax.linen.Module"),
    "wide": (logits_of((2, 6)), r"logits of 2 images are \(2, 6\), not \(2, 5\)"),
    "transposed": (logits_of((5, 2)), r"logits of 2 images are \(5, 2\)"),
    "maps": (lambda num_classes: Returns(lambda x: (x[:, 0, 0, :1] + jnp.zeros(5), x)), "return .logits, features."),
    "a_dict": (lambda num_classes: Returns(lambda x: {"logits": x}), "returns a dict"),
    "conv_head": (ConvHead, "no fully connected layer; return .logits, features."),
    "nnx_maps": (FlatHead, "return .logits, features."),
    "nnx_map_head": (MapHead, "no fully connected layer; return .logits, features."),
    "counters": (Counting, "'counters'"),
    "late": (Late, "batch statistics change"),
    "side_head": (SideHead, "2 fully connected layers of it could have made them; return .logits, features."),
    "training": (lambda num_classes: Moded(), "takes 'training'; what tells it that it is being trained is the argum"),
    "a_field": (
        lambda num_classes: ModedField(),
        "has the field 'train'; what tells it that it is being trained is th",
    ),
    "nnx_mode": (ModedNnx, "takes 'deterministic'; what tells it that it is being trained is the argument `train`"),
    "drawing": (Drawing, 'needs PRNG for "dropout"'),
    "number": (3, "not a function or a class"),
}


@pytest.fixture(autouse=True)
def my_pkg(monkeypatch):
    """A user's module that can be imported."""
    module = types.ModuleType("my_nets")
    for name, make in GOOD.items():
        setattr(module, name, make)
    for name, (make, _) in BAD.items():
        setattr(module, name, make)
    monkeypatch.setitem(sys.modules, "my_nets", module)


def data(n=20):
    """Images of a few classes with a colour of their own, and their labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % CLASSES
    colours = rng.normal(size=(CLASSES, 1, 1, 3))
    images = colours[labels] + 0.3 * rng.normal(size=(n, 32, 32, 3))
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels)


@pytest.mark.parametrize("name", GOOD)
def test_training_makes_the_loss_fall(name):
    backbone = backbones.load(f"my_nets:{name}", CLASSES)
    images, labels = data()
    variables = backbone.init(jax.random.key(1))
    optimizer = optax.sgd(0.3)

    def loss_of(params, batch_stats, key):
        outputs, new = backbone.apply({"params": params, "batch_stats": batch_stats}, images, True, key)
        return optax.softmax_cross_entropy_with_integer_labels(outputs.logits, labels).mean(), new

    @jax.jit
    def step(params, batch_stats, opt_state, key):
        (loss, batch_stats), grads = jax.value_and_grad(loss_of, has_aux=True)(params, batch_stats, key)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), batch_stats, opt_state, loss

    params, batch_stats = variables["params"], variables["batch_stats"]
    opt_state, losses = optimizer.init(params), []
    for i in range(15):
        params, batch_stats, opt_state, loss = step(params, batch_stats, opt_state, jax.random.key(i))
        losses.append(float(loss))
    assert losses[-1] < 0.6 * losses[0]
    assert jax.tree.structure(batch_stats) == jax.tree.structure(variables["batch_stats"])
    # Every trained leaf moved: nothing was taken for a parameter that gets no gradient.
    for before, after in zip(jax.tree.leaves(variables["params"]), jax.tree.leaves(params), strict=True):
        assert not np.allclose(before, after)


@pytest.mark.parametrize("name", GOOD)
def test_features_go_into_the_last_layer(name):
    backbone = backbones.load(f"my_nets:{name}", CLASSES)
    variables = backbone.init(jax.random.key(1))
    outputs, batch_stats = backbone.apply(variables, data()[0], False)
    assert batch_stats is variables["batch_stats"]
    last = variables["params"].get("last") or variables["params"]["Dense_1"]
    expected = np.asarray(outputs.features) @ np.asarray(last["kernel"]) + np.asarray(last["bias"])
    np.testing.assert_allclose(
        outputs.logits, (2.0 if name == "linen_function" else 1.0) * expected, rtol=2e-2, atol=1e-2
    )
    assert outputs.features.shape == (20, 16)
    assert outputs.logits.dtype == outputs.features.dtype == jnp.float32


@pytest.mark.parametrize("name", GOOD)
def test_variables_are_plain_trees(name):
    variables = backbones.load(f"my_nets:{name}", CLASSES).init(jax.random.key(1))

    def walk(tree):
        if isinstance(tree, dict):
            assert all(isinstance(key, str) for key in tree)
            for child in tree.values():
                walk(child)
        else:
            np.asarray(tree)  # a typed random key would not convert
            assert tree.dtype in (jnp.float32, jnp.uint32)

    walk(variables)
    other = backbones.load(f"my_nets:{name}", CLASSES).init(jax.random.key(2))
    same = jax.tree.map(np.allclose, variables["params"], other["params"])
    assert not all(jax.tree.leaves(same))


def test_only_params_of_an_nnx_module_are_trained():
    variables = backbones.load("my_nets:nnx_norm", CLASSES).init(jax.random.key(1))
    assert set(variables["params"]) == {"first", "norm", "last"}
    assert set(variables["params"]["norm"]) == {"scale", "bias"}
    assert set(variables["batch_stats"]["norm"]) == {"mean", "var"}
    assert set(variables["batch_stats"]) == {"norm", "dropout"}
    assert backbones.load("my_nets:nnx_both", CLASSES).init(jax.random.key(1))["batch_stats"] == {}


def test_random_numbers_of_an_nnx_module_move_on_in_training_only():
    backbone = backbones.load("my_nets:nnx_norm", CLASSES)
    variables = backbone.init(jax.random.key(1))
    images = data()[0]
    apply = jax.jit(backbone.apply, static_argnums=2)
    first, stats = apply(variables, images, True)
    again, _ = apply(variables, images, True)
    second, _ = apply(
        variables | {"batch_stats": variables["batch_stats"] | {"dropout": stats["dropout"]}}, images, True
    )
    np.testing.assert_array_equal(first.logits, again.logits)
    assert not np.allclose(first.logits, second.logits)
    still, unchanged = apply(variables, images, False)
    jax.tree.map(np.testing.assert_array_equal, unchanged, variables["batch_stats"])
    # Without dropout and with the statistics at 0 and 1, evaluation is a plain product of matrices.
    p = jax.tree.map(np.asarray, variables["params"])
    x = np.asarray(tile(images)) @ p["first"]["kernel"]
    x = np.maximum(x / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(still.features, x, atol=1e-2)


def test_dropout_of_a_linen_module_follows_the_key():
    backbone = backbones.load("my_nets:linen_both", CLASSES)
    variables = backbone.init(jax.random.key(1))
    images = data()[0]
    logits = [backbone.apply(variables, images, True, jax.random.key(k))[0].logits for k in (0, 0, 1)]
    np.testing.assert_array_equal(logits[0], logits[1])
    assert not np.allclose(logits[0], logits[2])


def test_an_nnx_linear_is_left_as_it_was():
    before = nnx.Linear.__call__
    backbones.load("my_nets:nnx_logits", CLASSES)
    assert nnx.Linear.__call__ is before
    with pytest.raises(UsageError):
        backbones.load("my_nets:nnx_maps", CLASSES)
    assert nnx.Linear.__call__ is before


def test_dtype_goes_to_a_factory_that_takes_it(monkeypatch):
    asked = []

    def make(num_classes, dtype):
        asked.append(dtype)
        return LinenLogits(num_classes)

    monkeypatch.setattr(sys.modules["my_nets"], "typed", make, raising=False)
    backbones.load("my_nets:typed", CLASSES, jnp.bfloat16)
    assert asked == [jnp.bfloat16]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_network_is_refused_in_one_line(name):
    with pytest.raises(UsageError, match=BAD[name][1]) as caught:
        backbones.load(f"my_nets:{name}", CLASSES)
    assert "\n" not in str(caught.value)
    assert f"my_nets:{name}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_package.nets:make", "cannot import 'no_such_package.nets'"),
        ("my_nets:nnx_logit", "did you mean 'nnx_logits'"),
        (":make", "cannot import ''"),
        ("my_nets:", "has no ''"),
    ],
)
def test_a_name_that_leads_nowhere(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        backbones.load(name, CLASSES)
    assert "\n" not in str(caught.value)


def test_a_module_that_does_not_parse(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("def make(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match="cannot import 'broken_nets' .SyntaxError"):
        backbones.load("broken_nets:make", CLASSES)


def test_two_threads_that_trace_leave_nnx_as_it_was():
    """What notes the layers of one is neither left behind nor told of those of the other."""
    before, calls, others = nnx.Linear.__call__, [], []
    entered, left = threading.Event(), threading.Event()
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))

    def other():
        with nnx_adapter.recorded_linears(others):
            entered.set()
            assert left.wait(20)

    thread, caller = threading.Thread(target=other), threading.Thread(target=lambda: layer(jnp.ones((1, 2))))
    with nnx_adapter.recorded_linears(calls):
        thread.start()
        entered.wait(0.2)  # it must wait
        caller.start()
        caller.join()
        layer(jnp.ones((1, 2)))
        with nnx_adapter.recorded_linears([]):
            pass
    left.set()
    thread.join()
    assert nnx.Linear.__call__ is before and (len(calls), len(others)) == (1, 0)


def test_a_network_that_is_evaluated_in_training_is_told():
    """It takes the argument, and its batch statistics stay those of the start."""
    alike = {make: foreign.from_factory("x", make, CLASSES, jnp.float32, (32, 32, 3)) for make in (Unasked, LinenBoth)}
    found = {make.__name__: foreign.is_always_evaluated(network) for make, network in alike.items()}
    assert found == {"Unasked": True, "LinenBoth": False}
    for make in (LinenLogits, NnxBoth, NnxLogits):  # which have none
        network = foreign.from_factory("x", make, CLASSES, jnp.float32, (32, 32, 3))
        assert not foreign.is_always_evaluated(network)
