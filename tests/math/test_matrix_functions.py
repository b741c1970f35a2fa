"""Functions of structured matrices and their derivatives, where eigenvectors have none."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank
from hos_jax.samplers import ozaki

DIM = 5
RNG = np.random.default_rng(0)
VECTOR, OTHER = jnp.asarray(RNG.normal(size=(2, DIM)))
FACTOR = jnp.asarray(RNG.normal(size=(DIM, 2)))
DIAG = jnp.asarray(RNG.normal(size=DIM))
ORTHOGONAL = jnp.asarray(np.linalg.qr(RNG.normal(size=(DIM, 2)))[0])
DEGENERATE = {
    "diagonal ties": Diagonal(jnp.array([1.0, 1.0, 0.0, 0.0, -2.0])),
    "diagonal zero": Diagonal(jnp.zeros(DIM)),
    "low rank": DiagonalPlusLowRank(DIAG, FACTOR),
    "low rank, equal diagonal": DiagonalPlusLowRank(jnp.full(DIM, -0.5), FACTOR),
    "low rank, zero factor": DiagonalPlusLowRank(DIAG, jnp.zeros((DIM, 2))),
    "low rank zero": DiagonalPlusLowRank(jnp.zeros(DIM), jnp.zeros((DIM, 2))),
    "isotropic": IsotropicPlusLowRank.from_multiple(-0.5, FACTOR),
    "isotropic, equal columns": IsotropicPlusLowRank.from_multiple(0.5, ORTHOGONAL),
    "isotropic, collinear": IsotropicPlusLowRank.from_multiple(
        0.5, FACTOR[:, :1] * jnp.ones((1, 2))
    ),
    "isotropic, zero factor": IsotropicPlusLowRank.from_multiple(0.0, jnp.zeros((DIM, 3))),
    "dense ties": Dense(jnp.eye(DIM) + ORTHOGONAL @ ORTHOGONAL.T),
    "dense zero": Dense(jnp.zeros((DIM, DIM))),
}


@pytest.fixture(params=DEGENERATE)
def matrix(request):
    return DEGENERATE[request.param]


def exponential(matrix, vector, time):
    return jax.scipy.linalg.expm(time * matrix.to_dense()) @ vector


# The way is chosen for dense matrices only.
WAYS = [(name, "eigh") for name in DEGENERATE]
WAYS += [(name, "lanczos") for name in DEGENERATE if name.startswith("dense")]


@pytest.mark.parametrize(("name", "dense"), WAYS)
def test_values_and_gradients_are_those_of_the_exponential(name, dense):
    """With respect to the matrix, the vector and what the function closes over."""

    def product(matrix, vector, time):
        found = matrix.function_product(lambda x: jnp.exp(time * x), vector, dense=dense)
        return OTHER @ found.value, found.converged

    def oracle(matrix, vector, time):
        return OTHER @ exponential(matrix, vector, time)

    matrix = DEGENERATE[name]
    arguments = matrix, VECTOR, jnp.asarray(0.7)
    (value, converged), slopes = jax.value_and_grad(product, (0, 1, 2), has_aux=True)(*arguments)
    np.testing.assert_allclose(value, oracle(*arguments), rtol=1e-10)
    assert bool(converged)
    expected = jax.grad(oracle, (0, 1, 2))(*arguments)
    if isinstance(matrix, Dense):  # only the symmetric part of the derivative means something
        both = jax.tree.map(lambda leaf: leaf + leaf.mT, (slopes[0], expected[0]))
        slopes, expected = (both[0], *slopes[1:]), (both[1], *expected[1:])
    if isinstance(matrix, IsotropicPlusLowRank):  # one number, in every place
        one = lambda slope: IsotropicPlusLowRank(jnp.sum(slope.diag)[None], slope.factor)  # noqa: E731
        slopes, expected = (one(slopes[0]), *slopes[1:]), (one(expected[0]), *expected[1:])
    chex.assert_trees_all_close(slopes, expected, rtol=1e-7, atol=1e-9)


def step(a):
    state = ozaki.OzakiState(VECTOR, OTHER, a)
    kernel = ozaki.build_kernel()
    return jnp.sum(kernel(jax.random.key(0), state, lambda x: (OTHER, a), 0.3)[0].position)


FUNCTIONS = {
    "norm": lambda a: a.norm(),
    "squared_norm": lambda a: a.squared_norm(),
    "scale": lambda a: jnp.sum(a.scale(jnp.square(VECTOR[0]) * 0.0).to_dense()),
    "floor": lambda a: jnp.sum(a.floor(0.1)[0].to_dense()),
    "likelihood": lambda a: sum(a.floor(0.1)[0].inverse_quadratic_form_and_logdet(VECTOR)),
    "solve": lambda a: jnp.sum(a.floor(0.1)[0].solve(VECTOR)),
    "sample": lambda a: jnp.sum(a.floor(0.1)[0].sample(jax.random.key(0), 2)),
    "eigenvalues": lambda a: jnp.sum(a.top_eigenpairs(2).eigenvalues),
    "eigenvectors": lambda a: jnp.sum(a.top_eigenpairs(2).eigenvectors),
    "step": step,
}


@jax.jit
def slopes_of(a):
    return {name: jax.grad(function)(a) for name, function in FUNCTIONS.items()}


def test_every_gradient_is_finite(matrix):
    """Norms, floors, eigenvalues and steps of Ozaki, at zero matrices and repeated eigenvalues."""
    chex.assert_tree_all_finite(slopes_of(matrix))


def test_gradients_of_a_scale_of_zero_are_finite():
    for matrix in DEGENERATE.values():
        slope = jax.grad(lambda c, a=matrix: jnp.sum(a.scale(c).to_dense()))(jnp.zeros(()))
        assert np.isfinite(slope)


def test_eigenvalues_have_the_gradient_of_simple_ones():
    base = DiagonalPlusLowRank(jnp.arange(1.0, DIM + 1), FACTOR)
    for matrix in (base, Dense(base.to_dense()), base.base):
        found = jax.grad(lambda a: a.top_eigenpairs(2).eigenvalues @ jnp.array([2.0, 1.0]))(matrix)
        expected = jax.grad(
            lambda a: jnp.linalg.eigvalsh(a.to_dense())[::-1][:2] @ jnp.array([2.0, 1.0])
        )(matrix)
        if isinstance(matrix, Dense):
            found, expected = found.matrix + found.matrix.T, expected.matrix + expected.matrix.T
        chex.assert_trees_all_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_float32_eigenpairs_do_not_depend_on_the_unit(scale):
    keys = jax.random.split(jax.random.key(1), 2)
    plain = DiagonalPlusLowRank(
        jax.random.uniform(keys[0], (300,), jnp.float32),
        jax.random.normal(keys[1], (300, 4), jnp.float32),
    )
    expected, found = plain.top_eigenpairs(3), plain.scale(scale).top_eigenpairs(3)
    assert np.all(found.converged)
    np.testing.assert_allclose(found.eigenvalues / scale, expected.eigenvalues, rtol=1e-5)
    np.testing.assert_allclose(
        np.abs(np.sum(found.eigenvectors * expected.eigenvectors, axis=0)), 1.0, rtol=1e-4
    )
    product = plain.scale(scale).function_product(jnp.sqrt, jnp.ones(300, jnp.float32))
    again = plain.function_product(jnp.sqrt, jnp.ones(300, jnp.float32))
    np.testing.assert_allclose(product.value / scale**0.5, again.value, rtol=1e-3, atol=1e-4)
    # Nor on that of the vector, whose square may be no number of float32.
    product = plain.function_product(jnp.sqrt, jnp.full(300, scale**2, jnp.float32))
    np.testing.assert_allclose(product.value / scale**2, again.value, rtol=1e-3, atol=1e-4)


def test_results_say_that_they_have_not_converged():
    law = Diagonal(jnp.geomspace(1e-4, 1.0, 200)).add_columns(1e-3 * jnp.ones((200, 1)))
    found = law.function_product(lambda x: 1.0 / x, jnp.ones(200), krylov_vectors=5)
    assert not found.converged and found.relative_error > 1e-6
    assert not np.all(law.top_eigenpairs(3, krylov_vectors=4).converged)
    assert np.all(law.top_eigenpairs(3, krylov_vectors=200).converged)


def test_the_functions_of_an_ozaki_step_have_their_derivatives_near_zero():
    points = jnp.array([0.0, 1e-12, 1e-8, -1e-5, 5e-3, -0.0099, 0.0101, 0.5])
    slope = jax.vmap(jax.grad(ozaki.relative_expm1))(points)
    series = [
        sum((k + 1) * t**k / np.prod(np.arange(1.0, k + 3)) for k in range(20)) for t in points
    ]
    np.testing.assert_allclose(slope, series, rtol=1e-11)
    values = [sum(t**k / np.prod(np.arange(1.0, k + 2)) for k in range(20)) for t in points]
    np.testing.assert_allclose(ozaki.relative_expm1(points), values, rtol=1e-14)


def test_functions_of_dense_matrices_work_inside_shard_map():
    """What the function closes over is the same on all devices, its values are not."""
    mesh = jax.make_mesh((1,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("devices")

    def product(vector, time):
        matrix = Dense(jnp.outer(vector, vector) + jnp.diag(vector))
        return matrix.function_product(lambda x: jnp.exp(-time * x), vector).value

    def all_products(vectors):
        def each(vectors):
            return jax.vmap(product, (0, None))(vectors, time)

        return jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=spec)(vectors)

    vectors, time = jnp.asarray(RNG.normal(size=(2, DIM))), jnp.asarray(0.3)
    expected = jax.vmap(product, (0, None))(vectors, time)
    np.testing.assert_allclose(jax.jit(all_products)(vectors), expected, rtol=1e-9)
