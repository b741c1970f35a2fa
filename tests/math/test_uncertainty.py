"""The posterior as an operator, against dense linear algebra and laws whose posterior is known."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hos_jax import distributions
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank, Local
from hos_jax.uncertainty import Posterior, posterior, posterior_from_covariance, student

D, RANK, SIGMA = 12, 3, 0.7


def make_covariance(structure, dim=D, rank=RANK):
    """C, positive definite, with well separated leading directions."""
    keys = jax.random.split(jax.random.key(3), 3)
    diag = jax.random.uniform(keys[0], (dim,), minval=0.2, maxval=1.0)
    factor = jax.random.normal(keys[1], (dim, rank)) * jnp.array([1.0, 0.6, 0.3])[None, :rank]
    if structure == "diagonal":
        return Diagonal(diag)
    if structure == "low_rank":
        return DiagonalPlusLowRank(diag, factor)
    if structure == "isotropic":
        return IsotropicPlusLowRank.from_multiple(0.3, factor)
    root = jnp.eye(dim) + 0.3 * jax.random.normal(keys[2], (dim, dim))
    return Dense(root @ root.T)


STRUCTURES = ["diagonal", "low_rank", "isotropic", "dense"]


def make_posterior(structure, **changes):
    mean = jax.random.normal(jax.random.key(4), (D,))
    return posterior_from_covariance(mean, make_covariance(structure), SIGMA, **changes)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_operator_equals_dense_linear_algebra(structure):
    found = make_posterior(structure)
    dense = SIGMA**2 * np.asarray(make_covariance(structure).to_dense())
    vector = jax.random.normal(jax.random.key(5), (D,))
    assert int(found.violations.count) == 0 and float(found.violations.largest) == 0.0
    assert type(found.covariance) is not Dense or structure == "dense"
    np.testing.assert_allclose(found.diagonal(), np.diag(dense), rtol=1e-12)
    np.testing.assert_allclose(found.matvec(vector), dense @ vector, rtol=1e-12)
    np.testing.assert_allclose(found.row(2), dense[2], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found.solve(vector), np.linalg.solve(dense, vector), rtol=1e-10)
    np.testing.assert_allclose(found.logdet(), np.linalg.slogdet(dense)[1], rtol=1e-12)
    pairs = found.top_eigenpairs(4)
    values, vectors = np.linalg.eigh(dense)
    np.testing.assert_allclose(pairs.eigenvalues, values[::-1][:4], rtol=1e-9)
    overlap = np.abs(np.sum(np.asarray(pairs.eigenvectors) * vectors[:, ::-1][:, :4], axis=0))
    # The isotropic matrix has three directions of its own, and many of one eigenvalue.
    np.testing.assert_allclose(overlap[:3], 1.0, rtol=1e-6)
    assert float(jnp.max(pairs.residual_norms)) < 1e-8


@pytest.mark.parametrize("structure", STRUCTURES)
def test_samples_reproduce_mean_variances_and_leading_directions(structure):
    found = make_posterior(structure)
    count = 200_000
    draws = np.asarray(jax.jit(lambda key: found.sample(key, count))(jax.random.key(6)))
    error = draws - np.asarray(found.mean)
    deviation = np.asarray(found.standard_deviation())
    assert np.all(np.abs(error.mean(axis=0)) < 4 * deviation / np.sqrt(count))
    variances = np.asarray(found.diagonal())
    spread = np.abs(np.mean(error**2, axis=0) / variances - 1)
    assert np.all(spread < 4 * np.sqrt(2 / count))
    pairs = found.top_eigenpairs(2)
    along = error @ np.asarray(pairs.eigenvectors)
    ratio = np.mean(along**2, axis=0) / np.asarray(pairs.eigenvalues)
    assert np.all(np.abs(ratio - 1) < 4 * np.sqrt(2 / count))
    product = np.mean(along[:, 0] * along[:, 1]) / np.sqrt(np.prod(pairs.eigenvalues))
    assert abs(product) < 4 / np.sqrt(count)


def test_a_gaussian_has_the_posterior_that_conjugacy_gives():
    law = distributions.random_correlated_gaussian(jax.random.key(0), 5, 20.0)
    noisy = jax.random.normal(jax.random.key(1), (5,))
    smooth = law.smooth(SIGMA)
    found = posterior(noisy, smooth.score(noisy), smooth.hessian(noisy), SIGMA)
    prior, mean = np.asarray(law.covariance), np.asarray(law.mean)
    expected = np.linalg.inv(np.linalg.inv(prior) + np.eye(5) / SIGMA**2)
    np.testing.assert_allclose(found.covariance.to_dense(), expected, rtol=1e-9, atol=1e-12)
    gain = prior @ np.linalg.inv(prior + SIGMA**2 * np.eye(5))
    np.testing.assert_allclose(found.mean, mean + gain @ (noisy - mean), rtol=1e-9)


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_gaussian_intervals_hold_their_level(level):
    found = make_posterior("low_rank")
    interval = found.marginal_interval(level)
    laws = scipy.stats.norm(np.asarray(found.mean), np.asarray(found.standard_deviation()))
    np.testing.assert_allclose(laws.cdf(np.asarray(interval.lower)), 0.5 - level / 2, atol=1e-9)
    np.testing.assert_allclose(laws.cdf(np.asarray(interval.upper)), 0.5 + level / 2, atol=1e-9)


def test_skewness_moves_both_ends_towards_the_true_quantiles():
    shape = 20.0  # a gamma law: mean and variance 20, third cumulant 40
    scaled_third = jnp.full(D, 2 * shape / SIGMA**3)
    covariance = Diagonal(jnp.full(D, shape / SIGMA**2))
    mean = jnp.full(D, shape)
    plain = posterior_from_covariance(mean, covariance, SIGMA).marginal_interval(0.9)
    skewed = posterior_from_covariance(
        mean, covariance, SIGMA, scaled_third_diagonal=scaled_third
    ).marginal_interval(0.9)
    law = scipy.stats.gamma(shape)
    for bound, probability in (("lower", 0.05), ("upper", 0.95)):
        before = abs(getattr(plain, bound)[0] - law.ppf(probability))
        after = abs(getattr(skewed, bound)[0] - law.ppf(probability))
        assert after < 0.1 * before
        assert abs(law.cdf(float(getattr(skewed, bound)[0])) - probability) < 2e-3


def test_an_absurd_third_moment_cannot_turn_an_interval_around():
    third = jnp.array([1e6, -1e6] * (D // 2))
    found = make_posterior("diagonal", scaled_third_diagonal=third)
    np.testing.assert_allclose(jnp.abs(found.skewness()), 2.0)
    ends = [found.marginal_interval(level) for level in (0.5, 0.8, 0.9, 0.95, 0.99)]
    for inner, outer in itertools.pairwise(ends):
        assert np.all(outer.lower < inner.lower) and np.all(inner.upper < outer.upper)


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "dense"])
def test_what_is_no_covariance_is_repaired_and_reported(structure):
    good = make_covariance(structure)
    vector = jnp.zeros(D).at[1].set(2.0).at[4].set(1.5)
    bad = good.add_diagonal(-vector)
    found = posterior_from_covariance(jnp.zeros(D), bad, 1.0, floor=0.01)
    values = np.linalg.eigvalsh(np.asarray(found.covariance.to_dense()))
    assert values[0] >= 0.01 * (1 - 1e-9)
    if structure == "dense":
        before = np.linalg.eigvalsh(np.asarray(bad.to_dense()))
        below = before[before < 0.01]
        np.testing.assert_allclose(values, np.maximum(before, 0.01), rtol=1e-9)
    else:
        below = np.asarray(bad.diag)[[1, 4]]
        assert np.all(below < 0)
    assert int(found.violations.count) == len(below)
    np.testing.assert_allclose(found.violations.largest, 0.01 - below.min(), rtol=1e-9)
    if structure == "low_rank":
        expected = np.maximum(np.asarray(bad.diagonal()), 0.01)
        np.testing.assert_allclose(found.diagonal(), expected, rtol=1e-9)


def test_rounding_at_the_floor_of_a_model_is_no_violation():
    covariance = Diagonal(jnp.full(D, 1e-4 * (1 - 1e-4)))
    found = posterior_from_covariance(jnp.zeros(D), covariance, 1.0, floor=1e-4)
    assert int(found.violations.count) == 0


def test_nothing_of_the_size_of_a_square_is_built():
    dim = 196_608  # 256 x 256 x 3

    def everything(diag, factor):
        found = posterior_from_covariance(
            jnp.zeros_like(diag), DiagonalPlusLowRank(diag, factor), 0.5
        )
        pairs = found.top_eigenpairs(5)
        draws = found.sample(jax.random.key(0), 4)
        return pairs, draws, found.row(7), found.solve(diag), found.marginal_interval(0.9)

    shapes = (
        jax.ShapeDtypeStruct((dim,), jnp.float32),
        jax.ShapeDtypeStruct((dim, 16), jnp.float32),
    )
    used = jax.jit(everything).lower(*shapes).compile().memory_analysis()
    assert used.temp_size_in_bytes < 250 * dim * 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.marginal_interval(1.0), "between 0 and 1"),
        (lambda p: p.marginal_interval(np.array([0.5, 0.9])), "one number between 0 and 1"),
        (lambda p: jax.jit(p.marginal_interval)(0.9), "one number between 0 and 1"),
        (lambda p: p.marginal_interval(None), "one number between 0 and 1"),
        (lambda p: p.marginal_interval(np.nan), "one number between 0 and 1"),
        (lambda p: p.top_eigenpairs(0), "1 <= count <= 12"),
        (lambda p: p.top_eigenpairs(13), "1 <= count <= 12"),
        (lambda p: p.top_eigenpairs(1.5), "whole number count"),
        (
            lambda p: make_posterior("low_rank").top_eigenpairs(1, krylov_vectors=2.5),
            "whole number krylov_vectors",
        ),
        (
            lambda p: dataclasses.replace(p, tails="student").sample(jax.random.key(0), -1),
            "whole number count >= 0",
        ),
        (
            lambda p: p.covariance.function_product(jnp.exp, p.mean, krylov_vectors=2.5),
            "whole number krylov_vectors",
        ),
        (lambda p: p.skewness(), "third-order model"),
        (
            lambda p: posterior_from_covariance(p.mean, make_covariance("diagonal"), 1.0, floor=0),
            "positive and finite scalar floor",
        ),
        (
            lambda p: posterior_from_covariance(p.mean[1:], make_covariance("diagonal"), 1.0),
            "one shape",
        ),
        (
            lambda p: posterior_from_covariance(p.mean, make_covariance("diagonal"), -0.5),
            "positive and finite scalar sigma",
        ),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_posterior("diagonal"))


def test_a_plain_array_is_told_what_to_wrap_it_in():
    mean, matrix = jnp.zeros(3), -jnp.eye(3)
    with pytest.raises(TypeError, match=r"wrap it, linops\.Dense\(score2\)"):
        posterior(mean, mean, matrix, 0.5)
    with pytest.raises(TypeError, match=r"wrap it, linops\.Dense\(covariance\)"):
        posterior_from_covariance(mean, matrix, 0.5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["dense", "diagonal", "low_rank"])
def test_numbers_of_16_bits_are_taken_as_float32(kind, dtype):
    given = jax.tree.map(lambda leaf: leaf.astype(dtype), (jnp.zeros(D), make_covariance(kind)))
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), given)
    found, expected = (posterior_from_covariance(*each, 0.5) for each in (given, wide))
    np.testing.assert_array_equal(found.standard_deviation(), expected.standard_deviation())
    assert found.sample(jax.random.key(0), 2).dtype == jnp.float32
    mixed = posterior_from_covariance(wide[0], given[1], 0.5)
    np.testing.assert_array_equal(mixed.standard_deviation(), expected.standard_deviation())
    assert mixed.solve(jnp.ones(D, jnp.float32)).dtype == jnp.float32


def test_posteriors_of_many_points_come_by_vmap():
    means = jax.random.normal(jax.random.key(0), (3, D))
    covariance = make_covariance("low_rank")
    batch = jax.vmap(lambda m: posterior_from_covariance(m, covariance, SIGMA))(means)
    assert isinstance(batch, Posterior)
    values = jax.vmap(lambda p: p.top_eigenpairs(2).eigenvalues)(batch)
    np.testing.assert_allclose(values[0], values[2], rtol=1e-9)
    assert batch.covariance.factor.shape == (3, D, RANK)


def test_a_batch_of_posteriors_works_as_one():
    """Every method on what `vmap` made is `vmap` of the method."""
    means = jax.random.normal(jax.random.key(0), (3, D))
    scales = jnp.array([1.0, 2.0, 3.0])
    for structure in STRUCTURES:
        covariance = make_covariance(structure)
        batch = jax.vmap(
            lambda m, s, c=covariance: posterior_from_covariance(m, c.scale(s), SIGMA)
        )(means, scales)
        assert batch.dim == D and batch.covariance.batch_shape == (3,)
        assert batch.violations.count.shape == (3,)
        for method in (
            lambda p: p.diagonal(),
            lambda p: p.standard_deviation(),
            lambda p: p.row(-1),
            lambda p: p.matvec(p.mean),
            lambda p: p.solve(p.mean),
            lambda p: p.logdet(),
            lambda p: p.marginal_interval(0.9),
            lambda p: p.top_eigenpairs(2).eigenvalues,
        ):
            for got, expected in zip(
                jax.tree.leaves(method(batch)),
                jax.tree.leaves(jax.vmap(method)(batch)),
                strict=True,
            ):
                np.testing.assert_allclose(got, expected, rtol=1e-9)
        assert batch.sample(jax.random.key(1), 5).shape == (3, 5, D)
    with pytest.raises(ValueError, match="vmap"):
        posterior_from_covariance(means, batch.covariance, SIGMA)


def test_rows_are_found_as_numpy_finds_them():
    found = make_posterior("low_rank")
    dense = np.asarray(found.covariance.to_dense())
    for index in (0, -1, 3, -D, np.int64(5), np.uint8(7), jnp.int32(-2)):
        np.testing.assert_allclose(found.row(index), dense[int(index)], rtol=1e-12, atol=1e-15)
    for index in (D, -D - 1, np.int64(100)):
        with pytest.raises(IndexError, match="out of range for 12"):
            found.row(index)
    for index in (1.0, True, jnp.arange(2)):
        with pytest.raises(TypeError):
            found.row(index)
    rows = jax.jit(jax.vmap(found.row))(jnp.array([-1, 2, D]))
    np.testing.assert_allclose(rows[:2], dense[[-1, 2]], rtol=1e-12, atol=1e-15)
    assert np.all(np.isnan(rows[2]))


@pytest.mark.parametrize("structure", ["diagonal", "low_rank", "isotropic", "dense", "empirical"])
def test_float32_at_every_noise_level_gives_finite_numbers_and_counts_repairs(structure):
    """Data of unit size, seen through noise from 1e-6 to 1e6 of it."""
    keys = jax.random.split(jax.random.key(7), 3)
    points = jax.random.normal(keys[0], (4, 24), jnp.float32)
    factor = points.T - jnp.mean(points.T, axis=1, keepdims=True)

    def scores(sigma):
        one = jnp.ones(24, jnp.float32)
        if structure == "empirical":
            law = distributions.Empirical(points).smooth(sigma)
            middle = jnp.mean(points[:2], axis=0)
            return law.score(middle), law.hessian(middle)
        low_rank = DiagonalPlusLowRank(-one / sigma**2, factor / sigma**2)
        return one / sigma, {
            "diagonal": Diagonal(-one / sigma**2 * (1 + points[0])),
            "low_rank": low_rank,
            "isotropic": IsotropicPlusLowRank(low_rank.diag, low_rank.factor),
            "dense": Dense(low_rank.to_dense()),
        }[structure]

    @jax.jit
    def everything(sigma):
        found = posterior(points[1], *scores(sigma), sigma)
        vector = points[2] * sigma
        return (
            found.violations,
            found.covariance,
            vector,
            {
                "sample": found.sample(jax.random.key(8), 3),
                "solve": found.solve(vector),
                "logdet": found.logdet(),
                "form": found.covariance.inverse_quadratic_form_and_logdet(vector),
                "deviation": found.standard_deviation(),
                "eigenvalues": found.top_eigenpairs(3).eigenvalues,
                # Rounding leaves some Ritz values below 0.
                "root": found.covariance.function_product(
                    lambda values: jnp.sqrt(jnp.maximum(values, 0.0)), vector
                ).value,
            },
        )

    for exponent in range(-6, 7):
        violations, covariance, vector, found = jax.device_get(
            everything(jnp.float32(10.0**exponent))
        )
        for name, value in found.items():
            assert np.all(np.isfinite(np.asarray(jax.tree.leaves(value)))), (name, exponent)
        assert np.all(found["deviation"] > 0) and np.all(found["eigenvalues"] > 0)
        doubled = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), covariance)
        exact = np.linalg.solve(np.asarray(doubled.to_dense()), vector.astype(np.float64))
        off = np.linalg.norm(found["solve"] - exact) / np.linalg.norm(exact)
        # What is kept as a sum of parts has more digits than its eigenvalues side by side.
        assert off < (0.1 if isinstance(covariance, Dense) else 1e-5), exponent
        assert np.isfinite(violations.largest) and (violations.largest > 0) == (
            violations.count > 0
        )
    # Variances of 0 in most directions, whatever sigma.
    assert violations.count > 0


@pytest.mark.parametrize("dim", [2, 16, 64])
@pytest.mark.parametrize("sigma", [0.01, 0.003])
def test_the_floor_of_a_dense_covariance_is_what_float32_resolves(dim, sigma):
    """Between two points 1 apart one eigenvalue of C is 1 / (4 sigma^2), the others are 0."""
    apart = jax.random.normal(jax.random.key(0), (dim,), jnp.float32)
    apart = apart / jnp.linalg.norm(apart) / 2
    smooth = distributions.Empirical(jnp.stack([apart, -apart])).smooth(sigma)
    noisy = jnp.zeros(dim, jnp.float32)
    found = posterior(noisy, smooth.score(noisy), smooth.hessian(noisy), sigma)
    assert int(found.violations.count) == dim - 1
    np.testing.assert_allclose(found.top_eigenpairs(1).eigenvalues, 0.25, rtol=1e-4)
    assert np.all(np.isfinite(found.sample(jax.random.key(1), 3)))
    np.testing.assert_allclose(found.covariance.matvec(found.solve(apart)), apart, atol=0.02)
    assert np.isfinite(found.logdet())


def test_a_posterior_needs_no_violations():
    found = Posterior(jnp.zeros(D), make_covariance("low_rank"))
    assert found.violations is None and found.sample(jax.random.key(0), 2).shape == (2, D)


@pytest.mark.parametrize("structure", [*STRUCTURES, "local"])
def test_students_tails_draw_their_law_and_keep_the_covariance(structure):
    rng = np.random.default_rng(8)
    if structure == "local":
        taps = jnp.asarray(0.4 * rng.normal(size=(D, 4)))
        covariance = Local(jnp.asarray(rng.uniform(0.3, 1.0, D)), taps, (3, 4, 1), 1)
    else:
        # Columns are spread over many values, as those of images are.
        covariance = make_covariance(structure, D if structure == "dense" else 200)
    dim = covariance.dim
    found = posterior_from_covariance(jnp.arange(float(dim)), covariance, SIGMA, tails="student")
    gaussian = dataclasses.replace(found, tails="gaussian")
    np.testing.assert_array_equal(found.diagonal(), gaussian.diagonal())
    count = 4_000
    draws = found.sample(jax.random.key(0), count)
    assert draws.shape == (count, dim)
    white = found.covariance.whiten((draws - found.mean[None]).T)
    law = scipy.stats.t(3, scale=1 / np.sqrt(3))
    for coordinate in np.asarray(white)[:4]:
        assert scipy.stats.kstest(coordinate, law.cdf).pvalue > 1e-3
    for level in (0.5, 0.9, 0.95):
        lower, upper = map(np.asarray, found.marginal_interval(level))
        inside = np.mean((lower < np.asarray(draws)) & (np.asarray(draws) < upper), axis=0)
        # Exact but for sampling where a value depends on one white one, else nearly.
        tolerance = 4.5 * np.sqrt(level * (1 - level) / count)
        tolerance += 0.0 if structure == "diagonal" else 0.02
        np.testing.assert_allclose(inside, level, rtol=0.0, atol=tolerance)
    narrow, wide = found.marginal_interval(0.5), gaussian.marginal_interval(0.5)
    assert np.all(narrow.upper < wide.upper)


@pytest.mark.parametrize("beyond", [1e-6, 1e-8, 1e-12])
def test_intervals_are_central_at_every_level_in_float32(beyond):
    found = Posterior(jnp.zeros(1, jnp.float32), Diagonal(jnp.ones(1, jnp.float32)))
    lower, upper = found.marginal_interval(1.0 - beyond)
    assert lower.dtype == upper.dtype == jnp.float32
    np.testing.assert_array_equal(lower, -upper)
    np.testing.assert_allclose(upper, scipy.stats.norm.isf(beyond / 2), rtol=1e-5)


@pytest.mark.parametrize("dim", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_students_intervals_hold_their_level_where_a_column_is_of_one_value(dim):
    place, count = dim // 2, 20_000
    factor = jnp.zeros((dim, 1)).at[place, 0].set(1.0)
    covariance = DiagonalPlusLowRank(jnp.full(dim, 0.01), factor)
    found = posterior_from_covariance(jnp.zeros(dim), covariance, 1.0, tails="student")
    draws = np.asarray(found.sample(jax.random.key(0), count))[:, place]
    for level in (0.5, 0.9, 0.99):
        lower, upper = (float(end[place]) for end in found.marginal_interval(level))
        inside = np.mean((lower < draws) & (draws < upper))
        assert abs(inside - level) < 4.5 * np.sqrt(level * (1 - level) / count)


@pytest.mark.parametrize(
    ("dtype", "sigma", "rtol"), [("float32", 30.0, 0.05), ("float64", 1000.0, 1e-6)]
)
def test_values_known_far_better_than_the_noise_keep_their_variance(dtype, sigma, rtol):
    variances = jnp.array([0.01, 1.0], dtype)
    law = distributions.Gaussian(jnp.zeros(2, dtype), jnp.diag(variances)).smooth(sigma)
    noisy = jnp.ones(2, dtype)
    found = posterior(noisy, law.score(noisy), law.hessian(noisy), sigma)
    expected = variances / (1.0 + variances / sigma**2)
    np.testing.assert_allclose(found.diagonal(), expected, rtol=rtol)
    assert int(found.violations.count) == 0


def test_students_intervals_lie_between_those_of_one_value_and_gaussian_ones():
    law = scipy.stats.t(3, scale=1 / np.sqrt(3))
    for level in (0.5, 0.9, 0.999):
        ends = student.interval_multiplier(level, jnp.array([0.0, 1.0]))
        probability = 0.5 + level / 2
        expected = [scipy.stats.norm.ppf(probability), law.ppf(probability)]
        np.testing.assert_allclose(ends, expected, rtol=1e-8)
    # As near to 1 as a level can be, to which 1/2 + level / 2 is rounded.
    ends = student.interval_multiplier(1.0 - 2.0**-53, jnp.array([0.0, 1.0]))
    assert 8.0 < ends[0] < 9.0 and 1e4 < ends[1] < 1e6
    # b w + (1 - b^2)^(1/2) z itself, whose third powers are those of w's part.
    b, rng = 0.75, np.random.default_rng(2)
    sums = b * law.rvs(10**6, random_state=rng) + np.sqrt(1 - b**2) * rng.normal(size=10**6)
    for level in (0.5, 0.9):
        half = float(student.interval_multiplier(level, jnp.array(b**3)))
        np.testing.assert_allclose(np.mean(np.abs(sums) < half), level, atol=0.003)


def test_levels_of_intervals_may_be_numbers_of_jax():
    for tails in ("gaussian", "student"):
        found = make_posterior("diagonal", tails=tails)
        for level in jnp.array([0.5, 0.9]):
            lower, _ = found.marginal_interval(level)
            expected, _ = found.marginal_interval(float(level))
            np.testing.assert_allclose(lower, expected, rtol=1e-6)


def test_students_tails_have_no_skewness_beside_them():
    with pytest.raises(ValueError, match="symmetric"):
        make_posterior("diagonal", tails="student", scaled_third_diagonal=jnp.ones(D))


def test_a_batch_of_posteriors_with_students_tails_is_each_of_them():
    found = make_posterior("low_rank", tails="student")
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), found)
    draws = batch.sample(jax.random.key(1), 5)
    assert draws.shape == (2, 5, D)
    assert not np.allclose(draws[0], draws[1])
    interval = batch.marginal_interval(0.9)
    np.testing.assert_allclose(interval.upper[1], found.marginal_interval(0.9).upper, rtol=1e-12)


def test_a_posterior_prints_in_lines_and_not_pages():
    """Of a small matrix all numbers, of a large one its ends; without values where it is traced."""
    diag = jnp.linspace(0.1, 0.2, 784)
    large = Posterior(diag, DiagonalPlusLowRank(diag, jnp.ones((784, 16))))
    assert 100 < len(repr(large)) < 1000
    assert repr(large).startswith("Posterior(mean=") and "DiagonalPlusLowRank(diag=" in repr(large)
    matrix = Dense(jnp.arange(4.0).reshape(2, 2))
    assert all(f"{value}." in repr(matrix) for value in range(4))
    seen = []
    jax.make_jaxpr(lambda matrix: seen.append(repr(matrix)))(matrix)
    assert seen[0].startswith("Dense(matrix=")


def test_what_is_no_second_order_score_is_named():
    point, hessian = jnp.ones(3), Diagonal(-jnp.ones(3))
    with pytest.raises(TypeError, match=r"score2 is a function: .*score2\(noisy\)"):
        posterior(point, point, lambda noisy: hessian, 0.5)
    with pytest.raises(TypeError, match=r"array of the shape \(3,\): wrap it.*a vector is a score"):
        posterior(point, hessian, point, 0.5)
    masked = np.ma.masked_array(np.ones(3), [True, False, False])
    with pytest.raises(ValueError, match="noisy has masked values"):
        posterior(masked, point, hessian, 0.5)
    with pytest.raises(TypeError, match=r"no array: to_dense\(\) makes"):
        np.array(hessian)
