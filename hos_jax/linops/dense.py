"""A symmetric matrix as it is, for small D and as the oracle of tests."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from hos_jax.linops.base import Solvable, SymmetricMatrix, Violations
from hos_jax.linops.lanczos import Eigenpairs
from hos_jax.linops.matrix_functions import SpectralFunction, spectral_matrix
from hos_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Dense(Solvable):
    """A symmetric matrix as it is, for small D.

    Attributes:
      matrix: (..., D, D), symmetric; symmetry is the caller's promise.
    """

    matrix: Array

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.matrix.shape)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"expected a matrix of shape (..., D, D), got {shape}")
        return shape

    @property
    def dtype(self) -> jnp.dtype:
        return self.matrix.dtype

    def diagonal(self) -> Array:
        return jnp.diagonal(self.matrix, axis1=-2, axis2=-1)

    def to_dense(self) -> Array:
        return self.matrix

    def scale(self, factor: Array | float) -> Dense:
        return Dense(self.matrix * self._per_matrix(factor, 2))

    def add_diagonal(self, diag: Array) -> Dense:
        self._check_vector(diag)
        return Dense(self._each(lambda matrix, one: matrix.matrix + jnp.diag(one), diag))

    def add_identity(self, multiple: Array | float = 1.0) -> Dense:
        return self.add_diagonal(
            jnp.full(self.shape[:-1], self._per_matrix(multiple, 1), self.dtype)
        )

    def add_columns(self, factor: Array) -> Dense:
        columns = self._columns(factor)
        return Dense(self.matrix + columns @ columns.mT)

    def logdet(self) -> Array:
        roots = jnp.diagonal(jnp.linalg.cholesky(self.matrix), axis1=-2, axis2=-1)
        return 2.0 * jnp.sum(jnp.log(roots), axis=-1)

    def whiten(self, columns: Array) -> Array:
        return self._triangular_solve(columns, 0)

    def whiten_transposed(self, columns: Array) -> Array:
        return self._triangular_solve(columns, 1)

    def color(self, columns: Array) -> Array:
        return jnp.linalg.cholesky(self.matrix) @ columns

    def floor(self, smallest: float) -> tuple[Dense, Violations]:
        """See `SymmetricMatrix.floor`: eigenvalues below the floor are raised to it."""
        return self._each(lambda one: one._floor(smallest))

    def _floor(self, smallest: float) -> tuple[Dense, Violations]:
        values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(self.matrix))
        # Cholesky was seen to succeed at an eighth of this, for D up to 256 in float32.
        resolved = 2.0 * math.sqrt(self.dim) * jnp.finfo(self.dtype).eps
        floor = jnp.maximum(smallest, resolved * jnp.max(jnp.abs(values)))
        raised = spectral_matrix(self.matrix, lambda value: jnp.maximum(value, floor))
        repaired = jnp.where(values[0] >= floor, self.matrix, 0.5 * (raised + raised.T))
        return Dense(repaired), Violations.of(values, floor)

    def _triangular_solve(self, columns: Array, transposed: int) -> Array:
        def one(matrix: Dense, right: Array) -> Array:
            root = jnp.linalg.cholesky(matrix.matrix)
            return jsl.solve_triangular(root, right, trans=transposed, lower=True)

        return self._each(one, columns)

    def _plus(self, other: SymmetricMatrix) -> Dense:
        return Dense(self.matrix + other.to_dense())

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        # Not every B has a form for -B, but as a dense matrix it has.
        return super().__sub__(
            Dense(other.to_dense()) if isinstance(other, SymmetricMatrix) else other
        )

    def _matmul(self, columns: Array) -> Array:
        return self.matrix @ columns

    def _inner(self, other: SymmetricMatrix) -> Array:
        return jnp.sum(self.matrix * other.to_dense(), axis=(-2, -1))

    def _top_eigenpairs(self, count: int, krylov_vectors: int | None) -> Eigenpairs:
        _, vectors = jnp.linalg.eigh(jax.lax.stop_gradient(self.matrix))
        vectors = vectors[:, ::-1][:, :count]
        values = jnp.sum(vectors * self._matmul(vectors), axis=0)
        return Eigenpairs(values, vectors, jnp.zeros(count, self.dtype))

    def _exact_function_product(
        self, function: SpectralFunction, vector: Array, dense: str
    ) -> Array | None:
        return None if dense == "lanczos" else spectral_matrix(self.matrix, function) @ vector
