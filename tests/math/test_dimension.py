"""Dimension, errors without the truth and noise levels, on laws where all of these are known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import derivatives_of

from hos_jax import autodiff, distributions, tweedie
from hos_jax.linops import Dense, Diagonal
from hos_jax.uses import dimension


def basis(dim, columns):
    return jax.random.orthogonal(jax.random.key(9), dim)[:, :columns]


def flat_law(d, dim, scales):
    """A Gaussian on a d-dimensional plane in R^dim."""
    span = basis(dim, d) * scales[None, :]
    covariance = span @ span.T + 1e-12 * jnp.eye(dim)
    return distributions.Gaussian(jnp.ones(dim), covariance)


def torus_derivatives_fn(d, dim, radius):
    """s1 and s2 of the uniform law on d circles in R^(2 d), turned into R^dim, by Bessel's I_0."""
    frame = basis(dim, 2 * d)

    def log_density(noisy, sigma):
        inside = noisy @ frame
        lengths = jnp.linalg.norm(inside.reshape(d, 2), axis=1)
        kappa = radius * lengths / sigma**2
        circles = jnp.log(jax.scipy.special.i0e(kappa)) + kappa
        return -0.5 * jnp.sum(noisy**2) / sigma**2 + jnp.sum(circles)

    def derivatives_fn(noisy, sigma):
        score_fn = jax.grad(lambda y: log_density(y, sigma))
        return score_fn(noisy), autodiff.dense_hessian_fn(score_fn)(noisy)

    def sample(key, count):
        angles = jax.random.uniform(key, (count, d), maxval=2 * jnp.pi)
        circles = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)
        return radius * circles.reshape(count, -1) @ frame.T

    return derivatives_fn, sample


@pytest.mark.parametrize(("d", "dim"), [(2, 10), (8, 100)])
def test_the_dimension_of_a_plane(d, dim):
    scales, sigma = jnp.linspace(0.6, 1.5, d), 0.05
    law = flat_law(d, dim, scales)
    expected = float(jnp.sum(scales**2 / (scales**2 + sigma**2)))
    clean = law.sample(jax.random.key(0), 3)
    find = functools.partial(dimension.local_dimension, derivatives_fn=derivatives_of(law))
    found = jax.vmap(lambda k, x: find(k, x, sigma=sigma))(
        jax.random.split(jax.random.key(1), 3), clean
    )
    np.testing.assert_allclose(found.total, expected, rtol=1e-7)
    np.testing.assert_allclose(jnp.sum(found.values, axis=1), found.total, rtol=1e-12)
    assert abs(expected - d) < 0.02 * d
    smooth = law.smooth(sigma)
    covariance = tweedie.scaled_covariance(smooth.hessian(clean[0]), sigma)
    flipd = jnp.sum(dimension.flipd_map(smooth.score(clean[0]), covariance, sigma))
    inside = (clean[0] - law.mean) @ basis(dim, d)
    extra = jnp.sum(sigma**2 * inside**2 / (scales**2 + sigma**2) ** 2)
    np.testing.assert_allclose(flipd, expected + extra, rtol=1e-6)
    assert abs(float(flipd) - d) < 0.05 * d


@pytest.mark.parametrize(("d", "dim"), [pytest.param(2, 10, marks=pytest.mark.slow), (4, 100)])
def test_the_dimension_of_a_curved_surface(d, dim):
    derivatives_fn, sample = torus_derivatives_fn(d, dim, 1.0)
    clean = sample(jax.random.key(2), 64)
    find = functools.partial(dimension.local_dimension, derivatives_fn=derivatives_fn, draws=2)
    found = jax.jit(jax.vmap(lambda k, x: find(k, x, sigma=0.1)))(
        jax.random.split(jax.random.key(3), 64), clean
    )
    assert abs(float(jnp.mean(found.total)) - d) < 0.02 * d
    score1, score2 = derivatives_fn(clean[0], 0.1)
    covariance = tweedie.scaled_covariance(score2, 0.1)
    flipd = jnp.sum(dimension.flipd_map(score1, covariance, 0.1))
    assert abs(float(flipd) - d) < 0.02 * d


def test_the_standard_error_is_that_of_the_draws():
    derivatives_fn, sample = torus_derivatives_fn(2, 4, 1.0)
    clean = sample(jax.random.key(2), 1)[0]
    repeat = jax.jit(
        jax.vmap(lambda k: dimension.local_dimension(k, clean, derivatives_fn, 0.3, draws=8))
    )
    found = repeat(jax.random.split(jax.random.key(4), 400))
    spread = float(jnp.std(found.total))
    assert abs(float(jnp.sqrt(jnp.mean(found.standard_error**2))) / spread - 1) < 0.15
    one = dimension.local_dimension(jax.random.key(5), clean, derivatives_fn, 0.3, draws=1)
    assert jnp.isinf(one.standard_error)


def test_regions_add_up_and_leave_out_what_has_no_number():
    values = jnp.arange(6.0)
    regions = jnp.array([0, 2, 0, -1, 3, 2])
    np.testing.assert_allclose(dimension.over_regions(values, regions, 3), [2.0, 0.0, 6.0])
    # 256 and 200 regions of 8 bits: the number of regions is none of the type.
    for dtype, count, lost in ((jnp.uint8, 256, 255), (jnp.int8, 200, -1)):
        small = jnp.array([0, 1, 1, 100, 0, lost], dtype)
        found = dimension.over_regions(values, small, count)
        assert found[:3].tolist() == [4.0, 3.0, 0.0] and found[100] == 3.0
        assert found.sum() == 10.0 + (5.0 if lost > 0 else 0.0)


def mixture():
    means = jax.random.normal(jax.random.key(6), (4, 8))
    return distributions.GaussianMixture(jnp.full(4, 0.25), means, stds=jnp.full(4, 0.3))


def test_sure_has_the_mean_of_the_error_whatever_the_clean_point_is():
    law, sigma, count = mixture(), 0.6, 20_000
    clean = jnp.linspace(-2.0, 2.0, 8)  # nothing that the law would draw
    noisy = clean[None] + sigma * jax.random.normal(jax.random.key(7), (count, 8))
    smooth = law.smooth(sigma)

    def one(y):
        score1 = smooth.score(y)
        covariance = tweedie.scaled_covariance(smooth.hessian(y), sigma)
        error = jnp.square(y + sigma**2 * score1 - clean)
        return dimension.sure_map(score1, covariance, sigma) - error

    off = np.asarray(jax.vmap(one)(noisy))
    assert np.all(np.abs(off.mean(axis=0)) < 4 * off.std(axis=0) / np.sqrt(count))
    # A covariance that is wrong by 5% is found out.
    assert abs(off.sum(axis=1).mean()) < 0.05 * sigma**2 * 8


def test_the_derivative_of_s1_confirms_an_exact_covariance():
    law, sigma, count = mixture(), 0.6, 5_000
    clean = law.sample(jax.random.key(8), count)
    keys = jax.random.split(jax.random.key(9), count)
    find = functools.partial(dimension.confirmed_and_stated, derivatives_fn=derivatives_of(law))
    found = jax.vmap(lambda k, x: find(k, x, sigma=sigma))(keys, clean)
    off = np.asarray(found.confirmed - found.stated)
    assert abs(off.mean()) < 4 * off.std() / np.sqrt(count)
    assert abs(off.mean()) < 0.05 * float(jnp.mean(found.stated))


def test_the_slope_is_the_derivative_of_the_log_density():
    law, sigma = mixture(), 0.5
    noisy = law.smooth(0.9).sample(jax.random.key(10), 1)[0]
    slope = jax.grad(lambda t: law.smooth(jnp.exp(t)).log_density(noisy))(jnp.log(sigma))
    score1, score2 = derivatives_of(law)(noisy, sigma)
    covariance = tweedie.scaled_covariance(score2, sigma)
    found = dimension.likelihood_slope(score1, covariance, sigma)
    np.testing.assert_allclose(found, slope, rtol=1e-9)


def test_the_noise_level_is_the_most_likely_one():
    law, true = flat_law(3, 60, jnp.array([0.5, 1.0, 2.0])), jnp.array([0.12, 0.5, 1.3])
    noisy = jnp.stack(
        [
            law.smooth(s).sample(k, 1)[0]
            for s, k in zip(true, jax.random.split(jax.random.key(11), 3), strict=True)
        ]
    )
    sigmas, fine = jnp.geomspace(0.05, 3.0, 40), jnp.geomspace(0.05, 3.0, 2001)
    density = jax.jit(lambda y: jax.vmap(lambda s: law.smooth(s).log_density(y))(fine))

    @functools.partial(jax.jit, static_argnums=2)
    def find(noisy, sigmas, steps):
        return dimension.noise_level(noisy, derivatives_of(law), sigmas, steps=steps)

    for y, level in zip(noisy, true, strict=True):
        found, exact = find(y, sigmas, 10), density(y)
        best = float(fine[jnp.argmax(exact)])
        assert abs(float(found.sigma) / best - 1) < 3e-3
        assert abs(best / float(level) - 1) < 4 / np.sqrt(2 * 57)
        exact = jnp.interp(jnp.log(sigmas), jnp.log(fine), exact)
        peak = int(jnp.argmax(exact))
        known = found.log_likelihood[peak:] - found.log_likelihood[peak]
        np.testing.assert_allclose(known, exact[peak:] - exact[peak], rtol=0.03, atol=0.1)
        assert abs(float(find(y, sigmas[::6], 10).sigma) / best - 1) < 3e-3
    # Without steps it is one of the levels; the estimate stays between the first and the last.
    assert float(find(y, sigmas[::6], 0).sigma) in np.asarray(sigmas)
    assert float(find(y, sigmas[:7], 10).sigma) == float(sigmas[6])


def test_the_noise_level_where_less_than_one_direction_is_free():
    """Of N(0, I) in 4 dimensions D - tr C is 4 s^2 / (1 + s^2): below 1 up to s = 0.57."""
    noisy = jnp.sqrt(1 + 0.4**2) * jax.random.normal(jax.random.key(15), (400, 4))
    levels = jnp.geomspace(0.02, 3.0, 80)

    def derivatives_fn(noisy, sigma):
        variance = 1 + sigma**2
        return -noisy / variance, Diagonal(jnp.full(4, -1 / variance))

    found = jax.vmap(lambda y: dimension.noise_level(y, derivatives_fn, levels, steps=60).sigma)
    exact = jnp.sqrt(jnp.maximum(jnp.mean(jnp.square(noisy), axis=1) - 1, 0.0))
    inside = (exact > 0.2) & (exact < 0.5)  # Below, sixty steps of the rule are not at their end.
    assert inside.sum() > 30
    np.testing.assert_allclose(found(noisy)[inside], exact[inside], rtol=2e-2)


def test_the_noise_level_where_no_direction_is_free_is_the_likeliest_given_one():
    levels = jnp.geomspace(0.1, 1.0, 10)

    def derivatives_fn(noisy, sigma):
        certain = sigma > 0.5  # C = 0 there, and I below: the likelihood falls and rises.
        covariance = Diagonal(jnp.full(4, jnp.where(certain, -1 / sigma**2, 0.0)))
        return jnp.where(certain, 0.0, 0.2) * jnp.ones(4), covariance

    found = dimension.noise_level(jnp.ones(4), derivatives_fn, levels)
    best = int(jnp.argmax(found.log_likelihood))
    assert 0 < best < 9 and float(found.sigma) == float(levels[best])
    lost = dimension.noise_level(
        jnp.ones(4), lambda y, s: (y * jnp.nan, Diagonal(jnp.full(4, jnp.nan))), levels
    )
    assert np.isnan(lost.sigma)


def test_what_does_not_fit_is_refused():
    covariance, score1 = Diagonal(jnp.ones(3)), jnp.ones(3)
    for function in (dimension.flipd_map, dimension.sure_map, dimension.likelihood_slope):
        with pytest.raises(ValueError, match="vectors of one shape"):
            function(jnp.ones(4), covariance, 0.5)
        with pytest.raises(ValueError, match="positive and finite scalar sigma"):
            function(score1, covariance, 0.0)
        with pytest.raises(ValueError, match="floating-point"):
            function(jnp.ones(3, int), covariance, 0.5)
    with pytest.raises(ValueError, match="integers, got float"):
        dimension.over_regions(score1, score1, 2)

    def derivatives_fn(noisy, sigma):
        return noisy, Dense(jnp.eye(3))

    with pytest.raises(ValueError, match=r"levels that rise, got \[1\.  0\.5\]"):
        dimension.noise_level(score1, derivatives_fn, jnp.array([1.0, 0.5]))
    with pytest.raises(TypeError, match="score2 is an array"):
        tweedie.scaled_covariance(jnp.eye(3), 0.5)
    with pytest.raises(TypeError, match="score2 is None"):
        tweedie.scaled_covariance(None, 0.5)
    narrow = Diagonal(-jnp.ones(1))  # would be broadcast
    for function in (dimension.local_dimension, dimension.confirmed_and_stated):
        with pytest.raises(ValueError, match=r"s2_rows \(1,\)"):
            function(jax.random.key(1), score1, lambda y, s: (-y, narrow), 0.5)
    with pytest.raises(ValueError, match=r"s2_rows \(1,\)"):
        dimension.noise_level(score1, lambda y, s: (-y, narrow), jnp.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="number draws >= 1"):
        dimension.local_dimension(jax.random.key(0), score1, derivatives_fn, 0.5, draws=0)
