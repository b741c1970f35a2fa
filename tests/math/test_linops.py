"""Every law of the structured matrices, over all structures and pairs, against dense float64."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank

DIM = 7
STRUCTURES = ["diagonal", "low_rank", "low_rank_wide", "low_rank_isotropic", "dense"]


def make(structure, seed, positive=False):
    rng = np.random.default_rng(seed)
    diag = jnp.asarray(rng.uniform(0.3, 2.0, DIM) if positive else rng.normal(size=DIM))
    if structure == "diagonal":
        return Diagonal(diag)
    if structure == "low_rank_isotropic":
        return IsotropicPlusLowRank.from_multiple(diag[0], jnp.asarray(rng.normal(size=(DIM, 3))))
    if structure.startswith("low_rank"):
        rank = 2 if structure == "low_rank" else DIM + 3
        return DiagonalPlusLowRank(diag, jnp.asarray(rng.normal(size=(DIM, rank))))
    matrix = rng.normal(size=(DIM, DIM))
    return Dense(jnp.asarray(matrix @ matrix.T + np.eye(DIM) if positive else matrix + matrix.T))


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return request.param


@pytest.mark.parametrize("columns", [None, 1, 3])
def test_matvec_and_quadratic_form(structure, columns):
    matrix, dense = make(structure, 0), np.asarray(make(structure, 0).to_dense())
    shape = (DIM,) if columns is None else (DIM, columns)
    vector = np.random.default_rng(1).normal(size=shape)
    np.testing.assert_allclose(matrix.matvec(jnp.asarray(vector)), dense @ vector, rtol=1e-12)
    expected = np.trace(np.atleast_2d(vector.T) @ dense @ vector.reshape(DIM, -1))
    np.testing.assert_allclose(matrix.quadratic_form(jnp.asarray(vector)), expected, rtol=1e-12)


def test_single_matrix_laws(structure):
    matrix, dense = make(structure, 2), np.asarray(make(structure, 2).to_dense())
    assert matrix.dim == DIM
    np.testing.assert_allclose(dense, dense.T)
    np.testing.assert_allclose(matrix.trace(), np.trace(dense), rtol=1e-12)
    np.testing.assert_allclose(matrix.diagonal(), np.diag(dense), rtol=1e-12)
    np.testing.assert_allclose(matrix.norm(), np.linalg.norm(dense), rtol=1e-12)
    np.testing.assert_allclose(matrix.squared_norm(), np.sum(dense**2), rtol=1e-12)
    np.testing.assert_allclose(matrix.transpose().to_dense(), dense.T)
    identity = np.eye(DIM)
    np.testing.assert_allclose(matrix.add_identity(-1.5).to_dense(), dense - 1.5 * identity)
    np.testing.assert_allclose(matrix.scale(2.5).to_dense(), 2.5 * dense, rtol=1e-12)
    vector = jnp.arange(1.0, DIM + 1)
    np.testing.assert_allclose(matrix.add_diagonal(vector).to_dense(), dense + np.diag(vector))
    outer = np.outer(vector, vector)
    np.testing.assert_allclose(matrix.add_outer(vector).to_dense(), dense + outer, rtol=1e-12)


@pytest.mark.parametrize(("left", "right"), list(itertools.product(STRUCTURES, STRUCTURES)))
def test_pair_laws(left, right):
    a, b = make(left, 3), make(right, 4)
    dense_a, dense_b = np.asarray(a.to_dense()), np.asarray(b.to_dense())
    np.testing.assert_allclose(a.inner(b), np.sum(dense_a * dense_b), rtol=1e-12)
    np.testing.assert_allclose((a + b).to_dense(), dense_a + dense_b, rtol=1e-12, atol=1e-12)
    if left.startswith("low_rank") and right.startswith("low_rank"):
        with pytest.raises(ValueError, match="to_dense"):
            a - b
    elif right.startswith("low_rank") and left == "diagonal":
        with pytest.raises(ValueError, match="c >= 0"):
            a - b
    else:
        np.testing.assert_allclose((a - b).to_dense(), dense_a - dense_b, rtol=1e-12, atol=1e-12)


def test_inverse_laws(structure):
    matrix = make(structure, 5, positive=True)
    dense = np.asarray(matrix.to_dense())
    rng = np.random.default_rng(6)
    vector, vectors = rng.normal(size=DIM), rng.normal(size=(DIM, 3))
    np.testing.assert_allclose(
        matrix.solve(jnp.asarray(vector)), np.linalg.solve(dense, vector), rtol=1e-10
    )
    np.testing.assert_allclose(
        matrix.solve(jnp.asarray(vectors)), np.linalg.solve(dense, vectors), rtol=1e-9, atol=1e-12
    )
    logdet = np.linalg.slogdet(dense)[1]
    np.testing.assert_allclose(matrix.logdet(), logdet, rtol=1e-10)
    terms = matrix.inverse_quadratic_form_and_logdet(jnp.asarray(vector))
    expected = vector @ np.linalg.solve(dense, vector)
    np.testing.assert_allclose(terms.quadratic_form, expected, rtol=1e-10)
    np.testing.assert_allclose(terms.logdet, logdet, rtol=1e-10)


def test_woodbury_gradients_equal_dense_gradients():
    matrix = make("low_rank", 7, positive=True)
    vector = jnp.asarray(np.random.default_rng(8).normal(size=DIM))

    def objective(structured, dense):
        a = Dense(structured.to_dense()) if dense else structured
        form, logdet = a.inverse_quadratic_form_and_logdet(vector)
        return form + logdet

    structured = jax.grad(objective)(matrix, False)
    chex.assert_trees_all_close(structured, jax.grad(objective)(matrix, True), rtol=1e-9)


def test_float32_woodbury_survives_tiny_diagonal_and_collinear_factor():
    rng = np.random.default_rng(9)
    column = rng.normal(size=(400, 1))
    factor = column + 1e-4 * rng.normal(size=(400, 16))
    matrix = DiagonalPlusLowRank(jnp.full(400, 1e-4), jnp.asarray(factor))
    vector = jnp.asarray(0.01 * rng.normal(size=400))
    low = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), matrix)
    form, logdet = low.inverse_quadratic_form_and_logdet(vector.astype(jnp.float32))
    exact = Dense(matrix.to_dense()).inverse_quadratic_form_and_logdet(vector)
    np.testing.assert_allclose(form, exact.quadratic_form, rtol=1e-5)
    np.testing.assert_allclose(logdet, exact.logdet, rtol=1e-6)


def test_structures_are_pytrees_and_batch_under_vmap(structure):
    batch = [make(structure, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batch)
    vectors = jnp.asarray(np.random.default_rng(10).normal(size=(3, DIM)))
    out = jax.jit(jax.vmap(lambda a, v: a.quadratic_form(v)))(stacked, vectors)
    expected = [float(a.quadratic_form(v)) for a, v in zip(batch, vectors, strict=True)]
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_wrong_shapes_raise(structure):
    matrix = make(structure, 11)
    with pytest.raises(ValueError, match=r"expected shape \(7,\)"):
        matrix.matvec(jnp.zeros(DIM + 1))
    with pytest.raises(ValueError, match="sizes differ"):
        matrix.inner(Diagonal(jnp.zeros(DIM + 1)))
    if structure.startswith("low_rank"):
        with pytest.raises(ValueError, match="c >= 0"):
            matrix.scale(-1.0)
