"""Lanczos iteration on symmetric matrices known by their products alone, by `matfree`.

See Lanczos 1950; Parlett, "The Symmetric Eigenvalue Problem", 1998, chapter 13.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

from hos_jax._names import key_first
from hos_jax.types import Array, PRNGKey, check_counts, compiled_for_one_call

# Vectors of a Krylov space for f(A) v, wherever one is made for it.
KRYLOV_VECTORS = 20


def safe_sqrt(value: Array) -> Array:
    """The square root, with derivative 0 in place of infinity at 0."""
    zero = value == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, value)))


def safe_norm(vector: Array) -> Array:
    """The norm of a vector, whose squares may under- or overflow; derivative 0 at 0."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    size = jnp.where(size > 0, size, 1.0)
    return size * safe_sqrt(jnp.sum(jnp.square(vector / size)))


def krylov_space(
    matvec: Callable[[Array], Array], start: Array, noise: Array, size: int
) -> tuple[Array, Array]:
    """A Krylov space of K <= D vectors, fully reorthogonalised; for A = c I or a low rank too.

    There Lanczos would meet an invariant subspace and divide by zero: a diagonal of a few ulps of A
    is added, with which no Krylov space ends before D vectors. `noise`, numbers of order 1, (D,),
    all different, tells it. Gives orthonormal vectors as rows, (K, D), the first along the start,
    and A on them, (K, K).
    """
    # In units of A's own size, so that no square under- or overflows.
    scale = safe_norm(matvec(start)) / safe_norm(start)
    scale = jnp.where(scale > 0, scale, 1.0)
    shift = 64 * jnp.finfo(start.dtype).eps * noise
    tridiagonalise = decomp.tridiag_sym(size, reortho="full", custom_vjp=False)
    basis, projected, *_ = tridiagonalise(lambda v: matvec(v) / scale + shift * v, start)
    return basis, scale * projected


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs of a symmetric matrix A; of a batch each array has its leading axes.

    Attributes:
      eigenvalues: l, (k,), in the order asked for.
      eigenvectors: V, (D, k), orthonormal columns; signs are arbitrary.
      residual_norms: |A v - l v| of each pair, (k,); some eigenvalue lies that close to l.
    """

    eigenvalues: Array
    eigenvectors: Array
    residual_norms: Array

    @property
    def converged(self) -> Array:
        """Whether each residual is below sqrt(eps) of the largest eigenvalue found, bool (k,)."""
        largest = jnp.max(jnp.abs(self.eigenvalues), axis=-1, keepdims=True)
        return self.residual_norms <= jnp.finfo(largest.dtype).eps ** 0.5 * largest


@key_first
def top_eigenpairs(
    key: PRNGKey,
    matvec: Callable[[Array], Array],
    dim: int,
    count: int,
    *,
    krylov_vectors: int | None = None,
    which: Literal["algebraic", "magnitude"] = "algebraic",
    dtype: jnp.dtype | type = float,
) -> Eigenpairs:
    r"""The leading eigenpairs of a symmetric matrix known by its products alone, by Lanczos.

    One Krylov space from a random start, fully reorthogonalised; k + m + 1 products for m Krylov
    vectors, and memory O(m D). The leading pairs converge first, the faster the better they are
    separated; `residual_norms` tells. For m = D, where memory is D x D anyway, the unit vectors
    replace the Krylov space and every pair is exact.

    Copies of one eigenvalue appear in a Krylov space through rounding alone: with a degenerate
    spectrum the results are still eigenpairs, but a later copy may be missing. Matrix products run
    at the highest precision, those of `matvec` included, or TF32 would limit the accuracy.
    Gradients flow through the eigenvalues; the eigenvectors are constants. ValueError for another
    `which`, and unless 1 <= count <= krylov_vectors <= dim.

    Args:
      key: of the random start vector.
      matvec: v -> A v, (D,) -> (D,), linear with symmetric A; for a score at y,
        `functools.partial(autodiff.hessian_vector_product_fn(score_fn, symmetrize=True), y)`.
      dim, count: D and k.
      krylov_vectors: m, from k to D; min(D, 4 k + 30) unless given.
      which: "algebraic", descending by value, or "magnitude", descending by absolute value.
      dtype: floating type of the vectors that `matvec` is given.
    """
    size = min(dim, 4 * count + 30) if krylov_vectors is None else krylov_vectors
    check_counts(0, count=count, krylov_vectors=size)
    if not 1 <= count <= size <= dim:
        raise ValueError(
            f"expected 1 <= count <= krylov_vectors <= dim, got {count}, {size} and {dim}"
        )
    if which not in ("algebraic", "magnitude"):
        raise ValueError(f"expected which 'algebraic' or 'magnitude', got {which!r}")
    rank = jnp.abs if which == "magnitude" else jnp.asarray
    each = functools.partial(jax.lax.map, matvec)
    with jax.default_matmul_precision("highest"):
        if size == dim:
            basis = jnp.eye(dim, dtype=dtype)
            products = compiled_for_one_call(each, basis)
            projected = 0.5 * (products + products.T)
        else:
            start, noise = jax.random.normal(key, (2, dim), dtype)
            find = functools.partial(krylov_space, matvec, size=size)
            basis, projected = compiled_for_one_call(find, start, noise)
        ritz_values, small_vectors = jnp.linalg.eigh(projected)
        _, chosen = jax.lax.top_k(rank(ritz_values), count)
        vectors = jax.lax.stop_gradient(basis.T @ small_vectors[:, chosen])
        # Rayleigh quotients and residuals belong to A itself, free of the shift.
        products = compiled_for_one_call(each, vectors.T).T
        values = jnp.sum(vectors * products, axis=0)
        _, order = jax.lax.top_k(rank(values), count)
        residuals = jax.lax.stop_gradient(products - vectors * values[None])
        norms = jax.vmap(safe_norm, 1)(residuals)
        return Eigenpairs(values[order], vectors[:, order], norms[order])
