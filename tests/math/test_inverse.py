"""Posterior sampling from linear observations, against the closed form on a Gaussian."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import distributions, tweedie, uncertainty
from hos_jax.linops import Diagonal, DiagonalPlusLowRank
from hos_jax.uncertainty import inverse

DIM, COUNT, NOISE_STD = 6, 3, 0.3
LAW = distributions.random_correlated_gaussian(jax.random.key(0), DIM, 30.0)
MATRIX = jax.random.normal(jax.random.key(1), (COUNT, DIM))
EXACT = {"tolerance": 1e-12, "max_iterations": 50}


def forward(point):
    return MATRIX @ point


def observe(key):
    clean_key, noise_key = jax.random.split(key)
    clean = LAW.sample(clean_key, 1)[0]
    noise = jax.random.normal(noise_key, (COUNT,))
    return inverse.Observation(forward(clean) + NOISE_STD * noise, NOISE_STD, forward)


def posterior_fn(noisy, sigma):
    smooth = LAW.smooth(sigma)
    return uncertainty.posterior(noisy, smooth.score(noisy), smooth.hessian(noisy), sigma)


def conditioned(mean, covariance, values):
    """The exact Gaussian of x given b, from dense linear algebra."""
    gain = np.linalg.solve(
        MATRIX @ covariance @ MATRIX.T + NOISE_STD**2 * np.eye(COUNT), MATRIX @ covariance
    ).T
    return mean + gain @ (values - MATRIX @ mean), covariance - gain @ MATRIX @ covariance


def standard_errors_off(points, mean, covariance):
    """The largest distance of the sample's mean and covariance, in standard errors."""
    centred = np.asarray(points) - np.asarray(mean)
    covariance = np.asarray(covariance)
    products = np.einsum("ni,nj->nij", centred, centred)
    size = np.sqrt(len(points))
    of_mean = np.abs(centred.mean(axis=0)) / (centred.std(axis=0) / size)
    of_covariance = np.abs(products.mean(axis=0) - covariance) / (products.std(axis=0) / size)
    return of_mean.max(), of_covariance.max()


def test_samples_of_a_gaussian_have_the_exact_law_with_few_levels():
    observation, count = observe(jax.random.key(2)), 6_000
    sigmas = jnp.array([300.0, 3.0, 0.5])
    starts = sigmas[0] * jax.random.normal(jax.random.key(3), (count, DIM))

    @jax.jit
    @jax.vmap
    def draw(key, start):
        return inverse.sample_posterior(key, posterior_fn, observation, start, sigmas, **EXACT)

    points = draw(jax.random.split(jax.random.key(12), count), starts)
    exact = conditioned(LAW.mean, LAW.covariance, observation.values)
    # Of 6 means and 21 variances or covariances.
    assert max(standard_errors_off(points, *exact)) < 4.0


@pytest.mark.parametrize("sigma", [1.0, 10.0])
def test_conditional_score_is_the_gradient_of_the_joint_density(sigma):
    observation = observe(jax.random.key(4))
    noisy = 2.0 * jax.random.normal(jax.random.key(5), (DIM,))

    def log_density(noisy):
        """log q(y) + log p(b | y), b given y being Gaussian by linear algebra alone."""
        smooth = LAW.smooth(sigma)
        gain = jnp.linalg.solve(smooth.covariance, LAW.covariance).T
        mean = LAW.mean + gain @ (noisy - LAW.mean)
        spread = LAW.covariance - gain @ LAW.covariance
        observed = MATRIX @ spread @ MATRIX.T + NOISE_STD**2 * jnp.eye(COUNT)
        law = distributions.Gaussian(MATRIX @ mean, 0.5 * (observed + observed.T))
        return smooth.log_density(noisy) + law.log_density(observation.values)

    found = inverse.conditional_score(
        LAW.smooth(sigma).score(noisy), posterior_fn(noisy, sigma), observation, sigma, **EXACT
    )
    exact = jax.grad(log_density)(noisy)
    np.testing.assert_allclose(found, exact, rtol=1e-7)
    posterior = posterior_fn(noisy, sigma)
    heuristic = inverse.isotropic(posterior.mean, sigma, 1.0)
    plain = inverse.conditional_score(
        LAW.smooth(sigma).score(noisy), heuristic, observation, sigma, **EXACT
    )
    assert np.linalg.norm(plain - exact) > 0.05 * np.linalg.norm(exact)


def test_conditional_mean_is_tweedie_of_the_conditional_score():
    observation, sigma = observe(jax.random.key(6)), 0.7
    noisy = jax.random.normal(jax.random.key(7), (DIM,))
    posterior = posterior_fn(noisy, sigma)
    score = inverse.conditional_score(
        LAW.smooth(sigma).score(noisy), posterior, observation, sigma, **EXACT
    )
    found = inverse.conditional_mean(posterior, observation, **EXACT)
    np.testing.assert_allclose(found, tweedie.posterior_mean(noisy, score, sigma), rtol=1e-10)


def test_matrix_free_draws_have_the_dense_conditional_moments():
    observation, keys = observe(jax.random.key(9)), jax.random.split(jax.random.key(8), 2)
    covariance = DiagonalPlusLowRank(
        jax.random.uniform(keys[0], (DIM,), minval=0.1), jax.random.normal(keys[1], (DIM, 2))
    )
    posterior = uncertainty.posterior_from_covariance(jnp.arange(6.0), covariance, 1.0)
    mean, spread = conditioned(posterior.mean, covariance.to_dense(), observation.values)
    found = inverse.conditional_mean(posterior, observation, **EXACT)
    np.testing.assert_allclose(found, mean, rtol=1e-9)
    draw = functools.partial(inverse.conditional_sample, **EXACT)
    keys = jax.random.split(jax.random.key(10), 6_000)
    points = jax.jit(jax.vmap(draw, (0, None, None)))(keys, posterior, observation)
    assert max(standard_errors_off(points, mean, spread)) < 4.0


def test_adjoint_is_the_transpose():
    observation = observe(jax.random.key(11))
    vector = jnp.arange(3.0)
    np.testing.assert_allclose(
        observation.adjoint(vector, jnp.zeros(DIM)), MATRIX.T @ vector, rtol=1e-12
    )


def test_isotropic_is_the_posterior_of_independent_values():
    mean = jnp.arange(4.0)
    posterior = inverse.isotropic(mean, 0.5, 2.0)
    independent = distributions.Gaussian(jnp.zeros(4), 4.0 * jnp.eye(4)).smooth(0.5)
    exact = tweedie.posterior_covariance(independent.hessian(mean), 0.5)
    np.testing.assert_allclose(posterior.covariance.to_dense(), exact.matrix, atol=1e-14)


def test_wrong_shapes_are_refused():
    observation = inverse.Observation(jnp.zeros(COUNT + 1), 0.1, forward)
    posterior = posterior_fn(jnp.zeros(DIM), 1.0)
    with pytest.raises(ValueError, match="values"):
        inverse.guidance(posterior, observation)
    with pytest.raises(ValueError, match="levels"):
        inverse.sample_posterior(
            jax.random.key(0), posterior_fn, observation, jnp.zeros(DIM), jnp.ones(())
        )


def test_what_is_not_finite_is_refused_and_where_it_is_traced_the_result_is_nan():
    observation, posterior = observe(jax.random.key(2)), posterior_fn(jnp.zeros(DIM), 1.0)
    sigmas = jnp.array([3.0, 0.5])
    calls = {
        "mean": lambda o, p: inverse.conditional_mean(p, o),
        "score": lambda o, p: inverse.conditional_score(jnp.ones(DIM), p, o, 1.0),
        "draw": lambda o, p: inverse.conditional_sample(jax.random.key(0), p, o),
        "sample": lambda o, p: inverse.sample_posterior(
            jax.random.key(0), posterior_fn, o, jnp.ones(DIM), sigmas
        ),
    }
    for name, call in calls.items():
        for bad in (jnp.nan, jnp.inf, -jnp.inf):
            values = observation.values.at[1].set(bad)
            wrong = inverse.Observation(values, NOISE_STD, forward)
            with pytest.raises(ValueError, match="1 of 3 values are not finite, the first at 1"):
                call(wrong, posterior)
            assert np.all(np.isnan(jax.jit(call)(wrong, posterior))), name
        for noise_std in (0.0, -0.1, jnp.nan):
            wrong = inverse.Observation(observation.values, noise_std, forward)
            with pytest.raises(ValueError, match="noise_std has to be positive"):
                call(wrong, posterior)
        wrong = inverse.Observation(observation.values, NOISE_STD * jnp.ones(2), forward)
        with pytest.raises(
            ValueError, match=r"one noise_std, or one of each value, \(M,\), got \(2,"
        ):
            call(wrong, posterior)
        each = inverse.Observation(observation.values, [NOISE_STD] * 3, forward)
        np.testing.assert_allclose(call(each, posterior), call(observation, posterior), rtol=1e-9)
        if name != "sample":
            moved = uncertainty.Posterior(jnp.full(DIM, jnp.nan), posterior.covariance)
            assert np.all(np.isnan(call(observation, moved))), name


def test_a_missing_number_of_a_batch_spoils_its_own_result_alone():
    observation, posterior = observe(jax.random.key(2)), posterior_fn(jnp.zeros(DIM), 1.0)
    values = jnp.stack([observation.values, observation.values.at[0].set(jnp.nan)])
    found = jax.vmap(
        lambda b: inverse.conditional_mean(posterior, inverse.Observation(b, NOISE_STD, forward))
    )(values)
    expected = inverse.conditional_mean(posterior, observation)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9)
    assert np.all(np.isnan(found[1]))


def test_an_offset_of_the_measurement_changes_nothing():
    observation, posterior = observe(jax.random.key(3)), posterior_fn(jnp.zeros(DIM), 1.0)
    offset = jnp.array([1.0, -2.0, 30.0])

    def shifted(dark):
        return inverse.Observation(
            observation.values + dark, NOISE_STD, lambda x: forward(x) + dark
        )

    for call in (
        lambda o: inverse.conditional_mean(posterior, o, **EXACT),
        lambda o: inverse.guidance(posterior, o, **EXACT),
        lambda o: inverse.conditional_sample(jax.random.key(0), posterior, o, **EXACT),
    ):
        expected = call(observation)
        np.testing.assert_allclose(call(shifted(offset)), expected, rtol=1e-8)
        # An offset that is traced too.
        found = jax.jit(lambda dark, call=call: call(shifted(dark)))(offset)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


@pytest.mark.parametrize(
    "wrong",
    [
        jnp.sin,
        jnp.abs,
        jax.nn.relu,
        jnp.square,
        jnp.round,
        lambda x: jnp.clip(x, 0.0, 1.0),
        lambda x: x / jnp.linalg.norm(x),
        lambda x: jnp.where(x > 0, x, 0.0),
        lambda x: x.astype(jnp.int32).astype(x.dtype),
        lambda x: jnp.asarray((255 * x).astype(jnp.int32), x.dtype) / 255,
    ],
)
def test_a_map_that_is_not_linear_is_refused(wrong):
    posterior = posterior_fn(jnp.zeros(DIM), 1.0)
    observation = inverse.Observation(jnp.ones(DIM), NOISE_STD, wrong)
    with pytest.raises(ValueError, match="forward has to be linear"):
        inverse.conditional_mean(posterior, observation)
    with pytest.raises(ValueError, match="forward has to be linear"):
        jax.jit(inverse.conditional_mean)(posterior, observation)


@pytest.mark.parametrize(
    ("values", "map_", "message"),
    [
        (jnp.zeros(COUNT + 1), forward, "values"),
        (jnp.zeros((COUNT, 1)), forward, "values"),
        (jnp.zeros(()), lambda x: x[0], "one shape"),
        (jnp.zeros((2, COUNT)), lambda x: jnp.stack([forward(x)] * 2), "vmap"),
        (jnp.zeros(4), jnp.fft.rfft, "real floating"),
        (jnp.zeros(2, jnp.int32), lambda x: x[:2].astype(jnp.int32), "real floating"),
        (jnp.zeros(COUNT, complex), forward, "values are complex"),
        (jnp.zeros(3), lambda x: np.asarray(x)[:3], "operations of jax.numpy, not of numpy"),
        ([0.1, 0.2, 0.3], lambda x: x[:3], "values are a list; make an array"),
        (np.ma.masked_equal([0.1, 9.0, 0.3], 9.0), lambda x: x[:3], "values has masked"),
    ],
)
def test_measurements_of_another_shape_or_type_are_refused(values, map_, message):
    observation = inverse.Observation(values, NOISE_STD, map_)
    with pytest.raises(ValueError, match=message):
        inverse.conditional_mean(posterior_fn(jnp.zeros(DIM), 1.0), observation)


@pytest.mark.parametrize(
    "sigmas", [[1.0, 2.0], [1.0, 1.0], [np.inf, 1.0], [1.0, -0.5], [1.0, np.nan]]
)
def test_levels_that_do_not_fall_are_refused(sigmas):
    with pytest.raises(ValueError, match="in falling order"):
        inverse.descend(jax.random.key(0), lambda k, y, s: y, jnp.zeros(3), jnp.asarray(sigmas))


def test_a_matrix_in_place_of_the_map_is_refused():
    observation = inverse.Observation(jnp.zeros(COUNT), NOISE_STD, jnp.ones((COUNT, DIM)))
    with pytest.raises(TypeError, match="forward is the function x -> A x, got a"):
        inverse.conditional_mean(posterior_fn(jnp.zeros(DIM), 1.0), observation)


def test_levels_of_more_digits_than_the_point_will_do():
    found = inverse.descend(
        jax.random.key(0), lambda k, y, s: 0.5 * y, jnp.ones(3, jnp.float32), jnp.array([2.0, 1.0])
    )
    assert found.dtype == jnp.float32 and np.isfinite(found).all()


def test_a_batch_of_posteriors_is_refused():
    batch = jax.vmap(lambda y: posterior_fn(y, 1.0))(jnp.zeros((2, DIM)))
    with pytest.raises(ValueError, match="vmap"):
        inverse.conditional_mean(batch, observe(jax.random.key(0)))


def test_measured_numbers_of_any_kind_will_do():
    posterior = posterior_fn(jnp.zeros(DIM), 1.0)
    whole = np.array([1, -2, 3])
    found = inverse.conditional_mean(posterior, inverse.Observation(whole, NOISE_STD, forward))
    plain = inverse.Observation(jnp.asarray(whole, jnp.float64), NOISE_STD, forward)
    np.testing.assert_allclose(found, inverse.conditional_mean(posterior, plain), rtol=1e-12)
    # A posterior of float32 beside numbers of NumPy.
    mean, diagonal = jnp.zeros(DIM, jnp.float32), Diagonal(jnp.ones(DIM, jnp.float32))
    single = uncertainty.posterior_from_covariance(mean, diagonal, 1.0)
    observation = inverse.Observation(np.ones(2), np.float64(NOISE_STD), lambda x: x[:2])
    found = inverse.conditional_mean(single, observation)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found[:2], 1.0 / (1.0 + NOISE_STD**2), rtol=1e-6)


def test_results_say_whether_the_solve_converged():
    observation, posterior = observe(jax.random.key(3)), posterior_fn(jnp.zeros(DIM), 1.0)
    found = inverse.condition(posterior, observation, **EXACT)
    assert found.converged and found.relative_residual < 1e-11
    np.testing.assert_allclose(
        found.mean, inverse.conditional_mean(posterior, observation, **EXACT)
    )
    short = inverse.condition(posterior, observation, tolerance=1e-12, max_iterations=1)
    assert not short.converged and short.relative_residual > 1e-6
    assert not jax.jit(inverse.condition)(
        posterior, inverse.Observation(jnp.full(COUNT, jnp.nan), NOISE_STD, forward)
    ).converged
    exact = inverse.Observation(forward(posterior.mean), NOISE_STD, forward)
    nothing = inverse.condition(posterior, exact)
    assert nothing.converged and not np.any(nothing.guidance)
    key, sigmas = jax.random.key(0), jnp.array([3.0, 1.0, 0.5])
    for options, expected in ((EXACT, True), ({"tolerance": 1e-12, "max_iterations": 1}, False)):
        draw, converged = inverse.conditional_sample(
            jax.random.clone(key), posterior, observation, return_converged=True, **options
        )
        assert converged == expected
        np.testing.assert_array_equal(
            draw,
            inverse.conditional_sample(jax.random.clone(key), posterior, observation, **options),
        )
        arguments = jax.random.clone(key), posterior_fn, observation, jnp.ones(DIM), sigmas
        draw, converged = inverse.sample_posterior(*arguments, return_converged=True, **options)
        assert converged.shape == (3,) and np.all(converged == expected)
        np.testing.assert_array_equal(draw, inverse.sample_posterior(*arguments, **options))


def test_no_measurement_at_all_leaves_the_posterior_as_it_is():
    posterior = posterior_fn(jnp.ones(DIM), 1.0)
    nothing = inverse.Observation(jnp.zeros(0), NOISE_STD, lambda point: point[:0])
    found = inverse.condition(posterior, nothing)
    assert found.converged
    np.testing.assert_array_equal(found.mean, posterior.mean)


@pytest.mark.parametrize("unit", [1e-16, 1e-10, 1e10, 1e16])
def test_the_unit_of_the_data_changes_nothing_in_float32(unit):
    plain, observation = posterior_fn(jnp.zeros(DIM), 1.0), observe(jax.random.key(3))
    matrix = jnp.float32(MATRIX)
    factor = jnp.linalg.cholesky(plain.covariance.to_dense()).astype(jnp.float32)

    def found(unit):
        diag = unit**2 * jnp.full(DIM, 1e-4, jnp.float32)
        covariance = DiagonalPlusLowRank(diag, unit * factor)
        return inverse.condition(
            uncertainty.Posterior(unit * plain.mean.astype(jnp.float32), covariance),
            inverse.Observation(
                unit * observation.values.astype(jnp.float32),
                unit * NOISE_STD,
                lambda point: matrix @ point,
            ),
        )

    one, other = found(jnp.float32(1.0)), found(jnp.float32(unit))
    assert other.converged
    np.testing.assert_allclose(other.mean / unit, one.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_heuristic_posterior_of_16_bits_is_that_of_float32(dtype):
    found = inverse.isotropic(jnp.ones(3, dtype), 0.5, 1.0).marginal_interval(0.9)
    exact = inverse.isotropic(jnp.ones(3, jnp.float32), 0.5, 1.0).marginal_interval(0.9)
    assert found.lower.dtype == jnp.float32
    np.testing.assert_array_equal(found.lower, exact.lower)
