"""The fast kernel gradient is the gradient of the plain convolution, in every mode."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.models.convolution import conv_general_dilated, convolve, kernel_gradient
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.refinenet import RefineNet
from hos_jax.models.score_model import ScoreModel


def plain(images, kernel, dilation):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        [(dilation, dilation)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(*shapes):
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_and_directional_derivatives_are_those_of_the_plain_form(dilation):
    images, kernel, direction, weights = arrays(
        (2, 6, 8, 2), (3, 3, 2, 3), (2, 6, 8, 2), (2, 6, 8, 3)
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

    found = jax.jit(functools.partial(everything, convolve))()
    expected = jax.jit(functools.partial(everything, plain))()
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_sums_of_bfloat16_are_float32():
    images, cotangent = arrays((4, 16, 16, 2), (4, 16, 16, 1))
    low = [array.astype(jnp.bfloat16) for array in (images, cotangent)]
    found = kernel_gradient(*low, 1)
    exact = kernel_gradient(*(array.astype(jnp.float32) for array in low), 1)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize(("size", "strides"), [(3, 1), (3, 2), (1, 1)])
def test_flax_convolutions_stay_what_they_are(size, strides):
    (images,) = arrays((2, 6, 6, 2))
    make = functools.partial(nn.Conv, 3, (size, size), strides=strides)
    params = make().init(jax.random.key(1), images)
    found = make(conv_general_dilated=conv_general_dilated).apply(params, images)
    np.testing.assert_allclose(found, make().apply(params, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("networks", ["shared", "per_output"])
def test_scores_of_a_bfloat16_network_are_float32(networks):
    network = functools.partial(RefineNet, features=4, dtype=jnp.bfloat16)
    model = ScoreModel(network, SecondOrderHead("low_rank", 2), networks=networks)
    images = jnp.zeros((1, 8, 8, 1))
    outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), images, 0.5)
    assert {leaf.dtype for leaf in jax.tree.leaves(outputs)} == {jnp.dtype("float32")}
