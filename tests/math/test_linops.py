"""Every law of the structured matrices, over all structures and pairs, against dense float64."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from hos_jax.linops import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    IsotropicPlusLowRank,
    Local,
    LocalPlusLowRank,
    PlusLowRank,
)
from hos_jax.linops.local import count_taps

IMAGE = (2, 3, 2)
DIM = 12
STRUCTURES = ["diagonal", "low_rank", "low_rank_wide", "low_rank_isotropic", "dense"]
STRUCTURES += ["local", "local_low_rank"]
# Those of a form that only sums have: their differences need a `Dense` one.
SUMS = ("low_rank", "local")


def make(structure, seed, positive=False):
    rng = np.random.default_rng(seed)
    diag = jnp.asarray(rng.uniform(0.3, 2.0, DIM) if positive else rng.normal(size=DIM))
    if structure == "diagonal":
        return Diagonal(diag)
    if structure.startswith("local"):
        taps = jnp.asarray(0.3 * rng.normal(size=(DIM, count_taps(IMAGE, 1))))
        local = Local(jnp.abs(diag), taps, IMAGE, 1)
        factor = jnp.asarray(rng.normal(size=(DIM, 2)))
        return local if structure == "local" else LocalPlusLowRank(local, factor)
    if structure == "low_rank_isotropic":
        return IsotropicPlusLowRank.from_multiple(diag[0], jnp.asarray(rng.normal(size=(DIM, 3))))
    if structure.startswith("low_rank"):
        rank = 2 if structure == "low_rank" else DIM + 3
        return DiagonalPlusLowRank(diag, jnp.asarray(rng.normal(size=(DIM, rank))))
    matrix = rng.normal(size=(DIM, DIM))
    return Dense(jnp.asarray(matrix @ matrix.T + np.eye(DIM) if positive else matrix + matrix.T))


def make_batch(structure, shape, positive=False, start=0):
    """Matrices of different seeds, stacked along the axes of `shape`."""
    alone = [make(structure, start + i, positive) for i in range(int(np.prod(shape)))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves).reshape(*shape, *leaves[0].shape), *alone)


def over_batch(function, shape):
    """The function of each of a batch, by one vmap."""

    def flat(*arguments):
        arguments = jax.tree.map(lambda x: x.reshape(np.prod(shape), *x.shape[2:]), arguments)
        found = jax.vmap(function)(*arguments)
        return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)

    assert len(shape) == 2
    return flat


def eigenpairs_below(matrix, pairs):
    values = pairs.eigenvalues[..., None, :]
    return jnp.concatenate([values, matrix @ pairs.eigenvectors / values], axis=-2)


# What is computed with a matrix, a vector v and columns V, and what it is for the dense matrix.
LAWS = {
    "to_dense": (lambda a, v, w: a.to_dense(), lambda d, v, w: d),
    "diagonal": (lambda a, v, w: a.diagonal(), lambda d, v, w: np.diag(d)),
    "trace": (lambda a, v, w: a.trace(), lambda d, v, w: np.trace(d)),
    "norm": (lambda a, v, w: a.norm(), lambda d, v, w: np.linalg.norm(d)),
    "squared_norm": (lambda a, v, w: a.squared_norm(), lambda d, v, w: np.sum(d**2)),
    "matvec": (lambda a, v, w: a.matvec(v), lambda d, v, w: d @ v),
    "columns": (lambda a, v, w: a.matvec(w), lambda d, v, w: d @ w),
    "@": (lambda a, v, w: a @ w, lambda d, v, w: d @ w),
    "form": (lambda a, v, w: a.quadratic_form(v), lambda d, v, w: v @ d @ v),
    "forms": (lambda a, v, w: a.quadratic_form(w), lambda d, v, w: np.trace(w.T @ d @ w)),
    "scale": (lambda a, v, w: a.scale(2.5).to_dense(), lambda d, v, w: 2.5 * d),
    "*": (lambda a, v, w: (a * 2.5).to_dense(), lambda d, v, w: 2.5 * d),
    "numpy *": (lambda a, v, w: (np.float64(2.5) * a).to_dense(), lambda d, v, w: 2.5 * d),
    "scales": (lambda a, v, w: a.scale(v[..., 0] ** 2).to_dense(), lambda d, v, w: v[0] ** 2 * d),
    "identity": (
        lambda a, v, w: a.add_identity(-1.5).to_dense(),
        lambda d, v, w: d - 1.5 * np.eye(DIM),
    ),
    "identities": (
        lambda a, v, w: a.add_identity(v[..., 0]).to_dense(),
        lambda d, v, w: d + v[0] * np.eye(DIM),
    ),
    "add_diagonal": (lambda a, v, w: a.add_diagonal(v).to_dense(), lambda d, v, w: d + np.diag(v)),
    "add_outer": (lambda a, v, w: a.add_outer(v).to_dense(), lambda d, v, w: d + np.outer(v, v)),
    "add_columns": (lambda a, v, w: a.add_columns(w).to_dense(), lambda d, v, w: d + w @ w.T),
    "solve": (lambda a, v, w: a.solve(v), lambda d, v, w: np.linalg.solve(d, v)),
    "solves": (lambda a, v, w: a.solve(w), lambda d, v, w: np.linalg.solve(d, w)),
    "logdet": (lambda a, v, w: a.logdet(), lambda d, v, w: np.linalg.slogdet(d)[1]),
    "likelihood": (
        lambda a, v, w: jnp.stack(a.inverse_quadratic_form_and_logdet(v), -1),
        lambda d, v, w: [v @ np.linalg.solve(d, v), np.linalg.slogdet(d)[1]],
    ),
    "function": (
        lambda a, v, w: a.function_product(lambda x: jnp.exp(-x), v).value,
        lambda d, v, w: scipy.linalg.expm(-d) @ v,
    ),
    "lanczos": (
        lambda a, v, w: a.function_product(jnp.sqrt, v, dense="lanczos").value,
        lambda d, v, w: scipy.linalg.sqrtm(d) @ v,
    ),
    # The eigenvalues above what the matrix makes of their eigenvectors.
    "eigenpairs": (
        lambda a, v, w: eigenpairs_below(a, a.top_eigenpairs(2)),
        lambda d, v, w: np.vstack(np.linalg.eigh(d))[:, :-3:-1],
    ),
    "floor": (lambda a, v, w: a.floor(1e-3)[0].to_dense(), lambda d, v, w: d),
    "violations": (lambda a, v, w: a.floor(1e-3)[1].count, lambda d, v, w: 0),
}


# One vmap of the laws of one matrix, in the second case, has them too.
@pytest.mark.parametrize("shape", [pytest.param((), marks=pytest.mark.slow), (2, 2), (1, 0)])
def test_laws_of_batches(structure, shape):
    """Every method on a batch is that on each matrix, and that is the dense one."""
    batch = make_batch(structure, shape, positive=True) if 0 not in shape else None
    if batch is None:
        batch = jax.tree.map(lambda leaf: leaf[:, :0], make_batch(structure, (1, 2)))
    rng = np.random.default_rng(12)
    vectors, columns = rng.normal(size=(*shape, DIM)), rng.normal(size=(*shape, DIM, 2))
    assert batch.shape == (*shape, DIM, DIM) and batch.batch_shape == shape
    assert batch.dim == DIM and batch.dtype == jnp.float64

    def values(a, v, w):
        return {name: law(a, v, w) for name, (law, _) in LAWS.items()}

    # Weak types of scalars that are traced would hide what strict promotion refuses.
    found = jax.device_get(jax.jit(values)(batch, vectors, columns))
    # For one matrix they are the same program, and without any there are shapes alone to compare.
    if 0 in shape:
        each = jax.eval_shape(over_batch(values, shape), batch, vectors, columns)
        chex.assert_trees_all_equal_shapes_and_dtypes(found, each)
    elif shape:
        each = jax.device_get(jax.jit(over_batch(values, shape))(batch, vectors, columns))
        chex.assert_trees_all_close(found, each, rtol=1e-9)
    for index in np.ndindex(*shape):
        dense = np.asarray(found["to_dense"][index])
        for name, (_, law) in LAWS.items():
            expected = np.asarray(law(dense, vectors[index], columns[index]))
            got = found[name][index]
            if name == "eigenpairs":
                # Of eigenvectors, below the first row, the sign is free.
                got, expected = (np.vstack([a[:1], np.abs(a[1:])]) for a in (got, expected))
            np.testing.assert_allclose(got, expected, rtol=1e-7, atol=1e-9, err_msg=name)


@pytest.mark.parametrize(("left", "right"), list(itertools.product(STRUCTURES, STRUCTURES)))
def test_pair_laws_of_batches(left, right):
    a, b = make_batch(left, (3,)), make_batch(right, (3,), start=3)
    dense_a, dense_b = np.asarray(a.to_dense()), np.asarray(b.to_dense())
    np.testing.assert_allclose(a.inner(b), np.sum(dense_a * dense_b, (1, 2)), rtol=1e-12)
    if left.startswith("local") and right.startswith("local"):
        with pytest.raises(ValueError, match="two local structures"):
            a + b
        return
    np.testing.assert_allclose((a + b).to_dense(), dense_a + dense_b, rtol=1e-12, atol=1e-12)
    if left == "dense" or not right.startswith(SUMS):
        np.testing.assert_allclose((a - b).to_dense(), dense_a - dense_b, rtol=1e-12, atol=1e-12)
    else:
        with pytest.raises(ValueError, match=r"to_dense|c >= 0"):
            a - b
    one_a, one_b = jax.tree.map(lambda leaf: leaf[0], (a, b))
    with pytest.raises(ValueError, match="vmap"):
        a + one_b
    with pytest.raises(ValueError, match="vmap"):
        one_a.inner(b)


def test_minus_is_the_dense_one_where_there_is_one(structure):
    batch = make_batch(structure, (2,))
    if structure.startswith(SUMS):
        with pytest.raises(ValueError, match="c >= 0"):
            _ = -batch
        with pytest.raises(ValueError, match="c >= 0"):
            batch.scale(jnp.array([1.0, -1.0]))
    else:
        np.testing.assert_allclose((-batch).to_dense(), -batch.to_dense(), rtol=1e-12)


def test_a_floor_is_each_matrixs_own(structure):
    batch = make_batch(structure, (3,), positive=True)
    floors = jnp.array([0.0, 0.5, 50.0])
    for call in (lambda a, c: a.floor(c), jax.jit(lambda a, c: a.floor(c))):
        found, violations = call(batch, floors)
        for i in range(3):
            one, wanted = jax.tree.map(lambda leaf, i=i: leaf[i], batch).floor(floors[i])
            np.testing.assert_allclose(found.to_dense()[i], one.to_dense(), rtol=1e-9, atol=1e-12)
            assert violations.count[i] == wanted.count
    assert violations.count[2] > violations.count[0]
    with pytest.raises(ValueError, match="one number for each matrix"):
        batch.floor(jnp.ones(DIM))


def test_what_does_not_fit_the_batch_is_refused(structure):
    """One vector for many matrices, many vectors for one, other numbers of matrices."""
    one, batch = make(structure, 0, True), make_batch(structure, (3,), True)
    with pytest.raises(TypeError, match=r"the product of two structures .*to_dense"):
        _ = one @ one
    rng = np.random.default_rng(0)
    for matrix, shape in (
        (one, (3, DIM)),
        (one, (3, DIM, 2)),
        (one, ()),
        (batch, (DIM,)),
        (batch, (DIM, 2)),
        (batch, (2, DIM)),
        (batch, (1, DIM)),
        (batch, (3, 3, DIM, 1)),
    ):
        vector = jnp.asarray(rng.normal(size=shape))
        for method in (matrix.matvec, matrix.quadratic_form, matrix.solve, matrix.add_columns):
            with pytest.raises(ValueError, match="vmap"):
                method(vector)
    for method in (
        batch.add_outer,
        batch.add_diagonal,
        batch.inverse_quadratic_form_and_logdet,
        lambda v: batch.function_product(jnp.exp, v),
    ):
        for shape in ((DIM,), (3, DIM, 1)):
            with pytest.raises(ValueError, match="vmap"):
                method(jnp.asarray(rng.normal(size=shape)))
    for method in (batch.scale, batch.add_identity):
        with pytest.raises(ValueError, match="vmap"):
            method(jnp.ones(DIM))
    for count in (0, DIM + 1):
        with pytest.raises(ValueError, match="1 <= count"):
            batch.top_eigenpairs(count)
    if structure.startswith("low_rank"):
        with pytest.raises(ValueError, match="vmap"):
            DiagonalPlusLowRank(batch.diag, one.factor).trace()
        with pytest.raises(ValueError, match="vmap"):
            DiagonalPlusLowRank(one.diag, batch.factor).matvec(jnp.zeros(DIM))
    for wrong in (Dense(jnp.zeros((2, 3))), Dense(jnp.zeros(3)), Diagonal(jnp.zeros(()))):
        with pytest.raises(ValueError, match=r"shape \(..., D"):
            _ = wrong.dim


def test_samples_of_a_batch_are_those_of_each_key(structure):
    batch, key = make_batch(structure, (3,), True), jax.random.key(0)
    draws = batch.sample(key, 4)
    assert draws.shape == (3, 4, DIM)
    each = jax.vmap(lambda a, k: a.sample(k, 4))(batch, jax.random.split(jax.random.clone(key), 3))
    np.testing.assert_allclose(draws, each, rtol=1e-12)
    assert not np.allclose(draws[0], draws[1])


def test_the_size_is_known_without_arithmetic(structure):
    matrix = make(structure, 0)
    with jax.transfer_guard("disallow"):
        assert not jax.make_jaxpr(lambda a: jnp.zeros(a.shape))(matrix).eqns[1:]
    assert matrix == matrix and matrix != make(structure, 0) and len({matrix}) == 1


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


# Those of batches are these and one axis more.
@pytest.mark.slow
@pytest.mark.parametrize(("left", "right"), list(itertools.product(STRUCTURES, STRUCTURES)))
def test_pair_laws(left, right):
    a, b = make(left, 3), make(right, 4)
    dense_a, dense_b = np.asarray(a.to_dense()), np.asarray(b.to_dense())
    np.testing.assert_allclose(a.inner(b), np.sum(dense_a * dense_b), rtol=1e-12)
    if left.startswith("local") and right.startswith("local"):
        with pytest.raises(ValueError, match="two local structures"):
            a + b
    else:
        np.testing.assert_allclose((a + b).to_dense(), dense_a + dense_b, rtol=1e-12, atol=1e-12)
    if right.startswith(SUMS) and left != "dense":
        with pytest.raises(ValueError, match=r"to_dense|c >= 0"):
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


def test_the_root_is_one_of_the_matrix(structure):
    matrix = make(structure, 5, positive=True)
    dense, identity = np.asarray(matrix.to_dense()), jnp.eye(DIM)
    root, white = matrix.color(identity), matrix.whiten(identity)
    np.testing.assert_allclose(root @ root.T, dense, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(white @ root, identity, atol=1e-10)
    third = np.sum(np.abs(np.asarray(root)) ** 3, axis=1)
    np.testing.assert_allclose(matrix.root_third_powers(), third, rtol=1e-10)
    batch = make_batch(structure, (2,), positive=True)
    columns = jnp.asarray(np.random.default_rng(6).normal(size=(2, DIM, 3)))
    for method in ("color", "whiten"):
        alone = jax.vmap(lambda m, v, method=method: getattr(m, method)(v))(batch, columns)
        np.testing.assert_allclose(getattr(batch, method)(columns), alone, rtol=1e-10, atol=1e-12)
    together, logdet = batch.whiten_and_logdet(columns)
    np.testing.assert_allclose(together, alone, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(batch.to_dense())[1], rtol=1e-10)
    powers = jax.vmap(lambda m: m.root_third_powers())(batch)
    np.testing.assert_allclose(batch.root_third_powers(), powers, rtol=1e-12)


@pytest.mark.parametrize("dim", [70, 300])
def test_third_powers_of_large_matrices_are_those_of_the_base_alone(dim):
    rng = np.random.default_rng(7)
    matrix = DiagonalPlusLowRank(jnp.ones(dim), jnp.asarray(rng.normal(size=(dim, 2))))
    known = (matrix if dim < 256 else matrix.base).color(jnp.eye(dim))
    third = np.sum(np.abs(np.asarray(known)) ** 3, axis=1)
    np.testing.assert_allclose(matrix.root_third_powers(), third, rtol=1e-10)


def test_draws_without_variance_have_finite_gradients():
    matrix, columns = Diagonal(jnp.array([0.0, 4.0])), jnp.array([[3.0], [5.0]])
    gradient = jax.grad(lambda m: jnp.sum(m.color(columns)))(matrix).diag
    np.testing.assert_allclose(gradient, [0.0, 1.25])
    gradient = jax.grad(lambda m: jnp.sum(m.sample(jax.random.key(0), 2)))(matrix).diag
    assert np.all(np.isfinite(gradient)) and gradient[0] == 0.0


def test_roots_take_vectors_or_columns_and_nothing_else(structure):
    matrix = make(structure, 5, positive=True)
    vector = jnp.asarray(np.random.default_rng(6).normal(size=DIM))
    methods = {"color": matrix.color, "whiten": matrix.whiten}
    methods["both"] = lambda v: matrix.whiten_and_logdet(v)[0]
    if not isinstance(matrix, PlusLowRank):
        methods["transposed"] = matrix.whiten_transposed
    for method in methods.values():
        one, column = method(vector), method(vector[:, None])
        assert one.shape == (DIM,)
        np.testing.assert_array_equal(one, column[:, 0])
        for wrong in (vector[None], vector[:1], vector[:1, None], jnp.stack([vector] * 2)):
            with pytest.raises(ValueError, match=r"expected shape \(12,\) or \(12, k\), got"):
                method(wrong)


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
    white = low.whiten(vector.astype(jnp.float32)[:, None])
    np.testing.assert_allclose(white, matrix.whiten(vector[:, None]), atol=1e-4)
    np.testing.assert_allclose(jnp.sum(jnp.square(white)), exact.quadratic_form, rtol=1e-4)
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
    with pytest.raises(ValueError, match=r"expected shape \(12,\)"):
        matrix.matvec(jnp.zeros(DIM + 1))
    with pytest.raises(ValueError, match="sizes differ"):
        matrix.inner(Diagonal(jnp.zeros(DIM + 1)))
    if structure.startswith(SUMS):
        with pytest.raises(ValueError, match="c >= 0"):
            matrix.scale(-1.0)


def test_the_multiple_of_an_isotropic_matrix_is_each_matrixs_own():
    matrix = IsotropicPlusLowRank.from_multiple(jnp.array([2.0, 3.0]), jnp.ones((2, DIM, 1)))
    np.testing.assert_array_equal(matrix.multiple, [2.0, 3.0])


@pytest.mark.parametrize("make", [lambda x: Dense(jnp.diag(x)), Diagonal])
def test_a_matrix_of_whole_numbers_has_no_draws(make):
    matrix = make(jnp.array([1, 2]))
    with pytest.raises(ValueError, match="expected floating-point numbers, got matrix of int"):
        matrix.sample(jax.random.key(0), 2)
