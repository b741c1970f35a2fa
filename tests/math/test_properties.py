"""Laws that hold for every value, on values that hypothesis chooses: zeros, ties, wide ranges."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hos_jax import tweedie
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank

# One shape of each kind, compiled once; the values are what varies.
DIM, RANK = 4, 2
CHECKED = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def numbers(*shape, largest=1e3):
    return arrays(np.float64, shape, elements=st.floats(-largest, largest, width=32))


@st.composite
def matrices(draw, positive=False):
    """A structured matrix; with `positive`, a well-conditioned positive definite one."""
    kind = draw(st.sampled_from(["diagonal", "low_rank", "isotropic", "dense"]))
    diag = draw(numbers(DIM))
    factor = draw(numbers(DIM, RANK, largest=30.0))
    if positive:
        diag = 0.5 + np.abs(diag) / 100.0
    if kind == "diagonal":
        return Diagonal(jnp.asarray(diag))
    if kind == "low_rank":
        return DiagonalPlusLowRank(jnp.asarray(diag), jnp.asarray(factor))
    if kind == "isotropic":
        return IsotropicPlusLowRank.from_multiple(jnp.asarray(diag)[0], jnp.asarray(factor))
    return Dense(jnp.asarray(np.diag(diag) + factor @ factor.T))


def close(got, expected, scale=0.0):
    """Equal up to rounding of numbers of the size of `scale`, or of their own."""
    size = max(float(scale), float(np.max(np.abs(expected), initial=0.0)))
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-10 * size + 1e-12)


@jax.jit
def linear_algebra(matrix, vector, number):
    return {
        "dense": matrix.to_dense(),
        "matvec": matrix.matvec(vector),
        "quadratic_form": matrix.quadratic_form(vector),
        "trace": matrix.trace(),
        "diagonal": matrix.diagonal(),
        "squared_norm": matrix.squared_norm(),
        "scale": matrix.scale(jnp.abs(number)).to_dense(),
        "add_identity": matrix.add_identity(number).to_dense(),
        "add_outer": matrix.add_outer(vector).to_dense(),
    }


@CHECKED
@given(matrices(), numbers(DIM), st.floats(-10, 10))
def test_a_structured_matrix_is_its_dense_one(matrix, vector, number):
    got = linear_algebra(matrix, jnp.asarray(vector), jnp.asarray(number))
    dense = np.asarray(got["dense"])
    norm, length = np.linalg.norm(dense), np.linalg.norm(vector)
    close(got["matvec"], dense @ vector, norm * length)
    close(got["quadratic_form"], vector @ dense @ vector, norm * length**2)
    close(got["trace"], np.trace(dense), norm)
    close(got["diagonal"], np.diag(dense), norm)
    close(got["squared_norm"], np.sum(dense**2), norm**2)
    close(got["scale"], np.abs(number) * dense)
    close(got["add_identity"], dense + number * np.eye(DIM))
    close(got["add_outer"], dense + np.outer(vector, vector))


@jax.jit
def pair(a, b):
    return a.inner(b), b.inner(a), (a + b).to_dense(), (b + a).to_dense()


@CHECKED
@given(matrices(), matrices())
def test_sums_and_inner_products_commute_and_are_the_dense_ones(a, b):
    inner, swapped, total, other = pair(a, b)
    dense_a, dense_b = np.asarray(a.to_dense()), np.asarray(b.to_dense())
    size = np.linalg.norm(dense_a) * np.linalg.norm(dense_b)
    close(inner, np.sum(dense_a * dense_b), size)
    close(swapped, inner, size)
    close(total, dense_a + dense_b, np.abs(dense_a).max() + np.abs(dense_b).max())
    close(other, total)


@jax.jit
def inverse(matrix, vector):
    both = matrix.inverse_quadratic_form_and_logdet(vector)
    return matrix.to_dense(), matrix.solve(vector), matrix.logdet(), both


@CHECKED
@given(matrices(positive=True), numbers(DIM, largest=10.0))
def test_solve_and_logdet_invert_what_matvec_does(matrix, vector):
    dense, solved, logdet, both = inverse(matrix, jnp.asarray(vector))
    # The condition number is at most 1e4 or so: factors up to 30 over a diagonal of 0.5.
    np.testing.assert_allclose(dense @ solved, vector, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(dense)[1], rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(both.logdet, logdet, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(both.quadratic_form, vector @ solved, rtol=1e-6, atol=1e-7)
    assert both.quadratic_form >= 0.0


@CHECKED
@given(matrices(), st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_vector_of_another_size_is_refused(matrix, rows, columns, is_vector):
    shape = (rows,) if is_vector else (rows, columns)
    if rows != DIM:
        for method in (matrix.matvec, matrix.quadratic_form, matrix.solve):
            with pytest.raises(ValueError, match="expected shape"):
                method(np.zeros(shape))
        with pytest.raises(ValueError, match="sizes differ"):
            matrix.inner(Diagonal(np.zeros(rows)))


@st.composite
def discrete_laws(draw):
    """Points (3, D) and their weights: a law with all its moments at hand."""
    dim = draw(st.sampled_from([1, 2]))
    points = draw(numbers(3, dim, largest=4.0))
    weights = draw(arrays(np.float64, 3, elements=st.floats(0.125, 1.0)))
    return points, weights / weights.sum()


def raw_moments(points, weights):
    moments, power = [], weights
    for order in range(1, 4):
        power = power[..., None] * points.reshape(3, *(1,) * (order - 1), -1)
        moments.append(jnp.asarray(power.sum(axis=0)))
    return tuple(moments)


@functools.partial(jax.jit, static_argnums=2)
def there_and_back(moments, noisy, back, sigma):
    cumulants = tweedie.moments_to_cumulants(moments)
    scores = tweedie.moments_to_scores(noisy, moments, sigma)
    if not back:
        return cumulants, scores
    return tweedie.cumulants_to_moments(cumulants), tweedie.scores_to_moments(noisy, scores, sigma)


@CHECKED
@given(discrete_laws(), st.floats(0.25, 4.0), st.floats(-3, 3), st.floats(-3, 3))
def test_tweedie_maps_invert_each_other_and_follow_the_laws_of_cumulants(law, sigma, shift, factor):
    points, weights = law
    noisy = jnp.asarray(points[0] + 1.0)
    moments = raw_moments(points, weights)
    cumulants, scores = there_and_back(moments, noisy, False, sigma)
    largest = 1.0 + np.abs(points).max()
    for again in there_and_back(moments, noisy, True, sigma):
        for order, (got, expected) in enumerate(zip(again, moments, strict=True), start=1):
            close(got, expected, 100.0 * largest**order)
    mean, covariance = moments[0], moments[1] - np.outer(moments[0], moments[0])
    close(tweedie.posterior_mean(noisy, scores[0], sigma), mean, largest)
    close(tweedie.posterior_covariance(Dense(scores[1]), sigma).to_dense(), covariance, largest**2)
    # kappa_n(a x + c) = a^n kappa_n(x), plus c for n = 1.
    moved, _ = there_and_back(raw_moments(factor * points + shift, weights), noisy, False, sigma)
    size = 1.0 + np.abs(factor * points + shift).max()
    for order, (got, before) in enumerate(zip(moved, cumulants, strict=True), start=1):
        expected = factor**order * np.asarray(before) + (shift if order == 1 else 0.0)
        close(got, expected, 100.0 * (size + abs(factor) * largest) ** order)


@CHECKED
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(1, 3))
def test_tensors_of_other_shapes_are_refused(sizes, dim):
    tensors = [np.zeros((size,) * order) for order, size in enumerate(sizes, start=1)]
    if any(size != dim for size in sizes):
        with pytest.raises(ValueError, match="expected scores of order"):
            tweedie.scores_to_cumulants(jnp.zeros(dim), tensors, 0.5)
    with pytest.raises(ValueError, match="got none"):
        tweedie.cumulants_to_moments([])
