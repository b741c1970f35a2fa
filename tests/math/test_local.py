"""The local Cholesky factor against a dense one that is written entry by entry."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.linops import Dense, Diagonal, Local, LocalPlusLowRank
from hos_jax.linops.local import count_taps, earlier_pixels
from hos_jax.losses import residual_nll, residual_student_nll

# Images, signals, vectors of channels, and what is smaller than its stencil.
SHAPES = [
    ((5, 4, 1), 2),
    ((3, 7, 1), 3),
    ((4, 3, 3), 1),
    ((1, 9, 2), 3),
    ((6, 1, 2), 2),
    ((2, 2, 1), 3),
    ((1, 1, 4), 2),
    ((1, 1, 1), 1),
]


def make(image_shape, reach, seed=0):
    rng = np.random.default_rng(seed)
    dim = int(np.prod(image_shape))
    taps = 0.4 * rng.normal(size=(dim, count_taps(image_shape, reach)))
    return Local(jnp.asarray(rng.uniform(0.3, 2.0, dim)), jnp.asarray(taps), image_shape, reach)


def dense_factor(matrix):
    """L, from the definition: one entry after the other."""
    height, width, channels = matrix.image_shape
    offsets, taps = earlier_pixels(matrix.image_shape, matrix.reach), np.asarray(matrix.taps)

    def place(i, j, c):
        return (i * width + j) * channels + c

    factor = np.eye(height * width * channels)
    for i, j, c in itertools.product(range(height), range(width), range(channels)):
        row = place(i, j, c)
        for index, (up, right) in enumerate(offsets):
            if i >= up and 0 <= j + right < width:
                for other in range(channels):
                    factor[row, place(i - up, j + right, other)] = taps[
                        row, index * channels + other
                    ]
        for other in range(c):
            factor[row, place(i, j, other)] = taps[row, len(offsets) * channels + other]
    return np.asarray(matrix.scales)[:, None] * factor


def test_the_neighbours_are_the_causal_half_of_a_square():
    counts = [count_taps((28, 28, 1), reach) for reach in (1, 2, 3)]
    assert counts == [4, 12, 24]
    assert count_taps((28, 28, 3), 1) == 4 * 3 + 2
    assert earlier_pixels((9, 9, 1), 1) == [(0, -1), (1, -1), (1, 0), (1, 1)]
    # In raster order the factor is lower triangular, as its name says.
    for image_shape, reach in SHAPES:
        factor = dense_factor(make(image_shape, reach))
        np.testing.assert_array_equal(factor, np.tril(factor))


@pytest.mark.parametrize(("image_shape", "reach"), SHAPES)
def test_everything_is_that_of_the_dense_factor(image_shape, reach):
    matrix, other = make(image_shape, reach), make(image_shape, max(1, reach - 1), seed=1)
    factor = dense_factor(matrix)
    dense, dim = factor @ factor.T, len(factor)
    columns = np.random.default_rng(2).normal(size=(dim, 2))

    @jax.jit
    def everything(matrix, other, columns):
        return (
            matrix.to_dense(),
            matrix @ columns,
            matrix.color(columns),
            matrix.whiten(columns),
            matrix.whiten_transposed(columns),
            matrix.solve(columns),
            matrix.logdet(),
            matrix.diagonal(),
            matrix.quadratic_form(columns),
            matrix.squared_norm(),
            matrix.inner(other),
            tuple(matrix.add_columns(columns).inverse_quadratic_form_and_logdet(columns[:, 0])),
        )

    outer = dense + columns @ columns.T
    form = columns[:, 0] @ np.linalg.solve(outer, columns[:, 0])
    expected = (
        dense,
        dense @ columns,
        factor @ columns,
        np.linalg.solve(factor, columns),
        np.linalg.solve(factor.T, columns),
        np.linalg.solve(dense, columns),
        np.linalg.slogdet(dense)[1],
        np.diag(dense),
        np.sum(columns * (dense @ columns)),
        np.sum(dense**2),
        np.sum(dense * (dense_factor(other) @ dense_factor(other).T)),
        (form, np.linalg.slogdet(outer)[1]),
    )
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-10),
        everything(matrix, other, jnp.asarray(columns)),
        expected,
    )


@pytest.mark.parametrize(
    ("image_shape", "reach", "taps"),
    [
        ((4, 3, 1), 1, "some"),
        ((4, 3, 1), 1, "none"),
        pytest.param((2, 3, 2), 2, "some", marks=pytest.mark.slow),
        ((1, 9, 2), 2, "some"),
    ],
)
def test_gradients_are_those_of_the_dense_likelihood(image_shape, reach, taps):
    local = make(image_shape, reach)
    if taps == "none":
        local = Local(local.scales, jnp.zeros_like(local.taps), image_shape, reach)
    rng = np.random.default_rng(3)
    vector = jnp.asarray(rng.normal(size=local.dim))
    matrix = LocalPlusLowRank(local, jnp.asarray(rng.normal(size=(local.dim, 2))))

    def loss(matrix, vector, dense):
        matrix = Dense(matrix.to_dense()) if dense else matrix
        form, logdet = matrix.inverse_quadratic_form_and_logdet(vector)
        white, again = matrix.whiten_and_logdet(vector[:, None])
        form, logdet = form + jnp.sum(white**2), logdet + 2.0 * again
        return form + logdet + vector @ matrix.solve(jnp.sin(vector)) + matrix.norm()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
    for a in (local, matrix):
        found, expected = gradient(a, vector, False), gradient(a, vector, True)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-7, atol=1e-9), found, expected
        )


def test_columns_and_residual_of_a_loss_are_solved_for_together():
    local = make((4, 3, 1), 1)
    matrix = local.add_columns(jnp.ones((12, 2)))

    def loops(function):
        return jax.jit(function).lower(matrix).as_text().count("stablehlo.while")

    for loss in (residual_nll, residual_student_nll):
        assert loops(jax.value_and_grad(functools.partial(loss, jnp.ones(12)))) == 2
    assert loops(functools.partial(residual_student_nll, jnp.ones(12))) == 1


def test_a_matrix_of_many_vectors_is_factorized_once():
    matrix = make((4, 3, 1), 1).add_columns(jnp.ones((12, 2)))
    for method in (
        matrix.solve,
        matrix.inverse_quadratic_form_and_logdet,
        lambda vector: matrix.whiten(vector[:, None]),
    ):
        traced = str(jax.make_jaxpr(jax.vmap(method))(jnp.ones((5, 12))))
        assert "cholesky" in traced
        assert "f64[5,2,2]" not in traced


def test_without_columns_it_is_the_local_factor():
    local = make((4, 3, 1), 1)
    matrix = local.add_columns(jnp.zeros((12, 0)))
    vector = jnp.arange(12.0)
    np.testing.assert_allclose(matrix.logdet(), local.logdet())
    np.testing.assert_allclose(matrix.solve(vector), local.solve(vector))
    np.testing.assert_allclose(matrix.color(vector[:, None]), local.color(vector[:, None]))


def test_batches_derive_and_map():
    image_shape, reach = (4, 3, 1), 1
    alone = [make(image_shape, reach, seed) for seed in range(3)]
    batch = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    vectors = jnp.asarray(np.random.default_rng(4).normal(size=(3, 12)))

    def nll(matrix, vector):
        return residual_nll(vector, matrix)

    found = jax.jit(jax.grad(lambda m: jnp.sum(jax.vmap(nll)(m, vectors))))(batch)
    for index, matrix in enumerate(alone):
        one = jax.grad(nll)(matrix, vectors[index])
        jax.tree.map(
            lambda a, b, index=index: np.testing.assert_allclose(a[index], b, rtol=1e-9),
            found,
            one,
        )
    # Forward and twice, as in a Hessian-vector product.
    _, tangent = jax.jit(jax.jvp, static_argnums=0)(
        lambda v: jax.grad(nll, argnums=1)(alone[0], v), (vectors[0],), (vectors[1],)
    )
    assert not np.any(tangent)  # residuals are constants
    _, tangent = jax.jit(jax.jvp, static_argnums=0)(
        lambda v: jax.grad(lambda u: u @ alone[0].solve(u))(v), (vectors[0],), (vectors[1],)
    )
    np.testing.assert_allclose(tangent, 2 * alone[0].solve(vectors[1]), rtol=1e-9)


@pytest.mark.parametrize("low_rank", [False, True])
def test_the_scaled_hessian_of_a_local_covariance_has_its_products_and_norms(low_rank):
    """S = C - I is no longer positive: what needs a root says so, what does not is right."""
    covariance = make((4, 3, 1), 1)
    if low_rank:
        factor = jnp.asarray(np.random.default_rng(5).normal(size=(12, 2)))
        covariance = covariance.add_columns(factor)
    scaled = covariance.add_identity(-1.0).scale(4.0)
    dense = 4.0 * (np.asarray(covariance.to_dense()) - np.eye(12))
    other = make((4, 3, 1), 2, seed=7).add_diagonal(jnp.arange(12.0))
    vector = jnp.linspace(-1.0, 1.0, 12)

    @jax.jit
    def everything(scaled, other):
        return (
            scaled.to_dense(),
            scaled @ vector,
            scaled.diagonal(),
            scaled.trace(),
            scaled.quadratic_form(vector),
            scaled.squared_norm(),
            scaled.inner(other),
            other.to_dense(),
            (scaled + Diagonal(vector)).to_dense(),
        )

    found = everything(scaled, other)
    expected = (
        dense,
        dense @ vector,
        np.diag(dense),
        np.trace(dense),
        vector @ dense @ vector,
        np.sum(dense**2),
        np.sum(dense * found[7]),
        found[7],
        dense + np.diag(vector),
    )
    for value, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-12, atol=1e-12)
    for method in (
        scaled.logdet,
        lambda: scaled.solve(vector),
        lambda: scaled.sample(jax.random.key(0), 2),
        lambda: scaled.inverse_quadratic_form_and_logdet(vector),
    ):
        with pytest.raises(ValueError, match="`floor` gives the covariance"):
            method()
    # Back to the covariance, as from a score of order two.
    again, violations = jax.jit(lambda s: s.scale(0.25).add_identity(1.0).floor(1e-4))(scaled)
    assert violations.count == 0 and jax.tree.structure(again) == jax.tree.structure(covariance)
    for leaf, wanted in zip(jax.tree.leaves(again), jax.tree.leaves(covariance), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-12)


def test_floor_raises_scales_and_tells():
    matrix = make((4, 3, 1), 1)
    same, none = matrix.floor(1e-4)
    np.testing.assert_array_equal(same.scales, matrix.scales)
    assert none.count == 0 and none.largest == 0
    low = Local(matrix.scales.at[:3].set(1e-3), matrix.taps, (4, 3, 1), 1)
    raised, found = low.floor(0.01)
    np.testing.assert_allclose(raised.scales[:3], 0.1)
    assert found.count == 3
    np.testing.assert_allclose(found.largest, 0.01 - 1e-6)
    below, found = Local(-matrix.scales, matrix.taps, (4, 3, 1), 1).floor(0.01)
    assert found.count == 12 and np.all(below.scales > 0)
    # Beside large columns float32 resolves less.
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), low)
    raised, found = single.add_columns(jnp.full((12, 1), 100.0, jnp.float32)).floor(1e-6)
    assert found.count == 3 and raised.local.scales.min() > 0.05
    # A diagonal that takes more than there is: the value's variance was none.
    lowered = matrix.add_diagonal(jnp.zeros(12).at[5].set(-50.0))
    shifted, found = jax.jit(lambda a: a.floor(0.01))(lowered)
    assert found.count == 1 and found.largest > 1
    assert np.all(np.linalg.eigvalsh(jax.jit(Local.to_dense)(shifted)) > 0)
    # One that adds to it keeps the variances, and changes the covariances: it is told.
    shifted, found = matrix.add_diagonal(jnp.zeros(12).at[:4].set(0.5)).floor(1e-4)
    np.testing.assert_allclose(shifted.diagonal()[:4], matrix.diagonal()[:4] + 0.5, rtol=1e-12)
    assert found.count == 4 and found.largest == 0.5
    # Where C is small, little changes much.
    small = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), matrix.scale(1e-4))
    assert small.add_identity(3e-5).floor(1e-6)[1].count == 12


def test_draws_have_the_covariance():
    matrix = make((3, 2, 2), 1).add_columns(jnp.ones((12, 1)))
    dense = np.asarray(matrix.to_dense())
    count = 40_000
    draws = np.asarray(matrix.sample(jax.random.key(3), count))
    found = draws.T @ draws / count
    error = np.sqrt((dense**2 + np.outer(np.diag(dense), np.diag(dense))) / count)
    assert np.all(np.abs(found - dense) < 5 * error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((jnp.ones(12), jnp.ones((12, 3)), (4, 3, 1), 1), r"taps \(..., 12, 4\)"),
        ((jnp.ones(11), jnp.ones((11, 4)), (4, 3, 1), 1), r"scales \(..., 12\)"),
        ((jnp.ones(12), jnp.ones((12, 4)), (4, 3, 1), 1, jnp.ones(3)), r"shift \(3,\)"),
        ((jnp.ones(12), jnp.ones((12, 4)), (4, 3), 1), r"\(H, W, C\)"),
        ((jnp.ones(12), jnp.ones((12, 4)), (4, 3, 1), 0), "reach >= 1"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        _ = Local(*arguments).dim


def test_images_of_other_shapes_have_no_inner_product():
    with pytest.raises(ValueError, match="images differ"):
        make((4, 3, 1), 1).inner(make((3, 4, 1), 1))
