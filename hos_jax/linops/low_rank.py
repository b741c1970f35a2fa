r"""A structure with columns added: B + U U^T, for any base B that can be solved.

With a base of O(D) every operation costs at most O(D (r + 2)^2) time and O(D (r + 2)) memory. For
B = diag(a):

.. math::
    \langle S, v v^T \rangle = \sum_i a_i v_i^2 + \|U^T v\|^2, \qquad
    \langle S, I \rangle = \sum_i a_i + \|U\|_F^2, \qquad
    \|S\|_F^2 = \sum_i a_i^2 + 2 \sum_i a_i \|U_i\|^2 + \|U^T U\|_F^2 .

Solves and likelihoods need a positive definite base, and cost O(D r^2) by
`hos_jax.linops.woodbury`; a draw costs O(D r) beyond one of the base.
"""

import abc

import jax
import jax.numpy as jnp

import hos_jax.linops.woodbury as woodbury
from hos_jax.linops.base import (
    OTHER_BATCHES,
    QuadraticAndLogdet,
    Solvable,
    SymmetricMatrix,
    over_batch,
)
from hos_jax.types import Array, PRNGKey

_ALL_THIRD_POWERS = 256


@jax.custom_jvp
def _gram_squared_norm(factor: Array) -> Array:
    """The squared Frobenius norm of U^T U, which is that of U U^T, (...)."""
    return jnp.sum(jnp.square(factor.mT @ factor), axis=(-2, -1))


@_gram_squared_norm.defjvp
def _gram_squared_norm_jvp(primals, tangents):
    """4 <U (U^T U), dU>: one product, where the derivative of U^T U has two that are equal."""
    (factor,), (factor_dot,) = primals, tangents
    gram = factor.mT @ factor
    slope = 4.0 * jnp.sum((factor @ gram) * factor_dot, axis=(-2, -1))
    return jnp.sum(jnp.square(gram), axis=(-2, -1)), slope


class PlusLowRank(SymmetricMatrix):
    """B + U U^T. A subclass is a dataclass with `factor`, U (..., D, r), and tells its base."""

    factor: Array

    @property
    @abc.abstractmethod
    def base(self) -> Solvable:
        """B, which `_check_base` has seen."""

    @abc.abstractmethod
    def _rebuild(self, base: SymmetricMatrix, factor: Array) -> SymmetricMatrix:
        """The structure with another base of the same kind and another factor."""

    def _check_base(self, base: Solvable) -> None:
        if tuple(self.factor.shape[:-1]) != base.shape[:-1]:
            expected = f"a factor of shape (..., D, r) for matrices of shape {base.shape}"
            found = tuple(self.factor.shape)
            raise ValueError(f"expected {expected}, got {found}; {OTHER_BATCHES}")

    @property
    def rank(self) -> int:
        """r, the number of columns of the factor."""
        return self.factor.shape[-1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def diagonal(self) -> Array:
        return self.base.diagonal() + jnp.sum(jnp.square(self.factor), axis=-1)

    def to_dense(self) -> Array:
        return self.base.to_dense() + self.factor @ self.factor.mT

    def squared_norm(self) -> Array:
        mixed = self.base.quadratic_form(self.factor)
        return self.base.squared_norm() + 2.0 * mixed + _gram_squared_norm(self.factor)

    def scale(self, factor: Array | float) -> SymmetricMatrix:
        """c A for c >= 0, a scalar or one for each matrix (U U^T stays of that form only then);
        ValueError for a negative number, NaN for a traced one."""
        return self._rebuild(self.base.scale(factor), self.factor * self._root(factor, 2))

    def add_identity(self, multiple: Array | float = 1.0) -> SymmetricMatrix:
        return self._rebuild(self.base.add_identity(multiple), self.factor)

    def add_columns(self, factor: Array) -> SymmetricMatrix:
        columns = jnp.concatenate([self.factor, self._columns(factor)], axis=-1)
        return self._rebuild(self.base, columns)

    def logdet(self) -> Array:
        return self._of_parts(woodbury.logdet)

    def _whiten(self, columns: Array) -> Array:
        return self._of_parts(woodbury.whiten, columns)

    def _whiten_and_logdet(self, columns: Array) -> tuple[Array, Array]:
        return self._of_parts(woodbury.whiten_and_logdet, columns)

    def _color(self, columns: Array) -> Array:
        return self._of_parts(woodbury.color, columns)

    def root_third_powers(self) -> Array:
        if self.dim > _ALL_THIRD_POWERS:
            return self.base.root_third_powers()
        return self._of_parts(woodbury.root_third_powers)

    def _resolved(self, smallest: float | Array) -> Array:
        """A floor for B, (..., 1): the given one, or what Woodbury's identity keeps its digits down
        to, beside the largest eigenvalue of U U^T, where that is more."""
        gram = jnp.abs(jax.lax.stop_gradient(self.factor.mT @ self.factor))
        largest = jnp.max(jnp.sum(gram, axis=-1), axis=-1, initial=0.0)
        floor = self._per_matrix(smallest, 1)
        return jnp.maximum(floor, 0.25 * jnp.finfo(self.dtype).eps * largest[..., None])

    def _of_parts(self, function, *arguments):
        """A function of B and U (and more) of a single matrix, for each one of the batch."""
        return over_batch(function, len(self.batch_shape))(self.base, self.factor, *arguments)

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if isinstance(other, PlusLowRank):
            raise ValueError("B + U U^T minus a low-rank part has no such form; use to_dense")
        return super().__sub__(other)

    def _plus(self, other: SymmetricMatrix) -> SymmetricMatrix:
        return (other + self.base).add_columns(self.factor)

    def _matmul(self, columns: Array) -> Array:
        return self.base._matmul(columns) + self.factor @ (self.factor.mT @ columns)

    def _is_solvable(self) -> bool:
        return self.base._is_solvable()

    def _form(self, columns: Array) -> Array:
        projected = jnp.sum(jnp.square(self.factor.mT @ columns), axis=(-2, -1))
        return self.base._form(columns) + projected

    def _inner(self, other: SymmetricMatrix) -> Array:
        return self.base._inner(other) + other._form(self.factor)

    def _solve(self, columns: Array) -> Array:
        return self._of_parts(woodbury.solve, columns)

    def _inverse_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        return QuadraticAndLogdet(*self._of_parts(woodbury.quadratic_form_and_logdet, vector))

    def _draw(self, key: PRNGKey, count: int) -> Array:
        base_key, low_rank_key = jax.random.split(key)
        weights = jax.random.normal(low_rank_key, (count, self.rank), self.dtype)
        return self.base._draw(base_key, count) + weights @ self.factor.T
