"""Third-order losses: dense oracles, unbiasedness on a skewed mixture, robustness to s1's error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import losses
from hos_jax.distributions import GaussianMixture
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank

DIM, SIGMA = 2, 0.7


def covariance(kind, rng, dim):
    diag = jnp.asarray(rng.uniform(0.2, 1.0, dim))
    factor = jnp.asarray(rng.normal(size=(dim, 2)))
    if kind == "none":
        return None
    if kind == "diagonal":
        return Diagonal(diag)
    low_rank = DiagonalPlusLowRank(diag, factor)
    return low_rank if kind == "low_rank" else Dense(low_rank.to_dense())


def dense_target(residual, matrix):
    """r r r - 3 sym(C r), written out element by element."""
    dim = residual.size
    target = np.zeros((dim,) * 3)
    for i, j, k in np.ndindex(target.shape):
        target[i, j, k] = residual[i] * residual[j] * residual[k]
        target[i, j, k] -= matrix[i, j] * residual[k]
        target[i, j, k] -= matrix[i, k] * residual[j] + matrix[j, k] * residual[i]
    return target


@pytest.mark.parametrize("kind", ["none", "diagonal", "low_rank", "dense"])
def test_the_three_forms_equal_the_dense_formula(kind):
    rng = np.random.default_rng(1)
    dim = 4
    residual, probe, vector = (rng.normal(size=dim) for _ in range(3))
    tensor = rng.normal(size=(dim,) * 3)
    c = covariance(kind, rng, dim)
    matrix = np.zeros((dim, dim)) if c is None else np.asarray(c.to_dense())
    target = dense_target(residual, matrix)

    def expected(output, wanted):
        return 0.5 * np.sum(output**2) + np.sum(output * wanted)

    got = losses.d3sm(jnp.asarray(tensor), jnp.asarray(residual), c)
    np.testing.assert_allclose(got, expected(tensor, target), rtol=1e-12)
    got = losses.d3sm_diagonal(jnp.asarray(vector), jnp.asarray(residual), c)
    np.testing.assert_allclose(got, expected(vector, np.einsum("iii->i", target)), rtol=1e-12)
    got = losses.d3sm_contraction(jnp.asarray(vector), jnp.asarray(residual), jnp.asarray(probe), c)
    contracted = np.einsum("ijk,i,j->k", target, probe, probe)
    np.testing.assert_allclose(got, expected(vector, contracted), rtol=1e-12)


def test_numbers_of_16_bits_are_taken_as_float32():
    """Whose third powers are beyond float16 from 41 on."""
    dim = 5
    rng = np.random.default_rng(3)
    vector, residual, probe, tensor = (
        jnp.asarray(rng.normal(size=shape), jnp.float16) for shape in (dim, dim, dim, (dim,) * 3)
    )
    matrix = covariance("low_rank", rng, dim)
    given = vector, 50 * residual, probe, tensor, jax.tree.map(jnp.float16, matrix)

    def everything(vector, residual, probe, tensor, matrix):
        return (
            losses.d3sm(tensor, residual, matrix),
            losses.d3sm_diagonal(vector, residual, matrix),
            losses.d3sm_contraction(vector, residual, probe, matrix),
        )

    expected = everything(*jax.tree.map(jnp.float32, given))
    assert all(np.isfinite(value) for value in expected)
    for found, value in zip(everything(*given), expected, strict=True):
        assert found.dtype == jnp.float32 and found == value


def test_gradients_stop_at_residual_and_covariance():
    vector = jnp.asarray([0.3, -0.2])

    def loss(residual, diag):
        return losses.d3sm_diagonal(vector, residual, Diagonal(diag))

    gradients = jax.grad(loss, (0, 1))(vector, jnp.ones(2))
    assert not any(jnp.any(g) for g in gradients)


@pytest.fixture(scope="module")
def posterior_draws():
    """One y of a skewed mixture, and many draws of z from its exact posterior."""
    weights = jnp.asarray([0.75, 0.25])
    means = jnp.asarray([[0.0, 0.3], [1.1, -0.9]])
    covariances = jnp.asarray([[[0.5, 0.2], [0.2, 0.3]], [[0.2, -0.05], [-0.05, 0.4]]])
    law = GaussianMixture(weights, means, covariances)
    smooth = law.smooth(SIGMA)
    y = jnp.asarray([0.6, -0.4])
    rng = np.random.default_rng(5)
    total = np.asarray(covariances) + SIGMA**2 * np.eye(DIM)
    offset = np.asarray(y) - np.asarray(means)
    log_weight = np.log(np.asarray(weights)) - 0.5 * np.linalg.slogdet(total)[1]
    log_weight -= 0.5 * np.einsum("ki,kij,kj->k", offset, np.linalg.inv(total), offset)
    responsibility = np.exp(log_weight - log_weight.max())
    count = 400_000
    component = rng.choice(2, size=count, p=responsibility / responsibility.sum())
    gain = np.asarray(covariances) @ np.linalg.inv(total)
    centre = np.asarray(means) + np.einsum("kij,kj->ki", gain, offset)
    spread = np.asarray(covariances) - gain @ np.asarray(covariances)
    draws = np.einsum(
        "nij,nj->ni", np.linalg.cholesky(spread)[component], rng.normal(size=(count, DIM))
    )
    clean = centre[component] + draws
    return smooth, y, jnp.asarray((np.asarray(y) - clean) / SIGMA)


def exact(smooth, y):
    scaled_third = SIGMA**3 * smooth.score_tensor(y, 3)
    return smooth.score(y), smooth.hessian(y).scale(SIGMA**2).add_identity(), scaled_third


def mean_gradient(loss, at, residuals):
    gradients = jax.vmap(jax.grad(loss), (None, 0))(at, residuals)
    return np.mean(gradients, axis=0), np.std(gradients, axis=0) / np.sqrt(len(residuals))


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("form", ["dense", "diagonal", "contraction"])
def test_mean_gradient_vanishes_at_the_exact_third_score_and_only_there(
    posterior_draws, form, centred
):
    smooth, y, noise = posterior_draws
    score, c, third = exact(smooth, y)
    residuals = jax.vmap(losses.residual, (None, 0, None))(score, noise, SIGMA)
    model = c if centred else None
    probe = jnp.asarray([0.8, -1.3])
    if form == "dense":
        answer = third
        loss = lambda t, r: losses.d3sm(t, r, model)  # noqa: E731
    elif form == "diagonal":
        answer = jnp.einsum("iii->i", third)
        loss = lambda t, r: losses.d3sm_diagonal(t, r, model)  # noqa: E731
    else:
        answer = jnp.einsum("ijk,i,j->k", third, probe, probe)
        loss = lambda t, r: losses.d3sm_contraction(t, r, probe, model)  # noqa: E731
    mean, error = mean_gradient(loss, answer, residuals)
    assert np.all(np.abs(mean) < 4 * error)
    mean, error = mean_gradient(loss, -answer, residuals)
    assert np.any(np.abs(mean) > 8 * error)


def test_centring_makes_an_error_of_s1_second_order(posterior_draws):
    smooth, y, noise = posterior_draws
    score, c, third = exact(smooth, y)

    def bias(size, model):
        wrong = score + size * jnp.asarray([1.0, -0.5])
        residuals = jax.vmap(losses.residual, (None, 0, None))(wrong, noise, SIGMA)
        reference = jax.vmap(losses.residual, (None, 0, None))(score, noise, SIGMA)
        target = jax.grad(lambda t, r: losses.d3sm(t, r, model))
        zero = jnp.zeros_like(third)
        change = jax.vmap(target, (None, 0))(zero, residuals) - jax.vmap(target, (None, 0))(
            zero, reference
        )
        return float(jnp.linalg.norm(jnp.mean(change, axis=0)))

    assert bias(0.01, None) / bias(0.001, None) == pytest.approx(10, rel=0.1)
    assert bias(0.1, c) < 0.05 * bias(0.1, None)


def test_mismatched_shapes_raise():
    three, four = jnp.zeros(3), jnp.zeros(4)
    with pytest.raises(ValueError, match="scaled_third of shape"):
        losses.d3sm(jnp.zeros((3, 3)), three)
    with pytest.raises(ValueError, match="one shape"):
        losses.d3sm_diagonal(three, four)
    with pytest.raises(ValueError, match="one shape"):
        losses.d3sm_contraction(three, three, four)
    with pytest.raises(ValueError, match="one shape"):
        losses.d3sm_diagonal(three, three, Diagonal(four))
