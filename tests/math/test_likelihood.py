"""The flow's log density and the bound of reverse steps, against laws whose density is known."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import derivatives_of

from hos_jax import data, distributions
from hos_jax.linops import Dense, Diagonal, Local, LocalPlusLowRank
from hos_jax.linops.local import count_taps
from hos_jax.noise import geometric_sigmas
from hos_jax.uncertainty import bound, likelihood

SMALLEST, LARGEST = 0.05, 30.0


def make_mixture(dim, components=3):
    """Components of condition 100, each along axes of its own."""
    keys = jax.random.split(jax.random.key(0), components + 1)
    bases = jax.vmap(lambda key: jax.random.orthogonal(key, dim))(keys[1:])
    covariances = (bases * jnp.geomspace(0.01, 1.0, dim)[None, None]) @ bases.mT
    means = 1.5 * jax.random.normal(keys[0], (components, dim))
    weights = jnp.ones(components) / components
    return distributions.GaussianMixture(weights, means, 0.5 * (covariances + covariances.mT))


def make_law(name, dim):
    if name == "gaussian":
        return distributions.random_correlated_gaussian(jax.random.key(1), dim, 50.0)
    return make_mixture(dim)


def score_of(law):
    return lambda noisy, sigma: law.smooth(sigma).score(noisy)


def points_of(name, dim, count=4):
    return make_law(name, dim).smooth(SMALLEST).sample(jax.random.key(2), count)


def exact(name, points):
    return jax.vmap(make_law(name, points.shape[1]).smooth(SMALLEST).log_density)(points)


@functools.lru_cache
def solver(name, dim, way="structured", max_steps=1000):
    """`solve(points, tolerance, key)`, compiled once for all tests."""
    law = make_law(name, dim)

    def one(point, tolerance, key):
        ways = {
            "structured": lambda: likelihood.structured_trace_fn(derivatives_of(law)),
            "exact": lambda: likelihood.exact_trace_fn(score_of(law), chunk_size=4),
            "one probe": lambda: likelihood.hutchinson_trace_fn(key, score_of(law), dim),
            "probes": lambda: likelihood.hutchinson_trace_fn(key, score_of(law), dim, probes=16),
        }
        end = law.smooth(LARGEST).log_density
        settings = {"rtol": tolerance, "atol": tolerance, "max_steps": max_steps}
        return likelihood.log_likelihood(point, ways[way](), SMALLEST, LARGEST, end, **settings)

    solve = jax.jit(jax.vmap(one, (0, None, 0)))
    return lambda points, tolerance=1e-5, key=0: solve(
        points, tolerance, jax.random.split(jax.random.key(key), len(points))
    )


@pytest.mark.parametrize(
    ("dim", "name"),
    [
        pytest.param(10, "gaussian", marks=pytest.mark.slow),
        pytest.param(100, "mixture", marks=pytest.mark.slow),
        (10, "mixture"),
        pytest.param(100, "gaussian", marks=pytest.mark.slow),
    ],
)
def test_the_log_density_is_exact(name, dim):
    points = points_of(name, dim)
    found = solver(name, dim)(points)
    assert np.all(np.abs(found.log_density - exact(name, points)) < 1e-3 * dim)
    assert found.converged.all() and not found.standard_error.any()
    assert np.all((found.evaluations > 30) & (found.evaluations < 200))


def test_smaller_tolerances_give_smaller_errors():
    points = points_of("mixture", 10)
    results = [solver("mixture", 10)(points, tolerance) for tolerance in (1e-2, 1e-4, 1e-6)]
    known = exact("mixture", points)
    errors = [float(jnp.max(jnp.abs(found.log_density - known))) for found in results]
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-4
    counts = [int(jnp.sum(found.evaluations)) for found in results]
    assert counts[0] < counts[1] < counts[2]


def test_the_usual_law_at_the_end_is_a_gaussian_of_moments():
    variances = jnp.array([1.0, 4.0])
    normal = distributions.Gaussian(jnp.ones(2), jnp.diag(variances))
    point = jnp.array([0.3, -2.0])
    for variance in (variances, 2.0):
        known = distributions.Gaussian(jnp.ones(2), jnp.diag(variance * jnp.ones(2)))
        density_fn = likelihood.gaussian_log_density(normal.mean, variance)
        np.testing.assert_allclose(density_fn(point), known.log_density(point), rtol=1e-12)
    with pytest.raises(ValueError, match="one shape"):
        density_fn(jnp.zeros(3))


def test_a_trace_that_is_wrong_by_a_factor_is_set_right_by_the_score():
    """C too large by what depends on the level alone, as errors of a learned s1 make it."""
    law, dim = make_law("mixture", 10), 10

    def wrong(noisy, sigma):
        score, hessian = derivatives_of(law)(noisy, sigma)
        covariance = hessian.scale(sigma**2).add_identity(1.0).scale(1.0 + 0.3 / (1.0 + sigma))
        return score, covariance.add_identity(-1.0).scale(1.0 / sigma**2)

    sigmas = geometric_sigmas(LARGEST, SMALLEST, 12)[::-1]
    clean = law.sample(jax.random.key(5), 200)
    ratios = jax.jit(lambda key: likelihood.trace_ratios(key, clean, wrong, sigmas, probes=16))(
        jax.random.key(6)
    )
    known = 1.0 / (1.0 + 0.3 / (1.0 + sigmas))
    # 3,200 probes of a trace of some units, each off by about as much.
    np.testing.assert_allclose(ratios, known, rtol=0.06)
    points = points_of("mixture", 10)
    errors = []
    for trace_fn in (
        likelihood.structured_trace_fn(wrong),
        likelihood.calibrated_trace_fn(wrong, sigmas, known),
        likelihood.calibrated_trace_fn(wrong, sigmas, ratios),
    ):
        found = jax.jit(
            jax.vmap(
                lambda point, trace_fn=trace_fn: likelihood.log_likelihood(
                    point, trace_fn, SMALLEST, LARGEST, law.smooth(LARGEST).log_density
                )
            )
        )(points)
        errors.append(float(jnp.max(jnp.abs(found.log_density - exact("mixture", points)))) / dim)
    assert errors[0] > 0.1 and errors[1] < 4e-3 and errors[2] < 0.02


@pytest.mark.parametrize("levels", [[1.0], [2.0, 1.0], [[1.0, 2.0]], [1, 2]])
def test_ratios_belong_to_levels_that_rise(levels):
    sigmas, law = jnp.array(levels), make_law("gaussian", 10)
    for wrong in (
        lambda: likelihood.calibrated_trace_fn(derivatives_of(law), sigmas, sigmas),
        lambda: likelihood.trace_ratios(
            jax.random.key(0), jnp.zeros((3, 10)), derivatives_of(law), sigmas
        ),
    ):
        with pytest.raises(ValueError, match="expected"):
            wrong()
    with pytest.raises(ValueError, match="one shape"):
        likelihood.calibrated_trace_fn(derivatives_of(law), jnp.array([1.0, 2.0]), jnp.ones(3))


def test_traces_by_autodiff_agree_with_the_exact_one():
    points = points_of("mixture", 10, 3)
    direct, autodiff = (solver("mixture", 10, way)(points, 1e-6) for way in ("structured", "exact"))
    np.testing.assert_allclose(autodiff.log_density, direct.log_density, atol=1e-6)
    np.testing.assert_array_equal(autodiff.evaluations, direct.evaluations)


def test_probes_are_right_within_their_standard_errors():
    points = jnp.repeat(points_of("mixture", 10, 3), 40, axis=0)
    found = solver("mixture", 10, "probes")(points, 1e-5)
    off = found.log_density - exact("mixture", points)
    scores = (off / found.standard_error).reshape(3, 40)
    assert np.all(np.abs(jnp.mean(scores, axis=1)) < 4 / math.sqrt(40))
    assert 0.8 < float(jnp.sqrt(jnp.mean(jnp.square(scores)))) < 1.4
    spread = jnp.std(off.reshape(3, 40), axis=1)
    told = jnp.mean(found.standard_error.reshape(3, 40), axis=1)
    np.testing.assert_allclose(spread, told, rtol=0.5)


def test_one_probe_has_no_standard_error():
    found = solver("gaussian", 10, "one probe")(points_of("gaussian", 10))
    assert np.all(np.isinf(found.standard_error)) and np.all(np.isfinite(found.log_density))


def test_evaluations_are_those_that_happen():
    calls = []

    def trace_fn(noisy, sigma):
        jax.debug.callback(lambda value: calls.append(float(value)), sigma)
        variance = 1.0 + sigma**2
        return -noisy / variance, -2.0 / variance

    end = likelihood.gaussian_log_density(jnp.zeros(2), 1.0 + LARGEST**2)
    found = likelihood.log_likelihood(jnp.ones(2), trace_fn, SMALLEST, LARGEST, end, rtol=1e-6)
    jax.effects_barrier()
    assert len(calls) == found.evaluations
    assert min(calls) == pytest.approx(SMALLEST) and max(calls) == pytest.approx(LARGEST)


def test_too_few_steps_and_infinite_values_are_told():
    found = solver("gaussian", 10, max_steps=3)(points_of("gaussian", 10))
    assert not found.converged.any() and np.all(np.isnan(found.log_density))
    assert np.all(found.evaluations == 19)

    def broken(noisy, sigma):
        variance = 1.0 + sigma**2
        return jnp.where(sigma > 1.0, jnp.nan, -noisy / variance), -2.0 / variance

    end = likelihood.gaussian_log_density(jnp.zeros(2), 1.0 + LARGEST**2)
    one = functools.partial(likelihood.log_likelihood, jnp.ones(2))
    found = one(broken, SMALLEST, LARGEST, end)
    assert not found.converged and np.isnan(found.log_density)
    # It does not go on trying shorter steps from there.
    assert found.evaluations < 400
    for start in (jnp.nan, -jnp.inf):
        call = functools.partial(likelihood.log_likelihood, jnp.array([start, 1.0]))
        found = call(lambda y, s: (-y / (1 + s**2), -2.0 / (1 + s**2)), SMALLEST, LARGEST, end)
        assert not found.converged and np.isnan(found.log_density) and found.evaluations < 400


def test_points_of_16_bits_are_taken_as_float32():
    law = distributions.Gaussian(jnp.zeros(2, jnp.float32), jnp.eye(2, dtype=jnp.float32))

    def trace_fn(noisy, sigma):
        return -noisy / (1 + sigma**2), -2.0 / (1 + sigma**2)

    end = likelihood.gaussian_log_density(jnp.zeros(2, jnp.float32), 1.0 + 5.0**2)
    point = jnp.array([0.5, -1.0], jnp.float16)
    found = likelihood.log_likelihood(point, trace_fn, 0.5, 5.0, end)
    assert found.log_density.dtype == jnp.float32
    exact = law.smooth(0.5).log_density(point.astype(jnp.float32))
    np.testing.assert_allclose(found.log_density, exact, atol=2e-3)


def test_wrong_arguments_of_the_flow_are_refused():
    for variance, message in ((jnp.ones(3), "one shape"), (-1.0, "positive variance")):
        with pytest.raises(ValueError, match=message):
            likelihood.gaussian_log_density(jnp.zeros(2), variance)

    def trace_fn(noisy, sigma):
        return -noisy, -2.0 + 0.0 * sigma

    end, point = likelihood.gaussian_log_density(jnp.zeros(2), 1.0), jnp.zeros(2)
    call = likelihood.log_likelihood
    with pytest.raises(ValueError, match="use vmap"):
        call(jnp.zeros((2, 2)), trace_fn, SMALLEST, LARGEST, end)
    with pytest.raises(ValueError, match="floating"):
        call(jnp.zeros(2, int), trace_fn, SMALLEST, LARGEST, end)
    with pytest.raises(ValueError, match="smallest < largest"):
        call(point, trace_fn, LARGEST, SMALLEST, end)
    levels = jnp.asarray(SMALLEST), jnp.asarray(LARGEST)
    assert jax.jit(lambda y: call(y, trace_fn, *levels, end))(point).converged
    with pytest.raises(ValueError, match="positive and finite scalar rtol"):
        call(point, trace_fn, SMALLEST, LARGEST, end, rtol=0.0)
    probed = likelihood.hutchinson_trace_fn(jax.random.key(0), lambda y, s: -y, 3)
    for other in (point, jnp.zeros((3, 1))):
        with pytest.raises(ValueError, match=r"one shape \(D,\), got noisy .*, probe \(3,\)"):
            probed(other, 1.0)
    with pytest.raises(ValueError, match="max_steps"):
        call(point, trace_fn, SMALLEST, LARGEST, end, max_steps=0)
    with pytest.raises(ValueError, match="one for each probe"):
        call(point, lambda y, s: (y, y[:, None]), SMALLEST, LARGEST, end)
    with pytest.raises(ValueError, match="score"):
        call(point, lambda y, s: (y[1:], y[0]), SMALLEST, LARGEST, end)
    score_fn = score_of(make_law("gaussian", 2))
    for trace_fn in (
        likelihood.structured_trace_fn(lambda y, s: (-y, Diagonal(-jnp.ones(1)))),
        likelihood.calibrated_trace_fn(
            lambda y, s: (-y, Diagonal(-jnp.ones(1))), jnp.array([0.1, 1.0]), jnp.ones(2)
        ),
    ):
        with pytest.raises(ValueError, match=r"s2_rows \(1,\)"):
            trace_fn(jnp.ones(2), jnp.asarray(0.5))
    with pytest.raises(TypeError, match="s2 is None"):
        likelihood.structured_trace_fn(lambda y, s: (-y, None))(jnp.ones(2), jnp.asarray(0.5))
    with pytest.raises(ValueError, match="probes"):
        likelihood.hutchinson_trace_fn(jax.random.key(0), score_fn, 2, probes=0)
    with pytest.raises(ValueError, match="chunk_size"):
        likelihood.exact_trace_fn(score_fn, chunk_size=0)


def test_bits_of_bytes_bound_their_probability():
    """For a normal law, whose probability of each byte is an integral of one dimension."""
    value_range = (-1.0, 1.0)
    width = data.bin_width(value_range)
    images = np.full((20_000, 1), 150, np.uint8)
    points = data.dequantize(jax.random.key(0), images, value_range)
    centre = float(data.to_float(images[:1], value_range)[0, 0])
    assert np.all(np.abs(points - centre) < 0.5001 * width)
    np.testing.assert_allclose(jnp.mean(points), centre, atol=0.02 * width)
    np.testing.assert_allclose(jnp.var(points), width**2 / 12, rtol=0.05)

    density_fn = likelihood.gaussian_log_density(jnp.array([0.2]), 0.01**2)
    logs = jax.vmap(density_fn)(points.astype(jnp.float64))
    bits = float(jnp.mean(likelihood.bits_per_dim(logs, 1, width)))
    places = centre + width * (np.arange(1000) + 0.5) / 1000 - width / 2
    probability = width * float(jnp.mean(jnp.exp(jax.vmap(density_fn)(jnp.array(places)[:, None]))))
    assert -math.log2(probability) < bits < -math.log2(probability) + 0.3


LAW = make_mixture(8, 4)
TOP, BOTTOM, POINTS = 10.0, 0.05, 300


@functools.lru_cache
def bounds_of(steps):
    """Gaps of the bounds to the exact negative log-likelihood, by covariance, (points,)."""
    sigmas = geometric_sigmas(TOP, BOTTOM, steps + 1)
    end = LAW.smooth(TOP).log_density
    points = LAW.sample(jax.random.key(1), POINTS)
    keys = jax.random.split(jax.random.key(steps), POINTS)

    def gaps(key, point):
        found = bound.ancestral_bound(key, point, derivatives_of(LAW), sigmas, end)
        exact = -LAW.log_density(point)
        return {kind: one.total - exact for kind, one in found.items()}

    return jax.device_get(jax.jit(jax.vmap(gaps))(keys, points))


def standard_error(values):
    return values.std() / math.sqrt(len(values))


@pytest.mark.parametrize("steps", [5, pytest.param(10, marks=pytest.mark.slow), 20])
def test_the_bound_is_above_and_ordered_by_what_the_step_knows(steps):
    gaps = bounds_of(steps)
    for kind in ("small", "large", "scalar", "diagonal", "full"):
        assert gaps[kind].mean() > -3 * standard_error(gaps[kind])
    for better, worse in (("full", "diagonal"), ("diagonal", "scalar"), ("scalar", "small")):
        difference = gaps[worse] - gaps[better]
        assert difference.mean() > 3 * standard_error(difference), (better, worse)


def test_the_bound_falls_with_the_number_of_steps():
    found = [bounds_of(steps) for steps in (5, 10, 20)]
    for kind in ("small", "large", "scalar", "diagonal"):
        means = [gaps[kind].mean() for gaps in found]
        assert means[0] > means[2], kind
        # These fall by more than the noise of so few points at every doubling.
        assert means[0] > means[1] > means[2] or kind in ("scalar", "diagonal"), kind
    # Of many steps with the whole covariance hardly anything is left.
    assert found[2]["full"].mean() < 0.1 + 3 * standard_error(found[2]["full"])


STRUCTURES = ["diagonal", "dense", "local", "local_low_rank"]


def make_covariance(structure, side=4):
    dim, keys = side * side, jax.random.split(jax.random.key(3), 4)
    scales = jax.random.uniform(keys[0], (dim,), minval=0.4, maxval=1.0)
    if structure == "diagonal":
        return Diagonal(scales)
    if structure == "dense":
        root = jax.random.normal(keys[1], (dim, dim)) / math.sqrt(dim)
        return Dense(root @ root.T).add_identity(0.1)
    shape = (side, side, 1)
    taps = 0.3 * jax.random.normal(keys[2], (dim, count_taps(shape, 1)))
    local = Local(scales, taps, shape, 1)
    factor = 0.4 * jax.random.normal(keys[3], (dim, 2))
    return local if structure == "local" else LocalPlusLowRank(local, factor)


# A local one is part of the one with columns.
@pytest.mark.parametrize(
    "structure",
    [
        pytest.param(structure, marks=pytest.mark.slow if structure == "local" else ())
        for structure in STRUCTURES
    ],
)
def test_a_step_costs_the_divergence_of_its_gaussians(structure):
    """The mean over draws and probes, against the closed form with dense matrices."""
    covariance, sigma, following = make_covariance(structure), 0.7, 0.4
    dim, count = covariance.dim, 4000
    clean = jax.random.normal(jax.random.key(0), (dim,))
    # E[x | y] = y - sigma e for a constant e: one divergence, whatever y is.
    error = 0.5 * jax.random.normal(jax.random.key(1), (dim,))

    def derivatives_fn(noisy, level):
        score = (clean - level * error - noisy) / level**2
        return score, covariance.add_identity(-1.0).scale(level**-2)

    sigmas, end = jnp.array([sigma, following]), likelihood.gaussian_log_density(clean, 1.0)

    def one(key):
        found = bound.ancestral_bound(key, clean, derivatives_fn, sigmas, end)
        return {kind: part.steps[0] for kind, part in found.items()}, found["full"]

    costs, full = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(2), count))
    share = (following / sigma) ** 2
    dense = np.asarray(covariance.to_dense())
    matrices = {
        "small": 0 * dense,
        "large": np.eye(dim),
        "scalar": np.eye(dim) * np.trace(dense) / dim,
        "diagonal": np.diag(np.diag(dense)),
        "full": dense,
    }
    for kind, matrix in matrices.items():
        spread = share * np.eye(dim) + (1 - share) * matrix
        inverse = np.linalg.inv(spread)
        trace = share * np.trace(inverse) - dim + (1 - share) * error @ inverse @ error
        exact = 0.5 * (np.linalg.slogdet(spread)[1] - dim * math.log(share) + trace)
        found = np.asarray(costs[kind])
        assert abs(found.mean() - exact) < 4 * standard_error(found), kind
    # The last step is the same at every draw.
    inverse = np.linalg.inv(dense)
    exact = 0.5 * (error @ inverse @ error + np.linalg.slogdet(2 * np.pi * following**2 * dense)[1])
    np.testing.assert_allclose(full.reconstruction, exact, rtol=1e-9)
    drawn = bound.encode(jax.random.key(3), clean, derivatives_fn, following)
    noise = (drawn.noisy - clean) / following
    known = exact - 0.5 * (dim * math.log(2 * math.pi * following**2) + noise @ noise)
    np.testing.assert_allclose(drawn.cost, known, rtol=1e-9)


def test_wrong_arguments_of_the_bound_are_refused():
    end, key, point = LAW.smooth(TOP).log_density, jax.random.key(0), jnp.zeros(8)
    sigmas = jnp.array([10.0, 1.0])
    call = functools.partial(bound.ancestral_bound, key)
    with pytest.raises(ValueError, match="use vmap"):
        call(jnp.zeros((2, 8)), derivatives_of(LAW), sigmas, end)
    with pytest.raises(ValueError, match="two noise levels or more"):
        call(point, derivatives_of(LAW), sigmas[:1], end)
    with pytest.raises(ValueError, match="floating"):
        call(point, derivatives_of(LAW), jnp.array([3, 1]), end)
    with pytest.raises(ValueError, match="that fall"):
        call(point, derivatives_of(LAW), sigmas[::-1], end)
    with pytest.raises(ValueError, match="expected covariances of small, large"):
        call(point, derivatives_of(LAW), sigmas, end, covariances=("ful",))
    with pytest.raises(ValueError, match="expected covariances of"):
        call(point, derivatives_of(LAW), sigmas, end, covariances=())
    with pytest.raises(ValueError, match="sigma"):
        bound.encode(key, point, derivatives_of(LAW), 0.0)
