"""Reverse diffusion: laws, orders and limits against closed forms; the loop over noise levels."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
from exact_scores import derivatives_of

from hos_jax import distributions
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank, Local
from hos_jax.noise import karras_sigmas
from hos_jax.samplers import diffusion, reverse_chains

DIM = 3
GAUSSIAN = distributions.Gaussian(
    jnp.array([0.5, -1.0, 2.0]),
    jnp.array([[1.0, 0.6, 0.0], [0.6, 0.8, -0.2], [0.0, -0.2, 0.3]]),
)
MIXTURE = distributions.GaussianMixture(
    jnp.array([0.5, 0.3, 0.2]),
    jnp.array([[-1.0, 0.0, 0.5], [1.0, 0.7, -0.5], [0.2, -1.5, 0.0]]),
    stds=jnp.array([0.3, 0.5, 0.2]),
)


def position_of(state):
    return state.position


def end_of(kernel, law, start, sigmas):
    chains = reverse_chains(jax.random.key(3), kernel, derivatives_of(law), start, sigmas)
    assert chains.is_finite.all() and np.all(chains.finite_steps == len(sigmas) - 1)
    return np.asarray(chains.states.position)


def flow_of_the_gaussian(noisy, start, end):
    """The probability flow between two noise levels, in closed form."""
    values, vectors = np.linalg.eigh(GAUSSIAN.covariance)
    ratio = np.sqrt((values + end**2) / (values + start**2))
    mean = np.asarray(GAUSSIAN.mean)
    return mean + (noisy - mean) @ (vectors * ratio) @ vectors.T


def assert_moments(samples, mean, covariance, errors=4.5):
    """Within so many standard errors, all entries."""
    count, variance = len(samples), np.diag(covariance)
    assert np.all(np.abs(samples.mean(axis=0) - mean) < errors * np.sqrt(variance / count))
    entry_error = np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    assert np.all(np.abs(np.cov(samples.T) - covariance) < errors * entry_error)


def test_karras_levels():
    sigmas = karras_sigmas(80.0, 0.002, 5)
    # (80^(1/7) + i / 4 (0.002^(1/7) - 80^(1/7)))^7
    np.testing.assert_allclose(sigmas, [80.0, 17.5278, 2.515207, 0.1697524, 0.002], rtol=1e-5)
    np.testing.assert_allclose(karras_sigmas(3.0, 1.0, 3, power=1.0), [3.0, 2.0, 1.0])
    for bad in ((1.0, 2.0, 3), (np.inf, 1.0, 3), (1.0, 0.0, 3), (1.0, 0.5, 0), (1.0, 0.5, 3, 0.0)):
        with pytest.raises(ValueError, match=r"need finite|power > 0"):
            karras_sigmas(*bad)


@pytest.mark.parametrize("kernel", ["ancestral", "ddim", "second_order"])
def test_with_the_whole_covariance_steps_are_exact_in_law_on_a_gaussian(kernel):
    full = {
        "ancestral": diffusion.ancestral("full"),
        "ddim": diffusion.ddim("full"),
        "second_order": diffusion.second_order(),
    }
    sigmas = jnp.array([8.0, 1.0, 0.1])
    start = GAUSSIAN.smooth(8.0).sample(jax.random.key(0), 20_000)
    found = end_of(full[kernel], GAUSSIAN, start, sigmas)
    assert_moments(found, GAUSSIAN.mean, GAUSSIAN.covariance + 0.01 * np.eye(DIM))
    if kernel == "second_order":
        expected = flow_of_the_gaussian(np.asarray(start), 8.0, 0.1)
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def propagated(covariance, steps):
    """The covariance at the last level of a Gaussian that starts right, by the kernel's own slope
    and the covariance that it draws with."""
    sigmas = karras_sigmas(5.0, 0.1, steps + 1)
    kernel, derivatives_fn = diffusion.ancestral(covariance), derivatives_of(GAUSSIAN)

    @jax.jit
    def one_step(noisy, level, sigma):
        def move(noisy):
            state = diffusion.init(noisy, level)
            return kernel(jax.random.key(0), state, derivatives_fn, sigma)[0].position

        hessian = derivatives_fn(noisy, level)[1]
        matrix = diffusion.step_covariance(hessian, level, covariance, noisy).to_dense()
        return jax.jacfwd(move)(noisy), matrix

    found = np.asarray(GAUSSIAN.covariance + 25.0 * jnp.eye(DIM))
    for level, sigma in itertools.pairwise(sigmas):
        slope, matrix = one_step(GAUSSIAN.mean, level, sigma)
        ratio = (sigma / level) ** 2
        drawn = (level**2 - sigma**2) * (ratio * np.eye(DIM) + (1 - ratio) * matrix)
        found = slope @ found @ slope.T + drawn
    return np.abs(found - np.asarray(GAUSSIAN.covariance + 0.01 * jnp.eye(DIM))).max()


def test_other_covariances_are_exact_in_the_limit_of_many_steps():
    assert propagated("full", 2) < 1e-12 and propagated("full", 7) < 1e-12
    for covariance in ("small", "large", "scalar", "diagonal"):
        few, many = propagated(covariance, 20), propagated(covariance, 160)
        assert few > 0.02 and 7 < few / many < 9  # of order 1


def posterior_of_the_mixture(noisy, start, end):
    """Mean and covariance of y_s given y_t, from the components."""
    law, step = MIXTURE.smooth(start), start**2 - end**2
    weights = jax.nn.softmax(law._log_terms(noisy))
    prior = jnp.square(MIXTURE.stds) + end**2
    means = (step * MIXTURE.means + prior[:, None] * noisy[None, :]) / (prior + step)[:, None]
    mean = weights @ means
    deviations = means - mean[None, :]
    inner = jnp.sum(weights * prior * step / (prior + step)) * jnp.eye(DIM)
    return mean, inner + deviations.T @ (weights[:, None] * deviations)


@pytest.mark.parametrize("covariance", diffusion.COVARIANCES)
def test_a_step_draws_with_the_covariance_of_the_mixture(covariance):
    noisy, start, end = jnp.array([0.1, -0.2, 0.1]), 1.2, 0.5
    mean, exact = (np.asarray(part) for part in posterior_of_the_mixture(noisy, start, end))
    step, ratio = start**2 - end**2, (end / start) ** 2
    small, large = step * ratio * np.eye(DIM), step * np.eye(DIM)
    expected = {
        "small": small,
        "large": large,
        "scalar": np.trace(exact) / DIM * np.eye(DIM),
        "diagonal": np.diag(np.diag(exact)),
        "full": exact,
    }[covariance]
    _, hessian = derivatives_of(MIXTURE)(noisy, start)
    matrix = diffusion.step_covariance(hessian, start, covariance, noisy).to_dense()
    drawn = small + step * (1 - ratio) * matrix
    np.testing.assert_allclose(drawn, expected, rtol=1e-10, atol=1e-12)
    kernel, state = diffusion.ancestral(covariance), diffusion.init(noisy, start)
    run = jax.vmap(lambda key: kernel(key, state, derivatives_of(MIXTURE), jnp.asarray(end)))
    moved, info = jax.jit(run)(jax.random.split(jax.random.key(1), 40_000))
    assert np.all(info.is_finite) and not np.any(info.lanczos_error)
    np.testing.assert_array_equal(moved.sigma, np.full(40_000, end))
    assert_moments(np.asarray(moved.position), mean, expected)


@pytest.mark.parametrize("make", [diffusion.ancestral, diffusion.ddim])
def test_numbers_of_any_library_make_the_same_step(make):
    step = make(0.25, below=2.0)
    for number, below in [(np.float32(0.25), np.float64(2.0)), (jnp.asarray(0.25), jnp.asarray(2))]:
        assert make(number, below=below) is step
    assert make() is make(below=np.inf)


@pytest.mark.parametrize("make", [diffusion.ancestral, diffusion.ddim])
@pytest.mark.parametrize(("level", "name"), [(1.9, "full"), (2.0, "full"), (2.1, "small")])
def test_above_a_level_the_covariance_is_not_used(make, level, name):
    state = diffusion.init(jnp.arange(float(DIM)), level)
    found, exact = (
        kernel(jax.random.key(3), state, derivatives_of(GAUSSIAN), jnp.asarray(0.5))[0]
        for kernel in (make("full", below=2.0), make(name))
    )
    np.testing.assert_array_equal(found.position, exact.position)


def test_ddim_with_the_covariance_goes_through_a_draw_of_the_clean_point():
    noisy, start, end = jnp.array([0.1, -0.2, 0.1]), 1.2, 0.5
    score, hessian = derivatives_of(MIXTURE)(noisy, start)
    posterior = start**2 * (np.eye(DIM) + start**2 * hessian.to_dense())
    share = end / start
    mean = (1 - share) * (noisy + start**2 * score) + share * noisy
    state = diffusion.init(noisy, start)

    def draws(kernel, count):
        run = jax.vmap(lambda key: kernel(key, state, derivatives_of(MIXTURE), jnp.asarray(end)))
        return np.asarray(jax.jit(run)(jax.random.split(jax.random.key(1), count))[0].position)

    for line in draws(diffusion.ddim(), 2):
        np.testing.assert_allclose(line, mean, rtol=1e-12)
    assert_moments(draws(diffusion.ddim("full"), 40_000), mean, (1 - share) ** 2 * posterior)


@pytest.mark.parametrize(
    ("kernel", "order"),
    [
        (diffusion.ddim(), 1),
        (diffusion.heun(), 2),
        (diffusion.second_order(gradient=True), 2),
        (diffusion.second_order(), 1),
    ],
)
def test_order_of_convergence_to_the_probability_flow(kernel, order):
    start = MIXTURE.smooth(3.0).sample(jax.random.key(0), 4)
    slope = jax.jit(lambda sigma, y: -sigma * MIXTURE.smooth(sigma).score(y))
    exact = [
        scipy.integrate.solve_ivp(slope, (3.0, 0.2), y, "DOP853", rtol=1e-11, atol=1e-12).y[:, -1]
        for y in np.asarray(start)
    ]
    errors = [
        np.abs(end_of(kernel, MIXTURE, start, karras_sigmas(3.0, 0.2, steps + 1)) - exact).max()
        for steps in (80, 160, 320)
    ]
    np.testing.assert_allclose(-np.diff(np.log2(errors)), order, atol=0.12)


def test_churn_raises_the_level_and_adds_its_noise():
    derivatives_fn, end = derivatives_of(MIXTURE), jnp.asarray(0.5)
    state = diffusion.init(jnp.array([0.1, -0.2, 0.1]), 1.0)

    def moved(kernel, state):
        new_state, info = kernel(jax.random.key(1), state, derivatives_fn, end)
        jump = np.sum(np.square(new_state.position - state.position))
        return new_state.position, info.squared_jump, jump

    noise = jax.random.normal(jax.random.key(1), (DIM,))
    raised = diffusion.init(state.position + jnp.sqrt(1.3**2 - 1.0) * noise, 1.3)
    churned, squared, jump = moved(diffusion.heun(0.3), state)
    np.testing.assert_allclose(churned, moved(diffusion.heun(), raised)[0], rtol=1e-10)
    assert squared == pytest.approx(float(jump))
    plain = moved(diffusion.heun(), state)[0]
    np.testing.assert_allclose(moved(diffusion.heun(0.3, (0.0, 0.9)), state)[0], plain, rtol=1e-12)
    assert np.abs(churned - plain).max() > 0.01
    # Numbers of any kind, and equal ones give the same function.
    assert diffusion.heun(jnp.asarray(0.25), [0.0, 0.9]) is diffusion.heun(0.25, (0.0, 0.9))


STRUCTURED = {
    "diagonal": Diagonal(jnp.array([0.2, 1.5, 0.9, 0.01])),
    "low_rank": DiagonalPlusLowRank(jnp.array([0.2, 0.5, 0.9, 0.3]), jnp.ones((4, 1))),
    "local": Local(jnp.array([0.5, 1.0, 0.7, 0.9]), 0.5 * jnp.ones((4, 2)), (1, 4, 1), 2),
    "dense": Dense(jnp.eye(4) + 0.5),
}


@pytest.mark.parametrize("structure", list(STRUCTURED))
def test_every_structure_draws_its_own_covariance(structure):
    """From s2 = (C - I) / sigma^2 as a model gives it."""
    matrix, sigma = STRUCTURED[structure], 2.0
    hessian = matrix.add_identity(-1.0).scale(1 / sigma**2)
    dense, zero = np.asarray(matrix.to_dense()), jnp.zeros(4)
    found = diffusion.step_covariance(hessian, sigma, "full", zero)
    assert type(found) is type(matrix)
    np.testing.assert_allclose(found.to_dense(), dense, atol=1e-14)
    kernel = diffusion.ddim("full")
    run = jax.vmap(
        lambda key: kernel(key, diffusion.init(zero, sigma), lambda y, s: (y, hessian), 1.0)
    )
    moved, _ = jax.jit(run)(jax.random.split(jax.random.key(2), 20_000))
    assert_moments(np.asarray(moved.position), np.zeros(4), dense)
    score, state = jnp.linspace(-1.0, 1.0, 4), diffusion.init(zero, sigma)
    ends = [
        diffusion.second_order(krylov_vectors=4)(
            jax.random.key(0), state, lambda y, s, given=given: (score, given), jnp.asarray(0.5)
        )[0].position
        for given in (hessian, Dense(hessian.to_dense()))
    ]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-8)


def test_what_is_no_covariance_is_made_one():
    hessian = Dense(jnp.array([[-3.0, 0.0], [0.0, 1.0]]))
    zero = jnp.zeros(2)
    for name, expected in (("full", [0.0, 2.0]), ("diagonal", [0.0, 2.0]), ("scalar", [0.0, 0.0])):
        found = diffusion.step_covariance(hessian, 1.0, name, zero).to_dense()
        np.testing.assert_allclose(found, np.diag(expected), atol=1e-14)


def test_a_scalar_may_be_a_number_or_a_function_of_the_level():
    given = diffusion.step_covariance(None, 2.0, 0.3, jnp.zeros(2))
    np.testing.assert_allclose(given.diagonal(), [0.3, 0.3])
    by_level = diffusion.step_covariance(None, 2.0, lambda s: 1 / (1 + s**2), jnp.zeros(2))
    np.testing.assert_allclose(by_level.diagonal(), [0.2, 0.2])


def test_chains_keep_a_trajectory_and_report_what_diverges():
    def derivatives_fn(noisy, sigma):
        return jnp.where(noisy > 50, jnp.nan, -noisy / (1 + sigma**2)), None

    sigmas, start = jnp.array([2.0, 1.0, 0.5]), jnp.array([[1.0], [100.0], [-1.0]])
    chains = reverse_chains(
        jax.random.key(0), diffusion.heun(), derivatives_fn, start, sigmas, collect=position_of
    )
    assert chains.is_finite.tolist() == [True, False, True]
    assert chains.finite_steps.tolist() == [2, 0, 2]
    assert chains.trajectory.shape == (2, 3, 1)
    np.testing.assert_array_equal(chains.trajectory[-1], chains.states.position)
    np.testing.assert_array_equal(chains.states.sigma, [0.5] * 3)
    # Without s2 what needs it says so, and so with a plain array.
    for kernel in (diffusion.ancestral(), diffusion.ddim("scalar"), diffusion.second_order()):
        with pytest.raises(ValueError, match="needs s2"):
            reverse_chains(jax.random.key(0), kernel, derivatives_fn, start, sigmas)
        with pytest.raises(TypeError, match="s2 is an array of the shape"):
            reverse_chains(
                jax.random.key(0), kernel, lambda y, s: (-y, -jnp.eye(len(y))), start, sigmas
            )
    for kernel in (diffusion.ancestral("small"), diffusion.ancestral("large")):
        chains = reverse_chains(jax.random.key(0), kernel, derivatives_fn, start[:1], sigmas)
        assert chains.is_finite.all()


def test_chains_compile_once_and_draw_by_their_key_alone():
    traces = []

    def traced(scale, noisy, sigma):
        traces.append(None)
        return -noisy / (scale + sigma**2), Diagonal(jnp.full(2, -1.0) / (scale + sigma**2))

    def run(key, scale, sigmas, chains=4):
        derivatives_fn = jax.tree_util.Partial(traced, jnp.asarray(scale))
        start, kernel = jnp.ones((chains, 2)), diffusion.ancestral("diagonal")
        key = jax.random.key(key)
        return reverse_chains(key, kernel, derivatives_fn, start, sigmas).states.position

    first = run(0, 1.0, jnp.array([3.0, 1.0, 0.1]))
    once = len(traces)
    again = run(0, 1.0, jnp.array([3.0, 1.0, 0.1]))
    other = run(0, 2.0, jnp.array([4.0, 1.0, 0.2]))
    assert once > 0 and len(traces) == once
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other) and not np.allclose(first, run(1, 1.0, [3.0, 1.0, 0.1]))
    np.testing.assert_allclose(run(0, 1.0, jnp.array([3.0, 1.0, 0.1]), 2), first[:2], rtol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_float32_keeps_its_type_and_beyond_the_last_level_nothing_moves(dtype):
    start = 3.0 * jax.random.normal(jax.random.key(0), (5, 2), dtype)

    def derivatives_fn(noisy, sigma):
        return -noisy / (1 + sigma**2), Diagonal(jnp.full(2, -1.0, jnp.float32) / (1 + sigma**2))

    # Those of 16 bits begin in float32, and take one kernel's way as all others.
    kernels = (
        diffusion.ancestral(),
        diffusion.ddim("full"),
        diffusion.heun(0.1),
        diffusion.second_order(gradient=True),
    )
    for kernel in kernels[: 1 if dtype == jnp.bfloat16 else None]:
        sigmas = karras_sigmas(3.0, 0.01, 9)
        chains = reverse_chains(jax.random.key(1), kernel, derivatives_fn, start, sigmas)
        assert chains.is_finite.all() and chains.states.position.dtype == jnp.float32
        sampler = diffusion.as_top_level_api(kernel, derivatives_fn, sigmas)
        state = jax.tree.map(lambda leaf: leaf[0], chains.states)
        after, _ = sampler.step(jax.random.key(2), state)
        np.testing.assert_array_equal(after.position, state.position)


def test_bad_arguments_are_refused():
    def run(positions=((0.0, 1.0),), sigmas=(1.0, 0.5), kernel=None):
        kernel = diffusion.ddim() if kernel is None else kernel
        return reverse_chains(
            jax.random.key(0),
            kernel,
            lambda y, s: (-y, None),
            jnp.asarray(positions),
            jnp.asarray(sigmas),
        )

    for positions in ((1.0, 2.0), ((1, 2),)):
        with pytest.raises(ValueError, match=r"shape \(chains, D\)|floating-point"):
            run(positions)
    for sigmas in (
        (1.0,),
        ((1.0, 0.5),),
        (0.5, 1.0),
        (1.0, 1.0),
        (1.0, 0.0),
        (np.inf, 1.0),
        (2, 1),
    ):
        with pytest.raises(ValueError, match=r"noise levels|floating-point"):
            run(sigmas=sigmas)
    with pytest.raises(ValueError, match="below > 0"):
        diffusion.ddim("full", below=0.0)
    for covariance in ("whole", -1.0, np.nan, None, np.ones(2)):
        for kernel in (diffusion.ancestral, diffusion.ddim):
            with pytest.raises(ValueError, match="expected a covariance of small, large"):
                kernel(covariance)
    state, s2 = diffusion.init(jnp.ones(2), 1.0), Diagonal(-jnp.ones(2))
    for kernel in (
        *map(diffusion.ancestral, ("small", "full")),
        *map(diffusion.ddim, ("small", "full")),
        diffusion.heun(),
        diffusion.second_order(),
    ):
        for error, message, derivatives_fn in (
            # The score alone of two values would be taken for two things.
            (TypeError, r"has to give \(s1, s2\), or \(s1, None\); it gave", lambda y, s: -y),
            (TypeError, "it gave 3 things", lambda y, s: (-y, s2, None)),
            (ValueError, "one shape", lambda y, s: (jnp.sum(-y), s2)),
            (ValueError, "one shape", lambda y, s: (-y[:1], s2)),
            (ValueError, "one shape", lambda y, s: (-y, Diagonal(-jnp.ones(1)))),
        ):
            with pytest.raises(error, match=message):
                kernel(jax.random.key(0), state, derivatives_fn, 0.5)
    for churn in (-0.1, 0.5):
        with pytest.raises(ValueError, match="expected churn"):
            diffusion.heun(churn)
    kernel, state = diffusion.second_order(krylov_vectors=1), diffusion.init(jnp.zeros(2), 1.0)
    with pytest.raises(ValueError, match="krylov_vectors >= 2"):
        kernel(jax.random.key(0), state, lambda y, s: (-y, Diagonal(-jnp.ones(2))), 0.5)


# Two classes, by their number in a stack of Gaussians; 2 is the mixture of both.
CLASSES = [
    distributions.GaussianMixture(
        jnp.ones(1), jnp.array([[shift, 0.0, 0.0]]), stds=jnp.array([width])
    )
    for shift, width in ((-1.0, 0.3), (2.0, 0.6))
]
BOTH = distributions.GaussianMixture(
    jnp.array([0.5, 0.5]),
    jnp.array([[-1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]),
    stds=jnp.array([0.3, 0.6]),
)


def derivatives_of_classes(noisy, sigma, label):
    laws = [derivatives_of(law) for law in (*CLASSES, BOTH)]
    found = [(score, hessian.to_dense()) for score, hessian in (law(noisy, sigma) for law in laws)]
    score, hessian = jax.tree.map(lambda *each: jnp.stack(each)[label], *found)
    return score, Dense(hessian)


@pytest.mark.parametrize("kernel", [diffusion.ancestral("full"), diffusion.heun()])
def test_each_chain_has_the_law_of_its_condition(kernel):
    sigmas = karras_sigmas(20.0, 0.1, 25)
    labels = jnp.arange(2000) % 2
    means = jnp.array([[-1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])[labels]
    spread = jnp.sqrt(jnp.array([0.3, 0.6])[labels, None] ** 2 + sigmas[0] ** 2)
    start = means + spread * jax.random.normal(jax.random.key(5), (2000, DIM))
    chains = reverse_chains(
        jax.random.key(6), kernel, derivatives_of_classes, start, sigmas, conditions=labels
    )
    np.testing.assert_array_equal(chains.states.condition, labels)
    for label, law in enumerate(CLASSES):
        smooth = law.smooth(0.1)
        samples = np.asarray(chains.states.position)[label::2]
        variance = float(smooth.stds[0]) ** 2
        # Of the steps of Heun a percent of the width is left.
        assert_moments(samples, smooth.means[0], variance * np.eye(DIM), errors=5.5)


def test_guidance_is_the_score_of_the_overstated_density():
    point, sigma, weight = jnp.array([0.4, -0.3, 0.2]), 0.7, 2.5
    known, plain = CLASSES[1].smooth(sigma), BOTH.smooth(sigma)

    def overstated(y):
        return plain.log_density(y) + weight * (known.log_density(y) - plain.log_density(y))

    guided = diffusion.guided(derivatives_of_classes, weight, 2)
    score, hessian = guided(point, sigma, 1)
    np.testing.assert_allclose(score, jax.grad(overstated)(point), rtol=1e-9)
    np.testing.assert_allclose(hessian.to_dense(), known.hessian(point).to_dense(), rtol=1e-9)


def test_an_indefinite_hessian_moves_alike_in_every_structure():
    """Where I + Delta s2 has negative eigenvalues, its root counts as 0."""
    low_rank = IsotropicPlusLowRank(jnp.full(DIM, -2.0), jnp.zeros((DIM, 2)))
    kernel, start = diffusion.second_order(), diffusion.init(jnp.ones(DIM), 1.0)

    def move(hessian):
        level = jnp.asarray(0.1)
        return kernel(jax.random.key(0), start, lambda y, s: (-y, hessian), level)[0].position

    for hessian in (low_rank, Dense(low_rank.to_dense()), Diagonal(low_rank.diag)):
        np.testing.assert_allclose(move(hessian), 1.0 - 0.99, rtol=1e-9)
    gradient = jax.grad(lambda d: jnp.sum(move(Diagonal(jnp.full(DIM, d)))))(-2.0)
    np.testing.assert_allclose(gradient, 0.0)
