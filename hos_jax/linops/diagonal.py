"""Diagonal matrices, diag(a), and with columns added to them, diag(a) + U U^T."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from hos_jax.linops.base import Solvable, SymmetricMatrix, Violations
from hos_jax.linops.lanczos import Eigenpairs, safe_sqrt
from hos_jax.linops.low_rank import PlusLowRank
from hos_jax.linops.matrix_functions import SpectralFunction, isotropic_product
from hos_jax.types import Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Diagonal(Solvable):
    """diag(a), with `diag` a of shape (..., D)."""

    diag: Array

    @property
    def shape(self) -> tuple[int, ...]:
        if not self.diag.ndim:
            raise ValueError("expected a diagonal of shape (..., D), got a scalar")
        return (*self.diag.shape, self.diag.shape[-1])

    def diagonal(self) -> Array:
        return self.diag

    def to_dense(self) -> Array:
        return self._each(lambda matrix: jnp.diag(matrix.diag))

    def scale(self, factor: Array | float) -> Diagonal:
        return Diagonal(self.diag * self._per_matrix(factor, 1))

    def add_diagonal(self, diag: Array) -> Diagonal:
        self._check_vector(diag)
        return Diagonal(self.diag + diag)

    def add_identity(self, multiple: Array | float = 1.0) -> Diagonal:
        return Diagonal(self.diag + self._per_matrix(multiple, 1))

    def add_columns(self, factor: Array) -> DiagonalPlusLowRank:
        return DiagonalPlusLowRank(self.diag, self._columns(factor))

    def logdet(self) -> Array:
        return jnp.sum(jnp.log(self.diag), axis=-1)

    def _whiten(self, columns: Array) -> Array:
        return columns / jnp.sqrt(self.diag)[..., None]

    _whiten_transposed = _whiten

    def _color(self, columns: Array) -> Array:
        return columns * safe_sqrt(self.diag)[..., None]

    def root_third_powers(self) -> Array:
        return self.diag**1.5

    def floor(self, smallest: float | Array) -> tuple[Diagonal, Violations]:
        floor = self._per_matrix(smallest, 1)
        return Diagonal(jnp.maximum(self.diag, floor)), Violations.of(self.diag, floor)

    def _plus(self, other: SymmetricMatrix) -> SymmetricMatrix:
        return other.add_diagonal(self.diag)

    def _matmul(self, columns: Array) -> Array:
        return self.diag[..., None] * columns

    def _inner(self, other: SymmetricMatrix) -> Array:
        return jnp.sum(self.diag * other.diagonal(), axis=-1)

    def _top_eigenpairs(self, count: int, krylov_vectors: int | None) -> Eigenpairs:
        values, places = jax.lax.top_k(self.diag, count)
        vectors = jax.nn.one_hot(places, self.dim, dtype=self.dtype).T
        return Eigenpairs(values, vectors, jnp.zeros(count, self.dtype))

    def _exact_function_product(self, function: SpectralFunction, vector: Array, dense: str):
        return function(self.diag) * vector


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class DiagonalPlusLowRank(PlusLowRank):
    """diag(a) + U U^T, with `diag` a of shape (..., D) and `factor` U of shape (..., D, r)."""

    diag: Array
    factor: Array

    @property
    def base(self) -> Diagonal:
        """diag(a); ValueError if U does not belong to it."""
        base = Diagonal(self.diag)
        self._check_base(base)
        return base

    def _rebuild(self, base: SymmetricMatrix, factor: Array) -> SymmetricMatrix:
        return type(self)(base.diagonal(), factor)

    def add_diagonal(self, diag: Array) -> DiagonalPlusLowRank:
        return DiagonalPlusLowRank(self.base.add_diagonal(diag).diag, self.factor)

    def floor(self, smallest: float | Array) -> tuple[DiagonalPlusLowRank, Violations]:
        """See `SymmetricMatrix.floor`. Where the diagonal part lies below the floor it is raised to
        it, and that row of the factor shrinks so that the variance of the value, A_ii, stays what
        it was, unless that lies below the floor itself."""
        floor = self._resolved(smallest)
        correlated = jnp.sum(jnp.square(self.factor), axis=-1)
        room = jnp.maximum(self.diag + correlated - floor, 0.0)
        shrinks = (self.diag < floor) & (correlated > 0)
        share = jnp.where(shrinks, room / jnp.where(shrinks, correlated, 1.0), 1.0)
        factor = self.factor * safe_sqrt(share)[..., None]
        repaired = DiagonalPlusLowRank(jnp.maximum(self.diag, floor), factor)
        return repaired, Violations.of(self.diag, floor)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class IsotropicPlusLowRank(DiagonalPlusLowRank):
    """c I + U U^T, `diag` having c in every place (see `from_multiple`): the low-rank structure
    whose matrix functions are of the same structure."""

    @classmethod
    def from_multiple(cls, multiple: Array | float, factor: Array) -> IsotropicPlusLowRank:
        """c I + U U^T from c, a scalar or one for each matrix, (...), and U, (..., D, r)."""
        zeros = Diagonal(jnp.zeros(factor.shape[:-1], factor.dtype))
        return cls(zeros.add_identity(multiple).diag, factor)

    @property
    def multiple(self) -> Array:
        """c, (...)."""
        return self.diag[..., 0]

    def _exact_function_product(self, function: SpectralFunction, vector: Array, dense: str):
        return isotropic_product(self.multiple, self.factor, function, vector)
