"""Convolutions on CPU are the plain ones, with all their derivatives, in every mode."""

import functools
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from plain_convolution import arrays, plain

from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.refinenet import RefineNet
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.winograd import conv_general_dilated, convolution, convolve
from hos_jax.models.winograd.convolution import kernel_gradient, pays


@pytest.fixture(params=["few channels", "few pixels", "many of both"])
def channels(request, monkeypatch):
    """XLA's convolution, with and without the primitives, and Winograd's filtering, in chunks."""
    monkeypatch.setattr(convolution, "CHUNK", 100_000)
    least = 5000 if request.param == "few pixels" else 1
    monkeypatch.setattr(convolution, "PIXELS", least)
    return 2 if request.param == "few channels" else 64


def check(everything, rtol=1e-4):
    """A function of a convolution has the same results with ours as with the plain one."""
    found = jax.jit(functools.partial(everything, convolve))()
    expected = jax.jit(functools.partial(everything, plain))()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * float(jnp.abs(other).max()))


@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_and_directional_derivatives_are_those_of_the_plain_form(channels, dilation):
    outputs = channels + 1
    images, kernel, direction, weights = arrays(
        (4, 6, 8, channels), (3, 3, channels, outputs), (4, 6, 8, channels), (4, 6, 8, outputs)
    )

    def everything(convolution):
        def product(images, kernel):
            return jnp.vdot(weights, jnp.sin(convolution(images, kernel, dilation)))

        def along(kernel):
            _, tangent = jax.jvp(
                lambda x: convolution(x, kernel, dilation), (images,), (direction,)
            )
            return jnp.vdot(weights, jnp.sin(tangent))

        gradient = jax.grad(jax.checkpoint(product), argnums=(0, 1))(images, kernel)
        both = jax.jvp(product, (images, kernel), (direction, kernel))[1]
        return gradient, both, jax.grad(along)(kernel)

    check(everything)


def test_gradients_of_gradients_are_those_of_the_plain_form(channels):
    images, kernel, direction = arrays(
        (2, 4, 6, channels), (3, 3, channels, channels), (2, 4, 6, channels)
    )

    def everything(convolution):
        def energy(images, kernel):
            return jnp.sum(jnp.sin(convolution(convolution(images, kernel, 1), kernel, 1)))

        def penalty(images, kernel):
            return jnp.sum(jax.grad(energy)(images, kernel) ** 2)

        def change(images, kernel):
            slope = jax.grad(energy, argnums=1)
            return jax.jvp(lambda x: slope(x, kernel), (images,), (direction,))[1]

        return jax.grad(penalty, argnums=(0, 1))(images, kernel), change(images, kernel)

    check(everything, rtol=1e-3)


def test_batches_are_those_of_the_plain_form(channels):
    images, kernels, cotangents = arrays(
        (3, 2, 4, 4, channels), (3, 3, 3, channels, channels), (3, 2, 4, 4, channels)
    )

    def everything(convolution):
        def of_both(images, kernel, cotangent):
            _, pull = jax.vjp(lambda x, k: convolution(x, k, 1), images, kernel)
            return pull(cotangent)

        each = jax.vmap(convolution, in_axes=(0, 0, None))(images, kernels, 1)
        one_kernel = jax.vmap(of_both, in_axes=(1, None, 1))(
            images.swapaxes(0, 1), kernels[0], cotangents.swapaxes(0, 1)
        )
        one_image = jax.vmap(of_both, in_axes=(None, 0, 0))(images[0], kernels, cotangents)
        return each, one_kernel, one_image

    check(everything)


def test_chunks_are_even_and_not_too_large():
    images = jnp.zeros((40, 8, 8, 32))
    values_per_image = 36 * 64 * 32 // 16
    assert convolution._chunks(images, 10 * values_per_image) == 4
    assert convolution._chunks(images, 9 * values_per_image) == 5
    assert convolution._chunks(images, values_per_image - 1) == 40
    assert convolution._chunks(images[:37], 36 * values_per_image) == 37


@pytest.mark.parametrize(
    ("shape", "outputs", "paid"),
    [
        ((2, 8, 8, 64), 64, True),
        ((2, 8, 8, 63), 64, False),
        ((2, 8, 8, 64), 63, False),
        ((1, 14, 14, 128), 128, False),
        ((1, 28, 28, 128), 64, True),
        ((16, 7, 7, 256), 256, False),
        ((40, 7, 7, 256), 256, True),
        ((1, 93, 93, 64), 64, True),
        ((4, 95, 95, 64), 64, False),
    ],
)
def test_filtering_is_for_many_channels_and_pixels_of_images_that_stay_in_the_cache(
    shape, outputs, paid
):
    assert pays(shape, outputs) == paid
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, shape[-1], outputs), jnp.float32)
    text = jax.jit(convolve).lower(images, kernel).as_text()
    assert ("convolution" not in text.replace("same_size_convolution", "")) == paid


def test_sums_of_bfloat16_are_float32(channels):
    images, kernel, cotangent = arrays(
        (4, 16, 16, channels), (3, 3, channels, channels), (4, 16, 16, channels)
    )
    low = [array.astype(jnp.bfloat16) for array in (images, kernel, cotangent)]
    images, kernel, cotangent = (array.astype(jnp.float32) for array in low)
    found = kernel_gradient(low[0], low[2], 1)
    assert found.dtype == jnp.bfloat16
    exact = kernel_gradient(images, cotangent, 1).astype(jnp.bfloat16)
    np.testing.assert_array_equal(found, exact)
    found = convolve(low[0], low[1])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        found.astype(jnp.float32), convolve(images, kernel), rtol=0.01, atol=0.02
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2}, {"kernel_dilation": 2}, {"feature_group_count": 2}, {"padding": "VALID"}],
    ids=str,
)
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("features", "rounding"), [(2, 1e-6), (64, 1e-5)])
def test_flax_convolutions_stay_what_they_are(size, features, rounding, options):
    (images,) = arrays((2, 12, 12, features))
    make = functools.partial(nn.Conv, features, (size, size), **options)
    params = make().init(jax.random.key(1), images)
    found = make(conv_general_dilated=conv_general_dilated).apply(params, images)
    np.testing.assert_allclose(found, make().apply(params, images), rtol=1e-5, atol=rounding)


def filtered(function, *arguments):
    return "same_size_convolution" in str(jax.make_jaxpr(function)(*arguments))


def test_a_precision_that_is_asked_for_is_kept():
    images, kernel = arrays((2, 8, 8, 64), (3, 3, 64, 64))
    convolve_flax = functools.partial(
        conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=convolution.IMAGES,
    )
    assert filtered(convolve_flax, images, kernel)
    for options in ({"precision": "highest"}, {"preferred_element_type": jnp.float32}):
        asked = functools.partial(convolve_flax, **options)
        assert not filtered(asked, images, kernel)
        assert (
            str(options.popitem()[1]).split(".")[-1][:7].upper()
            in str(jax.make_jaxpr(asked)(images, kernel)).upper()
        )
    assert filtered(convolve, images, kernel)
    with jax.default_matmul_precision("highest"):
        assert not filtered(convolve, images, kernel)
        assert not filtered(convolve_flax, images, kernel)
    assert not filtered(convolve, images.astype(jnp.float16), kernel.astype(jnp.float16))


def test_one_switch_leaves_all_convolutions_to_xla():
    script = """
import jax, jax.numpy as jnp
from hos_jax.models.winograd import convolve
images, kernel = jnp.zeros((2, 8, 8, 64)), jnp.zeros((3, 3, 64, 64))
print("same_size_convolution" in str(jax.make_jaxpr(convolve)(images, kernel)))
"""
    for value, found in (("0", "False"), ("1", "True")):
        environment = os.environ | {"HOS_JAX_WINOGRAD": value, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True
        )
        assert done.stdout.strip() == found, done.stderr


def test_gradients_inside_shard_map_are_those_of_the_plain_form(channels):
    images, kernel = arrays((8, 8, 8, channels), (3, 3, channels, channels))
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(AxisType.Auto,))
    split, whole = PartitionSpec("devices"), PartitionSpec()

    def everything(convolution):
        def energy(images, kernel):
            return jnp.sum(jnp.sin(convolution(images, kernel, 1)))

        def penalty(images, kernel):
            return jnp.sum(jax.grad(energy)(images, kernel) ** 2)

        def gradients(images, kernel):
            both = (0, 1)
            return jax.grad(energy, both)(images, kernel), jax.grad(penalty, both)(images, kernel)

        # Whether a gradient in the kernel is the sum over devices, is checked where it is traced.
        return jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(split, whole),
            out_specs=((split, whole), (split, whole)),
        )(images, kernel)

    check(everything, rtol=1e-3)


@pytest.mark.parametrize("networks", ["shared", "per_output"])
def test_scores_of_a_bfloat16_network_are_float32(networks):
    network = functools.partial(RefineNet, features=4, dtype=jnp.bfloat16)
    model = ScoreModel(network, SecondOrderHead("low_rank", 2), networks=networks)
    images = jnp.zeros((1, 8, 8, 1))
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}


def test_images_that_are_split_over_devices_share_their_kernel():
    """A kernel for each of them would be a convolution by itself, many times slower."""
    images, kernel = arrays((4, 1, 16, 16, 64), (3, 3, 64, 64))
    mesh = jax.make_mesh((1,), ("chains",), axis_types=(AxisType.Auto,))
    split = jax.device_put(images, NamedSharding(mesh, PartitionSpec("chains")))
    each = jax.jit(jax.vmap(lambda one: convolve(one, kernel)))
    for given in (images, split):
        traced = str(each.trace(given).jaxpr)
        assert "same_size_convolution" in traced and "conv_general_dilated" not in traced
    np.testing.assert_allclose(each(split), each(images), rtol=1e-5, atol=1e-4)
