r"""Lanczos iteration on symmetric matrices known by their products alone, by `matfree`.

References:
  Lanczos 1950; Parlett, "The Symmetric Eigenvalue Problem", 1998, chapter 13.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from matfree import decomp

from hos_jax.types import Array, PRNGKey

# Vectors of a Krylov space for f(A) v, wherever one is made for it.
KRYLOV_VECTORS = 20


def safe_norm(vector: Array) -> Array:
    """The norm of a vector, whose squares may under- or overflow; derivative 0 at 0."""
    size = jax.lax.stop_gradient(jnp.max(jnp.abs(vector)))
    size = jnp.where(size > 0, size, 1.0)
    squares = jnp.sum(jnp.square(vector / size))
    return size * jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1.0)), 0.0)


class KrylovSpace(NamedTuple):
    """The Krylov space of a symmetric A and a start vector, by Lanczos.

    Attributes:
      basis: its orthonormal vectors as rows, (K, D); the first is along the start vector.
      projected: T, A on that basis, tridiagonal (K, K).
    """

    basis: Array
    projected: Array


def krylov_space(
    matvec: Callable[[Array], Array], start: Array, noise: Array, size: int
) -> KrylovSpace:
    """A Krylov space of any size up to D, fully reorthogonalised; for A = c I or a low rank too.

    There Lanczos would meet an invariant subspace and divide by zero: a diagonal of a few ulps of A
    is added, with which no Krylov space ends before D vectors.

    Args:
      matvec: v -> A v.
      start: the start vector, (D,), not zero.
      noise: numbers of order 1, (D,), all different.
      size: K.
    """
    # In units of A's own size, so that no square under- or overflows.
    scale = safe_norm(matvec(start)) / safe_norm(start)
    scale = jnp.where(scale > 0, scale, 1.0)
    shift = 64 * jnp.finfo(start.dtype).eps * noise
    tridiagonalise = decomp.tridiag_sym(size, reortho="full", custom_vjp=False)
    basis, projected, *_ = tridiagonalise(lambda v: matvec(v) / scale + shift * v, start)
    return KrylovSpace(basis, scale * projected)


class Eigenpairs(NamedTuple):
    """Approximate eigenpairs of a symmetric matrix A.

    Attributes:
      eigenvalues: l, (k,), in the order asked for.
      eigenvectors: V, (D, k), orthonormal columns; signs are arbitrary.
      residual_norms: |A v - l v| of each pair, (k,); some eigenvalue lies that close to l.

    Of a batch of matrices each has its leading axes.
    """

    eigenvalues: Array
    eigenvectors: Array
    residual_norms: Array

    @property
    def converged(self) -> Array:
        """Whether each residual is below sqrt(eps) of the largest eigenvalue found, bool (k,)."""
        largest = jnp.max(jnp.abs(self.eigenvalues), axis=-1, keepdims=True)
        return self.residual_norms <= jnp.finfo(largest.dtype).eps ** 0.5 * largest


def top_eigenpairs(
    matvec: Callable[[Array], Array],
    key: PRNGKey,
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
    Gradients flow through the eigenvalues; the eigenvectors are constants.

    Args:
      matvec: v -> A v, (D,) -> (D,), linear with symmetric A; for a score at y,
        `functools.partial(autodiff.hessian_vector_product_fn(score_fn, symmetrize=True), y)`.
      key: of the random start vector.
      dim: D.
      count: k, how many pairs.
      krylov_vectors: m, from k to D; min(D, 4 k + 30) unless given.
      which: "algebraic", descending by value, or "magnitude", descending by absolute value.
      dtype: floating type of the vectors that `matvec` is given.

    Raises:
      ValueError: unless 1 <= count <= krylov_vectors <= dim, and for another `which`.
    """
    size = min(dim, 4 * count + 30) if krylov_vectors is None else krylov_vectors
    if not 1 <= count <= size <= dim:
        raise ValueError(
            f"expected 1 <= count <= krylov_vectors <= dim, got {count}, {size} and {dim}"
        )
    if which not in ("algebraic", "magnitude"):
        raise ValueError(f"expected which 'algebraic' or 'magnitude', got {which!r}")
    start, noise = jax.random.normal(key, (2, dim), dtype)
    with jax.default_matmul_precision("highest"):
        return _lanczos_eigenpairs(matvec, start, noise, count, size, which)


def _lanczos_eigenpairs(
    matvec: Callable[[Array], Array],
    start: Array,
    noise: Array,
    count: int,
    size: int,
    which: str,
) -> Eigenpairs:
    rank = jnp.abs if which == "magnitude" else jnp.asarray
    if size == start.shape[0]:
        basis = jnp.eye(size, dtype=start.dtype)
        products = jax.lax.map(matvec, basis)
        projected = 0.5 * (products + products.T)
    else:
        basis, projected = krylov_space(matvec, start, noise, size)
    ritz_values, small_vectors = jnp.linalg.eigh(projected)
    _, chosen = jax.lax.top_k(rank(ritz_values), count)
    vectors = jax.lax.stop_gradient(basis.T @ small_vectors[:, chosen])
    # Rayleigh quotients and residuals belong to A itself, free of the shift.
    products = jax.lax.map(matvec, vectors.T).T
    values = jnp.sum(vectors * products, axis=0)
    _, order = jax.lax.top_k(rank(values), count)
    residuals = jax.lax.stop_gradient(products - vectors * values[None])
    norms = jax.vmap(safe_norm, 1)(residuals)
    return Eigenpairs(values[order], vectors[:, order], norms[order])
