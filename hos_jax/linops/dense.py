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
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Dense(Solvable):
    """A symmetric `matrix`, (..., D, D); the symmetry is the caller's promise."""

    matrix: Array

    @property
    def shape(self) -> tuple[int, ...]:
        shape = tuple(self.matrix.shape)
        if len(shape) < 2 or shape[-1] != shape[-2]:
            raise ValueError(f"expected a matrix of shape (..., D, D), got {shape}")
        return shape

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
        diag = jnp.full(self.shape[:-1], self._per_matrix(multiple, 1), self.dtype)
        return self.add_diagonal(diag)

    def add_columns(self, factor: Array) -> Dense:
        columns = self._columns(factor)
        return Dense(self.matrix + columns @ columns.mT)

    def logdet(self) -> Array:
        roots = jnp.diagonal(jnp.linalg.cholesky(self.matrix), axis1=-2, axis2=-1)
        return 2.0 * jnp.sum(jnp.log(roots), axis=-1)

    def _whiten(self, columns: Array) -> Array:
        return self._triangular_solve(columns, 0)

    def _whiten_transposed(self, columns: Array) -> Array:
        return self._triangular_solve(columns, 1)

    def _color(self, columns: Array) -> Array:
        return jnp.linalg.cholesky(self.matrix) @ columns

    def root_third_powers(self) -> Array:
        return jnp.sum(jnp.abs(jnp.linalg.cholesky(self.matrix)) ** 3, axis=-1)

    def floor(self, smallest: float | Array) -> tuple[Dense, Violations]:
        """See `SymmetricMatrix.floor`: eigenvalues below the floor are raised to it."""
        # Cholesky was seen to succeed at an eighth of this, for D up to 256 in float32.
        resolved = 2.0 * math.sqrt(self.dim) * jnp.finfo(self.dtype).eps

        def one(this: Dense, smallest: Array) -> tuple[Dense, Violations]:
            values = jnp.linalg.eigvalsh(jax.lax.stop_gradient(this.matrix))
            floor = jnp.maximum(smallest, resolved * jnp.max(jnp.abs(values)))
            raised = spectral_matrix(this.matrix, lambda value: jnp.maximum(value, floor))
            repaired = jnp.where(values[0] >= floor, this.matrix, 0.5 * (raised + raised.T))
            return Dense(repaired), Violations.of(values, floor)

        each = self._per_matrix(smallest, 0)
        return self._each(one, jnp.broadcast_to(jnp.asarray(each, self.dtype), self.batch_shape))

    def _triangular_solve(self, columns: Array, transposed: int) -> Array:
        root = jnp.linalg.cholesky(self.matrix)
        return jsl.solve_triangular(root, columns, trans=transposed, lower=True)

    def _plus(self, other: SymmetricMatrix) -> Dense:
        return Dense(self.matrix + other.to_dense())

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        # Not every B has a form for -B, but as a dense matrix it has.
        known = isinstance(other, SymmetricMatrix)
        return super().__sub__(Dense(other.to_dense()) if known else other)

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
