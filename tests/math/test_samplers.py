"""Langevin and Ozaki: laws, orders and limits against closed forms; the loop that runs chains."""

import functools

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blackjax.util import run_inference_algorithm

from hos_jax import distributions
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank
from hos_jax.noise import geometric_sigmas
from hos_jax.samplers import anneal_chains, langevin, ozaki, run_chains

DIM = 5


def gaussian(dim=DIM, seed=0):
    """A correlated Gaussian: its mean, covariance and precision."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(dim, dim))
    covariance = root @ root.T / dim + 0.2 * np.eye(dim)
    return rng.normal(size=dim), covariance, np.linalg.inv(covariance)


def derivatives_of(mean, precision):
    hessian = Dense(jnp.asarray(-precision))
    return lambda x: (hessian.matvec(x - jnp.asarray(mean)), hessian)


def one_step_samples(step_size, count):
    mean, covariance, precision = gaussian()
    sampler = ozaki.as_top_level_api(derivatives_of(mean, precision), step_size)
    start = mean + 2.0
    state = sampler.init(jnp.asarray(start))
    keys = jax.random.split(jax.random.key(1), count)
    moved, info = jax.jit(jax.vmap(sampler.step, (0, None)))(keys, state)
    assert np.all(info.is_finite) and not np.any(info.lanczos_error)
    return np.asarray(moved.position), start, mean, covariance, precision


@pytest.mark.parametrize("step_size", [0.01, 0.1, 1.0, 10.0, 100.0])
def test_ozaki_is_exact_in_law_on_a_gaussian(step_size):
    count = 40_000
    samples, start, mean, covariance, precision = one_step_samples(step_size, count)
    values, vectors = np.linalg.eigh(precision)
    decay = (vectors * np.exp(-step_size * values)) @ vectors.T
    expected_mean = mean + decay @ (start - mean)
    expected = covariance - decay @ covariance @ decay.T
    standard_error = np.sqrt(np.diag(expected) / count)
    assert np.all(np.abs(samples.mean(axis=0) - expected_mean) < 4 * standard_error)
    variance = np.diag(expected)
    entry_error = np.sqrt((np.outer(variance, variance) + expected**2) / count)
    assert np.all(np.abs(np.cov(samples.T) - expected) < 4 * entry_error)


@pytest.mark.parametrize("step_size", [0.1, 0.4])
def test_langevin_has_its_known_bias_of_order_step_size(step_size):
    # On N(0, 1), x' = (1 - e) x + sqrt(2 e) w has variance 1 / (1 - e / 2).
    sampler = langevin.as_top_level_api(jnp.negative, step_size)
    start = jax.vmap(sampler.init)(jnp.zeros((4000, 2)))
    chains = run_chains(jax.random.key(2), sampler.step, start, 100)
    assert chains.is_finite.all() and np.all(chains.finite_steps == 100)
    values = np.asarray(chains.states.position).ravel()
    expected = 1 / (1 - step_size / 2)
    assert abs(values.mean()) < 4 * np.sqrt(expected / values.size)
    assert abs(values.var() - expected) < 4 * expected * np.sqrt(2 / values.size)
    assert abs(values.var() - 1) > 0.3 * step_size


def test_ozaki_and_langevin_agree_to_order_three_halves():
    mean, _, precision = gaussian()
    derivatives_fn = derivatives_of(mean, precision)
    start, key = jnp.asarray(mean + 1.0), jax.random.key(3)
    gaps = []
    for step_size in (1e-3, 1e-4, 1e-5):
        first = ozaki.as_top_level_api(derivatives_fn, step_size)
        second = langevin.as_top_level_api(lambda x: derivatives_fn(x)[0], step_size)
        pair = [s.step(jax.random.clone(key), s.init(start))[0].position for s in (first, second)]
        gaps.append(np.linalg.norm(pair[0] - pair[1]))
    orders = np.diff(np.log10(gaps))
    np.testing.assert_allclose(orders, -1.5, atol=0.02)


STRUCTURED = {
    "diagonal": Diagonal(jnp.array([-3.0, 0.0, 1.0, -1e-9, 2.0])),
    "isotropic": IsotropicPlusLowRank.from_multiple(
        -1.5, jnp.asarray(np.random.default_rng(5).normal(size=(DIM, 2)))
    ),
    "low_rank": DiagonalPlusLowRank(
        jnp.array([-3.0, 0.0, 1.0, -0.5, -2.0]),
        jnp.asarray(np.random.default_rng(6).normal(size=(DIM, 2))),
    ),
}


@pytest.mark.parametrize("structure", list(STRUCTURED))
def test_one_step_is_the_same_for_every_structure_and_its_dense_form(structure):
    """Indefinite matrices, zero eigenvalues included; the same key gives the same noise."""
    matrix = STRUCTURED[structure]
    score = jnp.linspace(-1.0, 1.0, DIM)
    state = [ozaki.OzakiState(jnp.zeros(DIM), score, m) for m in (matrix, Dense(matrix.to_dense()))]
    for bound in (None, 0.5, 0.0):
        kernel = ozaki.build_kernel(krylov_vectors=DIM, growth_bound=bound)
        moved = [
            kernel(jax.random.key(4), s, lambda x, s=s: (s.score, s.hessian), 0.7)[0].position
            for s in state
        ]
        np.testing.assert_allclose(moved[0], moved[1], rtol=1e-9, atol=1e-9)


def test_growth_bound_limits_runaway_directions_and_nothing_else():
    hessian = Diagonal(jnp.array([-1.0, 5.0]))
    state = ozaki.OzakiState(jnp.zeros(2), jnp.ones(2), hessian)

    def mean_step(bound):
        kernel = ozaki.build_kernel(growth_bound=bound)
        keys = jax.random.key(0), jax.random.key(0)
        plus = kernel(keys[0], state, lambda x: (state.score, hessian), 2.0)[0].position
        flipped = state._replace(score=-state.score)
        minus = kernel(keys[1], flipped, lambda x: (state.score, hessian), 2.0)[0].position
        return np.asarray(plus - minus) / 2

    np.testing.assert_allclose(mean_step(None), [1 - np.exp(-2), np.expm1(10.0) / 5], rtol=1e-10)
    # The second direction runs for the time (3 / 5) tanh(10 / 3) instead of 2.
    bounded = [1 - np.exp(-2), np.expm1(3.0 * np.tanh(10.0 / 3.0)) / 5]
    np.testing.assert_allclose(mean_step(3.0), bounded, rtol=1e-10)
    np.testing.assert_allclose(mean_step(1e6), mean_step(None), rtol=1e-8)
    # A step of Langevin there: eps s1.
    np.testing.assert_allclose(mean_step(0.0), [1 - np.exp(-2), 2.0], rtol=1e-12)


def test_without_growth_a_step_is_ozakis_where_concave_and_langevins_where_convex():
    step_size = 0.3
    values = np.array([-4.0, -1.0, 0.0, 0.5, 30.0])
    vectors = np.linalg.qr(np.random.default_rng(8).normal(size=(5, 5)))[0]
    score = jnp.linspace(-1.0, 2.0, 5)
    matrix = Dense(jnp.asarray((vectors * values) @ vectors.T))
    state = ozaki.OzakiState(jnp.zeros(5), score, matrix)
    kernel = ozaki.build_kernel(growth_bound=0.0)
    found = kernel(jax.random.key(2), state, lambda x: (score, matrix), step_size)[0]
    drift, spread = np.full(5, step_size), np.full(5, np.sqrt(2 * step_size))
    drift[:2] = np.expm1(step_size * values[:2]) / values[:2]
    spread[:2] = np.sqrt(np.expm1(2 * step_size * values[:2]) / values[:2])
    noise = np.asarray(jax.random.normal(jax.random.key(2), (5,)))
    expected = vectors @ (drift * (vectors.T @ score) + spread * (vectors.T @ noise))
    np.testing.assert_allclose(found.position, expected, rtol=1e-12, atol=1e-12)


def test_chains_between_modes_stay_near_them_at_large_steps():
    law = distributions.GaussianMixture(
        jnp.array([0.5, 0.5]), jnp.array([[-1.5, 0.0], [1.5, 0.3]]), stds=jnp.array([0.3, 0.4])
    )
    for bound, expected in ((ozaki.GROWTH_BOUND, 0), (None, 1)):
        derivatives_fn = ozaki.join(law.score, law.hessian)
        sampler = ozaki.as_top_level_api(derivatives_fn, 0.2, growth_bound=bound)
        states = jax.vmap(sampler.init)(law.sample(jax.random.key(0), 64))
        chains = run_chains(
            jax.random.key(1), sampler.step, states, 300, collect=lambda state: state.position
        )
        far = np.sum(np.abs(chains.trajectory).max(axis=(0, 2)) > 5) + np.sum(~chains.is_finite)
        assert far == 0 if expected == 0 else far > 0


def test_step_in_float32_with_zero_and_huge_eigenvalues():
    diag = jnp.array([0.0, -1e6, 1e-12, 40.0, -1e-30], jnp.float32)
    one = jnp.ones(DIM, jnp.float32)
    for matrix in (Diagonal(diag), Dense(jnp.diag(diag)), DiagonalPlusLowRank(diag, one[:, None])):
        state = ozaki.OzakiState(one, one, matrix)
        kernel = ozaki.build_kernel()
        new, info = kernel(jax.random.key(0), state, lambda x, m=matrix: (one, m), jnp.float32(1))
        assert info.is_finite and new.position.dtype == jnp.float32


def test_lanczos_equals_dense_at_image_size_without_a_square_array():
    """D = 784, rank 50, spectrum of s2 from -4 to about 25."""
    rng = np.random.default_rng(7)
    dim, rank = 784, 50
    diag = -np.linspace(0.5, 4.0, dim)
    directions = np.linalg.qr(rng.normal(size=(dim, rank)))[0]
    matrix = DiagonalPlusLowRank(
        jnp.asarray(diag), jnp.asarray(directions * np.sqrt(np.linspace(1, 28, rank)))
    )
    score = jnp.asarray(rng.normal(size=dim))
    for step_size, bound in ((0.2, 1e-7), (1.0, 1e-4)):
        kernel = ozaki.build_kernel(krylov_vectors=20, growth_bound=None)
        moved = []
        for m in (matrix, Dense(matrix.to_dense())):
            state = ozaki.OzakiState(jnp.zeros(dim), score, m)
            new, info = kernel(jax.random.key(0), state, lambda x, m=m: (score, m), step_size)
            moved.append(new.position)
            if m is matrix:
                error = info.lanczos_error
        found = np.linalg.norm(moved[0] - moved[1]) / np.linalg.norm(moved[1])
        assert found < bound and found < 3 * error < 1.0
    wide = jax.ShapeDtypeStruct((100_000,), jnp.float32)
    factor = jax.ShapeDtypeStruct((100_000, 4), jnp.float32)

    def step(key, position, d, u):
        state = ozaki.OzakiState(position, position, DiagonalPlusLowRank(d, u))
        return kernel(key, state, lambda x: (x, state.hessian), 0.1)[0].position

    compiled = jax.jit(step).lower(jax.random.key(0), wide, wide, factor).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 150 * 4 * 100_000


def test_a_dense_hessian_by_lanczos_moves_as_by_eigenvalues():
    """On a Gaussian of condition 100, where more Krylov vectors are more digits."""
    law = distributions.random_correlated_gaussian(jax.random.key(0), 60, 100.0)
    derivatives_fn = ozaki.join(law.score, law.hessian)
    start = law.mean + 1.0

    def moved(**options):
        sampler = ozaki.as_top_level_api(derivatives_fn, 0.3, **options)
        state, info = jax.jit(sampler.step)(jax.random.key(1), sampler.init(start))
        return state.position - start, info.lanczos_error

    exact, none = moved()
    assert none == 0
    errors, estimates = [], []
    for size in (10, 20, 60):
        found, estimate = moved(dense="lanczos", krylov_vectors=size)
        errors.append(np.linalg.norm(found - exact) / np.linalg.norm(exact))
        estimates.append(estimate)
    assert errors[0] < 0.1 and errors[1] < 0.1 * errors[0] and errors[2] < 1e-9
    assert np.all(np.array(errors[:2]) < 3 * np.array(estimates[:2]))
    with pytest.raises(ValueError, match="dense 'eigh' or 'lanczos'"):
        moved(dense="lu")


def test_chains_keep_the_largest_error_of_lanczos():
    law = distributions.random_correlated_gaussian(jax.random.key(0), 20, 100.0)
    lanczos = functools.partial(
        ozaki.as_top_level_api,
        ozaki.join(law.score, law.hessian),
        dense="lanczos",
        krylov_vectors=6,
    )
    start, key = jax.random.normal(jax.random.key(1), (3, 20)), jax.random.key(2)
    sampler = lanczos(0.3)
    states, errors = jax.vmap(sampler.init)(start), []
    step = jax.jit(jax.vmap(sampler.step))
    for index in range(4):
        step_key = jax.random.fold_in(key, index)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, jnp.arange(3))
        states, info = step(keys, states)
        errors.append(info.lanczos_error)
    chains = run_chains(key, sampler.step, jax.vmap(sampler.init)(start), 3, burn_in=1, chunk=2)
    np.testing.assert_allclose(chains.lanczos_error, np.max(errors, axis=0), rtol=1e-5)
    annealed = anneal_chains(key, lanczos, start, jnp.array([0.3, 0.2]), 2)
    assert annealed.lanczos_error.shape == (3,) and np.all(annealed.lanczos_error > 0)
    assert not np.any(run_chains(key, walk, start, 2).lanczos_error)


def test_lanczos_survives_an_exhausted_krylov_space():
    """A multiple of I, a low rank and a zero score: fewer directions than Krylov vectors."""
    for diag, factor in (
        (jnp.full(30, -2.0), jnp.zeros((30, 1))),
        (jnp.zeros(30), jnp.ones((30, 2))),
    ):
        matrix = DiagonalPlusLowRank(diag, factor)
        kernel = ozaki.build_kernel(krylov_vectors=20)
        for score in (jnp.zeros(30), jnp.linspace(0, 1, 30)):
            moved = []
            for m in (matrix, Dense(matrix.to_dense())):
                state = ozaki.OzakiState(jnp.zeros(30), score, m)
                moved.append(
                    kernel(jax.random.key(0), state, lambda x, m=m, s=score: (s, m), 0.04)[
                        0
                    ].position
                )
            np.testing.assert_allclose(moved[0], moved[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["langevin", "ozaki"])
def test_kernels_run_inside_blackjax_inference_loop(name):
    mean, covariance, precision = gaussian()
    derivatives_fn = derivatives_of(mean, precision)
    if name == "ozaki":
        algorithm = ozaki.as_top_level_api(derivatives_fn, 5.0)
    else:
        algorithm = langevin.as_top_level_api(lambda x: derivatives_fn(x)[0], 0.02)
    assert set(blackjax.base.SamplingAlgorithm._fields) == set(algorithm._fields)
    final, (states, info) = run_inference_algorithm(
        jax.random.key(8), algorithm, 2000, initial_position=jnp.asarray(mean)
    )
    assert states.position.shape == (2000, DIM) and info.is_finite.all()
    np.testing.assert_array_equal(final.position, states.position[-1])
    size = blackjax.diagnostics.effective_sample_size(states.position[None])
    assert np.all(size > (1000 if name == "ozaki" else 10))
    error = np.sqrt(np.diag(covariance) / size)
    assert np.all(np.abs(states.position.mean(axis=0) - mean) < 5 * error)


def test_stability_limit_is_where_langevin_starts_to_diverge():
    eigenvalues = jnp.array([-4.0, -1.0, 2.0])
    limit = float(langevin.stability_limit(eigenvalues))
    assert limit == 0.5
    assert np.isinf(langevin.stability_limit(jnp.array([1.0, 0.0])))
    assert np.isnan(langevin.stability_limit(jnp.array([jnp.nan, -1.0])))
    grown = []
    for step_size in (0.9 * limit, 1.1 * limit):
        sampler = langevin.as_top_level_api(lambda x: -4.0 * x, step_size)
        start = jax.vmap(sampler.init)(jnp.ones((8, 1)))
        position = run_chains(jax.random.key(9), sampler.step, start, 200).states.position
        grown.append(np.abs(position).max())
    assert grown[0] < 20 and grown[1] > 1e6


def position_of(state):
    return state.position


def walk(key, position):
    """A random walk whose state tells every draw apart."""
    new = position + jax.random.normal(key, position.shape)
    return new, langevin.LangevinInfo(jnp.zeros(()), jnp.all(jnp.isfinite(new)))


def test_chunks_thinning_and_burn_in_do_not_change_the_draws():
    start, key = jnp.zeros((4, 2)), jax.random.key(10)
    collect = {"collect": lambda position: position}
    whole = run_chains(key, walk, start, 60, **collect)
    assert whole.trajectory.shape == (60, 4, 2)
    assert len(np.unique(whole.trajectory[0])) == 8
    chunked = run_chains(key, walk, start, 60, chunk=7, **collect)
    np.testing.assert_array_equal(chunked.trajectory, whole.trajectory)
    thinned = run_chains(key, walk, start, 60, thinning=5, chunk=5, **collect)
    np.testing.assert_array_equal(thinned.trajectory, whole.trajectory[4::5])
    late = run_chains(key, walk, start, 40, burn_in=20, chunk=7, **collect)
    np.testing.assert_array_equal(late.trajectory, whole.trajectory[20:])
    bare = run_chains(key, walk, start, 60)
    assert bare.trajectory is None
    np.testing.assert_array_equal(bare.states, whole.trajectory[-1])


def test_a_chain_that_diverges_is_reported_with_its_step():
    sampler = langevin.as_top_level_api(lambda x: x**3, 1e-3)
    start = jax.vmap(sampler.init)(jnp.asarray([[0.0], [1e10]]))
    chains = run_chains(jax.random.key(0), sampler.step, start, 30)
    assert chains.is_finite.tolist() == [True, False]
    assert chains.finite_steps[0] == 30 and chains.finite_steps[1] < 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"thinning": 0}, "thinning >= 1"),
        ({"thinning": 3}, "must divide"),
        ({"burn_in": -1}, "burn_in >= 0, got -1"),
        ({"chunk": 0}, "chunk >= 1"),
    ],
)
def test_bad_numbers_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        run_chains(jax.random.key(0), walk, jnp.zeros((2, 1)), **{"steps": 10, **settings})


def test_bad_sampler_settings_raise():
    for wrong in (0.0, jnp.asarray(-0.1), np.float32("nan"), np.inf):
        with pytest.raises(ValueError, match="step_size > 0"):
            langevin.as_top_level_api(jnp.negative, wrong)
    with pytest.raises(ValueError, match="growth_bound >= 0"):
        ozaki.build_kernel(growth_bound=-0.1)
    state = ozaki.OzakiState(
        jnp.zeros(3), jnp.zeros(3), DiagonalPlusLowRank(jnp.ones(3), jnp.ones((3, 1)))
    )
    with pytest.raises(ValueError, match="krylov_vectors >= 2"):
        ozaki.build_kernel(krylov_vectors=1)(jax.random.key(0), state, None, 0.1)


@pytest.mark.parametrize("name", ["langevin", "ozaki"])
def test_annealing_finds_both_modes_in_their_proportions(name):
    law = distributions.GaussianMixture(
        jnp.array([0.3, 0.7]), jnp.array([[-3.0, 0.0], [3.0, 1.0]]), stds=jnp.array([0.5, 0.3])
    )

    def sampler_at(sigma):
        smooth = law.smooth(sigma)
        if name == "langevin":
            return langevin.as_top_level_api(smooth.score, 0.1 * (sigma**2 + 0.09))
        derivatives_fn = ozaki.join(smooth.score, smooth.hessian)
        return ozaki.as_top_level_api(derivatives_fn, 0.3 * (sigma**2 + 0.09))

    count = 2000
    sigmas = geometric_sigmas(10.0, 0.05, 15)
    start = 10.0 * jax.random.normal(jax.random.key(0), (count, 2))
    chains = anneal_chains(jax.random.key(1), sampler_at, start, sigmas, 20, collect=position_of)
    assert chains.is_finite.all() and chains.trajectory.shape == (15, count, 2)
    np.testing.assert_array_equal(chains.states.position, chains.trajectory[-1])
    right = np.asarray(chains.states.position[:, 0] > 0)
    assert abs(right.mean() - 0.7) < 0.06
    for chosen, mean, std in ((right, [3.0, 1.0], 0.3), (~right, [-3.0, 0.0], 0.5)):
        found = np.asarray(chains.states.position)[chosen]
        assert np.all(np.abs(found.mean(axis=0) - mean) < 0.1)
        np.testing.assert_allclose(found.std(axis=0), std, rtol=0.2)


def test_annealing_reports_diverged_chains_and_bad_arguments():
    def sampler_at(sigma):
        return langevin.as_top_level_api(lambda x: x**3, 1e-3 * sigma)

    start = jnp.array([[0.0], [1e10]])
    chains = anneal_chains(jax.random.key(0), sampler_at, start, jnp.array([1.0, 0.5]), 10)
    assert chains.is_finite.tolist() == [True, False] and chains.trajectory is None
    coarse = anneal_chains(
        jax.random.key(0), sampler_at, start.astype(jnp.float32), jnp.array([1.0, 0.5]), 10
    )
    assert coarse.states.position.dtype == jnp.float32 and coarse.is_finite[0]
    with pytest.raises(ValueError, match="steps >= 1"):
        anneal_chains(jax.random.key(0), sampler_at, start, jnp.ones(2), 0)
    for levels in ([], [0.5, 1.0], [1.0, 0.0], [1.0, -0.5], [np.nan, 0.5], [0.0]):
        with pytest.raises(ValueError, match=r"noise levels|positive and finite scalar sigma"):
            anneal_chains(jax.random.key(0), sampler_at, start, jnp.array(levels), 1)


@pytest.fixture
def counted():
    """`counted(fn)`: the same function, of which every trace is counted in `counted.traces`."""

    def wrap(function):
        def traced(*arguments):
            wrap.traces += 1
            return function(*arguments)

        return traced

    wrap.traces = 0
    return wrap


def test_chains_compile_once_for_the_same_functions_and_shapes(counted):
    def score(precision, x):
        return -precision * x

    traced = counted(score)
    start, key = jnp.ones((3, 2)), jax.random.key(0)

    def run(precision, step_size=0.1):
        score_fn = jax.tree_util.Partial(traced, jnp.asarray(precision))
        sampler = langevin.as_top_level_api(score_fn, step_size)
        states = langevin.LangevinState(start, -precision * start)
        chains = run_chains(
            key, sampler.step, states, 6, burn_in=4, thinning=2, collect=position_of
        )
        return chains.trajectory

    first = run(1.0)
    once = counted.traces
    np.testing.assert_array_equal(run(1.0), first)
    # Numbers that are bound, and step sizes, are arguments of the program; none is remembered.
    others = run(2.0), run(1.0, 0.2)
    assert once > 0 and counted.traces == once
    fresh = langevin.as_top_level_api(lambda x: -2.0 * x, 0.1)
    states = langevin.LangevinState(start, -2.0 * start)
    again = run_chains(key, fresh.step, states, 6, burn_in=4, thinning=2, collect=position_of)
    np.testing.assert_allclose(others[0], again.trajectory, rtol=1e-12)
    assert not np.allclose(others[1], first)


def test_burn_in_and_a_shorter_last_chunk_are_the_same_program(counted):
    sampler = langevin.as_top_level_api(counted(lambda x: -x), 0.1)
    states = jax.vmap(sampler.init)(jnp.ones((3, 2)))

    def run(steps, **settings):
        return run_chains(
            jax.random.key(0), sampler.step, states, steps, collect=position_of, **settings
        )

    whole = run(20, chunk=4).trajectory
    once = counted.traces
    late = run(15, burn_in=5, chunk=4).trajectory
    assert counted.traces == once
    np.testing.assert_array_equal(late, whole[5:])


def test_a_closure_made_anew_is_compiled_anew():
    def end(mean):
        sampler = langevin.as_top_level_api(lambda x: mean - x, 0.1)
        states = jax.vmap(sampler.init)(jnp.zeros((2, 1)))
        return run_chains(jax.random.key(0), sampler.step, states, 5).states.position

    moved = 1.0 - 0.9**5
    np.testing.assert_allclose(end(4.0) - end(0.0), np.full((2, 1), 4.0 * moved), rtol=1e-9)


def test_annealing_compiles_once_for_the_same_functions_and_shapes(counted):
    def sampler_at(scale, sigma):
        return langevin.as_top_level_api(lambda x: -scale * x / (1 + sigma**2), 0.1 * sigma**2)

    traced = counted(sampler_at)

    def run(key, scale, sigmas, steps):
        bound = jax.tree_util.Partial(traced, jnp.asarray(scale))
        return anneal_chains(jax.random.key(key), bound, jnp.ones((3, 2)), sigmas, steps)

    first = run(0, 1.0, jnp.array([2.0, 1.0]), 3)
    once = counted.traces
    assert once > 0 and first.finite_steps.tolist() == [6, 6, 6] and first.trajectory is None
    same, other = run(0, 1.0, jnp.array([2.0, 1.0]), 3), run(0, 2.0, jnp.array([2.0, 1.0]), 3)
    run(1, 1.0, jnp.array([3.0, 2.0, 1.0]), 5)
    assert counted.traces == once
    np.testing.assert_array_equal(same.states.position, first.states.position)
    assert not np.allclose(other.states.position, first.states.position)


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_float32_at_every_scale(sigma):
    """A Gaussian of this size: the chains keep its variance, in units of sigma."""
    scale = jnp.float32(sigma)
    count = 2000
    start = scale * jax.random.normal(jax.random.key(0), (count, 2), jnp.float32)
    hessian = Diagonal(jnp.full(2, -1 / scale**2))
    score = jax.tree_util.Partial(lambda scale, x: -x / scale**2, scale)
    both = jax.tree_util.Partial(lambda scale, h, x: (-x / scale**2, h), scale, hessian)
    for sampler, variance in (
        (langevin.as_top_level_api(score, 0.1 * scale**2), 1 / 0.95),
        (ozaki.as_top_level_api(both, 0.1 * scale**2), 1.0),
    ):
        chains = run_chains(jax.random.key(1), sampler.step, jax.vmap(sampler.init)(start), 40)
        assert chains.is_finite.all() and chains.states.position.dtype == jnp.float32
        found = np.var(np.asarray(chains.states.position, np.float64) / sigma)
        assert abs(found - variance) < 5 * variance * np.sqrt(2 / (2 * count))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("number", [np.float64, np.float32, jnp.float64])
def test_positions_keep_their_type_whatever_that_of_a_setting(dtype, number):
    start = jnp.ones((2, 3), dtype)
    for sampler in (
        langevin.as_top_level_api(jnp.negative, number(0.1)),
        ozaki.as_top_level_api(
            lambda x: (-x, Diagonal(-jnp.ones_like(x))),
            number(0.1),
            growth_bound=None if number is jnp.float64 else number(0.5),
        ),
    ):
        chains = run_chains(jax.random.key(0), sampler.step, jax.vmap(sampler.init)(start), 2)
        assert chains.is_finite.all() and chains.states.position.dtype == dtype


def test_positions_of_few_digits_are_moved_in_the_type_of_their_score():
    def wide(x):
        return -x.astype(jnp.float32)

    for sampler in (
        langevin.as_top_level_api(wide, 0.1),
        ozaki.as_top_level_api(lambda x: (wide(x), Diagonal(-jnp.ones(3, jnp.float32))), 0.1),
    ):
        for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
            states = jax.vmap(sampler.init)(jnp.ones((2, 3), dtype))
            chains = run_chains(jax.random.key(0), sampler.step, states, 2)
            assert chains.is_finite.all() and chains.states.position.dtype == jnp.float32


def test_a_plain_array_as_second_derivative_is_refused():
    sampler = ozaki.as_top_level_api(lambda x: (-x, -jnp.eye(2)), 0.1)
    with pytest.raises(TypeError, match=r"s2 is an array of the shape \(2, 2\): wrap it, linops"):
        jax.vmap(sampler.init)(jnp.ones((3, 2)))


def test_what_is_no_state_of_chains_is_refused():
    vector, whole = jnp.ones(3), jnp.ones(3, int)
    for position in (whole, jnp.ones((2, 3)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"floating-point|one shape \(D,\)"):
            langevin.init(position, jnp.negative)
        with pytest.raises(ValueError, match=r"floating-point|one shape \(D,\)"):
            ozaki.init(position, lambda x: (x, Diagonal(vector)))
    with pytest.raises(ValueError, match="one shape"):
        langevin.init(vector, lambda x: x[:2])
    with pytest.raises(ValueError, match="one shape"):
        ozaki.init(vector, lambda x: (x, Diagonal(x[:2])))
    for eigenvalues in (whole, jnp.ones((2, 3))):
        with pytest.raises(ValueError, match=r"floating-point|one shape \(D,\)"):
            langevin.stability_limit(eigenvalues)
    for states in (jnp.ones(()), (jnp.ones((2, 3)), jnp.ones((3, 3))), ()):
        with pytest.raises(ValueError, match=r"states of shape \(chains, ...\)"):
            run_chains(jax.random.key(0), walk, states, 1)
    sampler = langevin.as_top_level_api(jnp.negative, 0.1)
    with pytest.raises(
        TypeError, match=r"got a SamplingAlgorithm: that of a sampler is sampler\.step"
    ):
        run_chains(jax.random.key(0), sampler, jax.vmap(sampler.init)(vector[None]), 1)
    with pytest.raises(ValueError, match=r"whole number steps >= 1, got 2\.5"):
        run_chains(jax.random.key(0), walk, jnp.zeros((2, 1)), 2.5)

    def sampler_at(sigma):
        return langevin.as_top_level_api(jnp.negative, sigma)

    for positions, sigmas in ((jnp.ones(3), [1.0]), (whole[None], [1.0]), (vector[None], [1])):
        with pytest.raises(ValueError, match=r"floating-point|shape \(chains, D\)"):
            anneal_chains(jax.random.key(0), sampler_at, positions, sigmas, 1)
    for step_size in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="step_size > 0 and finite"):
            langevin.as_top_level_api(jnp.negative, step_size)
