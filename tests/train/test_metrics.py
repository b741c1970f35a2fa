"""Metrics, Tweedie's maps and Langevin dynamics against closed forms of a Gaussian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import losses, tweedie
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank
from hos_jax.uncertainty import metrics

DIM, COUNT = 6, 20_000


@pytest.fixture(scope="module")
def covariance():
    keys = jax.random.split(jax.random.key(0), 2)
    diag = jax.random.uniform(keys[0], (DIM,), minval=0.1, maxval=1.0)
    return DiagonalPlusLowRank(diag, jax.random.normal(keys[1], (DIM, 2)))


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_scores_of_a_right_and_of_a_wrong_covariance(covariance, scale):
    root = np.linalg.cholesky(np.asarray(covariance.to_dense()))
    errors = jax.random.normal(jax.random.key(1), (COUNT, DIM)) @ root.T
    claimed = covariance.scale(scale)
    found = jax.vmap(metrics.covariance_scores, (0, None))(errors, claimed)

    def check(values, expected):
        error = np.std(values) / np.sqrt(COUNT)
        assert abs(np.mean(values) - expected) < 4.5 * error

    logdet = np.linalg.slogdet(np.asarray(claimed.to_dense()))[1]
    check(found.calibration, 1 / scale)
    check(found.nll_per_dim, 0.5 * (1 / scale + logdet / DIM))
    square = np.sum(np.square(np.asarray(covariance.to_dense())))
    check(found.residual_loss, (scale**2 / 2 - scale) * square / DIM)


def test_the_likelihood_of_students_tails(covariance):
    error = jax.random.normal(jax.random.key(1), (DIM,))
    found = metrics.covariance_scores(error, covariance, "student")
    expected = losses.residual_student_nll(error, covariance) / DIM
    np.testing.assert_allclose(found.nll_per_dim, expected, rtol=1e-6)
    gaussian = metrics.covariance_scores(error, covariance)
    np.testing.assert_allclose(found.calibration, gaussian.calibration)
    assert not np.isclose(found.nll_per_dim, gaussian.nll_per_dim)


def test_metrics_refuse_wrong_shapes(covariance):
    with pytest.raises(ValueError, match="one shape"):
        metrics.covariance_scores(jnp.zeros(DIM + 1), covariance)
    with pytest.raises(TypeError, match="covariance is an array of the shape"):
        metrics.covariance_scores(jnp.zeros(DIM), jnp.eye(DIM))


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_tweedie_gives_the_gaussian_posterior(covariance, sigma):
    # x ~ N(0, P): the posterior of x given y is Gaussian with gain P (P + sigma^2 I)^-1.
    prior = np.asarray(covariance.to_dense(), np.float64)
    smoothed_precision = np.linalg.inv(prior + sigma**2 * np.eye(DIM))
    noisy = np.arange(1.0, DIM + 1)
    score1 = jnp.asarray(-smoothed_precision @ noisy, jnp.float32)
    gain = prior @ smoothed_precision
    mean = tweedie.posterior_mean(jnp.asarray(noisy, jnp.float32), score1, sigma)
    np.testing.assert_allclose(mean, gain @ noisy, rtol=1e-4, atol=1e-4)
    score2 = Dense(jnp.asarray(-smoothed_precision, jnp.float32))
    got = tweedie.posterior_covariance(score2, sigma).to_dense()
    np.testing.assert_allclose(got, prior - gain @ prior, atol=1e-4)
    with pytest.raises(ValueError, match="one shape"):
        tweedie.posterior_mean(jnp.zeros(2), jnp.zeros(3), sigma)


def test_posterior_covariance_keeps_the_structure():
    assert isinstance(tweedie.posterior_covariance(Diagonal(jnp.zeros(2)), 0.5), Diagonal)


def test_third_order_score_is_least_at_the_true_skewness():
    # e = (1 - E) with E exponential: E[e^3] = -2, so r = -e has E[r^3] = 2 and T = -2.
    errors = 1.0 - jax.random.exponential(jax.random.key(2), (COUNT, DIM))

    def score(third):
        values = jax.vmap(metrics.third_order_score, (None, 0, None))(
            jnp.full(DIM, third), errors, jnp.ones(DIM)
        )
        return np.mean(values), np.std(values) / np.sqrt(COUNT)

    assert score(0.0)[0] == 0.0
    mean, error = score(-2.0)
    assert abs(mean + 2.0) < 4.5 * error
    assert score(2.0)[0] > 0 and score(-1.0)[0] > mean and score(-3.0)[0] > mean
    with pytest.raises(ValueError, match="one shape"):
        metrics.third_order_score(jnp.zeros(3), jnp.zeros(3), jnp.zeros(4))
