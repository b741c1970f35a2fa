"""What to measure next, against dense linear algebra and the closed form on a Gaussian."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import distributions, errors, uncertainty
from hos_jax.linops import Dense, DiagonalPlusLowRank
from hos_jax.uses import measure_next

DIM, NOISE_STD = 12, 0.3
LAW = distributions.random_correlated_gaussian(jax.random.key(0), DIM, 30.0)
K = np.asarray(LAW.covariance)
ROWS = jax.random.normal(jax.random.key(1), (9, DIM))


def product(vector):
    return LAW.covariance @ vector


def posterior_fn(noisy, sigma):
    smooth = LAW.smooth(sigma)
    return uncertainty.posterior(
        noisy, smooth.score(noisy), smooth.hessian(noisy), sigma, floor=1e-9
    )


def conditioned(covariance, rows):
    """Cov[x | b] by the dense formula."""
    inner = rows @ covariance @ rows.T + NOISE_STD**2 * np.eye(len(rows))
    return covariance - covariance @ rows.T @ np.linalg.solve(inner, rows @ covariance)


def densely_greedy(covariance, rows, count, allowed):
    """Each time the row after which, all before it made, the trace is smallest."""
    taken = []
    for _ in range(count):
        traces = [
            np.trace(conditioned(covariance, rows[[*taken, place]]))
            if allowed[place] and place not in taken
            else np.inf
            for place in range(len(rows))
        ]
        taken.append(int(np.argmin(traces)))
    return taken


def seen_of(places, values, room):
    return measure_next.Seen.none(room, NOISE_STD).add(jnp.asarray(places), jnp.asarray(values))


@pytest.mark.parametrize("candidates", [None, ROWS])
def test_variance_removed_is_the_fall_of_the_trace(candidates):
    rows = np.eye(DIM) if candidates is None else np.asarray(candidates)
    found = measure_next.variance_removed(product, DIM, NOISE_STD, candidates=candidates)
    exact = [np.trace(K) - np.trace(conditioned(K, rows[[place]])) for place in range(len(rows))]
    np.testing.assert_allclose(found, exact, rtol=1e-10)


@pytest.mark.parametrize("candidates", [None, ROWS])
def test_choices_are_those_of_dense_linear_algebra(candidates):
    rows = np.eye(DIM) if candidates is None else np.asarray(candidates)
    allowed = np.ones(len(rows), bool)
    allowed[densely_greedy(K, rows, 1, allowed)] = False
    found = jax.jit(
        lambda allowed: measure_next.choose(
            product, DIM, NOISE_STD, 5, candidates=candidates, allowed=allowed
        )
    )(allowed)
    exact = densely_greedy(K, rows, 5, allowed)
    assert found.places.tolist() == exact
    left = conditioned(K, rows[exact])
    np.testing.assert_allclose(K - found.columns @ found.columns.T, left, atol=1e-10)
    np.testing.assert_allclose(found.removed.sum(), np.trace(K) - np.trace(left), rtol=1e-10)


def test_the_largest_variance_is_not_the_best_choice():
    """A value on its own has the largest variance, but two others tell of one another."""
    covariance = jnp.array([[1.2, 0.0, 0.0], [0.0, 1.0, 0.9], [0.0, 0.9, 1.0]])
    found = measure_next.choose(lambda v: covariance @ v, 3, NOISE_STD, 1)
    assert found.places[0] != 0


def test_condition_has_the_dense_moments_and_free_room_changes_nothing():
    keys = jax.random.split(jax.random.key(2), 2)
    covariance = DiagonalPlusLowRank(
        jax.random.uniform(keys[0], (DIM,), minval=0.1), jax.random.normal(keys[1], (DIM, 2))
    )
    posterior = uncertainty.posterior_from_covariance(jnp.arange(1.0 * DIM), covariance, 1.0)
    places, values = np.array([4, 7]), np.array([1.0, -2.0])
    dense, rows = np.asarray(covariance.to_dense()), np.eye(DIM)[places]
    inner = rows @ dense @ rows.T + NOISE_STD**2 * np.eye(2)
    residual = values - np.arange(1.0 * DIM)[places]
    mean = np.arange(1.0 * DIM) + dense @ rows.T @ np.linalg.solve(inner, residual)
    for room in (2, 5):
        found = measure_next.condition(posterior, seen_of(places, values, room))
        np.testing.assert_allclose(found.mean, mean, rtol=1e-10)
        left = dense - np.asarray(found.columns @ found.columns.T)
        np.testing.assert_allclose(left, conditioned(dense, rows), atol=1e-10)


def test_draws_have_the_conditional_law():
    posterior = posterior_fn(jnp.ones(DIM), 2.0)
    dense = np.asarray(posterior.covariance.to_dense())
    seen = seen_of([1, 5, 6], [0.5, 2.0, -1.0], 4)
    keys = jax.random.split(jax.random.key(3), 6_000)
    draw = jax.jit(jax.vmap(measure_next.conditional_sample, (0, None, None)))
    points = np.asarray(draw(keys, posterior, seen))
    errors = points.mean(axis=0) - measure_next.condition(posterior, seen).mean
    assert np.abs(errors / (points.std(axis=0) / np.sqrt(6_000))).max() < 4.0
    exact = conditioned(dense, np.eye(DIM)[[1, 5, 6]])
    centred = points - points.mean(axis=0)
    products = np.einsum("ni,nj->nij", centred, centred)
    errors = products.mean(axis=0) - exact
    assert np.abs(errors / (products.std(axis=0) / np.sqrt(6_000))).max() < 4.5


@pytest.fixture(scope="module")
def belief():
    """Of 3,000 chains that end at a level where K matters, and what they had seen."""
    seen = seen_of([2, 9], [1.0, -0.5], 3)
    sigmas = jnp.array([300.0, 3.0, 1.0])

    @jax.jit
    @jax.vmap
    def end(key):
        start_key, key = jax.random.split(key)
        start = sigmas[0] * jax.random.normal(start_key, (DIM,))
        return measure_next.chain(key, posterior_fn, seen, start, sigmas)

    posteriors = end(jax.random.split(jax.random.key(4), 3_000))
    return measure_next.belief_of_chains(posteriors, seen)


def test_a_belief_has_the_covariance_of_both_parts(belief):
    exact = conditioned(K, np.eye(DIM)[[2, 9]])
    found = jax.vmap(belief.matvec)(jnp.eye(DIM))
    scale = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    assert np.abs((found - exact) / scale).max() < 5.0 / np.sqrt(3_000)
    np.testing.assert_allclose(belief.diagonal(), np.diagonal(found), rtol=1e-10)
    # Neither part is all of it.
    shares = np.sum(np.square(belief.between)) / np.trace(exact)
    assert 0.1 < shares < 0.9
    alone = dataclasses.replace(belief, within=None, removed=None)
    np.testing.assert_allclose(alone.matvec(jnp.eye(DIM)[0]), (belief.between @ belief.between[0]))


def test_samples_have_their_covariance():
    samples = jax.random.normal(jax.random.key(5), (7, DIM))
    found = jax.vmap(measure_next.belief_of_samples(samples).matvec)(jnp.eye(DIM))
    np.testing.assert_allclose(found, np.cov(np.asarray(samples).T), atol=1e-12)


def test_samples_of_16_bits_have_their_covariance():
    samples = 300.0 * jax.random.normal(jax.random.key(5), (20, DIM), jnp.float16)
    found = measure_next.belief_of_samples(samples)
    exact = np.var(np.asarray(samples, float), axis=0, ddof=1)
    np.testing.assert_allclose(found.diagonal(), exact, rtol=1e-5)


def test_samples_of_integers_have_their_covariance():
    samples = np.random.default_rng(0).integers(0, 9, (10, 3))
    found = measure_next.belief_of_samples(samples)
    np.testing.assert_allclose(found.diagonal(), np.var(samples, axis=0, ddof=1))


def test_chains_keep_the_type_of_their_start():
    law = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), LAW)

    def posterior_fn(noisy, sigma):
        smooth = law.smooth(sigma)
        return uncertainty.posterior(noisy, smooth.score(noisy), smooth.hessian(noisy), sigma)

    seen = measure_next.Seen.none(2, np.float64(NOISE_STD)).add(np.array([1]), np.array([0.5]))
    start = jnp.ones(DIM, jnp.float32)
    ends = jax.vmap(
        lambda key: measure_next.chain(key, posterior_fn, seen, start, np.array([9.0, 3.0, 1.0]))
    )(jax.random.split(jax.random.key(9), 3))
    found = measure_next.belief_of_chains(ends, seen)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}


def exact_belief(_, seen):
    """The Gaussian law itself, given what was seen."""
    root = jnp.linalg.cholesky(LAW.covariance)
    posterior = uncertainty.Posterior(LAW.mean, DiagonalPlusLowRank(jnp.full(DIM, 1e-12), root))
    found = measure_next.condition(posterior, seen)
    within = jax.tree.map(lambda leaf: leaf[None], posterior.covariance)
    between = jnp.zeros((DIM, 1))
    return measure_next.Belief(found.mean, between, within, found.columns[None])


def test_on_a_gaussian_the_order_is_known_before_measuring():
    clean = LAW.sample(jax.random.key(6), 1)[0]
    found = measure_next.reveal(
        jax.random.key(7), exact_belief, lambda places: clean[places], NOISE_STD, [1, 2, 2], room=2
    )
    order = densely_greedy(K, np.eye(DIM), 5, np.ones(DIM, bool))
    assert found.seen.places.tolist() == order
    left = [np.trace(conditioned(K, np.eye(DIM)[order[:count]])) for count in (1, 3, 5)]
    np.testing.assert_allclose(found.expected * DIM, [np.trace(K), *left], rtol=1e-8)
    rows = np.eye(DIM)[order]
    inner = rows @ K @ rows.T + NOISE_STD**2 * np.eye(5)
    gain = K @ rows.T @ np.linalg.inv(inner)
    np.testing.assert_allclose(found.means[-1], LAW.mean + gain @ rows @ (clean - LAW.mean))


# Orthonormal rows; the last group is smaller, and the last row in none.
BASIS = jnp.linalg.qr(jax.random.normal(jax.random.key(8), (DIM, DIM)))[0]
GROUPS = jnp.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, -1]])


def rows_fn(places):
    return BASIS[places]


def densely_greedy_groups(count):
    taken = []
    for _ in range(count):
        traces = []
        for group in range(len(GROUPS)):
            places = [int(place) for one in [*taken, group] for place in GROUPS[one] if place >= 0]
            trace = np.trace(conditioned(K, np.asarray(BASIS)[places]))
            traces.append(np.inf if group in taken else trace)
        taken.append(int(np.argmin(traces)))
    return taken


def test_groups_are_chosen_as_dense_algebra_does():
    order = densely_greedy_groups(4)
    found = measure_next.choose_groups(product, GROUPS, rows_fn, NOISE_STD, 4)
    assert found.tolist() == order
    allowed = jnp.arange(len(GROUPS)) != order[0]
    found = measure_next.choose_groups(product, GROUPS, rows_fn, NOISE_STD, 1, allowed=allowed)
    assert found.tolist() != order[:1]


def revealed_by_rows(rounds, **options):
    clean = LAW.sample(jax.random.key(6), 1)[0]
    found = measure_next.reveal(
        jax.random.key(7),
        exact_belief,
        lambda places: BASIS[places] @ clean,
        NOISE_STD,
        rounds,
        room=3,
        rows_fn=rows_fn,
        **options,
    )
    places = np.asarray(found.seen.places)[np.asarray(found.seen.valid)]
    rows = np.asarray(BASIS)[places]
    left = conditioned(K, rows)
    np.testing.assert_allclose(found.expected[-1] * DIM, np.trace(left), rtol=1e-8)
    mean = LAW.mean + left @ rows.T @ rows @ (clean - LAW.mean) / NOISE_STD**2
    np.testing.assert_allclose(found.means[-1], mean, rtol=1e-6, atol=1e-9)
    return places.tolist()


def test_inner_products_are_measured_group_by_group():
    def choose_fn(_, belief, seen, count):
        unseen = seen.unseen(DIM)[GROUPS[:, 0]]
        chosen = measure_next.choose_groups(
            belief.matvec, GROUPS, rows_fn, NOISE_STD, 1, allowed=unseen
        )
        return GROUPS[chosen[0]]

    # The group of two counts as two, whenever it comes.
    places = revealed_by_rows([3, 3, 3, 3], choose_fn=choose_fn)
    assert sorted(places) == list(range(11))


def test_inner_products_are_chosen_one_by_one_as_dense_algebra_does():
    places = revealed_by_rows([1, 2, 2])
    assert places == densely_greedy(K, np.asarray(BASIS), 5, np.ones(DIM, bool))
    table = measure_next.choose(product, DIM, NOISE_STD, 5, candidates=np.asarray(BASIS))
    assert table.places.tolist() == places


def test_a_belief_that_is_not_finite_ends_the_search():
    def broken(key, seen):
        belief = exact_belief(key, seen)
        return dataclasses.replace(belief, mean=belief.mean.at[0].set(jnp.nan))

    def wide(key, seen):
        return measure_next.Belief(jnp.zeros(DIM), jnp.full((DIM, 2), jnp.inf))

    for belief_fn in (broken, wide):
        with pytest.raises(errors.NonFiniteError, match="belief is not finite"):
            measure_next.reveal(jax.random.key(7), belief_fn, lambda places: places, NOISE_STD, [1])


@pytest.mark.parametrize("sigmas", [[2.0, 1.0, 3.0], [2.0, 2.0], [2.0, -1.0], [0.0], [np.nan], 2.0])
def test_levels_of_a_chain_fall_and_are_positive(sigmas):
    seen = measure_next.Seen.none(2, NOISE_STD)
    with pytest.raises(ValueError, match="noise levels"):
        measure_next.chain(
            jax.random.key(0), posterior_fn, seen, jnp.zeros(DIM), jnp.asarray(sigmas)
        )


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="count <= 4, the groups left"):
        measure_next.choose_groups(product, GROUPS, rows_fn, NOISE_STD, 5)
    with pytest.raises(ValueError, match="groups of shape"):
        measure_next.choose_groups(product, GROUPS[0], rows_fn, NOISE_STD, 1)
    with pytest.raises(ValueError, match="candidates of shape"):
        measure_next.variance_removed(product, DIM, NOISE_STD, candidates=ROWS[:, 1:])
    missing = np.where(np.arange(DIM) == 1, np.nan, ROWS)
    with pytest.raises(ValueError, match="candidates must be finite"):
        measure_next.choose(product, DIM, NOISE_STD, 1, candidates=missing)
    allowed = np.arange(DIM) < 2
    with pytest.raises(ValueError, match="count <= 2"):
        measure_next.choose(product, DIM, NOISE_STD, 3, allowed=allowed)
    with pytest.raises(ValueError, match="noise_std"):
        measure_next.choose(product, DIM, 0.0, 3)
    for matrix in (jnp.eye(DIM), Dense(jnp.eye(DIM))):
        with pytest.raises(TypeError, match="product is the function v -> K v, got a"):
            measure_next.choose(matrix, DIM, NOISE_STD, 3)
    for rounds, message in [([1, 0], "one value or more"), ([8, 5], "13 values to measure, of 12")]:
        with pytest.raises(ValueError, match=message):
            measure_next.reveal(jax.random.key(0), exact_belief, None, NOISE_STD, rounds)
    with pytest.raises(ValueError, match="two or more samples"):
        measure_next.belief_of_samples(jnp.zeros((1, DIM)))
    for places, values, message in [
        ([-1], [0.0], "must not be negative"),
        ([1], [np.nan], "must be finite"),
        ([2**40], [0.0], "expected places below"),
        ([1, 2], [0.0], "as many values"),
        ([1.5], [0.0], "expected integers"),
        ([1, 1], [0.0, 0.0], "each place is measured at most once"),
    ]:
        with pytest.raises(ValueError, match=message):
            seen_of(places, values, 2)
    with pytest.raises(ValueError, match="at most once, got \\[3, 3\\]"):
        seen_of([3], [0.0], 2).add(np.array([3]), np.zeros(1))
    with pytest.raises(ValueError, match="values has masked values"):
        measure_next.Seen.none(2, 0.1).add(np.array([3]), np.ma.masked_array([1.0], mask=[True]))
    with pytest.raises(ValueError, match="places below 12, got \\[1, 12\\]"):
        measure_next.condition(posterior_fn(jnp.ones(DIM), 1.0), seen_of([1, DIM], [0.0, 0.0], 3))
    with pytest.raises(ValueError, match="places below 12"):
        measure_next.reveal(
            jax.random.key(0),
            exact_belief,
            lambda places: pytest.fail("nothing is to be read"),
            NOISE_STD,
            [1],
            choose_fn=lambda *_: np.array([DIM]),
        )
    with pytest.raises(ValueError, match="allowed of shape"):
        measure_next.choose(product, DIM, NOISE_STD, 1, allowed=np.ones(1, bool))
    with pytest.raises(ValueError, match="bool allowed of shape"):
        measure_next.choose(product, DIM, NOISE_STD, 1, allowed=np.arange(DIM))
    belief = np.eye(DIM)
    with pytest.raises(TypeError, match=r"this one is of NumPy: .*jnp\.asarray\(K\)\.dot"):
        measure_next.choose(belief.dot, DIM, NOISE_STD, 1)
    assert measure_next.choose(jnp.asarray(belief).dot, DIM, NOISE_STD, 1).places[0] == 0
    with pytest.raises(ValueError, match="it gave "):
        measure_next.variance_removed(lambda v: v[:2], DIM, NOISE_STD)
    with pytest.raises(ValueError, match="it gave tuple"):
        measure_next.variance_removed(lambda v: (v, 1), DIM, NOISE_STD)
    of_numpy = lambda places: belief[places]  # noqa: E731
    with pytest.raises(TypeError, match=r"this one is of NumPy: take jnp\.asarray\(A\)"):
        measure_next.choose(product, DIM, NOISE_STD, 1, candidates=of_numpy)
    with pytest.raises(ValueError, match=r"rows are a function of places, .* it gave \(1, 2\)"):
        measure_next.choose(product, DIM, NOISE_STD, 1, candidates=lambda p: jnp.ones((len(p), 2)))
    choose_groups = functools.partial(
        measure_next.choose_groups, product, noise_std=NOISE_STD, count=1
    )
    with pytest.raises(TypeError, match="of NumPy"):
        choose_groups(groups=[[0, 1]], rows_fn=of_numpy)
    with pytest.raises(TypeError, match="rows are a function of places, got a NoneType"):
        choose_groups(groups=[[0, 1]], rows_fn=None)
    with pytest.raises(ValueError, match="groups of integers, got float"):
        choose_groups(groups=[[0.0, 1.0]], rows_fn=rows_fn)
    # There may be more rows than values, and a function may know how many are asked for.
    more = jnp.concatenate([jnp.zeros((DIM, DIM)), jnp.eye(DIM)])
    fixed = lambda places: more[places] * jnp.ones((2, 1))  # noqa: E731
    found = choose_groups(groups=[[0, 1], [DIM, DIM + 1]], rows_fn=fixed)
    assert found.tolist() == [1]
    with pytest.raises(ValueError, match="step >= 1"):
        measure_next.Seen.none(2, 0.1).trim(0)
    with pytest.raises(ValueError, match="room >= 0"):
        measure_next.Seen.none(-1, 0.1)
    float32 = measure_next.Seen.none(2, 0.1).astype(jnp.float32)
    with pytest.raises(ValueError, match="values are no numbers"):
        float32.add(np.array([1]), np.array(["one"]))
    with pytest.raises(ValueError, match="must be finite float32"):
        float32.add(np.array([1]), np.array([1e300]))
    with pytest.raises(ValueError, match=r"fails at \(13,\)"):
        measure_next.choose(product, DIM + 1, NOISE_STD, 1)
    for groups in ([[0, 1], [2]], [jnp.arange(2), jnp.arange(1)]):
        with pytest.raises(ValueError, match="fill them with -1"):
            choose_groups(groups=groups, rows_fn=rows_fn)
    with pytest.raises(ValueError, match=r"and it gave \(\)"):
        choose_groups(groups=[[0, 1]], rows_fn=lambda places: [ROWS[0], ROWS[1]])
    reveal = functools.partial(measure_next.reveal, jax.random.key(0), exact_belief, None, 0.1)
    with pytest.raises(TypeError, match="rounds are a count for each"):
        reveal(3)
    assert not measure_next.reveal(
        jax.random.key(0),
        exact_belief,
        lambda places: jnp.zeros(len(places)),
        0.1,
        [1],
        choose_fn=lambda *_: [],
    ).seen.valid.any()
    with pytest.raises(ValueError, match="room for 1 values"):
        seen_of([1, 2], [0.0, 0.0], 1)


def test_choices_keep_the_type_of_the_covariance():
    belief = measure_next.belief_of_samples(jax.random.normal(jax.random.key(9), (9, DIM)))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), belief)
    seen = measure_next.Seen.none(2, np.float64(NOISE_STD))
    exact = measure_next.greedy(jax.random.key(0), belief, seen, 2)
    assert measure_next.greedy(jax.random.key(0), low, seen, 2).tolist() == exact.tolist()
    found = measure_next.choose(low.matvec, DIM, NOISE_STD, 2, dtype=jnp.float32)
    assert found.removed.dtype == found.columns.dtype == jnp.float32
    removed = measure_next.variance_removed(low.matvec, DIM, NOISE_STD, dtype=jnp.float32)
    assert removed.dtype == jnp.float32
    with pytest.raises(ValueError, match="whole number count"):
        measure_next.choose(belief.matvec, DIM, NOISE_STD, 1.5)
    with pytest.raises(ValueError, match="whole number count"):
        measure_next.choose_groups(product, GROUPS, lambda places: BASIS[places], NOISE_STD, 1.5)


@pytest.mark.parametrize("noise_std", [0.1, 0.01])
def test_choices_beyond_the_rank_remove_nothing_that_rounding_makes(noise_std):
    """Few samples of large values, as of pixels of 0 to 255, in single precision."""
    samples = 255.0 * jax.random.normal(jax.random.key(0), (5, 64))
    exact = measure_next.belief_of_samples(samples)
    low = measure_next.belief_of_samples(samples.astype(jnp.float32))
    total = jnp.sum(exact.diagonal())
    found = measure_next.choose(low.matvec, 64, noise_std, 12, dtype=jnp.float32)
    right = measure_next.choose(exact.matvec, 64, noise_std, 12)
    assert len(set(found.places.tolist())) == 12 and np.isfinite(found.columns).all()
    np.testing.assert_array_equal(found.places[:2], right.places[:2])
    np.testing.assert_allclose(found.removed, right.removed, rtol=1e-3, atol=3e-6 * total)
    assert jnp.sum(right.removed[:4]) > 0.999 * total


@pytest.mark.parametrize("noise_std", [1e-3, 1e-4])
def test_groups_of_a_smooth_signal_at_noise_below_the_rounding(noise_std):
    """Where S = t^2 I + A K A^T has no Cholesky factor in float32."""
    place = np.arange(64)
    size = np.where(place < 16, 0.3, 1.0)
    smooth = np.exp(-((place[:, None] - place) ** 2) / 72.0) * size[:, None] * size
    groups = place.reshape(16, 4)

    def left(chosen):
        rows = np.eye(64)[groups[chosen].ravel()]
        inner = rows @ smooth @ rows.T + noise_std**2 * np.eye(len(rows))
        taken = smooth @ rows.T @ np.linalg.solve(inner, rows @ smooth)
        return 1.0 - np.trace(taken) / np.trace(smooth)

    exact = []
    for _ in range(3):
        exact.append(min(set(range(16)) - set(exact), key=lambda group: left([*exact, group])))
    covariance = jnp.asarray(smooth, jnp.float32)
    unit_rows = functools.partial(jax.nn.one_hot, num_classes=64, dtype=jnp.float32)
    found = measure_next.choose_groups(covariance.dot, groups, unit_rows, noise_std, 3)
    assert left(found.tolist()) < 1.1 * left(exact) < 0.03
    seen = measure_next.Seen.none(12, noise_std).add(place[:12], np.ones(12))
    posterior = uncertainty.Posterior(jnp.zeros(64, jnp.float32), Dense(covariance))
    assert np.isfinite(measure_next.condition(posterior, seen).mean).all()


def test_complex_measurements_are_refused_everywhere():
    lines = jnp.fft.fft(jnp.eye(DIM), norm="ortho")
    complex_rows = lambda places: lines[places]  # noqa: E731
    for call in (
        lambda: measure_next.variance_removed(product, DIM, NOISE_STD, candidates=lines),
        lambda: measure_next.choose(product, DIM, NOISE_STD, 1, candidates=complex_rows),
        lambda: measure_next.choose_groups(product, GROUPS, complex_rows, NOISE_STD, 1),
        lambda: measure_next.Seen.none(2, NOISE_STD).add(np.array([1]), np.array([1j])),
        lambda: measure_next.condition(
            posterior_fn(jnp.ones(DIM), 1.0),
            measure_next.Seen.none(2, NOISE_STD, complex_rows).add(np.array([1]), np.ones(1)),
        ),
    ):
        with pytest.raises(ValueError, match="complex; stack their real and imaginary part"):
            call()


def test_rounds_may_be_an_array():
    belief = measure_next.belief_of_samples(jax.random.normal(jax.random.key(9), (9, DIM)))
    found = measure_next.reveal(
        jax.random.key(0),
        lambda *_: belief,
        lambda places: jnp.zeros(len(places)),
        0.1,
        np.array([1, 2]),
    )
    assert len(set(found.seen.places[:3].tolist())) == 3


@pytest.mark.parametrize(
    ("dtype", "noise_std"), [("bfloat16", 1.0), ("float16", 1e-4), ("float32", 1e-23)]
)
def test_noise_that_is_zero_in_its_type_and_types_of_16_bits(dtype, noise_std):
    matrix = jnp.diag(jnp.array([4.0, 2.0, 1.0, 0.0], dtype))
    found = measure_next.choose(lambda v: matrix @ v, 4, noise_std, 4, dtype=dtype)
    exact = measure_next.choose(lambda v: matrix.astype(float) @ v, 4, 1.0, 4)
    expected = exact.removed if noise_std == 1.0 else jnp.array([4.0, 2.0, 1.0, 0.0])
    assert found.places.tolist() == [0, 1, 2, 3] and found.removed.dtype == dtype
    np.testing.assert_allclose(found.removed.astype(float), expected, rtol=0.05)


def test_noise_above_the_rounding_counts_as_it_is():
    matrix = 1e6 * jnp.ones((4, 4), jnp.float32) + jnp.eye(4, dtype=jnp.float32)
    found = measure_next.choose(lambda v: matrix @ v, 4, 1.0, 3, dtype=jnp.float32)
    right = measure_next.choose(lambda v: matrix.astype(float) @ v, 4, 1.0, 3)
    np.testing.assert_allclose(found.removed, right.removed, rtol=0.1)


@pytest.mark.parametrize("noise_std", [0.1, 1e-3])
def test_choices_stay_the_best_where_little_is_left_in_float32(noise_std):
    """A smooth signal, of which ten values say nearly all: against double precision."""
    place = np.linspace(0.0, 1.0, 100)
    matrix = 100.0 * np.exp(-0.5 * np.square((place[:, None] - place) / 0.1))
    low = jnp.asarray(matrix, jnp.float32)
    found = measure_next.choose(lambda v: low @ v, 100, noise_std, 30, dtype=jnp.float32)
    assert len(set(found.places.tolist())) == 30
    best = measure_next.choose(lambda v: matrix @ v, 100, noise_std, 30)

    def left(places):
        seen = matrix[places]
        inner = seen[:, places] + noise_std**2 * np.eye(len(places))
        return np.trace(matrix - seen.T @ np.linalg.solve(inner, seen))

    # Noise below the rounding of the variances counts as that: 100 * 8 * 2^-23, of 100 values.
    floor = 100 * 100 * 8 * 2.0**-23
    assert left(np.asarray(found.places)) < 1.2 * left(np.asarray(best.places)) + floor
