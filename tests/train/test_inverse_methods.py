"""The ways of others to guide by a measurement, as `benchmarks/inverse_problem.py` has them, are
exact where their assumptions hold."""

import importlib
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.uncertainty.inverse import Observation

SIGMA, DIM, SEEN = 0.7, 6, 3
OPTIONS = types.SimpleNamespace(dps_step=0.4, products=SEEN)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("inverse_problem")


def gaussian(diagonal):
    """A Gaussian law's denoiser, its posterior covariance, and a noisy point."""
    rng = np.random.default_rng(3)
    root = np.diag(rng.uniform(0.5, 2.0, DIM)) if diagonal else rng.normal(size=(DIM, DIM))
    covariance = root @ root.T
    mean, noisy = rng.normal(size=(2, DIM))
    gain = covariance @ np.linalg.inv(covariance + SIGMA**2 * np.eye(DIM))

    def mean_fn(y):
        return jnp.asarray(mean + gain @ -mean, jnp.float32) + jnp.asarray(gain, jnp.float32) @ y

    return mean_fn, SIGMA**2 * gain, jnp.asarray(noisy, jnp.float32)


def exact_mean(mean, covariance, matrix, values, noise_std):
    inner = noise_std**2 * np.eye(len(values)) + matrix @ covariance @ matrix.T
    return mean + covariance @ matrix.T @ np.linalg.solve(inner, values - matrix @ mean)


@pytest.mark.parametrize("method", ["products", "row sums"])
def test_a_gaussian_gives_its_conditional_mean(bench, method):
    """By as many conjugate gradients as measurements; row sums where S is diagonal."""
    mean_fn, covariance, noisy = gaussian(diagonal=method == "row sums")
    matrix = np.eye(SEEN, DIM)
    if method == "products":
        matrix = np.random.default_rng(4).normal(size=(SEEN, DIM))
    rows = jnp.asarray(matrix, jnp.float32)
    values = jnp.array([0.3, -1.0, 2.0], jnp.float32)
    observation = Observation(values, bench.NOISE_STD, lambda x: rows @ x)
    found = bench.by_jacobian(mean_fn, method, noisy, SIGMA, observation, OPTIONS)
    args = (np.asarray(mean_fn(noisy)), covariance, matrix, values, bench.NOISE_STD)
    np.testing.assert_allclose(found, exact_mean(*args), rtol=1e-3, atol=1e-3)


def test_diffusion_posterior_sampling_steps_along_the_gradient_of_the_residual(bench):
    mean_fn, _, noisy = gaussian(diagonal=False)
    values = jnp.array([0.3, -1.0, 2.0])
    observation = Observation(values, bench.NOISE_STD, lambda x: x[:SEEN])
    found = bench.by_jacobian(mean_fn, "dps", noisy, SIGMA, observation, OPTIONS)
    slope = jax.grad(lambda y: jnp.linalg.norm(values - mean_fn(y)[:SEEN]))(noisy)
    np.testing.assert_allclose(found, mean_fn(noisy) - OPTIONS.dps_step * slope, rtol=1e-4)


def test_half_resolution_is_the_mean_of_four_pixels(bench):
    forward, hidden = bench.double((4, 6, 2))
    image = np.random.default_rng(0).normal(size=(4, 6, 2)).astype(np.float32)
    expected = (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4
    np.testing.assert_allclose(forward(jnp.asarray(image.ravel())), expected.ravel(), atol=1e-6)
    assert hidden.all() and hidden.shape == (48,)


def test_a_method_has_one_pass_for_each_product_and_evaluation(bench):
    passes = {name: bench.passes_of(name, OPTIONS) for name in bench.METHODS}
    assert passes == {
        **{"moment matched": 2, "plain guidance": 2, "forward only": 1, "sampled": 1},
        **{"dps": 2, "products": 2 + SEEN, "row sums": 3},
    }
