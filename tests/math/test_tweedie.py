"""Tweedie at orders 1 to 5 against autodiff and exact posteriors of skewed Gaussian mixtures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import losses, tweedie
from hos_jax.linops import Dense
from hos_jax.uncertainty import inverse, posterior

ORDER = 5
SIGMAS = [0.3, 0.5, 1.2]
POINTS = jnp.asarray([[0.4, -0.7], [1.1, 0.2], [-0.3, 0.9]])
# Unequal weights and spreads: no odd cumulant of the posterior vanishes.
WEIGHTS = jnp.asarray([0.6, 0.3, 0.1])
MEANS = jnp.asarray([[0.0, 0.0], [1.0, 0.4], [-0.5, 1.5]])
ROOTS = np.array([[[0.3, 0.0], [0.2, 0.4]], [[0.6, 0.0], [-0.3, 0.2]], [[0.1, 0.0], [0.0, 0.1]]])
COVARIANCES = {
    "mixture": jnp.asarray(ROOTS @ np.swapaxes(ROOTS, 1, 2)),
    "points": jnp.zeros((3, 2, 2)),
}


def component_weights(noisy, sigma, covariances):
    """Weight times density of y under each smoothed component, (3,).

    Written out, since five nested derivatives of a stabilised logsumexp take long to compile.
    """
    smoothed = covariances + sigma**2 * jnp.eye(2)[None]
    precision = jnp.linalg.inv(smoothed)
    scale = WEIGHTS / jnp.sqrt(jnp.linalg.det(2 * jnp.pi * smoothed))
    offset = noisy[None] - MEANS
    form = jnp.sum(jnp.sum(offset[:, :, None] * precision, axis=1) * offset, axis=1)
    return scale * jnp.exp(-0.5 * form)


def log_density(noisy, sigma, covariances):
    return jnp.log(jnp.sum(component_weights(noisy, sigma, covariances)))


def moment_generating_function(t, noisy, sigma, covariances):
    """E[exp(t x) | y]: the posterior is a Gaussian mixture with known components."""
    weights = component_weights(noisy, sigma, covariances)
    gain = covariances @ jnp.linalg.inv(covariances + sigma**2 * jnp.eye(2)[None])
    means = MEANS + jnp.sum(gain * (noisy[None] - MEANS)[:, None, :], axis=2)
    spreads = covariances - gain @ covariances
    exponents = jnp.sum(means * t[None], axis=1)
    exponents += 0.5 * jnp.sum(spreads * (t[:, None] * t[None, :])[None], axis=(1, 2))
    return jnp.sum(weights * jnp.exp(exponents)) / jnp.sum(weights)


def log_moment_generating_function(t, noisy, sigma, covariances):
    return jnp.log(moment_generating_function(t, noisy, sigma, covariances))


def derivatives(function):
    """The derivative tensors of orders 1 to 5 by the first argument, by nested jacfwd."""
    nested = []
    for _ in range(ORDER):
        function = jax.jacfwd(function)
        nested.append(function)
    return jax.jit(lambda *arguments: tuple(tensor(*arguments) for tensor in nested))


exact_scores = derivatives(log_density)
posterior_cumulants = derivatives(log_moment_generating_function)
posterior_moments = derivatives(moment_generating_function)


def assert_families_close(got, expected, rtol=1e-9):
    assert isinstance(got, tuple) and len(got) == len(expected)
    for tensor, exact in zip(got, expected, strict=True):
        assert tensor.shape == exact.shape
        np.testing.assert_allclose(tensor, exact, rtol=0, atol=rtol * np.max(np.abs(exact)))


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("target", COVARIANCES)
def test_scores_cumulants_and_moments_equal_those_of_the_exact_posterior(target, sigma):
    for noisy in POINTS:
        exact = noisy, sigma, COVARIANCES[target]
        cumulants = posterior_cumulants(jnp.zeros(2), *exact)
        moments = posterior_moments(jnp.zeros(2), *exact)
        assert all(np.max(np.abs(cumulant)) > 1e-6 for cumulant in cumulants)
        scores = exact_scores(*exact)
        assert_families_close(tweedie.scores_to_cumulants(noisy, scores, sigma), cumulants)
        assert_families_close(tweedie.scores_to_moments(noisy, scores, sigma), moments)
        assert_families_close(tweedie.cumulants_to_moments(cumulants), moments)
        assert_families_close(tweedie.moments_to_cumulants(moments), cumulants)
        assert_families_close(tweedie.cumulants_to_scores(noisy, cumulants, sigma), scores, 1e-8)
        assert_families_close(tweedie.moments_to_scores(noisy, moments, sigma), scores, 1e-7)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_moments_of_a_discrete_law_are_its_weighted_powers(sigma):
    for noisy in POINTS:
        exact = noisy, sigma, COVARIANCES["points"]
        weights = component_weights(*exact)
        w, m = np.asarray(weights / jnp.sum(weights)), np.asarray(MEANS)
        expected = [
            np.einsum("k,ka->a", w, m),
            np.einsum("k,ka,kb->ab", w, m, m),
            np.einsum("k,ka,kb,kc->abc", w, m, m, m),
            np.einsum("k,ka,kb,kc,kd->abcd", w, m, m, m, m),
            np.einsum("k,ka,kb,kc,kd,ke->abcde", w, m, m, m, m, m),
        ]
        got = tweedie.scores_to_moments(noisy, exact_scores(*exact), sigma)
        assert_families_close(got, expected)


def test_moments_obey_their_recursion_in_the_noisy_point():
    @jax.jit
    def moments_and_gradients(y, sigma):
        def moments_fn(point):
            scores = []
            function = log_density
            for _ in range(ORDER - 1):
                function = jax.jacfwd(function)
                scores.append(function(point, sigma, COVARIANCES["mixture"]))
            return tweedie.scores_to_moments(point, scores, sigma)

        return moments_fn(y), jax.jacfwd(moments_fn)(y)

    for noisy, sigma in zip(POINTS, SIGMAS, strict=True):
        moments, gradients = moments_and_gradients(noisy, sigma)
        fifth = tweedie.scores_to_moments(
            noisy, exact_scores(noisy, sigma, COVARIANCES["mixture"]), sigma
        )[-1]
        expected = [
            sigma**2 * gradient + jnp.tensordot(moment, moments[0], axes=0)
            for moment, gradient in zip(moments, gradients, strict=True)
        ]
        assert_families_close((*moments[1:], fifth), expected)


def test_cumulants_that_are_all_one_give_the_bell_numbers():
    ones = tuple(jnp.ones((1,) * order) for order in range(1, 7))
    got = [float(moment.reshape(())) for moment in tweedie.cumulants_to_moments(ones)]
    assert got == [1, 2, 5, 15, 52, 203]
    assert_families_close(tweedie.moments_to_cumulants(tweedie.cumulants_to_moments(ones)), ones)


def symmetric_family(dim, order, seed=0):
    rng = np.random.default_rng(seed)
    rank_one = rng.normal(size=(4, dim))
    family, power = [], rank_one
    for _ in range(order):
        family.append(jnp.asarray(np.tensordot(rng.normal(size=4), power, axes=1)))
        power = np.einsum("k...,ka->k...a", power, rank_one)
    return tuple(family)


@pytest.mark.parametrize("dim", [1, 3])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_every_map_inverts_its_partner(dim, order):
    family, noisy, sigma = symmetric_family(dim, order), jnp.arange(1.0, dim + 1), 0.4
    moments = tweedie.cumulants_to_moments(family)
    assert_families_close(tweedie.moments_to_cumulants(moments), family)
    assert_families_close(
        tweedie.cumulants_to_moments(tweedie.moments_to_cumulants(family)), family
    )
    cumulants = tweedie.scores_to_cumulants(noisy, family, sigma)
    assert_families_close(tweedie.cumulants_to_scores(noisy, cumulants, sigma), family)
    moments = tweedie.scores_to_moments(noisy, family, sigma)
    assert_families_close(tweedie.moments_to_scores(noisy, moments, sigma), family, 1e-6)
    for tensor in moments[1:]:
        np.testing.assert_allclose(tensor, jnp.swapaxes(tensor, 0, -1), rtol=1e-12)


@pytest.mark.parametrize("sigma", [1e-6, 1e6])
def test_high_orders_stay_in_float32_at_every_sigma(sigma):
    """Scores of order n are of size sigma^-n and cumulants sigma^n: float32 holds both to n = 6."""
    noisy = jnp.zeros(2, jnp.float32)
    scores = [jnp.full((2,) * n, sigma**-n, jnp.float32) for n in range(1, 7)]
    cumulants = tweedie.scores_to_cumulants(noisy, scores, sigma)
    for order, cumulant in enumerate(cumulants[2:], start=3):
        np.testing.assert_allclose(np.asarray(cumulant, float) * sigma**-order, 1.0, rtol=1e-5)
    back = tweedie.cumulants_to_scores(noisy, cumulants, sigma)
    for score, expected in zip(back[2:], scores[2:], strict=True):
        np.testing.assert_allclose(score, expected, rtol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_named_orders_agree_with_the_exact_posterior(sigma):
    covariances, noisy = COVARIANCES["mixture"], POINTS[1]
    exact = posterior_cumulants(jnp.zeros(2), noisy, sigma, covariances)[:3]
    scores = exact_scores(noisy, sigma, covariances)
    got = (
        tweedie.posterior_mean(noisy, scores[0], sigma),
        tweedie.posterior_covariance(Dense(scores[1]), sigma).to_dense(),
        tweedie.posterior_third_cumulant(scores[2], sigma),
    )
    assert_families_close(got, exact)

    def score_fn(y):
        return exact_scores(y, sigma, covariances)[0]

    np.testing.assert_allclose(tweedie.denoise(score_fn, noisy, sigma), exact[0], rtol=1e-12)
    diagonal = tweedie.posterior_third_cumulant(jnp.einsum("iii->i", scores[2]), sigma)
    np.testing.assert_allclose(diagonal, jnp.einsum("iii->i", exact[2]), rtol=1e-9)
    probe = jnp.asarray([0.3, -1.4])
    contraction = tweedie.posterior_third_cumulant(scores[2] @ probe @ probe, sigma)
    np.testing.assert_allclose(contraction, exact[2] @ probe @ probe, rtol=1e-9)


def test_maps_batch_compile_and_keep_the_type():
    family = symmetric_family(2, 4)
    batch = jax.tree.map(lambda tensor: jnp.stack([tensor, 2 * tensor, -tensor]), family)
    sigmas = jnp.asarray([0.3, 0.5, 1.0])
    to_moments = jax.jit(jax.vmap(tweedie.scores_to_moments))
    got = to_moments(POINTS, batch, sigmas)
    for example in range(3):
        one = jax.tree.map(lambda tensor, k=example: tensor[k], batch)
        expected = tweedie.scores_to_moments(POINTS[example], one, float(sigmas[example]))
        assert_families_close(jax.tree.map(lambda t, k=example: t[k], got), expected, 1e-12)
    narrow = jax.tree.map(lambda tensor: tensor.astype(jnp.float32), (POINTS, batch))
    got = to_moments(*narrow, sigmas.astype(jnp.float32))
    assert all(tensor.dtype == jnp.float32 for tensor in got)


@pytest.mark.parametrize("kind", [int, np.uint8, np.int32, jnp.int32])
def test_a_sigma_of_an_integer_type_is_the_number(kind):
    """In its own type 200^4 and 200^6 overflow, and of eight bits the square does too."""
    point, hessian = jnp.array([1.0, -2.0]), Dense(jnp.array([[1e-5, 2e-6], [2e-6, 3e-5]]))
    third = jnp.array([1e-7, 2e-8])

    def numbers(sigma):
        return (
            tweedie.posterior_mean(point, 1e-3 * point, sigma),
            tweedie.posterior_covariance(hessian, sigma).to_dense(),
            tweedie.posterior_third_cumulant(third, sigma),
            tweedie.scores_to_cumulants(point, [1e-3 * point, hessian.matrix], sigma),
            tweedie.cumulants_to_scores(point, [1e3 * point, hessian.matrix], sigma),
            posterior(point, 1e-3 * point, hessian, sigma).covariance.to_dense(),
            inverse.isotropic(point, sigma, 300).covariance.diagonal(),
            losses.dsm_vr(1e-3 * point, point, point, sigma),
            losses.d2sm(point, hessian, point, sigma),
        )

    expected = numbers(200.0)
    # Compiled sums may be added in another order.
    for found in (numbers(kind(200)), jax.jit(numbers)(kind(200))):
        chex.assert_trees_all_close(found, expected, rtol=1e-12)


@pytest.mark.parametrize("sigma", [0.0, -1.0, np.nan, np.ones(2), np.ones((2, 1)), np.ones(1)])
def test_what_is_no_level_is_refused(sigma):
    point, hessian = jnp.array([1.0, -2.0]), Dense(jnp.eye(2))
    calls = [
        lambda level: tweedie.posterior_mean(point, point, level),
        lambda level: tweedie.posterior_covariance(hessian, level),
        lambda level: tweedie.posterior_third_cumulant(point, level),
        lambda level: tweedie.scores_to_cumulants(point, [point], level),
        lambda level: tweedie.cumulants_to_scores(point, [point], level),
        lambda level: losses.residual(point, point, level),
        lambda level: losses.dsm(point, point, level),
        lambda level: losses.dsm_vr(point, point, point, level),
        lambda level: losses.d2sm(point, hessian, point, level),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="expected a positive and finite scalar sigma, got"):
            call(sigma)
        if np.ndim(sigma):
            with pytest.raises(ValueError, match="expected a positive and finite scalar sigma"):
                jax.jit(call)(sigma)


def test_wrong_shapes_raise():
    vector, matrix = jnp.zeros(2), jnp.zeros((2, 2))
    for function in (tweedie.cumulants_to_moments, tweedie.moments_to_cumulants):
        with pytest.raises(ValueError, match="got none"):
            function([])
        with pytest.raises(ValueError, match=r"order 1 .* \(D,\) \* 1, got \(2, 2\)"):
            function([matrix])
        with pytest.raises(ValueError, match=r"order 2 .* \(2,\) \* 2, got \(2, 3\)"):
            function([vector, jnp.zeros((2, 3))])
    for function in (
        tweedie.scores_to_cumulants,
        tweedie.cumulants_to_scores,
        tweedie.scores_to_moments,
    ):
        with pytest.raises(ValueError, match="use vmap"):
            function(matrix, [matrix], 0.5)
        with pytest.raises(ValueError, match=r"order 1 .* \(2,\) \* 1, got \(3,\)"):
            function(vector, [jnp.zeros(3)], 0.5)
    with pytest.raises(ValueError, match=r"\(D, D, D\), got \(2, 2\)"):
        tweedie.posterior_third_cumulant(matrix, 0.5)
    with pytest.raises(ValueError, match=r"\(D, D, D\), got \(2, 3, 2\)"):
        tweedie.posterior_third_cumulant(jnp.zeros((2, 3, 2)), 0.5)
    with pytest.raises(ValueError, match="use vmap"):
        tweedie.denoise(lambda y: y, matrix, 0.5)
    with pytest.raises(ValueError, match="one shape"):
        tweedie.denoise(lambda y: y[:1], vector, 0.5)


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_moments_in_any_unit_are_in_the_range_of_float32(unit):
    sigma = jnp.float32(unit)
    scores = [jnp.full(1, value / unit**n, jnp.float32) for n, value in ((2, -0.5), (3, 0.4))]
    covariance = tweedie.posterior_covariance(Dense(scores[0][None]), sigma)
    np.testing.assert_allclose(covariance.matrix[0] / sigma / sigma, 0.5, rtol=1e-6)
    third = tweedie.posterior_third_cumulant(scores[1], sigma)
    np.testing.assert_allclose(third / sigma / sigma / sigma, 0.4, rtol=1e-6)
    assert covariance.dtype == third.dtype == jnp.float32
