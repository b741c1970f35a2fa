"""Every law against autodiff of its log density, numerical convolution and its own samples."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import logistic, multivariate_normal, norm

from hos_jax import tweedie
from hos_jax.distributions import (
    Empirical,
    Gaussian,
    GaussianMixture,
    LogisticMixture,
    checkerboard,
    random_correlated_gaussian,
    swiss_roll,
    two_moons,
)
from hos_jax.linops import Dense, Diagonal

DIM = 3
LAWS = ["gaussian", "mixture", "isotropic", "logistic", "empirical"]


def parameters(dim):
    """Random parameters of every law, from numpy."""
    rng = np.random.default_rng(dim)
    roots = rng.normal(size=(4, dim, dim)) * 0.7
    return {
        "weights": np.array([0.5, 0.3, 0.2]),
        "means": rng.normal(size=(3, dim)) * 1.5,
        "covariances": roots @ np.swapaxes(roots, 1, 2) + 0.2 * np.eye(dim),
        "stds": np.array([0.4, 0.9, 0.6]),
        "row_weights": rng.dirichlet(2 * np.ones(2), size=dim),
        "locations": rng.normal(size=(dim, 2)) * 2,
        "scales": rng.uniform(0.2, 0.6, (dim, 2)),
        "points": rng.normal(size=(30, dim)) ** 3,
    }


def make(name, dim=DIM, dtype=jnp.float64, rounded=jnp.float64):
    p = parameters(dim)
    p = {key: jnp.asarray(value.astype(rounded), dtype) for key, value in p.items()}
    if name == "gaussian":
        return Gaussian(p["means"][0], p["covariances"][3])
    if name == "mixture":
        return GaussianMixture(p["weights"], p["means"], p["covariances"][:3])
    if name == "isotropic":
        return GaussianMixture(p["weights"], p["means"], stds=p["stds"])
    if name == "logistic":
        return LogisticMixture(p["row_weights"], p["locations"], p["scales"])
    return Empirical(p["points"], chunk=7)


def mean_and_covariance(name, dim=DIM):
    """Closed forms, in numpy."""
    p = parameters(dim)
    if name == "gaussian":
        return p["means"][0], p["covariances"][3]
    if name == "empirical":
        return p["points"].mean(axis=0), np.cov(p["points"].T, bias=True).reshape(dim, dim)
    if name == "logistic":
        w, m, variances = p["row_weights"], p["locations"], np.pi**2 * p["scales"] ** 2 / 3
        mean = np.sum(w * m, axis=1)
        return mean, np.diag(np.sum(w * (variances + m**2), axis=1) - mean**2)
    within = p["covariances"][:3]
    if name == "isotropic":
        within = p["stds"][:, None, None] ** 2 * np.eye(dim)
    mean = p["weights"] @ p["means"]
    offsets = p["means"] - mean
    between = np.einsum("k,ki,kj->ij", p["weights"], offsets, offsets)
    return mean, np.tensordot(p["weights"], within, axes=1) + between


def density_1d(name):
    """The one-dimensional density before smoothing; logistics have a test file of their own."""
    p = parameters(1)
    if name == "gaussian":
        return lambda x: norm.pdf(x, p["means"][0, 0], np.sqrt(p["covariances"][3, 0, 0]))
    spread = np.sqrt(p["covariances"][:3, 0, 0]) if name == "mixture" else p["stds"]
    parts = list(zip(p["weights"], p["means"][:, 0], spread, strict=True))
    return lambda x: sum(w * norm.pdf(x, m, s) for w, m, s in parts)


def within(samples, expected, k=4.5):
    """Whether the mean over axis 0 is within k standard errors of what is expected."""
    error = samples.std(axis=0) / np.sqrt(samples.shape[0])
    return np.all(np.abs(samples.mean(axis=0) - expected) <= k * error)


@jax.jit
def evaluate(law, points):
    """Log densities, scores and dense Hessians at points (N, D); compiled once per kind of law."""

    def one(y):
        return law.log_density(y), law.score(y), law.hessian(y).to_dense()

    return jax.vmap(one)(points)


@functools.partial(jax.jit, static_argnames="count")
def sample(law, key, count):
    return law.sample(key, count)


@functools.cache
def samples_of(name):
    return sample(make(name), jax.random.key(3), 100_000)


def far_points():
    """40 points out to 10 standard deviations, exact in float32, (40, DIM)."""
    directions = np.random.default_rng(6).normal(size=(40, DIM))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    return (directions * np.linspace(0.0, 25.0, 40)[:, None]).astype(np.float32)


WITH_DENSITY = [(name, sigma) for name in LAWS for sigma in (None, 0.5)][:-2]
WITH_DENSITY.append(("empirical", 0.5))


@jax.jit
def tensors_and_autodiff(law, point):
    """[(s_n, nested forward autodiff of the log density) for n = 1 to 4]."""
    derivative, pairs = law.log_density, []
    for order in range(1, 5):
        derivative = jax.jacfwd(derivative)
        pairs.append((law.score_tensor(point, order), derivative(point)))
    return pairs


@pytest.mark.parametrize(("name", "sigma"), WITH_DENSITY)
def test_score_tensors_equal_nested_autodiff(name, sigma):
    # Independent coordinates need one only; one chunk compiles faster, others are tested below.
    dim = 1 if name == "logistic" else 2
    law = Empirical(parameters(2)["points"]) if name == "empirical" else make(name, dim)
    law = law if sigma is None else law.smooth(sigma)
    centre, _ = mean_and_covariance(name, dim)
    for offset in (0.5, -4.0):
        point = jnp.asarray(centre + offset * np.array([1.0, -0.6])[:dim])
        for order, (got, expected) in enumerate(tensors_and_autodiff(law, point), start=1):
            assert got.shape == (dim,) * order
            tolerance = 1e-9 * (1 + np.max(np.abs(expected)))
            np.testing.assert_allclose(got, expected, rtol=1e-9, atol=tolerance)
            assert name == "gaussian" or offset < 0 or np.max(np.abs(expected)) > 1e-3


def test_structures_and_their_tensors():
    point = jnp.asarray([0.3, -0.8, 0.5])
    for name in ("gaussian", "mixture", "isotropic"):
        assert isinstance(make(name).hessian(point), Dense)
    law = make("logistic")
    for factorized in (law, law.smooth(0.5)):
        assert isinstance(jax.eval_shape(factorized.hessian, point), Diagonal)
    expected = np.zeros((DIM,) * 3)
    diagonal, tensor = jax.jit(lambda y: (law.score_diagonal(y, 3), law.score_tensor(y, 3)))(point)
    expected[(np.arange(DIM),) * 3] = diagonal
    np.testing.assert_array_equal(tensor, expected)


@pytest.mark.parametrize("name", [name for name in LAWS if name != "empirical"])
def test_log_density_equals_scipy(name):
    p, law = parameters(DIM), make(name)
    assert law.dim == DIM
    points = np.random.default_rng(0).normal(size=(40, DIM)) * 3
    got = evaluate(law, jnp.asarray(points))[0]
    for index, point in enumerate(points):
        if name == "gaussian":
            expected = multivariate_normal.pdf(point, p["means"][0], p["covariances"][3])
        elif name == "logistic":
            pdf = logistic.pdf(point[:, None], p["locations"], p["scales"])
            expected = np.prod(np.sum(p["row_weights"] * pdf, axis=1))
        else:
            covariances = p["covariances"][:3]
            if name == "isotropic":
                covariances = p["stds"][:, None, None] ** 2 * np.eye(DIM)
            terms = zip(p["weights"], p["means"], covariances, strict=True)
            expected = sum(w * multivariate_normal.pdf(point, m, c) for w, m, c in terms)
        np.testing.assert_allclose(got[index], np.log(expected), rtol=1e-9)


@pytest.mark.parametrize("sigma", [0.1, 0.8])
@pytest.mark.parametrize("name", [name for name in LAWS if name != "logistic"])
def test_smoothing_equals_numerical_convolution(name, sigma):
    law, points = make(name, dim=1).smooth(sigma), [-1.3, 0.2, 2.4]
    got = jax.jit(jax.vmap(law.log_density))(jnp.asarray(points)[:, None])
    for index, y in enumerate(points):
        if name == "empirical":
            expected = np.mean(norm.pdf(y - parameters(1)["points"][:, 0], scale=sigma))
        else:
            density = density_1d(name)
            expected = quad(
                lambda z, y=y, density=density: density(y - sigma * z) * norm.pdf(z),
                *(-10, 10),
                epsabs=1e-14,
                epsrel=1e-11,
                limit=300,
            )[0]
        np.testing.assert_allclose(got[index], np.log(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_smoothing_twice_adds_the_variances(name):
    points = jnp.asarray(far_points(), jnp.float64)
    twice = evaluate(make(name).smooth(0.3).smooth(0.4), points)
    once = evaluate(make(name).smooth(0.5), points)
    for got, expected in zip(twice, once, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_smoothed_density_is_the_mean_kernel_over_samples(name):
    sigma, clean = 0.8, np.asarray(samples_of(name))
    mean, _ = mean_and_covariance(name)
    points = mean + 0.1 * far_points()
    got = np.exp(evaluate(make(name).smooth(sigma), jnp.asarray(points))[0])
    for point, density in zip(points[:20:5], got[:20:5], strict=True):
        kernels = np.prod(norm.pdf(point - clean, scale=sigma), axis=1)
        assert within(kernels, density)


@pytest.mark.parametrize("sigma", [None, 0.6])
@pytest.mark.parametrize("name", LAWS)
def test_samples_have_the_closed_mean_and_covariance(name, sigma):
    mean, covariance = mean_and_covariance(name)
    if sigma is None:
        samples = np.asarray(samples_of(name))
    else:
        samples = np.asarray(sample(make(name).smooth(sigma), jax.random.key(3), 100_000))
        covariance = covariance + sigma**2 * np.eye(DIM)
    assert samples.shape == (100_000, DIM)
    assert within(samples, mean)
    offsets = samples - mean
    assert within(offsets[:, :, None] * offsets[:, None, :], covariance)


@pytest.mark.parametrize("name", LAWS)
def test_tweedie_gives_the_regression_of_clean_on_noisy(name):
    sigma, clean = 0.6, samples_of(name)[:10_000]
    noisy = clean + sigma * jax.random.normal(jax.random.key(5), clean.shape)
    _, scores, hessians = evaluate(make(name).smooth(sigma), noisy)
    means = jax.vmap(tweedie.posterior_mean, (0, 0, None))(noisy, scores, sigma)
    covariances = tweedie.posterior_covariance(Dense(hessians[0]), sigma).to_dense()[None]
    covariances = covariances + sigma**4 * (hessians - hessians[:1])
    first = np.asarray(clean - means)
    second = first[:, :, None] * first[:, None, :] - np.asarray(covariances)
    # The last feature is skewed: an error even in y would vanish against an odd one.
    y = np.asarray(noisy)
    for feature in (np.ones_like(y), y, np.exp(-np.square(y - 0.5))):
        assert within(first * feature, 0.0)
        assert within(second * feature[:, :, None], 0.0)


@pytest.mark.parametrize("sigma", [0.01, 0.5])
@pytest.mark.parametrize("name", LAWS)
def test_float32_is_finite_and_close_to_float64_far_away(name, sigma):
    values = []
    for dtype in (jnp.float32, jnp.float64):
        # Parameters rounded to float32 in both: their rounding is not the formula's error.
        law = make(name, dtype=dtype, rounded=np.float32).smooth(np.float32(sigma))
        values.append(evaluate(law, jnp.asarray(far_points(), dtype)))
    smallest = np.hypot(sigma, {"empirical": 0.0, "logistic": 0.3}.get(name, 0.4))
    for order, (low, high) in enumerate(zip(*values, strict=True)):
        assert low.dtype == jnp.float32 and np.all(np.isfinite(low))
        low, high = (np.asarray(v, np.float64).reshape(40, -1) for v in (low, high))
        scale = np.max(np.abs(high), axis=1) + smallest**-order
        assert np.max(np.max(np.abs(low - high), axis=1) / scale) < 3e-4, order


@pytest.mark.parametrize("count", [-1, 2.5])
@pytest.mark.parametrize("name", LAWS)
def test_a_count_of_samples_that_is_none_is_refused(name, count):
    for sampled in (make(name), make(name).smooth(0.5)):
        with pytest.raises(ValueError, match="whole number count >= 0"):
            sampled.sample(jax.random.key(0), count)


@pytest.mark.parametrize("name", LAWS)
def test_laws_are_pytrees(name):
    points, sigmas = jnp.asarray(far_points(), jnp.float64), jnp.asarray([0.5, 2.0])
    expected = [evaluate(make(name).smooth(sigma), points)[1] for sigma in sigmas]
    # Stacked leaves have shapes that no constructor accepts, and a traced sigma has no value:
    # neither may be checked.
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), make(name))

    def scores(law, sigma):
        return jax.vmap(law.smooth(sigma).score)(points)

    got = jax.jit(jax.vmap(scores))(stacked, sigmas)
    np.testing.assert_allclose(got, jnp.stack(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["gaussian", "mixture"])
def test_what_is_made_of_changed_leaves_is_one_law(name):
    """Of means and factors times 2 it is the law of 2 x, smoothed or not."""
    start, point = make(name), jnp.linspace(0.3, -0.4, DIM)

    def doubled(path, leaf):
        return leaf if path[-1].name == "weights" else 2.0 * leaf

    changed = jax.tree_util.tree_map_with_path(doubled, start)
    for law in (changed, changed.smooth(1e-6)):
        expected = start.log_density(point / 2.0) - DIM * np.log(2.0)
        np.testing.assert_allclose(law.log_density(point), expected, rtol=1e-9)
        np.testing.assert_allclose(law.score(point), start.score(point / 2.0) / 2.0, rtol=1e-9)
    slopes = [
        jax.grad(lambda law, change=change: change(law).log_density(point))(start)
        for change in (lambda law: law, lambda law: law.smooth(1e-6))
    ]
    chex.assert_trees_all_close(*slopes, rtol=1e-6, atol=1e-9)
    assert all(np.any(np.abs(leaf) > 1e-3) for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("chunk", [7, 30])
def test_the_empirical_law_does_not_depend_on_its_chunks(chunk):
    p = parameters(DIM)
    sigma, points = 0.4, p["points"]
    law = Empirical(points, chunk).smooth(sigma)
    oracle = GaussianMixture(np.full(30, 1 / 30), points, stds=np.full(30, sigma))
    points, vector = jnp.asarray(far_points(), jnp.float64), jnp.asarray([0.5, -1.0, 2.0])
    expected = evaluate(oracle, points)
    for got, value in zip(evaluate(law, points), expected, strict=True):
        np.testing.assert_allclose(got, value, rtol=1e-9, atol=1e-9)
    hessian = np.asarray(expected[2])[3]
    product = law.hessian_matvec(points[3], vector)
    np.testing.assert_allclose(product, hessian @ vector, rtol=1e-9)
    covariance = sigma**4 * hessian + sigma**2 * np.eye(DIM)
    product = law.posterior_covariance_matvec(points[3], vector)
    np.testing.assert_allclose(product, covariance @ vector, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("unit", [1e-10, 1e10])
def test_the_empirical_law_in_any_unit_is_in_the_range_of_float32(unit):
    point, points = np.array([0.3, -0.1]), parameters(2)["points"]
    exact = Empirical(points).smooth(0.5).hessian(jnp.asarray(point)).matrix
    low, scaled = (jnp.asarray(unit * array, jnp.float32) for array in (points, point))
    law = Empirical(low).smooth(jnp.float32(0.5 * unit))
    found = np.asarray(law.hessian(scaled).matrix, np.float64) * unit**2
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-4)
    product = np.asarray(law.hessian_matvec(scaled, jnp.ones(2, jnp.float32)), np.float64)
    np.testing.assert_allclose(product * unit**2, np.sum(exact, axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["log_density", "score", "hessian_matvec"])
def test_the_empirical_law_of_mnist_needs_no_second_copy_of_the_data(method):
    count, dim = 60_000, 784
    shape = jax.ShapeDtypeStruct((count, dim), jnp.float32)
    vector = jax.ShapeDtypeStruct((dim,), jnp.float32)

    def evaluate(points, y):
        law = Empirical(points).smooth(0.5)
        return law.hessian_matvec(y, y) if method == "hessian_matvec" else getattr(law, method)(y)

    memory = jax.jit(evaluate).lower(shape, vector).compile().memory_analysis()
    assert memory.temp_size_in_bytes < count * dim * 4 / 8


def test_random_correlated_gaussian_has_the_condition_asked_for():
    law = random_correlated_gaussian(jax.random.key(7), 20, 50.0)
    eigenvalues = np.linalg.eigvalsh(np.asarray(law.covariance))
    np.testing.assert_allclose(eigenvalues[-1] / eigenvalues[0], 50.0, rtol=1e-9)
    np.testing.assert_allclose(np.trace(law.covariance), 20.0, rtol=1e-9)
    off_diagonal = law.covariance - jnp.diag(jnp.diagonal(law.covariance))
    assert jnp.linalg.norm(off_diagonal) > 1.0
    other = random_correlated_gaussian(jax.random.key(8), 20, 50.0)
    assert jnp.max(jnp.abs(other.covariance - law.covariance)) > 0.1
    for dim, condition in [(0, 2.0), (3, 0.5), (3, float("nan"))]:
        with pytest.raises(ValueError, match="condition >= 1"):
            random_correlated_gaussian(jax.random.key(0), dim, condition)


@pytest.mark.parametrize("picture", [checkerboard, two_moons, swiss_roll])
def test_pictures_are_where_they_should_be(picture):
    law = picture()
    assert law.dim == 2 and law.stds is not None
    samples = np.asarray(sample(law, jax.random.key(9), 4000))
    if picture is checkerboard:
        inside = np.all(np.abs(samples) < 1, axis=1)
        black = np.sum(np.floor((samples + 1) * 2), axis=1) % 2 == 0
        assert np.mean(inside & black) > 0.9
    elif picture is two_moons:
        # One moon is the other turned by half a circle.
        point = jnp.asarray([0.4, -0.7])
        np.testing.assert_allclose(law.log_density(point), law.log_density(-point), rtol=1e-12)
        upper = np.abs(np.hypot(*(samples + np.array([0.5, 0.25])).T) - 1) < 0.3
        assert 0.45 < np.mean(upper) < 0.75
    else:
        radius = np.hypot(*samples.T)
        assert radius.min() > 0.1 and radius.max() < 1.15
        # Uniform along the curve: half of its length lies outside this radius.
        assert abs(np.mean(radius > np.sqrt((0.25**2 + 1) / 2)) - 0.5) < 0.05


def test_weights_may_be_rounded_to_16_bits():
    thirds = jnp.full(3, 1 / 3, jnp.float16)
    found = GaussianMixture(thirds, jnp.zeros((3, 1), jnp.float16), stds=jnp.ones_like(thirds))
    np.testing.assert_allclose(found.log_density(jnp.zeros(1, jnp.float16)), -0.919, atol=3e-3)
    with pytest.raises(ValueError, match="summing to 1"):
        LogisticMixture(*(jnp.full((1, 3), value, jnp.float16) for value in (0.33, 0.0, 1.0)))


def test_bad_parameters_raise():
    eye, weights, means = np.eye(2), np.array([0.5, 0.5]), np.zeros((2, 2))
    rows = np.full((2, 2), 0.5)
    skew = np.array([[1.0, 0.5], [0.0, 1.0]])
    cases = {
        "symmetric": [lambda: Gaussian(np.zeros(2), skew)],
        "positive definite": [
            lambda: Gaussian(np.zeros(2), np.diag([1.0, -1.0])),
            lambda: GaussianMixture(weights, means, np.stack([eye, -eye])),
        ],
        "shape": [
            lambda: Gaussian(np.zeros(3), eye),
            lambda: Gaussian(np.zeros((1, 2)), eye),
            lambda: GaussianMixture(weights, np.zeros(2), stds=weights),
            lambda: GaussianMixture(weights[:1], means, stds=weights),
            lambda: GaussianMixture(weights, means, eye),
            lambda: GaussianMixture(weights, means, stds=np.ones(3)),
            lambda: LogisticMixture(weights, weights, weights),
            lambda: LogisticMixture(rows, means[:1], rows),
            lambda: LogisticMixture(rows, means, rows[:, :1]),
            lambda: Empirical(np.zeros(3)),
        ],
        "exactly one": [
            lambda: GaussianMixture(weights, means),
            lambda: GaussianMixture(weights, means, np.stack([eye, eye]), stds=weights),
        ],
        "non-negative": [lambda: GaussianMixture(np.array([1.5, -0.5]), means, stds=weights)],
        "summing to 1": [
            lambda: GaussianMixture(weights + 0.01, means, stds=weights),
            lambda: LogisticMixture(rows * 1.01, means, rows),
        ],
        "positive": [
            lambda: GaussianMixture(weights, means, stds=np.array([1.0, 0.0])),
            lambda: LogisticMixture(rows, means, -rows),
        ],
        "finite": [
            lambda: Empirical(np.array([[np.nan, 1.0]])),
            lambda: Gaussian(np.array([np.inf, 1.0]), eye),
        ],
        "chunk": [lambda: Empirical(means, chunk=0)],
        "no density": [lambda: Empirical(means).score(jnp.zeros(2))],
        "at least": [lambda: checkerboard(1), lambda: two_moons(0), lambda: swiss_roll(0)],
        "must be positive": [lambda: two_moons(std=0.0), lambda: swiss_roll(turns=-1.0)],
    }
    for message, builders in cases.items():
        for build in builders:
            with pytest.raises(ValueError, match=message):
                build()


@pytest.mark.parametrize("name", LAWS)
def test_bad_arguments_raise(name):
    law = make(name)
    for sigma in (0.0, -1.0, float("nan"), float("inf"), np.ones(2)):
        with pytest.raises(ValueError, match="sigma"):
            law.smooth(sigma)
    smoothed = law.smooth(0.5)
    methods = [smoothed.log_density, smoothed.score, smoothed.hessian]
    methods += [lambda y, n=n: smoothed.score_tensor(y, n) for n in (1, 2, 3)]
    for method, shape in itertools.product(methods, [(DIM + 1,), (2, DIM), ()]):
        with pytest.raises(ValueError, match="use vmap"):
            method(jnp.zeros(shape))
    for order in (0, -1, 1.5):
        with pytest.raises(ValueError, match="order"):
            smoothed.score_tensor(jnp.zeros(DIM), order)
    whole = smoothed.score_tensor(jnp.zeros(DIM), np.int64(2))
    np.testing.assert_array_equal(whole, smoothed.score_tensor(jnp.zeros(DIM), 2))
