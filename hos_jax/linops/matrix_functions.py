r"""Functions of structured symmetric matrices times a vector, f(A) v, without a D x D array.

`matrix_function_product(matrix, function, vector)` takes the cheapest exact way that the structure
allows:

* `Diagonal`: elementwise.
* `IsotropicPlusLowRank`, c I + U U^T: through the eigenvalues l of the r x r matrix U^T U, as

  .. math:: f(A) v = f(c) v + U W \, \mathrm{diag}\Big(\frac{f(c + l) - f(c)}{l}\Big) W^T U^T v

* `Dense`: through its eigendecomposition, or by Lanczos where one asks for it.
* `DiagonalPlusLowRank`: f(diag + U U^T) has no such form, so by Lanczos: with K Krylov vectors Q
  of (A, v) and T = Q^T A Q it is \|v\| Q f(T) e_1, exact when K reaches the number of distinct
  eigenvalues that v sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops.lanczos import krylov_space
from hos_jax.linops.structures import Dense, Diagonal, IsotropicPlusLowRank, SymmetricMatrix
from hos_jax.types import Array

SpectralFunction = Callable[[Array], Array]


class MatrixFunctionProduct(NamedTuple):
    """f(A) v and how far it may be off.

    Attributes:
      value: f(A) v, (D,).
      relative_error: for Lanczos, the norm of what the last Krylov vector changed over the norm of
        the value, a scalar: an estimate of the error, not a bound. 0 for the exact ways.
    """

    value: Array
    relative_error: Array


def matrix_function_product(
    matrix: SymmetricMatrix,
    function: SpectralFunction,
    vector: Array,
    *,
    krylov_vectors: int = 20,
    dense: Literal["eigh", "lanczos"] = "eigh",
) -> MatrixFunctionProduct:
    """f(A) v for a structured symmetric A.

    Matrix products run at the highest precision, or TF32 would limit the accuracy.

    Args:
      matrix: A, (D, D).
      function: f, elementwise on an array of eigenvalues; finite on the whole spectrum.
      vector: v, (D,).
      krylov_vectors: K, for Lanczos; at most D are used.
      dense: the way for a `Dense` matrix: exact, in O(D^3), or Lanczos, in O(K D^2).

    Raises:
      ValueError: for fewer than two Krylov vectors, another `dense`, or a vector that is not (D,).
    """
    if dense not in ("eigh", "lanczos"):
        raise ValueError(f"expected dense 'eigh' or 'lanczos', got {dense!r}")
    if krylov_vectors < 2:
        raise ValueError(f"expected krylov_vectors >= 2, got {krylov_vectors}")
    if vector.shape != (matrix.dim,):
        raise ValueError(f"expected shape ({matrix.dim},), got {tuple(vector.shape)}")
    exact = jnp.zeros((), vector.dtype)
    with jax.default_matmul_precision("highest"):
        if isinstance(matrix, Diagonal):
            return MatrixFunctionProduct(function(matrix.diag) * vector, exact)
        if isinstance(matrix, IsotropicPlusLowRank):
            return MatrixFunctionProduct(_isotropic(matrix, function, vector), exact)
        if isinstance(matrix, Dense) and dense == "eigh":
            values, vectors = jnp.linalg.eigh(matrix.matrix)
            return MatrixFunctionProduct(vectors @ (function(values) * (vectors.T @ vector)), exact)
        return _lanczos(matrix, function, vector, min(krylov_vectors, matrix.dim))


def _isotropic(matrix: IsotropicPlusLowRank, function: SpectralFunction, vector: Array) -> Array:
    values, vectors = jnp.linalg.eigh(matrix.factor.T @ matrix.factor)
    base = function(matrix.multiple)
    # An eigenvalue of U^T U at rounding level belongs to no direction of U.
    limit = jnp.finfo(values.dtype).eps * values.shape[0] * jnp.max(jnp.abs(values))
    present = values > limit
    safe = jnp.where(present, values, 1.0)
    difference = (function(matrix.multiple + safe) - base) / safe
    weights = vectors.T @ (matrix.factor.T @ vector)
    return base * vector + matrix.factor @ (vectors @ (jnp.where(present, difference, 0) * weights))


def _lanczos(
    matrix: SymmetricMatrix, function: SpectralFunction, vector: Array, size: int
) -> MatrixFunctionProduct:
    dim = vector.shape[0]
    norm = jnp.linalg.norm(vector)
    direction = jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1.0), dim**-0.5)
    # Fixed and all different: nothing here depends on what they are.
    noise = jnp.cos(1.0 + jnp.arange(dim, dtype=vector.dtype))
    basis, projected = krylov_space(matrix.matvec, direction, noise, size)

    def weights(count: int) -> Array:
        """f(T) e_1 for the leading block of T, (count,)."""
        values, vectors = jnp.linalg.eigh(projected[:count, :count])
        return vectors @ (function(values) * vectors[0])

    last = weights(size)
    change = last - jnp.pad(weights(size - 1), (0, 1)) if size > 1 else jnp.zeros_like(last)
    total = jnp.linalg.norm(last)
    error = jnp.linalg.norm(change) / jnp.where(total > 0, total, 1.0)
    return MatrixFunctionProduct(norm * (basis.T @ last), error)
