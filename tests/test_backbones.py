"""Our backbones: pinned sizes, every layer against NumPy, initial weights, batch norm, number formats."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from cutnmix_jax import backbones
from cutnmix_jax.backbones.adapters import linen_backbone
from cutnmix_jax.backbones.convolution import convolution
from cutnmix_jax.backbones.densenet import DenseNet
from cutnmix_jax.backbones.depthwise import shifted_sum
from cutnmix_jax.backbones.layers import conv
from cutnmix_jax.backbones.mobilenet import MobileNetV2
from cutnmix_jax.backbones.pooling import max_pool
from cutnmix_jax.backbones.resnet import ResNet
from cutnmix_jax.backbones.vgg import VGG
from cutnmix_jax.engine import assemble
from cutnmix_jax.errors import UsageError
from cutnmix_jax.settings import command_line

# ResNet-8 by hand: 3x3 and 1x1 kernels, then two numbers per channel of each batch norm, then the linear layer.
RESNET8_KERNELS = (
    9 * (3 * 16)  # stem
    + 9 * (16 * 16 + 16 * 16)
    + 9 * (16 * 32 + 32 * 32)
    + 16 * 32  # shortcut
    + 9 * (32 * 64 + 64 * 64)
    + 32 * 64  # shortcut
)
RESNET8_NORMED = 16 + 2 * 16 + (2 + 1) * 32 + (2 + 1) * 64
RESNET8_MACS = (
    32 * 32 * 9 * (3 * 16 + 16 * 16 + 16 * 16)
    + 16 * 16 * (9 * (16 * 32 + 32 * 32) + 16 * 32)
    + 8 * 8 * (9 * (32 * 64 + 64 * 64) + 32 * 64)
    + 64 * 100
)


def resnet8_params(num_classes):
    return RESNET8_KERNELS + 2 * RESNET8_NORMED + 64 * num_classes + num_classes


# Name: parameters with 100 and with 10 classes, batch-norm buffers, million multiply-accumulates with 100 classes,
# features, weighted layers, convolutions of shortcuts.
PINNED = {
    "resnet8": (resnet8_params(100), resnet8_params(10), 2 * RESNET8_NORMED, RESNET8_MACS / 1e6, 64, 8, 2),
    "resnet18": (11_220_132, 11_173_962, 2 * (5 * 64 + 5 * (128 + 256 + 512)), 555.5, 512, 18, 3),
    "resnet32": (472_756, 466_906, 2_464, 69.13, 64, 32, 2),
    "resnet110": (1_170_868, 1_147_738, 17_056, 167.45, 256, 110, 3),
    "wrn20_8": (6_871_220, 6_848_090, 9_888, 1022.8, 256, 20, 3),
    "vgg16": (15_299_748, 15_253_578, 8_448, 313.77, 512, 16, 0),
    "vgg19": (20_612_004, 20_565_834, 11_008, 398.71, 512, 19, 0),
    "densenet40_12": (188_092, 176_122, 5_088, 72.38, 132, 40, 0),
    "resnet18_imagenet": (11_227_812, 11_181_642, 9_600, 1813.61, 512, 18, 3),
    "resnet34_imagenet": (21_335_972, 21_289_802, 17_024, 3663.30, 512, 34, 3),
    "resnet50_imagenet": (23_712_932, 23_528_522, 53_120, 4087.34, 2048, 50, 4),
    "mobilenet_v2": (2_351_972, 2_236_682, 34_112, 299.62, 1280, 53, 0),
}
# Those for 224x224 images: parameters and multiply-accumulates with 1000 classes, as torchvision publishes them.
LARGE = {
    "resnet18_imagenet": (11_689_512, 1_814_073_344),
    "resnet34_imagenet": (21_797_672, 3_663_761_408),
    "resnet50_imagenet": (25_557_032, 4_089_184_256),
    "mobilenet_v2": (3_504_872, 300_774_272),
}
KEY = jax.random.key(0)
TINY = {
    "basic": ResNet(7, (1, 1), (4, 6)),
    "bottleneck": ResNet(7, (2, 1), (4, 6), width_per_group=128),
    "large": ResNet(7, (1, 1), (4, 6), imagenet=True),
    "densenet": DenseNet(7, (2, 1), growth=4),
    "mobilenet": MobileNetV2(7, stages=((1, 5, 1, 1), (3, 5, 2, 1), (2, 6, 1, 2)), stem=4, last=9),
}


@functools.cache
def shapes_of(name, num_classes, dtype):
    """(variables, outputs, new batch statistics) of one training step on two images, as shapes; and its program.

    Traced once for all tests: ResNet-110 takes seconds.
    """
    backbone = backbones.load(name, num_classes, dtype)
    variables = jax.eval_shape(backbone.init, KEY)
    size = 224 if name in LARGE else 32
    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    step = jax.make_jaxpr(lambda v, x: backbone.apply(v, x, True, KEY), return_shape=True)
    with backbones.shapes_only():  # as on a GPU: depthwise convolutions are convolutions there
        program, (outputs, batch_stats) = step(variables, images)
    return variables, outputs, batch_stats, program.jaxpr


def aval(leaf):
    return leaf.shape, leaf.dtype


def count(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def equations(jaxpr):
    """Those of a jaxpr and of all that it calls."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def macs(jaxpr):
    """Multiply-accumulates of all convolutions and matrix products of a jaxpr, from their shapes."""
    total = 0
    for eqn in equations(jaxpr):
        out = eqn.outvars[0].aval.shape
        if eqn.primitive.name == "conv_general_dilated":
            total += math.prod(out) * math.prod(eqn.invars[1].aval.shape[:3])  # HWIO
        elif eqn.primitive.name == "dot_general":
            total += math.prod(out) * eqn.invars[1].aval.shape[0]
    return total


def test_every_backbone_is_pinned():
    assert set(backbones.names()) == set(PINNED)


@pytest.mark.parametrize("name", backbones.names())
def test_contract(name):
    for num_classes, dtype in ((100, jnp.float32), (10, jnp.bfloat16)):
        variables, outputs, batch_stats, _ = shapes_of(name, num_classes, dtype)
        assert set(variables) == {"params", "batch_stats"}
        assert jax.tree.map(aval, batch_stats) == jax.tree.map(aval, variables["batch_stats"])
        assert outputs.logits.shape == (2, num_classes)
        assert outputs.features.ndim == 2
        assert outputs.features.shape[0] == 2
        assert {leaf.dtype for leaf in jax.tree.leaves((variables, outputs))} == {jnp.dtype(jnp.float32)}
    assert isinstance(backbones.find(name)(10), nn.Module)


@pytest.mark.parametrize("name", PINNED)
def test_pinned_sizes(name):
    params100, params10, buffers, _, features, layers, shortcuts = PINNED[name]
    variables, outputs, *_ = shapes_of(name, 100, jnp.float32)
    assert count(variables["params"]) == params100
    assert count(shapes_of(name, 10, jnp.bfloat16)[0]["params"]) == params10
    assert count(variables["batch_stats"]) == buffers
    assert outputs.features.shape == (2, features)
    kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert len(kernels) - shortcuts == layers


@pytest.mark.parametrize("name", PINNED)
def test_multiply_accumulates(name):
    *_, program = shapes_of(name, 100, jnp.float32)
    assert macs(program) / 2e6 == pytest.approx(
        PINNED[name][3], abs=0.051 if name in ("resnet18", "wrn20_8") else 0.0051
    )


@pytest.mark.parametrize("name", LARGE)
def test_published_sizes(name):
    """From 100 to 1000 classes the last layer alone grows."""
    variables, outputs, _, program = shapes_of(name, 100, jnp.float32)
    features = outputs.features.shape[1]
    more = 900 * features
    assert (count(variables["params"]) + more + 900, macs(program) / 2 + more) == LARGE[name]


# Sides of images, and the features of each network; None where it has none.
SIZES = {
    "resnet8": {(1, 1): 64, (28, 28): 64, (224, 224): 64},
    "densenet40_12": {(3, 9): None, (4, 4): 132, (48, 64): 132},
    "vgg16": {(28, 28): None, (32, 32): 512, (48, 64): 1024, (224, 224): 25_088},
    "resnet18_imagenet": {(28, 224): None, (32, 32): 512, (64, 64): 512},
    "mobilenet_v2": {(28, 28): None, (32, 64): 1280},
}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes])
def test_images_of_other_sizes(name, size):
    if (features := SIZES[name][size]) is None:
        wanted = f"{name}'.* images of {size[0]}x{size[1]} are too small for it"
        with pytest.raises(UsageError, match=wanted):
            backbones.load(name, 10, image_shape=(*size, 3))
        return
    network = backbones.load(name, 10, image_shape=(*size, 3))
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, KEY)
    outputs, _ = jax.eval_shape(lambda v, x: network.apply(v, x, False), variables, images)
    assert outputs.features.shape == (2, features)
    maps, _ = jax.eval_shape(lambda v, x: network.split.trunk(v, x, False), variables, images)
    assert min(maps.shape) > 0  # or the mean over them would be none


def test_unknown_name():
    with pytest.raises(UsageError, match="unknown backbone 'resnet23': did you mean 'resnet"):
        backbones.load("resnet23", 10)


def test_a_name_that_two_files_have(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text('__all__ = ["resnet8"]\n')
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    with pytest.raises(UsageError, match="backbone 'resnet8' is in the __all__ of mine and resnet; rename one"):
        backbones.load("resnet8", 10)


def test_a_file_of_another_shape_is_refused_before_a_step(tmp_path, monkeypatch):
    (tmp_path / "shapeless.py").write_text(
        "import flax.linen as nn\n__all__ = ['shapeless']\nclass Net(nn.Module):\n    @nn.compact\n"
        "    def __call__(self, x, train):\n        return x.mean((1, 2)), x\n"
        "def shapeless(num_classes, dtype): return Net()\n"
    )
    monkeypatch.setattr(backbones, "__path__", [*backbones.__path__, str(tmp_path)])
    settings = command_line.from_flags("quickstart:digits,baseline", ["--config.backbone.name=shapeless"])
    said = r"backbone 'shapeless': of 2 images its logits are \(2, 3\) and its features \(2, 32, 32, 3\)"
    with pytest.raises(UsageError, match=said):
        assemble.networks(settings, 10)


# A second implementation, in NumPy, one image at a time and in evaluation mode.


def np_conv(x, kernel, stride, pad):
    """Cross-correlation of [h, w, c] with [k, k, c, d] after `pad` zeros on every side."""
    k = kernel.shape[0]
    x = np.pad(x, ((pad, pad), (pad, pad), (0, 0)))
    rows, columns = ((size - k) // stride + 1 for size in x.shape[:2])
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            out[i, j] = np.tensordot(x[i * stride : i * stride + k, j * stride : j * stride + k], kernel, 3)
    return out


class Numpy:
    """Runs the layers of a Flax tree in the order of their numbers, one scope of the tree at a time."""

    def __init__(self, variables):
        self.params, self.stats, self.seen = variables["params"], variables["batch_stats"], {}

    def next(self, kind):
        number = self.seen[kind] = self.seen.get(kind, -1) + 1
        name = f"{kind}_{number}"
        return self.params[name], self.stats.get(name)

    def scope(self, kind):
        params, stats = self.next(kind)
        return Numpy({"params": params, "batch_stats": stats})

    def conv(self, x, stride=1):
        params, _ = self.next("Conv")
        return np_conv(x, params["kernel"], stride, params["kernel"].shape[0] // 2) + params.get("bias", 0)

    def depthwise(self, x, stride=1):
        """Each channel by itself."""
        kernel = self.next("Conv")[0]["kernel"]
        each = (np_conv(x[:, :, [c]], kernel[:, :, :, [c]], stride, 1) for c in range(x.shape[2]))
        return np.concatenate(list(each), -1)

    def norm(self, x):
        params, stats = self.next("BatchNorm")
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    def dense(self, x):
        params, _ = self.next("Dense")
        return x @ params["kernel"] + params["bias"]


def relu(x):
    return np.maximum(x, 0)


def np_residual(net, x, kind, stride):
    """One residual block; the strided layer of a Bottleneck is its 3x3, the second."""
    inner = net.scope(kind)
    strides = (stride, 1) if kind == "BasicBlock" else (1, stride, 1)
    y = x
    for i, s in enumerate(strides):
        y = inner.norm(inner.conv(y, s))
        y = y if i == len(strides) - 1 else relu(y)
    if y.shape != x.shape:
        x = inner.norm(inner.conv(x, stride))
    return relu(y + x)


def relu6(x):
    return np.clip(x, 0, 6)


def np_max_pool(x):
    """3x3 with stride 2; what lies outside is never the largest."""
    x = np.pad(x, ((1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    rows, columns = ((size - 3) // 2 + 1 for size in x.shape[:2])
    windows = [[x[2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((0, 1)) for j in range(columns)] for i in range(rows)]
    return np.array(windows)


def np_mobilenet(net, x, blocks):
    """Of each block: whether it is wider inside, its stride, and whether its input is added."""
    x = relu6(net.norm(net.conv(x, 2)))
    for wider, stride, added in blocks:
        inner = net.scope("InvertedResidual")
        y = relu6(inner.norm(inner.conv(x))) if wider else x
        y = relu6(inner.norm(inner.depthwise(y, stride)))
        y = inner.norm(inner.conv(y))
        x = x + y if added else y
    features = relu6(net.norm(net.conv(x))).mean((0, 1))
    return net.dense(features), features


def np_resnet(net, x, kind, blocks, large=False):
    x = relu(net.norm(net.conv(x, 2 if large else 1)))
    x = np_max_pool(x) if large else x
    for stage, number in enumerate(blocks):
        for block in range(number):
            x = np_residual(net, x, kind, 2 if stage and not block else 1)
    features = x.mean((0, 1))
    return net.dense(features), features


def np_densenet(net, x, blocks):
    x = net.conv(x)
    for block, number in enumerate(blocks):
        if block:
            x = net.conv(relu(net.norm(x)))
            x = (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4
        for _ in range(number):
            inner = net.scope("DenseLayer")
            y = inner.conv(relu(inner.norm(x)))
            x = np.concatenate([x, inner.conv(relu(inner.norm(y)))], -1)
    features = relu(net.norm(x)).mean((0, 1))
    return net.dense(features), features


def scrambled(module, size):
    """Variables of a module in which no batch norm is the identity and no bias is 0."""
    shapes = jax.eval_shape(functools.partial(module.init, train=False), KEY, jnp.zeros((1, size, size, 3)))
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        if path[-1].key in ("var", "scale"):
            return rng.uniform(0.5, 2.0, leaf.shape).astype(np.float32)
        return rng.normal(scale=math.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


@pytest.mark.parametrize("name", TINY)
def test_forward_equals_numpy(name):
    module = TINY[name]
    height, width = (19, 14) if name in ("large", "mobilenet") else (8, 8)
    variables = scrambled(module, height)
    images = 2 * np.random.default_rng(2).normal(size=(2, height, width, 3)).astype(np.float32)
    logits, features = jax.jit(functools.partial(module.apply, train=False))(variables, images)
    reference = {
        "basic": lambda net, x: np_resnet(net, x, "BasicBlock", (1, 1)),
        "bottleneck": lambda net, x: np_resnet(net, x, "Bottleneck", (2, 1)),
        "large": lambda net, x: np_resnet(net, x, "BasicBlock", (1, 1), large=True),
        "densenet": lambda net, x: np_densenet(net, x, (2, 1)),
        "mobilenet": lambda net, x: np_mobilenet(net, x, ((0, 1, False), (1, 1, True), (1, 1, True), (1, 2, False))),
    }[name]
    for i, image in enumerate(images):
        expected_logits, expected_features = reference(Numpy(variables), image.astype(np.float64))
        np.testing.assert_allclose(features[i], expected_features, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(logits[i], expected_logits, rtol=1e-4, atol=1e-5)


def test_dropout_before_the_classifier_of_a_mobilenet():
    """In training a fifth of the features is taken out and the others are 1.25 times as large; the features stay."""
    module = TINY["mobilenet"]
    network, images = linen_backbone("tiny", module), np.random.default_rng(2).normal(size=(400, 8, 8, 3))
    variables = scrambled(module, 8)
    kernel = np.zeros((9, 7), np.float32)
    kernel[:7, :7] = np.eye(7)  # the logits are the first seven of the features that are left
    variables["params"]["Dense_0"] = {"kernel": kernel, "bias": np.zeros(7, np.float32)}
    train = jax.jit(lambda key: network.apply(variables, images, True, key)[0])
    one, other = (jax.device_get(train(jax.random.key(seed))) for seed in (1, 2))
    np.testing.assert_array_equal(one.features, other.features)
    seen = one.features[:, :7] != 0  # most: ReLU6 and batch norm leave few at 0
    ratio = one.logits[seen] / one.features[:, :7][seen]
    assert set(np.unique(ratio.round(4)).tolist()) == {0, 1.25}
    assert abs((ratio == 0).mean() - 0.2) < 4 * (0.2 * 0.8 / ratio.size) ** 0.5 and ratio.size > 1000
    assert not np.array_equal(one.logits, other.logits)
    evaluated = network.apply(variables, images[:4], False, KEY)[0]
    np.testing.assert_allclose(evaluated.logits, evaluated.features[:, :7], rtol=1e-6)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("function", [convolution, shifted_sum])
def test_depthwise_convolutions_under_vmap(function, stride):
    """Values and gradients of both forms, mapped over two networks, against each channel's own convolution."""
    rng = np.random.default_rng(4)
    images, kernels = rng.normal(size=(2, 3, 7, 6, 5)), rng.normal(size=(2, 3, 3, 1, 5))
    axes = jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))
    options = {"window_strides": (stride, stride), "padding": ((1, 1), (1, 1))}

    def ours(images, kernel):
        return function(images, kernel, *options.values(), dimension_numbers=axes, feature_group_count=5)

    def plain(images, kernel):
        each = [
            jax.lax.conv_general_dilated(images[..., [c]], kernel[..., [c]], dimension_numbers=axes, **options)
            for c in range(5)
        ]
        return jnp.concatenate(each, -1)

    def both(form):
        values = jax.vmap(form)(images, kernels)
        gradient = jax.grad(lambda x, k: (jax.vmap(form)(x, k) ** 2).sum(), argnums=(0, 1))
        return values, gradient(jnp.asarray(images), jnp.asarray(kernels))

    chex.assert_trees_all_close(both(ours), both(plain), rtol=1e-4, atol=1e-4)


def test_vgg_head_and_pooling_equal_numpy():
    """VGG's widths are fixed, so only its first stage and its head are followed, each from what Flax put in."""
    module, seen = VGG(7, (1, 1, 1, 1, 1)), []

    def note(function, args, kwargs, context):
        out = function(*args, **kwargs)
        if isinstance(context.module, (nn.Conv, nn.BatchNorm, nn.Dense)) and context.method_name == "__call__":
            seen.append((args[0], out))
        return out

    def traced(variables, images):
        seen.clear()
        with nn.intercept_methods(note):
            outputs = module.apply(variables, images, train=False)
        return outputs, list(seen)

    variables = scrambled(module, 32)
    images = np.random.default_rng(2).normal(size=(1, 32, 32, 3)).astype(np.float32)
    (logits, features), calls = jax.jit(traced)(variables, images)
    calls = jax.tree.map(np.asarray, calls)
    net = Numpy(variables)
    x = net.norm(net.conv(images[0].astype(np.float64)))
    np.testing.assert_allclose(calls[1][1][0], x, rtol=1e-4, atol=1e-4)
    pooled = relu(x).reshape(16, 2, 16, 2, 64).max((1, 3))
    np.testing.assert_allclose(calls[2][0][0], pooled, rtol=1e-4, atol=1e-4)
    last = relu(calls[9][1][0]).reshape(1, 2, 1, 2, 512).max((1, 3)).reshape(512)
    np.testing.assert_array_equal(features[0], last)
    hidden = np.asarray(features[0], np.float64)
    for _ in range(2):
        hidden = relu(net.dense(hidden))
    np.testing.assert_allclose(logits[0], net.dense(hidden), rtol=1e-3, atol=1e-4)


def test_vgg_leaves_its_biases_to_batch_norm_in_training():
    """The first running mean is that of convolution and bias, by hand; no bias has a gradient or changes an output."""
    module = VGG(7, (1, 1, 1, 1, 1))
    variables = scrambled(module, 32)
    images = np.random.default_rng(2).normal(size=(3, 32, 32, 3)).astype(np.float32)

    @jax.jit
    def trained(variables):
        def total(params):
            outputs, changed = module.apply(variables | {"params": params}, images, True, mutable=["batch_stats"])
            return outputs[0].sum(), (outputs, changed["batch_stats"])

        return jax.grad(total, has_aux=True)(variables["params"])

    gradients, (outputs, stats) = trained(variables)
    first = {name: np.asarray(leaf, np.float64) for name, leaf in variables["params"]["Conv_0"].items()}
    seen = np.stack([np_conv(image.astype(np.float64), first["kernel"], 1, 1) for image in images]) + first["bias"]
    before = variables["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(stats["BatchNorm_0"]["mean"], 0.9 * before + 0.1 * seen.mean((0, 1, 2)), rtol=1e-3)
    assert abs(gradients["Conv_0"]["kernel"]).max() > 0 and not any(
        gradients[f"Conv_{i}"]["bias"].any() for i in range(5)
    )
    moved = jax.tree.map_with_path(lambda path, leaf: leaf + ("Conv_" in str(path) and "bias" in str(path)), variables)
    _, (others, _) = trained(moved)
    chex.assert_trees_all_equal(others, outputs)


@pytest.mark.parametrize("size", [(4, 6), (5, 6), (4, 3)])
def test_max_pooling_and_whose_gradient_it_is(size):
    """By loops in numpy; of equal numbers the first one has the gradient, as in PyTorch and XLA."""
    x = np.random.default_rng(0).integers(-1, 2, (2, *size, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, size[0] // 2, size[1] // 2, 3)).astype(np.float32)
    wanted, gradient = np.zeros_like(weights), np.zeros_like(x)
    for n, i, j, c in np.ndindex(weights.shape):
        window = x[n, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = divmod(int(window.argmax()), 2)  # the first
        wanted[n, i, j, c] = window[row, column]
        gradient[n, 2 * i + row, 2 * j + column, c] = weights[n, i, j, c]
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), wanted)
    np.testing.assert_array_equal(jax.grad(lambda x: (weights * max_pool(x)).sum())(jnp.asarray(x)), gradient)
    for at in range(4):
        assert np.isnan(max_pool(jnp.zeros((1, 2, 2, 1)).at[0, at // 2, at % 2].set(jnp.nan))).all()


def test_padding_of_a_strided_convolution_is_symmetric():
    """Where a 3x3 kernel is a one in its upper left corner, output (i, j) is input (2i - 1, 2j - 1)."""

    class Probe(nn.Module):
        @nn.compact
        def __call__(self, x):
            return conv(x, 1, 3, 2, dtype=jnp.float32)

    image = np.arange(1.0, 65.0, dtype=np.float32).reshape(1, 8, 8, 1)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[0, 0] = 1
    out = np.asarray(Probe().apply({"params": {"Conv_0": {"kernel": kernel}}}, image))[0, :, :, 0]
    expected = np.zeros((4, 4))
    expected[1:, 1:] = image[0, 1:7:2, 1:7:2, 0]
    np.testing.assert_array_equal(out, expected)


def initial(module):
    init = jax.jit(functools.partial(module.init, train=False), compiler_options={"xla_backend_optimization_level": 0})
    return jax.tree.map(np.asarray, init(KEY, jnp.zeros((1, 32, 32, 3)))["params"])


def assert_normal(kernel, std):
    """Mean, deviation and tails; a normal distribution cut at two deviations has none beyond 2.3 of its own."""
    n = kernel.size
    assert abs(kernel.mean()) < 5 * std / math.sqrt(n)
    assert abs(kernel.std() / std - 1) < 5 / math.sqrt(2 * n)
    assert abs(kernel).max() > 3 * std


def assert_uniform(array, bound):
    assert abs(array).max() <= bound * (1 + 1e-6)
    assert array.max() > 0.8 * bound
    assert array.min() < -0.8 * bound
    assert abs(array.std() - bound / math.sqrt(3)) < 0.2 * bound


def test_initial_weights_of_a_resnet():
    params = initial(backbones.find("resnet8")(100))
    assert_normal(params["BasicBlock_2"]["Conv_0"]["kernel"], math.sqrt(2 / (9 * 64)))  # 32 in, 64 out
    assert_normal(params["BasicBlock_2"]["Conv_2"]["kernel"], math.sqrt(2 / 64))  # 1x1, 32 in, 64 out
    assert_uniform(params["Dense_0"]["kernel"], 1 / 8)
    assert_uniform(params["Dense_0"]["bias"], 1 / 8)
    assert set(params["BasicBlock_0"]["Conv_0"]) == {"kernel"}
    np.testing.assert_array_equal(params["BatchNorm_0"]["scale"], np.ones(16))
    np.testing.assert_array_equal(params["BatchNorm_0"]["bias"], np.zeros(16))


@pytest.mark.slow
def test_initial_weights_of_a_vgg():
    params = initial(VGG(100, (1, 1, 1, 1, 1)))
    assert_normal(params["Conv_1"]["kernel"], math.sqrt(2 / (9 * 128)))  # 64 in, 128 out
    for i in range(3):
        assert_normal(params[f"Dense_{i}"]["kernel"], 0.01)
        assert not params[f"Dense_{i}"]["bias"].any()
    assert not any(params[f"Conv_{i}"]["bias"].any() for i in range(5))


@pytest.mark.slow
def test_initial_weights_of_a_densenet():
    params = initial(DenseNet(100, (2, 2)))
    assert_normal(params["DenseLayer_0"]["Conv_1"]["kernel"], math.sqrt(2 / (9 * 48)))  # 48 in, 12 out
    assert_normal(params["Conv_1"]["kernel"], math.sqrt(2 / 48))  # 1x1, 48 in, 24 out
    assert_uniform(params["Dense_0"]["kernel"], 1 / math.sqrt(48))
    assert not params["Dense_0"]["bias"].any()


@pytest.mark.slow
def test_initial_weights_of_a_mobilenet():
    params = initial(MobileNetV2(100, stages=((1, 16, 1, 1), (6, 24, 1, 2)), last=320))
    inner = params["InvertedResidual_1"]
    assert_normal(inner["Conv_0"]["kernel"], math.sqrt(2 / 96))  # 1x1, 16 in, 96 out
    assert_normal(inner["Conv_1"]["kernel"], math.sqrt(2 / (9 * 96)))  # PyTorch counts all 96 channels
    assert_normal(params["Dense_0"]["kernel"], 0.01)
    assert not params["Dense_0"]["bias"].any()
    np.testing.assert_array_equal(params["BatchNorm_1"]["scale"], np.ones(320))


@functools.cache
def tiny_steps(dtype):
    """Variables of a small ResNet, four images, and what training and evaluation make of them."""
    module = ResNet(7, (1, 1), (8, 16), dtype=dtype)
    backbone = linen_backbone("tiny", module)
    variables = jax.jit(backbone.init)(KEY)
    images = np.random.default_rng(3).normal(1.0, 2.0, size=(4, 8, 8, 3)).astype(np.float32)
    apply = jax.jit(backbone.apply, static_argnums=2)
    return variables, images, apply(variables, images, True), apply(variables, images, False)


def test_running_statistics_after_one_step():
    variables, images, (_, batch_stats), _ = tiny_steps(jnp.float32)
    kernel = np.asarray(variables["params"]["Conv_0"]["kernel"], np.float64)
    out = np.stack([np_conv(image.astype(np.float64), kernel, 1, 1) for image in images])
    stem = batch_stats["BatchNorm_0"]
    np.testing.assert_allclose(stem["mean"], 0.9 * 0 + 0.1 * out.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(stem["var"], 0.9 * 1 + 0.1 * out.var((0, 1, 2)), rtol=1e-3)


def test_evaluation_leaves_the_statistics_alone():
    variables, _, (trained, _), (evaluated, batch_stats) = tiny_steps(jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, batch_stats, variables["batch_stats"])
    assert not np.allclose(trained.logits, evaluated.logits)


def test_bfloat16_is_used_inside_only():
    variables, _, _, (exact, _) = tiny_steps(jnp.float32)
    half_variables, images, (outputs, batch_stats), (half, _) = tiny_steps(jnp.bfloat16)
    jax.tree.map(np.testing.assert_array_equal, half_variables, variables)
    leaves = jax.tree.leaves((half_variables, batch_stats, outputs, half))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}
    assert not np.array_equal(half.logits, exact.logits)
    np.testing.assert_allclose(half.logits, exact.logits, atol=0.05 * float(abs(exact.logits).max()))


@pytest.mark.parametrize("name", PINNED)
def test_bfloat16_reaches_every_convolution(name):
    params, *_, program = shapes_of(name, 10, jnp.bfloat16)
    convolutions, products = (
        [{var.aval.dtype for var in eqn.invars} for eqn in equations(program) if eqn.primitive.name == primitive]
        for primitive in ("conv_general_dilated", "dot_general")
    )
    assert convolutions == [{jnp.dtype(jnp.bfloat16)}] * len(convolutions)
    of_pixels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 4 and leaf.shape[:2] == (1, 1)]
    assert products.count({jnp.dtype(jnp.bfloat16)}) == len(of_pixels)
