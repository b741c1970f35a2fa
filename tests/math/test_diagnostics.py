"""Diagnostics on chains whose answers are known: independent, autoregressive, stuck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import lfilter

from hos_jax.samplers import diagnostics


def autoregressive(rho, chains=4, draws=4000, seed=0):
    """x' = rho x + sqrt(1 - rho^2) w, stationary, in two dimensions; the second is independent."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(chains, draws, 2))
    slow = lfilter([np.sqrt(1 - rho**2)], [1, -rho], noise[..., 0], axis=1)
    slow += rho ** np.arange(1, draws + 1) * rng.normal(size=(chains, 1))
    return jnp.asarray(np.stack([slow, noise[..., 1]], axis=-1))


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_effective_sample_size_of_an_autoregression(rho):
    draws = autoregressive(rho)
    slow, independent = diagnostics.effective_sample_size(draws)
    np.testing.assert_allclose(slow, 16_000 * (1 - rho) / (1 + rho), rtol=0.15)
    np.testing.assert_allclose(independent, 16_000, rtol=0.1)


def test_autocorrelation_of_an_autoregression():
    found = diagnostics.autocorrelation(autoregressive(0.9), 10)
    assert found.shape == (11, 2)
    np.testing.assert_allclose(found[:, 0], 0.9 ** np.arange(11), atol=0.06)
    np.testing.assert_allclose(found[1:, 1], 0.0, atol=4 / np.sqrt(16_000))
    for constant in (1.0, 7.7):  # the mean of the second is rounded
        same = jnp.full((7, 101, 1), constant, jnp.float32)
        np.testing.assert_array_equal(diagnostics.autocorrelation(same, 3), 1.0)
    draws = np.asarray(autoregressive(0.5, chains=2, draws=20))
    centred = draws - draws.mean(axis=(0, 1))
    direct = (centred[:, :-3] * centred[:, 3:]).sum(axis=(0, 1)) / (centred**2).sum(axis=(0, 1))
    got = diagnostics.autocorrelation(jnp.asarray(draws), 3)[3]
    np.testing.assert_allclose(got, direct, rtol=1e-10)


def test_split_r_hat_sees_chains_that_disagree_or_drift():
    draws = autoregressive(0.5)
    np.testing.assert_allclose(diagnostics.split_r_hat(draws), 1.0, atol=0.01)
    apart = draws + jnp.arange(4.0)[:, None, None]
    assert np.all(diagnostics.split_r_hat(apart) > 1.3)
    drift = draws + jnp.linspace(0, 3, draws.shape[1])[None, :, None]
    assert np.all(diagnostics.split_r_hat(drift) > 1.2)


def test_a_chain_that_never_moves_reports_no_sample_size():
    draws = autoregressive(0.5)
    for stuck in (jnp.zeros_like(draws), draws.at[2].set(0.1), draws.at[2].set(draws[2, :1])):
        assert np.all(diagnostics.effective_sample_size(stuck) == 0)
        with jax.debug_nans(True):
            assert np.all(np.isinf(diagnostics.split_r_hat(stuck)))
    half = draws.at[..., 0].set(3.0)
    size = diagnostics.effective_sample_size(half)
    assert size[0] == 0 and size[1] > 10_000


def test_sliced_wasserstein_of_shifted_gaussians():
    rng = np.random.default_rng(1)
    first, second = (jnp.asarray(rng.normal(size=(20_000, 3))) for _ in range(2))
    key = jax.random.key(0)

    def distance(a, b):
        return float(diagnostics.sliced_wasserstein(jax.random.clone(key), a, b, projections=60))

    assert distance(first, first) == 0.0
    assert distance(first, second) < 0.05
    # W_2 between shifted copies is |theta . shift|, whose mean square is ||shift||^2 / D.
    shift = jnp.array([3.0, 0.0, 0.0])
    np.testing.assert_allclose(distance(first, first + shift[None]), np.sqrt(3.0), rtol=0.1)
    np.testing.assert_allclose(distance(first, 2.0 * first), 1.0, rtol=0.03)


def test_wrong_shapes_raise():
    with pytest.raises(ValueError, match="chains, draws, D"):
        diagnostics.effective_sample_size(jnp.zeros((10, 2)))
    with pytest.raises(ValueError, match="at least 4"):
        diagnostics.split_r_hat(jnp.zeros((2, 3, 1)))
    with pytest.raises(ValueError, match="at least 9"):
        diagnostics.autocorrelation(jnp.zeros((2, 5, 1)), 8)
    with pytest.raises(ValueError, match="one shape"):
        diagnostics.sliced_wasserstein(
            jax.random.key(0), jnp.zeros((3, 2)), jnp.zeros((4, 2)), projections=1
        )
    with pytest.raises(ValueError, match="projections >= 1"):
        diagnostics.sliced_wasserstein(
            jax.random.key(0), jnp.zeros((3, 2)), jnp.zeros((3, 2)), projections=0
        )


def test_draws_that_are_not_finite_give_nan():
    assert jnp.isnan(diagnostics.autocorrelation(jnp.full((2, 9, 1), jnp.inf), 2)).all()
    draws = jnp.full((2, 9, 1), jnp.nan)
    found = diagnostics.autocorrelation(draws, 2), diagnostics.effective_sample_size(draws)
    assert all(jnp.isnan(one).all() for one in (*found, diagnostics.split_r_hat(draws)))


def test_draws_of_16_bits_are_counted_as_float32():
    draws = autoregressive(0.5, draws=400).astype(jnp.bfloat16)
    for call in (
        diagnostics.effective_sample_size,
        diagnostics.split_r_hat,
        lambda d: diagnostics.autocorrelation(d, 2),
    ):
        # Blackjax has numbers of JAX's widest type.
        with jax.numpy_dtype_promotion("standard"):
            found, wanted = call(draws), call(draws.astype(jnp.float32))
        np.testing.assert_array_equal(found, wanted)


def test_integers_and_single_chains_are_refused():
    whole, single, none = jnp.ones((2, 9, 1), int), jnp.ones((9, 1)), jnp.ones((0, 9, 1))
    for draws in (whole, single, none):
        for call in (
            diagnostics.effective_sample_size,
            diagnostics.split_r_hat,
            lambda d: diagnostics.autocorrelation(d, 2),
        ):
            with pytest.raises(ValueError, match=r"floating-point|\(chains, draws, D\)"):
                call(draws)
    with pytest.raises(ValueError, match="max_lag >= 0, got -1"):
        diagnostics.autocorrelation(jnp.ones((2, 9, 1)), -1)
    with pytest.raises(ValueError, match="got first of int64"):
        diagnostics.sliced_wasserstein(jax.random.key(0), whole[0], whole[0], projections=2)


def test_the_distance_of_a_sample_from_itself_has_a_gradient():
    sample = jnp.arange(8.0).reshape(4, 2)

    def distance(first):
        return diagnostics.sliced_wasserstein(jax.random.key(0), first, sample, projections=2)

    assert distance(sample) == 0.0
    np.testing.assert_array_equal(jax.grad(distance)(sample), 0.0)
