"""Derivatives of a score by autodiff against the exact log density of a skewed Gaussian mixture."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import autodiff
from hos_jax.linops import Dense, lanczos

DIM = 5
# Between the components, where the third derivative is large.
NOISY = jnp.asarray([1.5, 0.8, -0.4, -0.2, -1.3])
PROBE = jnp.asarray([0.9, 0.1, -1.3, 0.4, 0.6])


def mixture(dim, seed=0):
    """log q of an unequal, hence skewed, mixture of three correlated Gaussians."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(3, dim))
    roots = rng.normal(size=(3, dim, dim)) / np.sqrt(dim)
    covariances = roots @ np.swapaxes(roots, 1, 2) + 0.5 * np.eye(dim)
    precisions = jnp.asarray(np.linalg.inv(covariances))
    log_scales = np.log([0.6, 0.3, 0.1]) - 0.5 * np.linalg.slogdet(covariances)[1]

    def log_density(y):
        offset = y[None] - means
        form = jnp.sum(jnp.einsum("kij,kj->ki", precisions, offset) * offset, axis=1)
        # Plain, since derivatives of a stabilised logsumexp take long to compile.
        return jnp.log(jnp.sum(jnp.exp(log_scales - 0.5 * form)))

    return log_density


LOG_DENSITY = mixture(DIM)
SCORE_FN = jax.grad(LOG_DENSITY)
HESSIAN = np.asarray(jax.jit(jax.hessian(LOG_DENSITY))(NOISY))
THIRD = np.asarray(jax.jit(jax.jacfwd(jax.hessian(LOG_DENSITY)))(NOISY))


def curl_fn(y):
    """A vector field whose Jacobian is not symmetric, as that of a network."""
    return jnp.sin(jnp.roll(y, 1)) * y - y**3


CURL = np.asarray(jax.jacrev(curl_fn)(NOISY))
CURL_SYMMETRIC = (CURL + CURL.T) / 2


def test_the_oracles_are_symmetric_skewed_and_not():
    np.testing.assert_allclose(HESSIAN, HESSIAN.T, rtol=1e-12)
    assert np.min(np.abs(np.einsum("iii->i", THIRD))) > 0.2
    assert np.max(np.abs(CURL - CURL.T)) > 0.1


HESSIAN_FACTORIES = {
    "forward": functools.partial(autodiff.dense_hessian_fn, mode="forward"),
    "reverse": functools.partial(autodiff.dense_hessian_fn, mode="reverse"),
    **{
        f"chunks of {size}": functools.partial(autodiff.chunked_hessian_fn, chunk_size=size)
        for size in (1, 3, 64)
    },
}


@pytest.mark.parametrize("name", HESSIAN_FACTORIES)
def test_hessians_equal_that_of_the_log_density(name):
    factory = HESSIAN_FACTORIES[name]
    batch = jnp.stack([PROBE, NOISY])
    got = jax.jit(jax.vmap(factory(SCORE_FN)))(batch)
    assert isinstance(got, Dense)
    np.testing.assert_allclose(got.matrix[1], HESSIAN, rtol=1e-10)
    symmetric = jax.jit(factory(curl_fn))(NOISY).matrix
    np.testing.assert_allclose(symmetric, CURL_SYMMETRIC, rtol=1e-12)
    rows = jax.jit(factory(curl_fn, symmetrize=False))(NOISY).matrix
    np.testing.assert_allclose(rows, CURL, rtol=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 3, 64])
def test_chunked_diagonals_equal_those_of_the_dense_tensors(chunk_size):
    for function, exact in [(SCORE_FN, HESSIAN), (curl_fn, CURL)]:
        diagonal_fn = autodiff.chunked_hessian_diagonal_fn(function, chunk_size=chunk_size)
        np.testing.assert_allclose(jax.jit(diagonal_fn)(NOISY), np.diag(exact), rtol=1e-10)

    @jax.jit
    def third_fn(y):
        return autodiff.third_derivative_diagonal(SCORE_FN, y, chunk_size=chunk_size)

    got = third_fn(NOISY)
    np.testing.assert_allclose(got, np.einsum("iii->i", THIRD), rtol=1e-9)


def test_products_equal_those_with_the_dense_matrix():
    for function, options, exact in [
        (SCORE_FN, {}, HESSIAN),
        (curl_fn, {}, CURL),
        (curl_fn, {"symmetrize": True}, CURL_SYMMETRIC),
    ]:
        product_fn = jax.jit(autodiff.hessian_vector_product_fn(function, **options))
        np.testing.assert_allclose(product_fn(NOISY, PROBE), exact @ PROBE, rtol=1e-10)


def test_third_derivatives_equal_those_of_the_log_density():
    got = jax.jit(functools.partial(autodiff.third_derivative, SCORE_FN))(NOISY)
    np.testing.assert_allclose(got, THIRD, rtol=1e-9, atol=1e-11)
    contraction_fn = jax.jit(functools.partial(autodiff.third_derivative_contraction, SCORE_FN))
    expected = np.einsum("ijk,i,j->k", THIRD, PROBE, PROBE)
    np.testing.assert_allclose(contraction_fn(NOISY, PROBE), expected, rtol=1e-9)

    exact = np.asarray(jax.jit(jax.jacrev(jax.jacrev(curl_fn)))(NOISY))
    plain = autodiff.third_derivative(curl_fn, NOISY, symmetrize=False)
    np.testing.assert_allclose(plain, exact, atol=1e-12)
    permutations = [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)]
    symmetric = sum(np.transpose(exact, axes) for axes in permutations) / 6
    got = autodiff.third_derivative(curl_fn, NOISY)
    np.testing.assert_allclose(got, symmetric, atol=1e-12)
    assert np.max(np.abs(symmetric - exact)) > 0.1
    got = autodiff.third_derivative_contraction(curl_fn, NOISY, PROBE)
    np.testing.assert_allclose(got, np.einsum("kij,i,j->k", exact, PROBE, PROBE), rtol=1e-12)


# Variances of one Rademacher probe for a symmetric matrix, in closed form.
OFF_DIAGONAL = HESSIAN - np.diag(np.diag(HESSIAN))
HUTCHINSON = {
    "trace": (autodiff.hutchinson_trace, np.trace(HESSIAN), 2 * np.sum(OFF_DIAGONAL**2)),
    "diagonal": (autodiff.hutchinson_diagonal, np.diag(HESSIAN), np.sum(OFF_DIAGONAL**2, axis=1)),
}


@pytest.mark.parametrize("name", HUTCHINSON)
def test_hutchinson_is_unbiased_and_reports_its_standard_error(name):
    function, exact, variance = HUTCHINSON[name]
    probes, runs = 50, 2000
    keys = jax.random.split(jax.random.key(1), runs)
    got = jax.jit(jax.vmap(lambda key: function(key, SCORE_FN, NOISY, probes=probes)))(keys)
    assert got.estimate.shape == got.standard_error.shape == (runs, *np.shape(exact))
    error = np.sqrt(variance / probes)
    assert np.all(np.abs(got.estimate.mean(axis=0) - exact) < 4.5 * error / np.sqrt(runs))
    # A standard deviation over n runs is known to about 1 / sqrt(2 n) of itself.
    spread = np.asarray(got.estimate).std(axis=0, ddof=1)
    assert np.all(np.abs(spread / error - 1) < 4.5 / np.sqrt(2 * runs))
    squared = np.square(np.asarray(got.standard_error))
    tolerance = 4.5 * squared.std(axis=0) / np.sqrt(runs)
    assert np.all(np.abs(squared.mean(axis=0) - error**2) < tolerance)
    assert np.all(tolerance < 0.05 * error**2)


@pytest.mark.parametrize("name", HUTCHINSON)
def test_hutchinson_is_the_plain_mean_over_its_probes_in_any_chunks(name):
    function = HUTCHINSON[name][0]
    key, probes = jax.random.key(2), 11
    keys = [jax.random.fold_in(key, index) for index in range(probes)]
    signs = np.stack([jax.random.rademacher(one, (DIM,), jnp.float64) for one in keys])
    samples = signs * (signs @ HESSIAN)
    samples = samples.sum(axis=1) if name == "trace" else samples
    error = samples.std(axis=0, ddof=1) / np.sqrt(probes)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def estimate(probes, chunk_size):
        return function(key, SCORE_FN, NOISY, probes=probes, chunk_size=chunk_size)

    for chunk_size in (3, 100):
        got = estimate(probes, chunk_size)
        np.testing.assert_allclose(got.estimate, samples.mean(axis=0), rtol=1e-10)
        np.testing.assert_allclose(got.standard_error, error, rtol=1e-9)
    alone = estimate(1, 1)
    np.testing.assert_allclose(alone.estimate, samples[0], rtol=1e-10)
    assert np.all(np.isinf(alone.standard_error))


def test_hutchinson_finds_a_diagonal_matrix_exactly():
    scale = jnp.arange(1.0, DIM + 1)
    got = autodiff.hutchinson_trace(jax.random.key(3), lambda y: -scale * y, NOISY, probes=3)
    np.testing.assert_allclose(got.estimate, -15.0, rtol=1e-12)
    np.testing.assert_allclose(got.standard_error, 0.0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_hutchinson_counts_on_in_16_bits(dtype):
    """Whose counts end at 256 or 2048, and whose sums of squares at 65,504."""
    matrix = jax.random.normal(jax.random.key(0), (7, 7))
    matrix = (4.0 * (matrix + matrix.T)).astype(dtype)
    exact = np.asarray(matrix, float)
    spread = np.sqrt(2 * (np.sum(exact**2) - np.sum(np.diag(exact) ** 2)) / 4000)
    got = autodiff.hutchinson_trace(
        jax.random.key(1), lambda y: matrix @ y, jnp.ones(7, dtype), probes=4000, chunk_size=500
    )
    assert got.estimate.dtype == jnp.float32
    assert float(got.standard_error) == pytest.approx(spread, rel=0.1)
    assert abs(float(got.estimate) - np.trace(exact)) < 4.5 * spread
    got = autodiff.hutchinson_diagonal(
        jax.random.key(1), lambda y: matrix @ y, jnp.ones(7, dtype), probes=4000, chunk_size=500
    )
    spread = np.sqrt((np.sum(exact**2, axis=1) - np.diag(exact) ** 2) / 4000)
    np.testing.assert_allclose(got.standard_error, spread, rtol=0.1)
    assert np.all(np.abs(np.asarray(got.estimate, float) - np.diag(exact)) < 4.5 * spread)


def test_hutchinson_keeps_its_standard_error_in_float32():
    # The mean is 1e4 times the spread of a probe: mean squares would cancel to rounding noise.
    matrix = 1e4 * np.eye(3) + np.asarray([[0.0, 1, 0], [1, 0, 0], [0, 0, 0]])
    narrow = jnp.asarray(matrix, jnp.float32)
    got = autodiff.hutchinson_trace(
        jax.random.key(4), lambda y: narrow @ y, jnp.zeros(3, jnp.float32), probes=4000
    )
    assert got.estimate.dtype == got.standard_error.dtype == jnp.float32
    # Each probe is off by +2 or -2.
    np.testing.assert_allclose(got.standard_error, 2 / np.sqrt(4000), rtol=2e-3)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def pairs_of_matrix(matrix, key, count, size, which="algebraic"):
    return lanczos.top_eigenpairs(
        key,
        lambda v: matrix @ v,
        matrix.shape[0],
        count,
        krylov_vectors=size,
        which=which,
        dtype=matrix.dtype,
    )


def spectrum_matrix(values, seed=5):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values),) * 2))[0]
    return basis, jnp.asarray(basis * values @ basis.T)


def assert_eigenpairs(pairs, matrix, expected, atol):
    pairs, matrix = jax.device_get((pairs, matrix))
    np.testing.assert_allclose(pairs.eigenvalues, expected, atol=atol)
    count = len(expected)
    gram = pairs.eigenvectors.T @ pairs.eigenvectors
    np.testing.assert_allclose(gram, np.eye(count), atol=1e-10)
    residuals = matrix @ pairs.eigenvectors - pairs.eigenvectors * pairs.eigenvalues
    exact = np.linalg.norm(residuals, axis=0)
    np.testing.assert_allclose(pairs.residual_norms, exact, atol=1e-12)


# Two large values of either sign and a bulk: orders by value and by magnitude differ.
VALUES = np.concatenate([[9.0, 7.0, -8.0, -5.0], np.linspace(-2, 2, 46)])
ORDERS = {"algebraic": [9.0, 7.0, 2.0], "magnitude": [9.0, -8.0, 7.0]}


@pytest.mark.parametrize(
    ("size", "which"), [(49, "algebraic"), (49, "magnitude"), (50, "magnitude")]
)
def test_eigenpairs_are_exact_with_many_krylov_vectors(size, which):
    basis, matrix = spectrum_matrix(VALUES)
    pairs = jax.device_get(pairs_of_matrix(matrix, jax.random.key(6), 3, size, which))
    assert pairs.eigenvectors.shape == (50, 3)
    assert_eigenpairs(pairs, matrix, ORDERS[which], 1e-11)
    assert np.all(pairs.residual_norms < 1e-10)
    for column, value in enumerate(ORDERS[which]):
        overlap = basis[:, np.argmin(np.abs(VALUES - value))] @ pairs.eigenvectors[:, column]
        np.testing.assert_allclose(np.abs(overlap), 1.0, rtol=1e-10)


def test_residual_norms_tell_how_far_eigenvalues_are_and_shrink_with_krylov_vectors():
    _, matrix = spectrum_matrix(VALUES)
    worst = []
    for size in (4, 49):
        pairs = jax.device_get(pairs_of_matrix(matrix, jax.random.key(7), 3, size))
        distance = np.min(np.abs(VALUES[:, None] - pairs.eigenvalues), axis=0)
        assert np.all(distance <= pairs.residual_norms + 1e-11)
        assert np.all(pairs.eigenvalues <= np.asarray(ORDERS["algebraic"]) + 1e-12)
        worst.append(float(np.max(pairs.residual_norms)))
    assert worst[0] > 0.1
    assert worst[1] < 1e-9


DEGENERATE = [[-4.0] * 12, [0.0] * 12, [3.0, 2.0] + [0.0] * 10, [5.0] + [-1.0] * 11]


@pytest.mark.parametrize(("size", "dtype"), [(4, jnp.float64), (4, jnp.float32), (12, jnp.float32)])
def test_a_krylov_space_that_ends_early_gives_eigenpairs_all_the_same(dtype, size):
    tolerance = 100 * float(jnp.finfo(dtype).eps)
    for values in DEGENERATE:
        # Diagonal, so that the residual of Lanczos vanishes exactly.
        matrix = jnp.diag(jnp.asarray(values, dtype))
        pairs = jax.device_get(pairs_of_matrix(matrix, jax.random.key(8), 3, size))
        assert pairs.eigenvalues.dtype == pairs.eigenvectors.dtype == dtype
        np.testing.assert_allclose(pairs.eigenvalues, values[:3], atol=tolerance)
        gram = pairs.eigenvectors.T @ pairs.eigenvectors
        np.testing.assert_allclose(gram, np.eye(3), atol=tolerance)
        assert np.all(pairs.residual_norms < tolerance)
        # With all vectors there is no Krylov space to end, and no rounding either.
        assert size < 12 or not np.any(pairs.residual_norms)


def test_eigenpairs_of_a_score_batch_and_compile():
    log_density = mixture(30, seed=9)
    product_fn = autodiff.hessian_vector_product_fn(jax.grad(log_density))
    points = jnp.asarray(np.random.default_rng(10).normal(size=(2, 30)))

    @jax.jit
    @jax.vmap
    def pairs_fn(y, key):
        matvec = functools.partial(product_fn, y)
        return lanczos.top_eigenpairs(key, matvec, 30, 2, krylov_vectors=29)

    hessian_fn = jax.jit(jax.hessian(log_density))
    batch = jax.device_get(pairs_fn(points, jax.random.split(jax.random.key(11), 2)))
    for index in range(2):
        pairs = lanczos.Eigenpairs(*(leaf[index] for leaf in batch))
        matrix = hessian_fn(points[index])
        assert_eigenpairs(pairs, matrix, np.linalg.eigvalsh(matrix)[::-1][:2], 1e-6)


def test_posterior_directions_are_those_of_the_covariance_by_tweedie():
    sigma = 0.4
    covariance = sigma**2 * (np.eye(DIM) + sigma**2 * CURL_SYMMETRIC)
    product_fn = autodiff.posterior_covariance_product_fn(curl_fn, sigma)
    np.testing.assert_allclose(product_fn(NOISY, PROBE), covariance @ PROBE, rtol=1e-12)
    # More Krylov vectors than D are asked for, as on a small problem they are by default.
    pairs = autodiff.posterior_eigenpairs(jax.random.key(12), curl_fn, NOISY, sigma, count=2)
    assert_eigenpairs(pairs, covariance, np.linalg.eigvalsh(covariance)[::-1][:2], 1e-9)
    with pytest.raises(ValueError, match="shape"):
        autodiff.posterior_eigenpairs(jax.random.key(12), curl_fn, NOISY[None], sigma, count=2)


REFINED = dict(dim=12, count=3, sigma=0.5)


def refined_problem(wrong: float):
    """A Gaussian, whose posterior covariance K = (Sigma^-1 + I / sigma^2)^-1 has known eigenvalues,
    and a model's covariance that is wrong by so much."""
    dim, count, sigma = REFINED.values()
    rng = np.random.default_rng(4)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    sizes = np.concatenate([[0.2, 0.15, 0.1], np.full(dim - count, 0.025)])
    exact = (basis * sizes) @ basis.T
    hessian = (exact / sigma**2 - np.eye(dim)) / sigma**2
    error = rng.normal(size=(dim, dim)) * wrong
    model = exact + (error + error.T) / 2
    refine = functools.partial(
        autodiff.refine_eigenpairs, lambda y: hessian @ y, jnp.ones(dim), sigma, Dense(model), count
    )
    return exact, model, basis, sizes, refine


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_refined_directions_are_those_of_the_nearest_matrix_with_the_products(steps):
    """In place of the update's formula: the symmetric matrix that agrees with K on what was
    multiplied, and with the model on the rest."""
    exact, model, *_, refine = refined_problem(0.01)
    count, known = REFINED["count"], model
    seen = np.zeros((REFINED["dim"], 0))
    for _ in range(steps):
        vectors = np.linalg.eigh(known)[1][:, ::-1][:, :count]
        seen, _ = np.linalg.qr(np.concatenate([seen, vectors], axis=1))
        others = np.eye(len(model)) - seen @ seen.T
        # In a basis of both parts only the block of the unseen directions is the model's.
        known = exact - others @ (exact - model) @ others
    pairs = jax.jit(functools.partial(refine, steps=steps))()
    values, directions = np.linalg.eigh(known)
    np.testing.assert_allclose(pairs.eigenvalues, values[::-1][:count], rtol=1e-9)
    overlaps = np.abs(np.sum(pairs.eigenvectors * directions[:, ::-1][:, :count], axis=0))
    np.testing.assert_allclose(overlaps, 1.0, atol=1e-9)
    # What the last step multiplied, by the exact matrix.
    quotients = np.sum(vectors * (exact @ vectors), axis=0)
    residuals = np.linalg.norm(exact @ vectors - vectors * quotients, axis=0)
    np.testing.assert_allclose(pairs.residual_norms, residuals, rtol=1e-6, atol=1e-12)


def test_refined_directions_approach_the_exact_ones():
    """Faster than a power step, which shrinks the angle by the ratio of eigenvalues, here 1/4."""
    _, model, basis, sizes, refine = refined_problem(0.01)
    count = REFINED["count"]

    def angle(vectors):
        return np.linalg.norm(basis[:, count:].T @ vectors)

    start = angle(np.linalg.eigh(model)[1][:, ::-1][:, :count])
    found = [angle(refine(steps=steps).eigenvectors) for steps in (1, 2, 4)]
    assert found[0] < 0.25 * start and found[1] < 0.25 * found[0]
    # All D products: the model is forgotten.
    assert found[2] < 1e-9
    *_, right = refined_problem(0.0)
    pairs = right()
    np.testing.assert_allclose(pairs.eigenvalues, sizes[:count], rtol=1e-9)
    assert np.all(pairs.residual_norms < 1e-9) and np.all(pairs.converged)


def test_refinement_of_a_score_whose_derivative_is_not_symmetric():
    """Of the part within the multiplied directions the symmetric half counts."""
    sigma, count = 0.5, 2
    jacobian = sigma**2 * (np.eye(DIM) + sigma**2 * np.asarray(jax.jacfwd(curl_fn)(NOISY)))
    model = np.diag(np.arange(DIM, 0.0, -1.0))
    seen = np.eye(DIM)[:, :count]
    changes = (jacobian - model) @ seen
    inner = seen.T @ changes
    expected = model + changes @ seen.T + seen @ changes.T - seen @ (inner + inner.T) @ seen.T / 2
    pairs = autodiff.refine_eigenpairs(curl_fn, NOISY, sigma, Dense(model), count)
    values = np.linalg.eigvalsh(expected)[::-1][:count]
    np.testing.assert_allclose(pairs.eigenvalues, values, rtol=1e-9)


def test_directions_that_are_known_are_multiplied_first():
    exact, model, *_, refine = refined_problem(0.01)
    dim, count = REFINED["dim"], REFINED["count"]
    leading = Dense(model).top_eigenpairs(count).eigenvectors
    chex.assert_trees_all_close(refine(directions=leading), refine(), rtol=1e-12)
    seen = np.eye(dim)[:, :count]
    others = np.eye(dim) - seen @ seen.T
    nearest = exact - others @ (exact - model) @ others
    pairs = refine(directions=jnp.asarray(seen))
    np.testing.assert_allclose(pairs.eigenvalues, np.linalg.eigvalsh(nearest)[::-1][:count])
    with pytest.raises(ValueError, match=r"expected directions \(12, 3\)"):
        refine(directions=leading.T)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((4, 2, 1), "covariance"), ((DIM, 2, 0), "steps"), ((DIM, DIM, 2), "count")],
)
def test_what_cannot_be_refined_is_refused(arguments, message):
    dim, count, steps = arguments
    with pytest.raises(ValueError, match=message):
        autodiff.refine_eigenpairs(curl_fn, NOISY, 0.5, Dense(np.eye(dim)), count, steps=steps)


def planned_memory(function, *arguments):
    """Bytes of temporaries that XLA plans."""
    return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_is_that_of_a_chunk():
    dim, width = 1024, 4096
    array = jax.ShapeDtypeStruct
    weights = array((dim, width), jnp.float32)
    point, key = array((dim,), jnp.float32), jax.random.key(12)
    hidden = 4 * width

    def score(w, y):
        return w @ jnp.tanh(y @ w)

    def bytes_of(build, *rest):
        return planned_memory(
            lambda w, y: build(functools.partial(score, w), y, *rest), weights, point
        )

    dense = bytes_of(lambda f, y: autodiff.dense_hessian_fn(f)(y).matrix)
    assert dense > dim * hidden
    chunk_size = 12
    matrix_fn = functools.partial(autodiff.chunked_hessian_fn, chunk_size=chunk_size)
    used = bytes_of(lambda f, y: matrix_fn(f)(y).matrix)
    # Besides the chunk: the columns, and their concatenation with those of the last chunk.
    assert used < 8 * chunk_size * hidden + 4 * 4 * dim**2 < dense
    for diagonal_fn in (
        lambda f, y: autodiff.chunked_hessian_diagonal_fn(f, chunk_size=chunk_size)(y),
        lambda f, y: autodiff.third_derivative_diagonal(f, y, chunk_size=chunk_size),
    ):
        assert bytes_of(diagonal_fn) < 16 * chunk_size * hidden
    for function, probes in [
        (autodiff.hutchinson_trace, 8),
        (autodiff.hutchinson_trace, 1_000_000),
        (autodiff.hutchinson_diagonal, 1_000_000),
    ]:
        used = bytes_of(lambda f, y, n, g=function: g(key, f, y, probes=n, chunk_size=4), probes)
        assert used < 8 * 4 * hidden


def test_memory_of_eigenpairs_is_that_of_the_krylov_vectors():
    dim, size = 256 * 256 * 3, 12
    diagonal = jax.ShapeDtypeStruct((dim,), jnp.float32)
    used = planned_memory(
        lambda a, key: lanczos.top_eigenpairs(
            key, lambda v: a * v, dim, 4, krylov_vectors=size, dtype=jnp.float32
        ),
        diagonal,
        jax.random.key(13),
    )
    assert used < 6 * 4 * dim * size


def test_the_order_of_arguments_of_version_0_1_works_with_a_warning():
    for key in (jax.random.key(0), jax.random.PRNGKey(0)):
        new = autodiff.hutchinson_trace(key, SCORE_FN, NOISY, probes=2)
        with pytest.warns(DeprecationWarning, match="hutchinson_trace takes its key first"):
            old = autodiff.hutchinson_trace(SCORE_FN, NOISY, key, probes=2)
        chex.assert_trees_all_equal(new, old)
        new = lanczos.top_eigenpairs(key, lambda v: 2.0 * v, 5, 2)
        with pytest.warns(DeprecationWarning, match="top_eigenpairs takes its key first"):
            old = lanczos.top_eigenpairs(lambda v: 2.0 * v, key, 5, 2)
        chex.assert_trees_all_equal(new, old)


def test_bad_arguments_raise():
    matrix, key = jnp.zeros((2, 2)), jax.random.key(0)
    with pytest.raises(ValueError, match="'forward' or 'reverse', got 'both'"):
        autodiff.dense_hessian_fn(SCORE_FN, mode="both")
    for factory in (autodiff.chunked_hessian_fn, autodiff.chunked_hessian_diagonal_fn):
        with pytest.raises(ValueError, match="chunk_size >= 1, got 0"):
            factory(SCORE_FN, chunk_size=0)
        with pytest.raises(ValueError, match="use vmap"):
            factory(SCORE_FN, chunk_size=1)(matrix)
    with pytest.raises(ValueError, match="use vmap"):
        autodiff.dense_hessian_fn(SCORE_FN)(matrix)
    with pytest.raises(ValueError, match="one shape"):
        autodiff.hessian_vector_product_fn(SCORE_FN)(NOISY, NOISY[1:])
    for function in (autodiff.hutchinson_trace, autodiff.hutchinson_diagonal):
        with pytest.raises(ValueError, match="use vmap"):
            function(key, SCORE_FN, matrix, probes=2)
        with pytest.raises(ValueError, match="probes >= 1, got 0"):
            function(key, SCORE_FN, NOISY, probes=0)
        with pytest.raises(ValueError, match="chunk_size >= 1, got -1"):
            function(key, SCORE_FN, NOISY, probes=2, chunk_size=-1)
    for count, size in [(0, 3), (4, 3), (2, 6)]:
        with pytest.raises(ValueError, match=f"<= dim, got {count}, {size} and 5"):
            lanczos.top_eigenpairs(key, lambda v: v, 5, count, krylov_vectors=size)
    with pytest.raises(ValueError, match="'magnitude', got 'least'"):
        lanczos.top_eigenpairs(key, lambda v: v, 5, 2, which="least")
    with pytest.raises(ValueError, match="use vmap"):
        autodiff.third_derivative(SCORE_FN, matrix)
    with pytest.raises(ValueError, match="use vmap"):
        autodiff.third_derivative_diagonal(SCORE_FN, matrix)
    with pytest.raises(ValueError, match="chunk_size >= 1, got 0"):
        autodiff.third_derivative_diagonal(SCORE_FN, NOISY, chunk_size=0)
    with pytest.raises(ValueError, match="one shape"):
        autodiff.third_derivative_contraction(SCORE_FN, NOISY, PROBE[1:])


@pytest.mark.parametrize("wrong", [lambda y: -jnp.sum(y**2) / 2, lambda y: -y[:1]])
@pytest.mark.parametrize(
    "differentiate",
    [
        lambda s: autodiff.dense_hessian_fn(s)(NOISY),
        lambda s: autodiff.chunked_hessian_fn(s, chunk_size=2)(NOISY),
        lambda s: autodiff.chunked_hessian_diagonal_fn(s, chunk_size=2)(NOISY),
        lambda s: autodiff.hessian_vector_product_fn(s, symmetrize=True)(NOISY, NOISY),
        lambda s: autodiff.posterior_eigenpairs(jax.random.key(0), s, NOISY, 0.5, count=2),
        lambda s: autodiff.refine_eigenpairs(s, NOISY, 0.5, Dense(jnp.eye(DIM)), 2),
        lambda s: autodiff.hutchinson_diagonal(jax.random.key(0), s, NOISY, probes=4),
        lambda s: autodiff.third_derivative(s, NOISY),
    ],
)
def test_a_log_density_in_place_of_a_score_is_refused(differentiate, wrong):
    """Its derivatives would be numbers of another meaning, or of the wrong shape."""
    with pytest.raises(ValueError, match="score"):
        differentiate(wrong)


def test_integers_are_refused_by_name():
    ones, whole = jnp.ones(DIM), jnp.ones(DIM, int)
    for call in (
        lambda: autodiff.hessian_vector_product_fn(curl_fn)(ones, whole),
        lambda: autodiff.dense_hessian_fn(curl_fn)(whole),
        lambda: autodiff.chunked_hessian_fn(curl_fn, chunk_size=2)(whole),
        lambda: autodiff.hutchinson_trace(jax.random.key(0), curl_fn, whole, probes=2),
        lambda: autodiff.third_derivative(curl_fn, whole),
        lambda: autodiff.third_derivative_contraction(curl_fn, ones, whole),
        lambda: autodiff.third_derivative_diagonal(curl_fn, whole),
    ):
        with pytest.raises(ValueError, match="expected floating-point numbers, got"):
            call()
