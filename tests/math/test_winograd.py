"""Winograd's filtering is the plain convolution, in float64 exactly and in float32 nearly so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_convolution import arrays, plain

from hos_jax.models.winograd import filtering as winograd


def test_minimal_filter_is_a_correlation():
    output, filters, inputs = winograd.minimal_filter()
    rng = np.random.default_rng(0)
    kernel, values = rng.normal(size=3), rng.normal(size=6)
    found = output @ ((filters @ kernel) * (inputs @ values))
    np.testing.assert_allclose(found, np.correlate(values, kernel), atol=1e-13)


# Whole squares, parts of squares, images smaller than a square, and dilated ones of every kind.
@pytest.mark.parametrize(
    ("height", "width", "dilation"),
    [(8, 12, 1), (6, 5, 1), (2, 3, 1), (14, 14, 2), (14, 14, 4), (7, 10, 3), (3, 16, 4)],
)
def test_convolution_and_its_kernel_gradient_are_the_plain_ones(height, width, dilation):
    images, kernel, cotangent = arrays((2, height, width, 3), (3, 3, 3, 4), (2, height, width, 4))
    expected, pull = jax.vjp(lambda kernel: plain(images, kernel, dilation), kernel)
    found = winograd.convolve(images, kernel, dilation)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    found = winograd.kernel_gradient(images, cotangent, dilation)
    np.testing.assert_allclose(found, pull(cotangent)[0], atol=1e-12)


def float32_error(images, kernel, function):
    low = function(images.astype(jnp.float32), kernel.astype(jnp.float32))
    assert low.dtype == jnp.float32
    return float(jnp.sqrt(jnp.mean((low.astype(jnp.float64) - plain(images, kernel)) ** 2)))


def test_rounding_is_a_few_times_that_of_the_plain_sum_and_half_that_of_the_usual_points(
    monkeypatch,
):
    images, kernel = arrays((4, 16, 16, 64), (3, 3, 64, 16))
    images = images.astype(jnp.float32).astype(jnp.float64)
    kernel = (kernel / 24).astype(jnp.float32).astype(jnp.float64)
    found = float32_error(images, kernel, winograd.convolve)
    assert found < 5 * float32_error(images, kernel, plain)
    monkeypatch.setattr(winograd, "POINTS", (0.0, 1.0, -1.0, 2.0, -2.0))
    for name, matrix in zip(("OUTPUT", "FILTER", "INPUT"), winograd.minimal_filter(), strict=True):
        monkeypatch.setattr(winograd, name, matrix)
    assert found < 0.6 * float32_error(images, kernel, winograd.convolve)
