r"""Structured symmetric matrices: the algebra of second-order scores without a D x D array.

Structures, all pytrees, all acting on one example (batch with `jax.vmap`):

* `Diagonal(diag)`: diag(a), with a of shape (D,).
* `DiagonalPlusLowRank(diag, factor)`: diag(a) + U U^T, with U of shape (D, r).
* `IsotropicPlusLowRank`: the same with diag(a) = c I.
* `Dense(matrix)`: any symmetric (D, D) array, for small D and as the oracle of tests.

With a low-rank structure every operation costs at most O(D (r + 2)^2) time and O(D (r + 2)) memory:

.. math::
    \langle S, v v^T \rangle = \sum_i a_i v_i^2 + \|U^T v\|^2, \qquad
    \langle S, I \rangle = \sum_i a_i + \|U\|_F^2, \qquad
    \|S\|_F^2 = \sum_i a_i^2 + 2 \sum_i a_i \|U_i\|^2 + \|U^T U\|_F^2 .

The methods `solve` and `inverse_quadratic_form_and_logdet` need a positive definite matrix: for
`DiagonalPlusLowRank` a positive diagonal. They return NaN otherwise, as JAX's Cholesky does.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from hos_jax.types import Array


class QuadraticAndLogdet(NamedTuple):
    """v^T A^-1 v and log det A, scalars: the two terms of a Gaussian log density."""

    quadratic_form: Array
    logdet: Array


def _check_size(dim: int, vector: Array) -> None:
    if vector.ndim not in (1, 2) or vector.shape[0] != dim:
        raise ValueError(f"expected shape ({dim},) or ({dim}, k), got {tuple(vector.shape)}")


def _columns(vectors: Array) -> Array:
    return vectors[:, None] if vectors.ndim == 1 else vectors


class _Symmetric(abc.ABC):
    """What the structures share; tests hold each law against `to_dense`."""

    @property
    def dim(self) -> int:
        """D, the number of rows."""
        return self.diagonal().shape[0]

    @abc.abstractmethod
    def diagonal(self) -> Array:
        """The diagonal, (D,)."""

    def inner(self, other: SymmetricMatrix) -> Array:
        """Frobenius inner product <A, B> = sum_ij A_ij B_ij, a scalar.

        Raises:
          ValueError: if the sizes differ.
        """
        if self.dim != other.dim:
            raise ValueError(f"sizes differ: {self.dim} and {other.dim}")
        return self._inner(other)

    @abc.abstractmethod
    def _inner(self, other: SymmetricMatrix) -> Array:
        """<A, B> for sizes that agree."""

    def squared_norm(self) -> Array:
        """Squared Frobenius norm nF(A) = <A, A>, a scalar."""
        return self._inner(self)  # type: ignore[arg-type]  # every structure is a SymmetricMatrix

    def norm(self) -> Array:
        """Frobenius norm, a scalar."""
        return jnp.sqrt(self.squared_norm())

    def transpose(self) -> Self:
        """The matrix itself: every structure here is symmetric."""
        return self


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Diagonal(_Symmetric):
    """diag(a).

    Attributes:
      diag: a, (D,).
    """

    diag: Array

    def diagonal(self) -> Array:
        """The diagonal, (D,)."""
        return self.diag

    def trace(self) -> Array:
        """sum_i A_ii, a scalar."""
        return jnp.sum(self.diag)

    def matvec(self, vector: Array) -> Array:
        """A v for v of shape (D,), or A V for V of shape (D, k)."""
        _check_size(self.dim, vector)
        return self.diag * vector if vector.ndim == 1 else self.diag[:, None] * vector

    def quadratic_form(self, vector: Array) -> Array:
        """v^T A v, or tr(V^T A V) for V of shape (D, k), a scalar."""
        _check_size(self.dim, vector)
        return jnp.sum(self.diag * jnp.sum(jnp.square(_columns(vector)), axis=1))

    def _inner(self, other: SymmetricMatrix) -> Array:
        return jnp.sum(self.diag * other.diagonal())

    def __add__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if isinstance(other, Diagonal):
            return Diagonal(self.diag + other.diag)
        return other.add_diagonal(self.diag)

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        return self + other.scale(-1.0)

    def scale(self, factor: Array | float) -> Diagonal:
        """c A for any real c."""
        return Diagonal(self.diag * factor)

    def add_diagonal(self, diag: Array) -> Diagonal:
        """A + diag(b)."""
        return Diagonal(self.diag + diag)

    def add_identity(self, multiple: Array | float = 1.0) -> Diagonal:
        """A + c I."""
        return Diagonal(self.diag + multiple)

    def add_outer(self, vector: Array) -> DiagonalPlusLowRank:
        """A + v v^T."""
        _check_size(self.dim, vector)
        return DiagonalPlusLowRank(self.diag, vector[:, None])

    def solve(self, vector: Array) -> Array:
        """A^-1 v, (D,) or (D, k)."""
        return Diagonal(1.0 / self.diag).matvec(vector)

    def logdet(self) -> Array:
        """log det A of a positive definite A, a scalar."""
        return jnp.sum(jnp.log(self.diag))

    def inverse_quadratic_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        """v^T A^-1 v and log det A of a positive definite A."""
        return QuadraticAndLogdet(jnp.sum(jnp.square(vector) / self.diag), self.logdet())

    def to_dense(self) -> Array:
        """The (D, D) array; for small D only."""
        return jnp.diag(self.diag)


class _Woodbury(NamedTuple):
    """P^-1 (r, r), F = diag(a)^(-1/2) U P^-T (D, r) and the Cholesky factor of P^-1 M P^-T."""

    inverse: Array
    factor: Array
    outer: Array

    def logdet(self) -> Array:
        """log det M, a scalar."""
        logs = jnp.log(jnp.diagonal(self.outer)) - jnp.log(jnp.diagonal(self.inverse))
        return 2.0 * jnp.sum(logs)

    def solve(self, white: Array) -> tuple[Array, Array]:
        """v - F w, which is A^-1 v where diag(a) is I, and w = (P^-1 M P^-T)^-1 F^T v."""
        weights = jsl.cho_solve((self.outer, True), self.factor.T @ white)
        return white - self.factor @ weights, weights


@jax.custom_jvp
def _gram_squared_norm(factor: Array) -> Array:
    """nF(U^T U) = nF(U U^T), a scalar."""
    return jnp.sum(jnp.square(factor.T @ factor))


@_gram_squared_norm.defjvp
def _gram_squared_norm_jvp(primals, tangents):
    """4 <U (U^T U), dU>: one product, where the derivative of U^T U has two that are equal."""
    (factor,), (factor_dot,) = primals, tangents
    gram = factor.T @ factor
    return jnp.sum(jnp.square(gram)), 4.0 * jnp.sum((factor @ gram) * factor_dot)


def _woodbury(diag: Array, factor: Array) -> _Woodbury:
    """The factors of M = I + U^T diag(a)^-1 U that `solve` and `logdet` share.

    M's eigenvalues are at least 1 but its entries may reach 1e7 in float32, where rounding
    alone can make it indefinite. So a Cholesky factor P of a shifted M only preconditions:
    with F = diag(a)^(-1/2) U P^-T the matrix P^-1 M P^-T = P^-1 P^-T + F^T F is close to I
    and is formed without M (shifted Cholesky QR, Fukaya et al. 2020).
    """
    dim, rank = factor.shape
    scaled = factor / jnp.sqrt(diag)[:, None]
    identity = jnp.eye(rank, dtype=scaled.dtype)
    constant = jax.lax.stop_gradient(scaled)
    gram = identity + constant.T @ constant
    rounding = 10.0 * jnp.finfo(gram.dtype).eps * (rank + math.sqrt(dim))
    shift = rounding * jnp.max(jnp.diagonal(gram))
    inner = jnp.linalg.cholesky(gram + shift * identity)
    inverse = jsl.solve_triangular(inner, identity, lower=True)
    whitened = scaled @ inverse.T
    outer = jnp.linalg.cholesky(inverse @ inverse.T + whitened.T @ whitened)
    return _Woodbury(inverse, whitened, outer)


def _form_and_logdet(
    diag: Array, vector: Array, woodbury: _Woodbury
) -> tuple[QuadraticAndLogdet, Array]:
    """Both values, and A^-1 v.

    With w = M^-1 U^T diag(a)^-1 v the form is n2((v - U w) / sqrt(a)) + n2(w): a sum of
    squares, where Woodbury's difference of two large numbers would lose float32's digits.
    """
    rest, weights = woodbury.solve(vector / jnp.sqrt(diag))
    form = jnp.sum(jnp.square(rest)) + jnp.sum(jnp.square(woodbury.inverse.T @ weights))
    logdet = jnp.sum(jnp.log(diag)) + woodbury.logdet()
    return QuadraticAndLogdet(form, logdet), rest / jnp.sqrt(diag)


@jax.custom_jvp
def _quadratic_form_and_logdet(diag: Array, factor: Array, vector: Array) -> QuadraticAndLogdet:
    """v^T A^-1 v and log det A for A = diag(a) + U U^T."""
    return _form_and_logdet(diag, vector, _woodbury(diag, factor))[0]


@_quadratic_form_and_logdet.defjvp
def _quadratic_form_and_logdet_jvp(primals, tangents):
    """Closed forms: d(v^T A^-1 v) = 2 w^T dv - w^T dA w with w = A^-1 v, d log det A = <A^-1, dA>.

    They cost two products of size D r^2 beyond the values, less than to differentiate through the
    factorization.
    """
    diag, factor, vector = primals
    diag_dot, factor_dot, vector_dot = tangents
    woodbury = _woodbury(diag, factor)
    values, solved = _form_and_logdet(diag, vector, woodbury)
    # A^-1 = (I - G F^T) / sqrt(a a^T) and A^-1 U = G P^-1 / sqrt(a), for G = F (P^-1 M P^-T)^-1.
    identity = jnp.eye(factor.shape[1], dtype=factor.dtype)
    turned = woodbury.factor @ jsl.cho_solve((woodbury.outer, True), identity)
    inverse_diagonal = (1.0 - jnp.sum(turned * woodbury.factor, axis=1)) / diag
    inverse_factor = (turned @ woodbury.inverse) / jnp.sqrt(diag)[:, None]
    form_dot = 2.0 * (solved @ vector_dot) - jnp.sum(jnp.square(solved) * diag_dot)
    form_dot -= 2.0 * jnp.sum(solved[:, None] * (factor.T @ solved)[None, :] * factor_dot)
    logdet_dot = jnp.sum(inverse_diagonal * diag_dot)
    logdet_dot += 2.0 * jnp.sum(inverse_factor * factor_dot)
    return values, QuadraticAndLogdet(form_dot, logdet_dot)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DiagonalPlusLowRank(_Symmetric):
    """diag(a) + U U^T.

    Attributes:
      diag: a, (D,).
      factor: U, (D, r).
    """

    diag: Array
    factor: Array

    @property
    def rank(self) -> int:
        """r, the number of columns of the factor."""
        return self.factor.shape[1]

    def diagonal(self) -> Array:
        """The diagonal a_i + n2(U_i), (D,)."""
        return self.diag + jnp.sum(jnp.square(self.factor), axis=1)

    def trace(self) -> Array:
        """sum a + nF(U), a scalar."""
        return jnp.sum(self.diag) + jnp.sum(jnp.square(self.factor))

    def matvec(self, vector: Array) -> Array:
        """A v for v of shape (D,), or A V for V of shape (D, k)."""
        return Diagonal(self.diag).matvec(vector) + self.factor @ (self.factor.T @ vector)

    def quadratic_form(self, vector: Array) -> Array:
        """v^T A v, or tr(V^T A V) for V of shape (D, k), a scalar."""
        diagonal_part = Diagonal(self.diag).quadratic_form(vector)
        return diagonal_part + jnp.sum(jnp.square(self.factor.T @ vector))

    def _inner(self, other: SymmetricMatrix) -> Array:
        return jnp.sum(self.diag * other.diagonal()) + other.quadratic_form(self.factor)

    def squared_norm(self) -> Array:
        """Squared Frobenius norm nF(A) = <A, A>, a scalar."""
        mixed = jnp.sum(self.diag * jnp.sum(jnp.square(self.factor), axis=1))
        return jnp.sum(jnp.square(self.diag)) + 2.0 * mixed + _gram_squared_norm(self.factor)

    def __add__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if isinstance(other, Diagonal):
            return self.add_diagonal(other.diag)
        if isinstance(other, DiagonalPlusLowRank):
            factor = jnp.concatenate([self.factor, other.factor], axis=1)
            return DiagonalPlusLowRank(self.diag + other.diag, factor)
        return Dense(self.to_dense() + other.matrix)

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if isinstance(other, DiagonalPlusLowRank):
            raise ValueError("diag + U U^T minus a low-rank part has no such form; use to_dense")
        return self + other.scale(-1.0)

    def scale(self, factor: Array | float) -> DiagonalPlusLowRank:
        """c A for c >= 0 (U U^T stays of that form only then).

        Raises:
          ValueError: for a negative Python number; a traced negative value gives NaN.
        """
        if isinstance(factor, int | float) and factor < 0:
            raise ValueError(f"diag + U U^T can be scaled by c >= 0 only, got {factor}")
        return DiagonalPlusLowRank(self.diag * factor, self.factor * jnp.sqrt(factor))

    def add_diagonal(self, diag: Array) -> DiagonalPlusLowRank:
        """A + diag(b)."""
        return DiagonalPlusLowRank(self.diag + diag, self.factor)

    def add_identity(self, multiple: Array | float = 1.0) -> DiagonalPlusLowRank:
        """A + c I."""
        return DiagonalPlusLowRank(self.diag + multiple, self.factor)

    def add_outer(self, vector: Array) -> DiagonalPlusLowRank:
        """A + v v^T: the same structure with one more column."""
        _check_size(self.dim, vector)
        factor = jnp.concatenate([self.factor, vector[:, None]], axis=1)
        return DiagonalPlusLowRank(self.diag, factor)

    def solve(self, vector: Array) -> Array:
        """A^-1 v for positive a, (D,) or (D, k), by Woodbury's identity in O(D r^2)."""
        _check_size(self.dim, vector)
        root = Diagonal(1.0 / jnp.sqrt(self.diag))
        rest, _ = _woodbury(self.diag, self.factor).solve(root.matvec(vector))
        return root.matvec(rest)

    def logdet(self) -> Array:
        """log det A for positive a: sum log a + log det(I + U^T diag(a)^-1 U), a scalar."""
        return jnp.sum(jnp.log(self.diag)) + _woodbury(self.diag, self.factor).logdet()

    def inverse_quadratic_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        """v^T A^-1 v and log det A for positive a, from the same r x r factors."""
        _check_size(self.dim, vector)
        return _quadratic_form_and_logdet(self.diag, self.factor, vector)

    def to_dense(self) -> Array:
        """The (D, D) array; for small D only."""
        return jnp.diag(self.diag) + self.factor @ self.factor.T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class IsotropicPlusLowRank(DiagonalPlusLowRank):
    """c I + U U^T: the low-rank structure whose matrix functions are of the same structure.

    Attributes:
      diag: c in every place, (D,); `from_multiple` makes it.
      factor: U, (D, r).
    """

    @classmethod
    def from_multiple(cls, multiple: Array | float, factor: Array) -> IsotropicPlusLowRank:
        """c I + U U^T from the scalar c and U, (D, r)."""
        return cls(jnp.full(factor.shape[:1], multiple, factor.dtype), factor)

    @property
    def multiple(self) -> Array:
        """c, a scalar."""
        return self.diag[0]

    def scale(self, factor: Array | float) -> IsotropicPlusLowRank:
        """b A for b >= 0; see `DiagonalPlusLowRank.scale`."""
        scaled = super().scale(factor)
        return IsotropicPlusLowRank(scaled.diag, scaled.factor)

    def add_identity(self, multiple: Array | float = 1.0) -> IsotropicPlusLowRank:
        """A + b I."""
        return IsotropicPlusLowRank(self.diag + multiple, self.factor)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Dense(_Symmetric):
    """A symmetric matrix as it is, for small D.

    Attributes:
      matrix: (D, D), symmetric; symmetry is the caller's promise.
    """

    matrix: Array

    def diagonal(self) -> Array:
        """The diagonal, (D,)."""
        return jnp.diagonal(self.matrix)

    def trace(self) -> Array:
        """sum_i A_ii, a scalar."""
        return jnp.trace(self.matrix)

    def matvec(self, vector: Array) -> Array:
        """A v for v of shape (D,), or A V for V of shape (D, k)."""
        _check_size(self.dim, vector)
        return self.matrix @ vector

    def quadratic_form(self, vector: Array) -> Array:
        """v^T A v, or tr(V^T A V) for V of shape (D, k), a scalar."""
        return jnp.sum(vector * self.matvec(vector))

    def _inner(self, other: SymmetricMatrix) -> Array:
        if isinstance(other, Dense):
            return jnp.sum(self.matrix * other.matrix)
        return other._inner(self)

    def __add__(self, other: SymmetricMatrix) -> Dense:
        return Dense(self.matrix + other.to_dense())

    def __sub__(self, other: SymmetricMatrix) -> Dense:
        return Dense(self.matrix - other.to_dense())

    def scale(self, factor: Array | float) -> Dense:
        """c A for any real c."""
        return Dense(self.matrix * factor)

    def add_diagonal(self, diag: Array) -> Dense:
        """A + diag(b)."""
        return Dense(self.matrix + jnp.diag(diag))

    def add_identity(self, multiple: Array | float = 1.0) -> Dense:
        """A + c I."""
        return Dense(self.matrix + multiple * jnp.eye(self.dim, dtype=self.matrix.dtype))

    def add_outer(self, vector: Array) -> Dense:
        """A + v v^T."""
        _check_size(self.dim, vector)
        return Dense(self.matrix + jnp.outer(vector, vector))

    def _cholesky(self) -> Array:
        return jnp.linalg.cholesky(self.matrix)

    def solve(self, vector: Array) -> Array:
        """A^-1 v for positive definite A, (D,) or (D, k)."""
        _check_size(self.dim, vector)
        return jsl.cho_solve((self._cholesky(), True), vector)

    def logdet(self) -> Array:
        """log det A for positive definite A, a scalar."""
        return 2.0 * jnp.sum(jnp.log(jnp.diagonal(self._cholesky())))

    def inverse_quadratic_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        """v^T A^-1 v and log det A for positive definite A."""
        _check_size(self.dim, vector)
        cholesky = self._cholesky()
        whitened = jsl.solve_triangular(cholesky, vector, lower=True)
        logdet = 2.0 * jnp.sum(jnp.log(jnp.diagonal(cholesky)))
        return QuadraticAndLogdet(jnp.sum(jnp.square(whitened)), logdet)

    def to_dense(self) -> Array:
        """The (D, D) array."""
        return self.matrix


SymmetricMatrix = Diagonal | DiagonalPlusLowRank | Dense


class HessianFn(Protocol):
    """Second-order score s2(y) = Hessian of log q(y) at one point: (D,) -> structured (D, D)."""

    def __call__(self, noisy: Array, /) -> SymmetricMatrix: ...
