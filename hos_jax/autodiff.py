r"""Derivatives of any score function by automatic differentiation: what direct models compete with.

The Jacobian J of s1 as a dense matrix, in chunks of bounded memory, by products, random probes and
leading eigenpairs (`hos_jax.linops.lanczos.top_eigenpairs`), in 1 / data units^2; the third order
dense, its diagonal, its contractions, in 1 / data units^3. J is symmetric for an exact score. That
of a network need not be; what each function then returns is said where it matters.

Everywhere `score_fn` is s1, (D,) -> (D,), at the noise level `sigma`; `noisy` is one point y, (D,):
batch with `vmap`. `chunk_size` tangents run through the network together, in the memory of so many
evaluations; it need not divide D. ValueError for points, vectors and scores that are not (D,), by
the closures too, and for sizes below 1.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax._names import key_first
from hos_jax.linops import Dense, HessianFn, SymmetricMatrix, lanczos
from hos_jax.types import (
    Array,
    PRNGKey,
    ScoreFn,
    as_positive,
    at_least_float32,
    check_counts,
    check_floating_vectors,
    check_structured,
    checked_score_fn,
    compiled_for_one_call,
)

# s2(y) v at one point: (D,), (D,) -> (D,).
HessianVectorProductFn = Callable[[Array, Array], Array]


class Estimate(NamedTuple):
    """A mean over independent probes, and the estimated standard deviation of that mean."""

    estimate: Array
    standard_error: Array


def _over_basis(function: Callable[[Array, Array], Array], noisy: Array, chunk_size: int) -> Array:
    """function(i, e_i) for every unit vector e_i of (D,), stacked, `chunk_size` at a time."""
    dim = noisy.shape[0]

    def one(index: Array) -> Array:
        return function(index, jax.nn.one_hot(index, dim, dtype=noisy.dtype))

    over_all = functools.partial(jax.lax.map, one, batch_size=min(chunk_size, dim))
    return compiled_for_one_call(over_all, jnp.arange(dim))


def dense_hessian_fn(
    score_fn: ScoreFn, *, mode: Literal["forward", "reverse"] = "forward", symmetrize: bool = True
) -> HessianFn:
    """y -> s2(y), the whole Jacobian of s1 at once, `Dense`.

    D tangents (forward) or cotangents (reverse) run through the network together: time and memory
    are about D times those of one evaluation. With `symmetrize` it is (J + J^T) / 2, the nearest
    symmetric matrix in Frobenius norm; without it row i is the gradient of component i of s1.
    ValueError for another `mode`.
    """
    if mode not in ("forward", "reverse"):
        raise ValueError(f"expected mode 'forward' or 'reverse', got {mode!r}")
    jacobian_fn = (jax.jacfwd if mode == "forward" else jax.jacrev)(checked_score_fn(score_fn))

    def hessian_fn(noisy: Array) -> Dense:
        check_floating_vectors(noisy=noisy)
        jacobian = jacobian_fn(noisy)
        return Dense(0.5 * (jacobian + jacobian.T) if symmetrize else jacobian)

    return hessian_fn


def hessian_vector_product_fn(
    score_fn: ScoreFn, *, symmetrize: bool = False
) -> HessianVectorProductFn:
    """(y, v) -> s2(y) v, (D,), by one Jacobian-vector product: about two evaluations of s1.

    With `symmetrize` it is (J v + J^T v) / 2, with a vector-Jacobian product as well; for a network
    whose Jacobian is not symmetric.
    """

    def product_fn(noisy: Array, vector: Array) -> Array:
        check_floating_vectors(noisy=noisy, vector=vector)
        checked = checked_score_fn(score_fn)
        _, product = jax.jvp(checked, (noisy,), (vector,))
        if not symmetrize:
            return product
        _, transpose_fn = jax.vjp(checked, noisy)
        return 0.5 * (product + transpose_fn(vector)[0])

    return product_fn


def posterior_covariance_product_fn(
    score_fn: ScoreFn, sigma: Array | float
) -> HessianVectorProductFn:
    r"""(y, v) -> K v, (D,), for the posterior covariance that s1 implies, data units^2.

    .. math:: K v = \sigma^2 (v + \sigma^2 (J v + J^T v) / 2), \qquad J = \nabla s_1(y)

    About four evaluations of s1. The product with a unit vector is a row of K. For a learned s1
    nothing keeps K from having negative eigenvalues. ValueError for a sigma that is no positive
    scalar.
    """
    sigma = as_positive(sigma)
    product_fn = hessian_vector_product_fn(score_fn, symmetrize=True)
    return lambda noisy, vector: sigma**2 * (vector + sigma**2 * product_fn(noisy, vector))


@key_first
def posterior_eigenpairs(
    key: PRNGKey,
    score_fn: ScoreFn,
    noisy: Array,
    sigma: Array | float,
    *,
    count: int,
    krylov_vectors: int | None = None,
) -> lanczos.Eigenpairs:
    """The directions of largest posterior variance by s1 alone, and these variances, data units^2.

    Lanczos from a random start with k = `count` and m = `krylov_vectors`, of which at most D are
    used, 4 k + 30 unless given: k + m + 1 products of `posterior_covariance_product_fn`. ValueError
    unless 1 <= count <= krylov_vectors and count <= D.
    """
    check_floating_vectors(noisy=noisy)
    dim = noisy.shape[0]
    matvec = functools.partial(posterior_covariance_product_fn(score_fn, sigma), noisy)
    size = None if krylov_vectors is None else min(krylov_vectors, dim)
    return lanczos.top_eigenpairs(key, matvec, dim, count, krylov_vectors=size, dtype=noisy.dtype)


def refine_eigenpairs(
    score_fn: ScoreFn,
    noisy: Array,
    sigma: Array | float,
    posterior_covariance: SymmetricMatrix,
    count: int = 12,
    *,
    steps: int = 1,
    directions: Array | None = None,
) -> lanczos.Eigenpairs:
    r"""Leading directions of the posterior: a model's covariance, corrected by products with s1.

    A step multiplies the k leading directions of the covariance A that is known so far with that of
    s1, by k Jacobian-vector products (2 k evaluations of s1),

    .. math:: K v = \sigma^2 (v + \sigma^2 J v), \qquad J = \nabla s_1(y),

    and changes the model's covariance M as little as the products W = K Q so far allow, with Q
    orthonormal:

    .. math:: A = M + R Q^T + Q R^T - Q \, \mathrm{sym}(Q^T R) \, Q^T, \qquad R = W - M Q

    the symmetric matrix nearest to M in Frobenius norm with A Q = W, if Q^T W is symmetric; J need
    not be. So what the products do not see the model still says, and one step holds more of the
    error than dozens of products from a random start::

        posterior = posterior_fn(noisy)
        pairs = autodiff.refine_eigenpairs(score_fn, noisy, sigma, posterior.covariance)

    Args:
      posterior_covariance: M, structured (D, D), data units^2.
      count: k.
      steps: at least 1.
      directions: what the first step multiplies, orthonormal, (D, k): M's leading eigenvectors,
        which are computed unless they are given.

    Returns:
      The leading eigenpairs of A, data units^2. Residual norms are those of the k directions that
      the last step multiplied, |K v - v (v^T K v)|: what was known of K before it.

    Raises:
      ValueError: for shapes that do not fit, steps < 1, or more than D products.

    References:
      Powell, "A new algorithm for unconstrained optimization", 1970 (the update for one product).
    """
    check_counts(steps=steps, count=count)
    check_floating_vectors(noisy=noisy)
    sigma = as_positive(sigma)
    dim = noisy.shape[0]
    check_structured(posterior_covariance, "posterior_covariance")
    if posterior_covariance.shape != (dim, dim) or count * steps > dim:
        raise ValueError(
            f"expected a covariance ({dim}, {dim}) and count * steps <= {dim}, got "
            f"{posterior_covariance.shape}, {count} and {steps}"
        )
    if directions is None:
        directions = posterior_covariance.top_eigenpairs(count).eigenvectors
    elif jnp.shape(directions) != (dim, count):
        raise ValueError(f"expected directions ({dim}, {count}), got {jnp.shape(directions)}")
    directions = jnp.asarray(directions, noisy.dtype)
    product_fn, known = hessian_vector_product_fn(score_fn), posterior_covariance.matvec

    def multiply(vectors: Array) -> Array:
        each = functools.partial(jax.lax.map, functools.partial(product_fn, noisy))
        products = compiled_for_one_call(each, vectors.T).T
        return sigma**2 * (vectors + sigma**2 * products)

    seen = products = jnp.zeros((dim, 0), noisy.dtype)
    for _ in range(steps):
        vectors = fresh = directions
        for _ in range(2):
            fresh, _ = jnp.linalg.qr(fresh - seen @ (seen.T @ fresh))
        seen = jnp.concatenate([seen, fresh], axis=1)
        products = jnp.concatenate([products, multiply(fresh)], axis=1)
        changes = products - jax.vmap(known, 1, 1)(seen)
        overlap = seen.T @ changes
        # A = M + H Q^T + Q H^T, so that nothing is computed again in each product.
        halves = changes - 0.25 * seen @ (overlap + overlap.T)
        matvec = functools.partial(_changed_product, known, seen, halves)
        pairs = lanczos.top_eigenpairs(jax.random.key(0), matvec, dim, count, dtype=noisy.dtype)
        directions = pairs.eigenvectors
    # The directions lie in the space that was multiplied.
    images = products @ (seen.T @ vectors)
    quotients = jnp.sum(vectors * images, axis=0)
    residuals = jax.vmap(lanczos.safe_norm, 1)(images - vectors * quotients[None])
    return lanczos.Eigenpairs(pairs.eigenvalues, pairs.eigenvectors, residuals)


def _changed_product(known: Callable, seen: Array, halves: Array, vector: Array) -> Array:
    """(M + H Q^T + Q H^T) v."""
    return known(vector) + halves @ (seen.T @ vector) + seen @ (halves.T @ vector)


def chunked_hessian_fn(score_fn: ScoreFn, *, chunk_size: int, symmetrize: bool = True) -> HessianFn:
    """y -> s2(y), `Dense`, by Jacobian-vector products, `chunk_size` of them at a time: equal to
    `dense_hessian_fn`, in the memory of so many evaluations and the (D, D) result."""
    check_counts(chunk_size=chunk_size)
    product_fn = hessian_vector_product_fn(score_fn)

    def hessian_fn(noisy: Array) -> Dense:
        columns = _over_basis(lambda _, unit: product_fn(noisy, unit), noisy, chunk_size)
        return Dense(0.5 * (columns + columns.T) if symmetrize else columns.T)

    return hessian_fn


def chunked_hessian_diagonal_fn(score_fn: ScoreFn, *, chunk_size: int) -> Callable[[Array], Array]:
    """y -> the diagonal of s2(y), (D,), exact, without a (D, D) array: D Jacobian-vector products,
    `chunk_size` of them at a time, of which one number each is kept."""
    check_counts(chunk_size=chunk_size)
    product_fn = hessian_vector_product_fn(score_fn)

    return lambda noisy: _over_basis(
        lambda index, unit: product_fn(noisy, unit)[index], noisy, chunk_size
    )


def _monte_carlo_mean(
    sample_fn: Callable[[PRNGKey], Array], key: PRNGKey, probes: int, chunk_size: int
) -> Estimate:
    """Mean and standard error of sample_fn over `probes` keys, in memory of one chunk.

    Chunk means and sums of squares are merged by the update of Chan, Golub & LeVeque 1979, since
    a difference of a mean square and a squared mean would cancel in float32.
    """
    check_counts(probes=probes, chunk_size=chunk_size)
    chunk_size = min(chunk_size, probes)
    shape = jax.eval_shape(sample_fn, key)

    def step(index, state):
        count, mean, squares = state
        indices = index * chunk_size + jnp.arange(chunk_size)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, indices)
        # In 16 bits counts would stop growing.
        samples = at_least_float32(jax.vmap(sample_fn)(keys))
        # The last chunk may reach past the number of probes.
        kept = (indices < probes).astype(samples.dtype)
        kept = kept.reshape(kept.shape + (1,) * (samples.ndim - 1))
        chunk_count = jnp.sum(kept)
        chunk_mean = jnp.sum(kept * samples, axis=0) / chunk_count
        chunk_squares = jnp.sum(kept * jnp.square(samples - chunk_mean[None]), axis=0)
        share = chunk_count / (count + chunk_count)
        shift = chunk_mean - mean
        squares = squares + chunk_squares + count * share * jnp.square(shift)
        return count + chunk_count, mean + share * shift, squares

    zeros = at_least_float32(jnp.zeros(shape.shape, shape.dtype))
    start = (jnp.zeros((), zeros.dtype), zeros, zeros)
    loop = functools.partial(jax.lax.fori_loop, 0, -(-probes // chunk_size), step)
    _, mean, squares = compiled_for_one_call(loop, start)
    if probes == 1:
        return Estimate(mean, jnp.full_like(mean, jnp.inf))
    return Estimate(mean, jnp.sqrt(squares / (probes - 1) / probes))


def _probe(score_fn: ScoreFn, noisy: Array, key: PRNGKey) -> Array:
    """v * (s2 v), (D,), for one Rademacher probe v."""
    probe = jax.random.rademacher(key, noisy.shape, noisy.dtype)
    return probe * hessian_vector_product_fn(score_fn)(noisy, probe)


@key_first
def hutchinson_trace(
    key: PRNGKey, score_fn: ScoreFn, noisy: Array, *, probes: int, chunk_size: int = 1
) -> Estimate:
    r"""tr s2(y), a scalar: the mean of v^T s2 v over Rademacher probes v, with a standard error.

    Unbiased, in float32 for 16 bits. One probe has variance 2 (tr s2^2 - sum_i s2_ii^2): a diagonal
    s2 is found exactly.
    With one probe alone the standard error is infinite. Memory does not grow with the number of
    probes; the value depends on `chunk_size` through rounding alone. See Hutchinson, "A Stochastic
    Estimator of the Trace of the Influence Matrix", 1990.
    """
    probe = functools.partial(_probe, score_fn, noisy)

    def total(one: PRNGKey) -> Array:
        return jnp.sum(at_least_float32(probe(one)))

    return _monte_carlo_mean(total, key, probes, chunk_size)


@key_first
def hutchinson_diagonal(
    key: PRNGKey, score_fn: ScoreFn, noisy: Array, *, probes: int, chunk_size: int = 1
) -> Estimate:
    r"""The diagonal of s2(y), (D,): the mean of v * (s2 v) over Rademacher probes v.

    Unbiased, in float32 for 16 bits, with a standard error for each entry: one probe has variance
    sum_{j != i} s2_ij^2 at entry i. Memory and one probe alone as in `hutchinson_trace`. See Bekas,
    Kokiopoulou, Saad, "An Estimator for the Diagonal of a Matrix", 2007.
    """
    probe = functools.partial(_probe, score_fn, noisy)
    return _monte_carlo_mean(probe, key, probes, chunk_size)


def third_derivative(score_fn: ScoreFn, noisy: Array, *, symmetrize: bool = True) -> Array:
    """s3(y), dense (D, D, D), by two nested forward derivatives; for small D.

    With `symmetrize` it is the average over the three places of the index of s1; the two
    derivatives commute. Without it entry [i, j, k] is d_j d_k s1_i.
    """
    check_floating_vectors(noisy=noisy)
    tensor = jax.jacfwd(jax.jacfwd(checked_score_fn(score_fn)))(noisy)
    if not symmetrize:
        return tensor
    return (tensor + jnp.moveaxis(tensor, 0, 1) + jnp.moveaxis(tensor, 0, 2)) / 3.0


def third_derivative_contraction(score_fn: ScoreFn, noisy: Array, probe: Array) -> Array:
    r"""s3(y)[v, v, .], (D,): the second derivative of s1 along v, by nested forward derivatives.

    .. math:: \frac{d^2}{dt^2} s_1(y + t v) \Big|_{t = 0}

    About four evaluations of s1 and their memory. For a network it is sum_jk v_j v_k d_j d_k s1.
    """
    check_floating_vectors(noisy=noisy, probe=probe)
    product_fn = hessian_vector_product_fn(score_fn)
    _, contraction = jax.jvp(lambda point: product_fn(point, probe), (noisy,), (probe,))
    return contraction


def third_derivative_diagonal(score_fn: ScoreFn, noisy: Array, *, chunk_size: int = 1) -> Array:
    """s3(y)_iii, (D,), exact: D nested derivatives along the axes, `chunk_size` at a time."""
    check_counts(chunk_size=chunk_size)

    def entry(index: Array, unit: Array) -> Array:
        return third_derivative_contraction(score_fn, noisy, unit)[index]

    return _over_basis(entry, noisy, chunk_size)
