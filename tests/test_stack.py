"""Variables of alike networks held together, and convolutions that are mapped as J plain ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from cutnmix_jax import packed, stack
from cutnmix_jax.backbones.convolution import convolution, of_pixels
from cutnmix_jax.stack import Stack

AXES = lax.conv_dimension_numbers((1, 8, 8, 3), (3, 3, 3, 4), ("NHWC", "HWIO", "NHWC"))
KEYS = jax.random.split(jax.random.key(0), 2)
IMAGES, KERNELS = jax.random.normal(KEYS[0], (3, 2, 8, 8, 3)), jax.random.normal(KEYS[1], (3, 3, 3, 3, 4))


def ours(images, kernel):
    return convolution(images, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=AXES)


def theirs(images, kernel):
    return lax.conv_general_dilated(images, kernel, (2, 2), [(1, 1), (1, 1)], dimension_numbers=AXES)


@pytest.mark.parametrize("shared", [False, True], ids=["own images", "the same images"])
def test_a_mapped_convolution_is_each_of_them(shared):
    """The value, and the gradients of images and kernels."""
    images = IMAGES[0] if shared else IMAGES

    def mapped(images, kernels):
        return jnp.sin(jax.vmap(ours, (None if shared else 0, 0))(images, kernels)).sum()

    def alone(images, kernels):
        each = [theirs(images if shared else images[j], kernels[j]) for j in range(3)]
        return jnp.sin(jnp.stack(each)).sum()

    found, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(images, KERNELS) for f in (mapped, alone))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_no_convolution_is_grouped(gradient):
    def total(images, kernels):
        return jax.vmap(ours)(images, kernels).sum()

    program = jax.jit(jax.grad(total, (0, 1)) if gradient else jax.vmap(ours)).lower(IMAGES, KERNELS).as_text()
    count = program.count("stablehlo.convolution")
    assert count >= 3 and program.count("feature_group_count = 1 ") == program.count("batch_group_count = 1 ") == count


def test_unmapped_it_is_the_plain_one():
    found, expected = (jax.value_and_grad(lambda w, f=f: f(IMAGES[0], w).sum())(KERNELS[0]) for f in (ours, theirs))
    chex.assert_trees_all_equal(found, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("images", [IMAGES, IMAGES[0], IMAGES[:, :, :7]], ids=["own", "the same", "odd"])
def test_a_convolution_of_pixels_is_a_sum_over_channels(images, stride):
    """Against numpy, mapped; the gradients of <w, y> are the same sums over the other axes."""
    kernels, shared = np.asarray(KERNELS[:, :1, :1]), images.ndim == 4
    seen = np.asarray(images)[..., ::stride, ::stride, :]
    seen = np.broadcast_to(seen, (3, *seen.shape)) if shared else seen
    weights = np.random.default_rng(0).normal(size=(*seen.shape[:-1], 4)).astype(np.float32)

    def mapped(images, kernels):
        padding = [(0, 0), (0, 0)]
        return jax.vmap(lambda x, k: of_pixels(x, k, (stride,) * 2, padding), (None if shared else 0, 0))(
            images, kernels
        )

    def total(images, kernels):
        return (weights * mapped(images, kernels)).sum()

    of_images, of_kernels = jax.jit(jax.grad(total, (0, 1)))(images, kernels)
    np.testing.assert_allclose(
        mapped(images, kernels), np.einsum("jnhwc,jcd->jnhwd", seen, kernels[:, 0, 0]), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(of_kernels[:, 0, 0], np.einsum("jnhwc,jnhwd->jcd", seen, weights), rtol=1e-4, atol=1e-5)
    wanted = np.zeros((3, *np.shape(images)[-4:]))
    wanted[:, :, ::stride, ::stride] = np.einsum("jnhwd,jcd->jnhwc", weights, kernels[:, 0, 0])
    np.testing.assert_allclose(of_images, wanted.sum(0) if shared else wanted, rtol=1e-4, atol=1e-5)


def test_kernels_of_one_pixel_are_held_together():
    """They are products, of which all networks' are one."""
    trees = tuple({"one": np.full((1, 1, 2, 3), j), "nine": np.full((3, 3, 2, 3), j)} for j in range(2))
    held = stack.of(trees).tree
    assert held["one"].shape == (2, 1, 1, 2, 3) and isinstance(held["nine"], stack.Apart)
    program = str(
        jax.make_jaxpr(jax.vmap(lambda x, k: of_pixels(x, k, (1, 1), ((0, 0),) * 2)))(IMAGES, KERNELS[:, :1, :1])
    )
    assert program.count("dot_general[") == 1


def test_apart_and_together():
    trees = tuple({"w": jnp.full((2,), j), "b": jnp.float32(j)} for j in range(3))
    held = {"peers": stack.of(trees), "method": {"w": jnp.ones(2)}, "empty": Stack({}, 2)}
    apart = stack.apart(held)
    chex.assert_trees_all_equal(apart, {"peers": trees, "method": {"w": np.ones(2)}, "empty": ({}, {})})
    chex.assert_trees_all_equal(stack.together(apart, held), held)
    assert stack.together(apart, held)["empty"] == Stack({}, 2)


def test_unlike_trees_are_rows_of_one_length():
    """Of several types, of which one tree lacks some; exactly back again, and so is what is derived from them."""
    one = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones((), jnp.bfloat16), "c": jnp.arange(3, dtype=jnp.uint32)}
    other = [jnp.full((2, 2, 2), 7.0), jnp.zeros(0)]
    held = packed.of((one, other))
    assert {kind: rows.shape for kind, rows in held.rows.items()} == {
        "float32": (2, 8), "bfloat16": (2, 1), "uint32": (2, 3),
    }  # fmt: skip
    np.testing.assert_array_equal(held.rows["float32"][0], [0, 1, 2, 3, 4, 5, 0, 0])
    apart = jax.jit(stack.apart)({"of": held})["of"]
    chex.assert_trees_all_equal(apart, (one, other))
    chex.assert_trees_all_equal_dtypes(apart, (one, other))
    moments = jax.tree.map(lambda rows: rows.astype(jnp.float32), held)
    derived = stack.apart(moments)
    chex.assert_trees_all_equal(derived[0]["b"], jnp.ones(()))
    chex.assert_trees_all_equal(stack.together(derived, held), moments)
