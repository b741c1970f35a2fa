"""Numbers that tell unusual points, against their dense formulas, and what is made of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_scores import derivatives_of

from hos_jax import distributions
from hos_jax.linops import Dense, DiagonalPlusLowRank, Local, LocalPlusLowRank
from hos_jax.linops.local import count_taps
from hos_jax.uses import unusual

DIM = 6
SIGMAS = jnp.array([0.2, 0.5, 1.0])


@pytest.fixture(scope="module")
def law():
    means = 0.7 * jax.random.normal(jax.random.key(0), (3, DIM))
    return distributions.GaussianMixture(jnp.full(3, 1 / 3), means, stds=jnp.full(3, 0.3))


def test_features_are_their_dense_formulas(law):
    clean = law.sample(jax.random.key(1), 1)[0]
    seen = []

    def derivatives_fn(noisy, sigma):
        found = derivatives_of(law)(noisy, sigma)
        jax.debug.callback(lambda *values: seen.append(values), sigma, noisy, found[0], found[1])
        return found

    found = unusual.features(
        jax.random.key(2), clean, derivatives_fn, SIGMAS, draws=2, leading=2, krylov_vectors=DIM
    )
    jax.effects_barrier()
    expected = {float(sigma): [] for sigma in SIGMAS}
    for sigma, noisy, score1, score2 in seen:
        noise = (noisy - np.asarray(clean)) / sigma
        covariance = np.eye(DIM) + sigma**2 * np.asarray(score2.to_dense())
        residual = -sigma * np.asarray(score1) - np.asarray(noise)
        form = residual @ np.linalg.solve(covariance, residual)
        size = np.sum((sigma * np.asarray(score1)) ** 2)
        expected[float(sigma)].append(
            [
                np.log(np.trace(covariance)),
                np.log(np.sum(np.linalg.eigvalsh(covariance)[-2:])),
                np.log(size / (DIM - np.trace(covariance))),
                np.log(np.mean(residual**2 / np.diag(covariance))),
                np.log(form / DIM),
                (form + np.linalg.slogdet(covariance)[1]) / (2 * DIM),
            ]
        )
    assert all(len(values) == 2 for values in expected.values())
    rows = np.array([np.mean(values, axis=0) for values in expected.values()])
    np.testing.assert_allclose(np.array(found).T, rows, rtol=1e-8)
    np.testing.assert_allclose(found.stacked(), rows.T.ravel(), rtol=1e-8)
    np.testing.assert_allclose(found.stacked("cost", "trace"), rows.T[[5, 0]].ravel(), rtol=1e-8)


def test_a_local_covariance_gives_what_its_dense_form_does():
    shape, dim = (3, 4, 1), 12
    keys = jax.random.split(jax.random.key(12), 4)
    scales = jax.random.uniform(keys[0], (dim,), minval=0.3, maxval=0.9)
    local = Local(scales, 0.3 * jax.random.normal(keys[1], (dim, count_taps(shape, 1))), shape, 1)
    covariance = LocalPlusLowRank(local, 0.2 * jax.random.normal(keys[2], (dim, 2)))
    clean, sigmas = jax.random.normal(keys[3], (dim,)), jnp.array([0.5, 1.0])

    def derivatives_fn(noisy, sigma, *, dense):
        score2 = covariance.add_identity(-1.0).scale(sigma**-2)
        return -0.7 * noisy, Dense(score2.to_dense()) if dense else score2

    arguments = {"sigmas": sigmas, "krylov_vectors": dim}
    local_fn, dense_fn = (functools.partial(derivatives_fn, dense=d) for d in (False, True))
    found = unusual.features(jax.random.key(13), clean, local_fn, **arguments)
    expected = unusual.features(jax.random.key(13), clean, dense_fn, **arguments)
    np.testing.assert_allclose(found.stacked(), expected.stacked(), rtol=1e-7, atol=1e-9)
    place = unusual.unusual_map(jax.random.key(14), clean, local_fn, sigmas)
    dense_place = unusual.unusual_map(jax.random.key(14), clean, dense_fn, sigmas)
    np.testing.assert_allclose(place, dense_place, rtol=1e-9)


def test_distances_are_those_of_mahalanobis():
    values = jax.random.normal(jax.random.key(3), (4000, 3)) @ jnp.array(
        [[1.0, 0.5, 0.0], [0.0, 1.0, 0.7], [0.0, 0.0, 0.2]]
    )
    point = jnp.array([1.0, -2.0, 0.3])
    known = unusual.usual(values, shrinkage=1e-9)
    centred = np.asarray(point - values.mean(axis=0))
    expected = centred @ np.linalg.solve(np.cov(np.asarray(values).T), centred) / 3
    np.testing.assert_allclose(unusual.distances(known, point), expected, rtol=1e-6)
    all_values = jax.vmap(functools.partial(unusual.distances, known))(values)
    np.testing.assert_allclose(jnp.mean(all_values), 1.0, rtol=1e-3)
    scores = jax.vmap(functools.partial(unusual.z_scores, known))(values)
    np.testing.assert_allclose(jnp.std(scores, axis=0, ddof=1), 1.0, rtol=1e-9)
    above = np.maximum(np.asarray(unusual.z_scores(known, point)), 0.0)
    assert (above == 0).any() and (above > 0).any()
    np.testing.assert_allclose(unusual.excess(known, point), np.mean(above**2), rtol=1e-9)
    # With full shrinkage it is the mean square of the z-scores.
    loose = unusual.usual(values, shrinkage=1.0)
    mean_square = jnp.mean(jnp.square(unusual.z_scores(loose, point)))
    np.testing.assert_allclose(unusual.distances(loose, point), mean_square, rtol=1e-9)


def test_a_foreign_point_and_its_foreign_value_are_found(law):
    @jax.jit
    @jax.vmap
    def look(key, clean):
        found = unusual.features(key, clean, derivatives_of(law), SIGMAS, draws=4)
        return found.stacked()

    def keys(seed, count=100):
        return jax.random.split(jax.random.key(seed), count)

    usual_points = law.sample(jax.random.key(5), 400)
    known = unusual.usual(look(keys(6, 300), usual_points[:300]))
    changed = usual_points[300:].at[:, 2].add(2.5)
    judge = jax.vmap(functools.partial(unusual.distances, known))
    near, far = judge(look(keys(7), usual_points[300:])), judge(look(keys(8), changed))
    assert 0.3 < float(jnp.mean(near)) < 1.3
    assert float(jnp.mean(far[:, None] > near[None])) > 0.97
    locate = jax.jit(jax.vmap(lambda k, x: unusual.unusual_map(k, x, derivatives_of(law), SIGMAS)))
    maps, usual_maps = locate(keys(9), changed), locate(keys(10), usual_points[:100])
    assert float(jnp.mean(jnp.argmax(maps, axis=1) == 2)) > 0.9
    np.testing.assert_allclose(jnp.mean(usual_maps, axis=0), 1.0, atol=0.3)


@pytest.mark.parametrize("dim", [1, 3])
def test_of_few_values_all_eigenvalues_lead(dim):
    def derivatives_fn(noisy, sigma):
        return -noisy, DiagonalPlusLowRank(jnp.full(dim, -0.5), 0.1 * jnp.ones((dim, 1)))

    found = unusual.features(jax.random.key(0), jnp.zeros(dim), derivatives_fn, SIGMAS)
    np.testing.assert_allclose(found.leading, found.trace, rtol=1e-9)


def test_what_does_not_fit_is_refused():
    key, clean = jax.random.key(0), jnp.zeros(4)

    def derivatives_fn(noisy, sigma):
        return -noisy, DiagonalPlusLowRank(jnp.full(4, -0.5), jnp.zeros((4, 1)))

    for function in (unusual.features, unusual.unusual_map):
        with pytest.raises(ValueError, match=r"levels that rise, got \[1\.  0\.5\]"):
            function(key, clean, derivatives_fn, jnp.array([1.0, 0.5]))
        with pytest.raises(TypeError, match="score2 is an array"):
            function(jax.random.key(2), clean, lambda y, s: (-y, -jnp.eye(4)), SIGMAS)
        with pytest.raises(TypeError, match="score2 is None: this needs a model of the second"):
            function(jax.random.key(3), clean, lambda y, s: (-y, None), SIGMAS)
        with pytest.raises(ValueError, match="two noise levels or more"):
            function(jax.random.key(4), clean, derivatives_fn, 0.3)
    with pytest.raises(ValueError, match="floating-point"):
        unusual.unusual_map(key, jnp.zeros(4, int), derivatives_fn, SIGMAS)
    with pytest.raises(ValueError, match="leading >= 1"):
        unusual.features(key, clean, derivatives_fn, SIGMAS, leading=0)
    with pytest.raises(ValueError, match="one shape"):
        unusual.features(key, clean, lambda y, s: (y[:2], derivatives_fn(y, s)[1]), SIGMAS)
    with pytest.raises(ValueError, match=r"\(N, F\)"):
        unusual.usual(jnp.ones(4))
    with pytest.raises(ValueError, match="shrinkage"):
        unusual.usual(jnp.ones((4, 2)), shrinkage=0.0)
    for constant in (0.1, 7.7):  # whose mean is rounded
        same = jnp.stack([jnp.arange(10.0), jnp.full(10, constant)], 1).astype(jnp.float32)
        with pytest.raises(ValueError, match="same for all points"):
            unusual.usual(same)
    with pytest.raises(ValueError, match="same for all points"):
        unusual.usual(jnp.ones((4, 2)))
    known = unusual.usual(jax.random.normal(jax.random.key(1), (5, 2)))
    with pytest.raises(ValueError, match="one shape"):
        unusual.z_scores(known, jnp.ones(3))
