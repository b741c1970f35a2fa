"""The smoothed logistic mixture against 40-digit arithmetic, at every ratio of scale to sigma."""

import math
from decimal import Decimal, localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import logistic, norm

from hos_jax.distributions import LogisticMixture
from hos_jax.distributions.logistic import logistic_derivatives
from hos_jax.distributions.logistic_quadrature import node_budget

RATIOS = [0.01, 0.03, 0.1, 0.2, 0.5, 1.0, 3.0, 20.0, 100.0]
PI = Decimal("3.14159265358979323846264338327950288419716939937511")
ORDERS = (1, 2, 3, 4)


def every_ratio(dtype):
    """One coordinate for each ratio, all smoothed by sigma = 1, and their standard deviations."""
    scales = np.asarray(RATIOS)[:, None]
    arrays = [jnp.asarray(a, dtype) for a in (np.ones_like(scales), 0.0 * scales, scales)]
    deviations = np.sqrt(1.0 + np.pi**2 / 3.0 * scales[:, 0] ** 2)
    return LogisticMixture(*arrays).smooth(1.0), deviations


@jax.jit
def batched(law, points):
    def one(y):
        return law.log_density(y), jnp.stack([law.score_diagonal(y, n) for n in ORDERS], axis=-1)

    return jax.vmap(one)(points)


def evaluate(law, points):
    """The log density, (N,), and the coordinates' derivatives of orders 1 to 4, (N, D, 4)."""
    values = batched(law, jnp.asarray(points, law.locations.dtype))
    return [np.asarray(value, np.float64) for value in values]


def node_range(y, scale, sigma):
    """Where the integrand lives: the Gaussian at most 15 sigma from y, shifted towards 0 by the
    logistic, or, for a wide Gaussian, the logistic alone."""
    if sigma > 14 * scale:
        return -130 * scale, 130 * scale
    return min(y - 15 * sigma - sigma**2 / scale, -10 * scale), y + 15 * sigma


def exact(y, scale, sigma):
    """The same five numbers for the law of logistic + Gaussian, with 40 digits.

    A trapezoid sum three times finer than any rule under test, with the derivatives taken on the
    Gaussian (Hermite polynomials): slow, and free of cancellation at this precision.
    """
    low, high = node_range(y, scale, sigma)
    step = min(0.2 * scale, 0.3 * sigma)
    with localcontext() as context:
        context.prec = 40
        y, s, sigma, step, low = (Decimal(value) for value in (y, scale, sigma, step, low))
        sums = [Decimal(0)] * 5
        for k in range(int((Decimal(high) - low) / step) + 1):
            x = low + k * step
            tail = (-abs(x) / s).exp()
            z = (y - x) / sigma
            weight = tail / (1 + tail) ** 2 / s * (-z * z / 2).exp()
            hermite = [1, -z, z * z - 1, 3 * z - z**3, z**4 - 6 * z * z + 3]
            for n in range(5):
                sums[n] += weight * hermite[n] / sigma**n
        density = sums[0] * step / ((2 * PI).sqrt() * sigma)
        m1, m2, m3, m4 = (total / sums[0] for total in sums[1:])
        third = m3 - 3 * m1 * m2 + 2 * m1**3
        fourth = m4 - 4 * m1 * m3 - 3 * m2**2 + 12 * m1**2 * m2 - 6 * m1**4
        return [float(v) for v in (density.ln(), m1, m2 - m1**2, third, fourth)]


@pytest.fixture(scope="module")
def oracle():
    """Points within 8 standard deviations, and the exact log density and derivatives there."""
    _, deviations = every_ratio(jnp.float64)
    points = np.array([0.3, 1.0, 2.5, 5.0, 8.0])[:, None] * deviations[None, :]
    values = [[exact(y, r, 1.0) for y, r in zip(row, RATIOS, strict=True)] for row in points]
    return points, np.asarray(values)


def test_derivatives_to_order_four_at_every_ratio(oracle):
    points, expected = oracle
    law, _ = every_ratio(jnp.float64)
    signs = np.array([[1, 1, 1, 1], [-1, 1, -1, 1]])
    log_density, derivatives = evaluate(law, np.concatenate([points, -points]))
    totals = np.sum(expected[:, :, 0], axis=1)
    np.testing.assert_allclose(log_density, np.concatenate([totals, totals]), rtol=1e-13)
    # Relative errors, although s3 and s4 fall to 1e-9 of their natural unit at the ends.
    for got, sign in zip(np.split(derivatives, 2), signs, strict=True):
        np.testing.assert_allclose(got, expected[:, :, 1:] * sign, rtol=2e-11)


def test_derivatives_in_float32(oracle):
    points, expected = oracle
    law, deviations = every_ratio(jnp.float32)
    # The points twice, as above: one compilation serves several tests.
    log_density, derivatives = evaluate(law, np.concatenate([points, points]))
    log_density, derivatives = log_density[:5], derivatives[:5]
    np.testing.assert_allclose(log_density, np.sum(expected[:, :, 0], axis=1), rtol=2e-6)
    # Points and parameters are rounded too: errors count in units of the natural scale.
    natural = deviations[None, :, None] ** np.arange(1, 5)
    scaled = np.abs(expected[:, :, 1:]) * natural
    error = np.abs(derivatives * natural - expected[:, :, 1:] * natural) / (1.0 + scaled)
    for order, most in zip(ORDERS, [1e-5, 2e-5, 2e-5, 5e-4], strict=True):
        assert np.max(error[:, :, order - 1]) < most, order


def test_the_oracle_itself_equals_adaptive_quadrature():
    for scale, sigma, y in [(0.3, 0.7, 1.2), (1.0, 0.1, -2.0), (0.05, 1.0, 3.0)]:

        def integrand(x, order, scale=scale, sigma=sigma, y=y):
            gap = (x - y) / sigma**2
            return logistic.pdf(x, scale=scale) * norm.pdf(y - x, scale=sigma) * gap**order

        breaks = sorted([0.0, y, y - sigma, y + sigma, -scale, scale])
        span = (y - 12 * sigma - 5, y + 12 * sigma + 5)
        density, slope = (
            quad(integrand, *span, (n,), points=breaks, epsabs=1e-15, epsrel=1e-12, limit=200)[0]
            for n in (0, 1)
        )
        got = exact(y, scale, sigma)
        np.testing.assert_allclose(got[:2], [math.log(density), slope / density], rtol=1e-9)


def test_a_mixture_of_very_different_scales():
    weights = np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]])
    locations = np.array([[-2.0, 0.5, 1.0], [0.0, 3.0, 5.0]])
    scales = np.array([[0.4, 0.02, 6.0], [1.0, 0.2, 1.0]])
    law, sigma = LogisticMixture(weights, locations, scales).smooth(0.5), 0.5
    points = np.array([[0.3, 0.7], [-4.0, 2.5], [2.6, -3.0]])
    log_density, derivatives = evaluate(law, points)
    for index, point in enumerate(points):
        density = np.zeros((2, 5))
        for i, k in np.ndindex(2, 3):
            log_q, s1, s2, s3, s4 = exact(point[i] - locations[i, k], scales[i, k], sigma)
            raw = [1, s1, s2 + s1**2, s3 + 3 * s1 * s2 + s1**3]
            raw.append(s4 + 4 * s1 * s3 + 3 * s2**2 + 6 * s1**2 * s2 + s1**4)
            density[i] += weights[i, k] * math.exp(log_q) * np.asarray(raw)
        _, m1, m2, m3, m4 = (density / density[:, :1]).T
        expected = [m1, m2 - m1**2, m3 - 3 * m1 * m2 + 2 * m1**3]
        expected.append(m4 - 4 * m1 * m3 - 3 * m2**2 + 12 * m1**2 * m2 - 6 * m1**4)
        total = np.sum(np.log(density[:, 0]))
        np.testing.assert_allclose(log_density[index], total, rtol=1e-11)
        np.testing.assert_allclose(derivatives[index], np.transpose(expected), rtol=1e-9)


def test_derivatives_of_the_logistic_are_relative_in_the_tails():
    v = np.array([-60.0, -3.0, 0.0, 0.4, 7.0, 300.0])
    got = logistic_derivatives(jnp.asarray(v), 5)
    tail = np.exp(-np.abs(v))
    expected = [-np.tanh(v / 2), -2 * tail / (1 + tail) ** 2]
    for derivative, oracle in zip(got[:2], expected, strict=True):
        np.testing.assert_allclose(derivative, oracle, rtol=1e-13)
    for n in range(2, 5):
        _, slope = jax.jvp(
            lambda x, n=n: logistic_derivatives(x, n)[-1], (jnp.asarray(v),), (jnp.ones(v.size),)
        )
        np.testing.assert_allclose(got[n], slope, rtol=1e-12, atol=1e-300)


def test_the_number_of_nodes_stays_moderate():
    for dtype, most in [(jnp.float64, 200), (jnp.float32, 64)]:
        assert node_budget(dtype)[1] <= most


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_float32_is_close_to_float64_far_in_the_tails(sigma):
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), size=2)
    locations, scales = rng.normal(size=(2, 3)), rng.uniform(0.2, 1.0, (2, 3))
    points = rng.normal(size=(50, 2)) * np.linspace(0.1, 25.0, 50)[:, None]
    arrays = [np.float32(array) for array in (weights, locations, scales, points)]
    values = []
    for dtype in (jnp.float32, jnp.float64):
        *law, y = (jnp.asarray(array, dtype) for array in arrays)
        values.append(evaluate(LogisticMixture(*law).smooth(np.float32(sigma)), y))
    (low_density, low), (high_density, high) = values
    np.testing.assert_allclose(low_density, high_density, rtol=2e-6, atol=1e-5)
    deviation = np.hypot(sigma, np.pi / np.sqrt(3.0) * scales.min())
    scaled = deviation ** np.arange(1, 5)
    assert np.all(np.max(np.abs(low - high) * scaled, axis=(0, 1)) < [1e-5, 1e-4, 1e-3, 1e-2])


@pytest.mark.parametrize(
    ("scale", "sigma", "point", "score"),
    [
        (1.0, 1e-6, 1e3, -1.0),
        (1.0, 1e-4, -1e5, 1.0),
        (0.3, 1e-3, 1e6, -1 / 0.3),
        (0.3, 0.1, 1e8, -1 / 0.3),
        # That of the noise alone.
        (0.3, 1e8, 1.0, -1e-16),
        (0.3, 1e8, -3e8, 3e-8),
    ],
)
def test_scores_in_float32_keep_their_digits_at_every_distance(scale, sigma, point, score):
    one = jnp.ones((1, 1), jnp.float32)
    law = LogisticMixture(one, 0 * one, np.float32(scale) * one).smooth(np.float32(sigma))
    at = jnp.full(1, point, jnp.float32)
    np.testing.assert_allclose(law.score(at), [score], rtol=1e-5)
    if sigma < 1:
        # exp(-|y| / s) / s, times the mean of exp(sigma z / s).
        wanted = -abs(point) / scale - np.log(scale) + 0.5 * (sigma / scale) ** 2
        np.testing.assert_allclose(law.log_density(at), wanted, rtol=1e-6)


def near_the_kink(sigma, y):
    """Score and log density of scale 1 at y, by Gauss and Legendre's rule on 520 pieces."""
    furthest = max(0.0, y - sigma**2) + 12 * sigma
    edges = np.concatenate([np.linspace(-60, 60, 121), 60 + np.linspace(0, furthest, 401)[1:]])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    half = 0.5 * np.diff(edges)[:, None]
    v = edges[:-1, None] + half * (1 + nodes)
    exponent = y * v / sigma**2 - np.abs(v) - 2 * np.log1p(np.exp(-np.abs(v)))
    exponent -= 0.5 * np.square(v / sigma)
    density = half * weights * np.exp(exponent - exponent.max())
    log_density = np.log(density.sum()) + exponent.max() - 0.5 * np.square(y / sigma)
    score = -np.sum(density * np.tanh(v / 2)) / density.sum()
    return score, log_density - 0.5 * np.log(2 * np.pi * sigma**2)


@pytest.mark.parametrize(
    ("dtype", "sigma", "off", "off_log"),
    [
        (jnp.float64, 50, 4e-4, 2e-4),
        (jnp.float64, 100, 1e-3, 4e-3),
        (jnp.float64, 1e4, 3e-6, 0.03),
        (jnp.float32, 50, 9e-3, 0.03),
        (jnp.float32, 1e3, 1e-4, 0.15),
        (jnp.float32, 1e5, 1e-4, 1e3),
    ],
)
def test_near_the_kink_of_the_integrand_digits_are_lost_and_no_more(dtype, sigma, off, off_log):
    one = jnp.ones((1, 1), dtype)
    law = LogisticMixture(one, 0 * one, one).smooth(dtype(sigma))
    points = dtype(np.array([0.5, 0.8, 0.94, 0.97, 0.985, 1.0, 1.01, 1.03, 1.1]) * sigma**2)
    known = [near_the_kink(sigma, float(y)) for y in points]
    scores, logs = np.array(known).T
    found = jax.vmap(jax.value_and_grad(law.log_density))(jnp.asarray(points)[:, None])
    np.testing.assert_allclose(found[0], logs, rtol=3e-7, atol=off_log)
    for gradients in (found[1], jax.vmap(law.score)(jnp.asarray(points)[:, None])):
        np.testing.assert_allclose(gradients[:, 0], scores, rtol=off)


@pytest.mark.parametrize("sigma", [1e6, 1e8, 1e9])
def test_in_float32_far_above_the_scale_the_law_is_that_of_the_noise(sigma):
    one = jnp.ones((1, 1), jnp.float32)
    law = LogisticMixture(one, 0 * one, one).smooth(np.float32(sigma))
    multiples = np.array([1.0, 5, 6, 7, 8, 12, 800], np.float32)
    found = jax.vmap(jax.value_and_grad(law.log_density))(jnp.asarray(multiples * sigma)[:, None])
    wanted = -0.5 * multiples**2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(found[1][:, 0] * sigma, -multiples, rtol=1e-5)
    # Near the kink, sigma^2, only the score is told apart.
    shares = np.array([0.5, 0.7, 0.8, 0.9, 0.99, 1.01], np.float32)
    at = jnp.asarray(shares * np.float32(sigma) ** 2)[:, None]
    np.testing.assert_allclose(jax.vmap(law.score)(at)[:, 0], -np.minimum(shares, 1.0), rtol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
def test_points_far_beyond_every_sample_give_finite_scores(dtype):
    law, _ = every_ratio(dtype)
    far = np.array([-1e5, -1e3, -100, -30, -15, 12, 20, 60, 3e3, 1e5])
    far = far[:, None] * np.ones((1, len(RATIOS)))
    log_density, derivatives = evaluate(law, far)
    assert np.all(np.isfinite(log_density)) and np.all(np.isfinite(derivatives))
    # The exponential tail: the score tends to -sign(y)/s.
    tails = derivatives[[0, -1], :, 0] * np.asarray(RATIOS)
    np.testing.assert_allclose(tails, np.outer([1.0, -1.0], np.ones(len(RATIOS))), rtol=1e-3)
