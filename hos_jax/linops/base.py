r"""What every structured symmetric matrix can do, and what comes out of it.

A structure holds arrays (..., D), (..., D, r) or (..., D, D). The leading axes are a batch, as in
what a model says of many points, and every method works on all matrices of the batch together.

One rule decides what an argument is: it has exactly the batch axes of the matrix, and then (D,)
for a vector or (D, k) for k columns. A scalar stands for every matrix of a batch, an array of the
batch's shape gives each its own. Nothing else is broadcast: ValueError names the shapes, and
`jax.vmap` says what was meant, one matrix with many vectors for instance.

Of 16 bits there are products and sums; what factorizes a matrix, as `solve` does, JAX has of 32 and
64 alone: `jax.tree.map(lambda x: x.astype(jnp.float32), matrix)`.

Products run at JAX's own matrix precision. Gradients are finite wherever the values are, zero
matrices and repeated eigenvalues included; of functions of a matrix, first ones alone.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.linops.lanczos import KRYLOV_VECTORS, Eigenpairs, safe_sqrt, top_eigenpairs
from hos_jax.linops.matrix_functions import (
    MatrixFunctionProduct,
    SpectralFunction,
    gauss_quadrature,
    lanczos_product,
)
from hos_jax.types import Array, PRNGKey, check_counts, check_floating, short_repr

OTHER_BATCHES = "use vmap for other batches"


class QuadraticAndLogdet(NamedTuple):
    """v^T A^-1 v and log det A, (...): the two terms of a Gaussian log density."""

    quadratic_form: Array
    logdet: Array


class Violations(NamedTuple):
    """Where a predicted covariance was not one: how many eigenvalues (`Dense`), or values of the
    diagonal part, lay below the floor, (...), and the largest distance of one below it, in units
    of the matrix, or 0."""

    count: Array  # type: ignore[assignment]  # stands for the method `count` of tuples
    largest: Array

    @classmethod
    def of(cls, values: Array, floor: Array | float) -> Violations:
        """What of `values`, (..., D), lies below the floor, scalar or (..., 1)."""
        missing = jnp.maximum(floor - values, 0.0)
        # A model that is built with this floor reaches it up to rounding.
        missing = jnp.where(missing > 0.01 * floor, missing, 0.0)
        return cls(jnp.sum(missing > 0, axis=-1), jnp.max(missing, axis=-1))


def over_batch(function: Callable, ndim: int) -> Callable:
    """A function of single examples, mapped over `ndim` leading axes of all its arguments."""
    if ndim == 0:
        return function

    def over_one_axis(*arguments: Any) -> Any:
        # JAX traces a loop or a linear solve several times for each axis that it maps over.
        shape = jax.tree.leaves(arguments)[0].shape[:ndim]
        examples = jax.tree.map(
            lambda leaf: jnp.reshape(leaf, (math.prod(shape), *leaf.shape[ndim:])), arguments
        )
        found = jax.vmap(function)(*examples)
        return jax.tree.map(lambda leaf: jnp.reshape(leaf, (*shape, *leaf.shape[1:])), found)

    return over_one_axis


class SymmetricMatrix(abc.ABC):
    """A batch of symmetric (D, D) matrices; tests hold each law against `to_dense`.

    `A + B`, `A - B`, `-A`, `c * A` and `A @ v` (which is `matvec`) are what they look like. All
    methods raise ValueError for shapes that do not fit.
    """

    # NumPy's scalars and arrays leave products with a structure to `__rmul__`.
    __array_ufunc__ = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """TypeError, but for arrays of objects: NumPy would make one with one object in it."""
        if dtype is None or np.dtype(dtype).kind != "O":
            raise TypeError("a structured matrix is no array: to_dense() makes the (D, D) one")
        array = np.empty((), object)
        array[()] = self
        return array

    __repr__ = short_repr

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """(..., D, D); ValueError if the arrays of the structure do not belong together."""

    @property
    def dtype(self) -> jnp.dtype:
        """The floating type of the entries; ValueError for integers."""
        leaf = jax.tree.leaves(self)[0]
        check_floating(matrix=leaf)
        # NumPy arrays may be of a type that JAX does not compute in.
        return jax.dtypes.canonicalize_dtype(leaf.dtype)

    @property
    def dim(self) -> int:
        """D, the number of rows."""
        return self.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """The leading axes; () for one matrix."""
        return self.shape[:-2]

    @abc.abstractmethod
    def diagonal(self) -> Array:
        """The diagonal, (..., D)."""

    @abc.abstractmethod
    def to_dense(self) -> Array:
        """The (..., D, D) array; for small D only."""

    def trace(self) -> Array:
        """sum_i A_ii, (...)."""
        return jnp.sum(self.diagonal(), axis=-1)

    def matvec(self, vector: Array) -> Array:
        """A v for v of shape (..., D), or A V for columns V, (..., D, k)."""
        return self._on_columns(self._matmul, vector)

    def __matmul__(self, vector: Array) -> Array:
        """`matvec`; TypeError for another structure, as the product of two has none."""
        if isinstance(vector, SymmetricMatrix):
            raise TypeError("the product of two structures has none: take one of them to_dense()")
        return self.matvec(vector)

    def quadratic_form(self, vector: Array) -> Array:
        """v^T A v for v of shape (..., D), or tr(V^T A V) for columns V, (..., D, k); (...)."""
        return self._form(self._columns(vector))

    def solve(self, vector: Array) -> Array:
        """A^-1 v for a positive definite A (NaN for others), (..., D) or (..., D, k)."""
        return self._on_columns(self._solve, vector)

    @abc.abstractmethod
    def logdet(self) -> Array:
        """log det A of a positive definite A (NaN for others), (...)."""

    def inverse_quadratic_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        """v^T A^-1 v and log det A of a positive definite A, (...), for v of shape (..., D)."""
        self._check_vector(vector)
        return self._inverse_form_and_logdet(vector)

    def estimate_inverse_form_and_logdet(
        self,
        key: PRNGKey,
        vector: Array,
        *,
        probes: int = 4,
        krylov_vectors: int = KRYLOV_VECTORS,
    ) -> QuadraticAndLogdet:
        """`inverse_quadratic_form_and_logdet`, also of what has no factor: for a local factor plus
        a diagonal, by Lanczos.

        There v^T A^-1 v is that of a Krylov space of v, and log det A the mean of z^T log(A) z over
        probes z of random signs: unbiased, up to the error of Lanczos, which with K vectors falls
        as ((c - 1) / (c + 1))^(2 K), where c^2 is the condition of A. One probe has the variance
        2 sum_{i != j} log(A)_ij^2. The key is split into one for each matrix of a batch.
        ValueError for probes or Krylov vectors below 1.

        See Ubaru, Chen, Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature",
        2017.
        """
        if self._is_solvable():
            return self.inverse_quadratic_form_and_logdet(vector)
        self._check_vector(vector)
        check_counts(probes=probes, krylov_vectors=krylov_vectors)

        size = min(krylov_vectors, self.dim)

        def estimate(matrix: SymmetricMatrix, key: PRNGKey, one: Array) -> QuadraticAndLogdet:
            def forms(v: Array) -> tuple[Array, Array]:
                values, weights = gauss_quadrature(type(self).matvec, matrix, v, size)
                return jnp.sum(weights / values), jnp.sum(weights * jnp.log(values))

            signs = jax.random.rademacher(key, (probes, self.dim), self.dtype)
            inverse, logs = jax.vmap(forms)(jnp.concatenate([one[None], signs]))
            return QuadraticAndLogdet(inverse[0], jnp.mean(logs[1:]))

        keys = jax.random.split(key, self.batch_shape) if self.batch_shape else key
        return self._each(estimate, keys, vector)

    def inner(self, other: SymmetricMatrix) -> Array:
        """Frobenius inner product <A, B> = sum_ij A_ij B_ij, (...)."""
        self._check_same(other)
        return self._inner(other)

    def squared_norm(self) -> Array:
        """Squared Frobenius norm, tr A^2, (...)."""
        return self._inner(self)

    def norm(self) -> Array:
        """Frobenius norm, (...)."""
        return safe_sqrt(self.squared_norm())

    def transpose(self) -> Self:
        """The matrix itself: every structure here is symmetric."""
        return self

    @abc.abstractmethod
    def scale(self, factor: Array | float) -> SymmetricMatrix:
        """c A for a scalar c, or one for each matrix, (...); ValueError for c < 0 where that has no
        such form. Of factors, which take sqrt(c), the derivative at c = 0 is taken to be 0."""

    @abc.abstractmethod
    def add_diagonal(self, diag: Array) -> SymmetricMatrix:
        """A + diag(b) for b of shape (..., D)."""

    @abc.abstractmethod
    def add_identity(self, multiple: Array | float = 1.0) -> SymmetricMatrix:
        """A + c I for a scalar c, or one for each matrix, (...)."""

    @abc.abstractmethod
    def add_columns(self, factor: Array) -> SymmetricMatrix:
        """A + V V^T for V of shape (..., D, k)."""

    def add_outer(self, vector: Array) -> SymmetricMatrix:
        """A + v v^T for v of shape (..., D)."""
        self._check_vector(vector)
        return self.add_columns(vector[..., None])

    def sample(self, key: PRNGKey, count: int) -> Array:
        """Draws of N(0, A) for a positive definite A, (..., count, D).

        The key is split into one for each matrix of a batch.
        """
        check_counts(0, count=count)
        keys = jax.random.split(key, self.batch_shape) if self.batch_shape else key
        return self._each(lambda matrix, one: matrix._draw(one, count), keys)

    @abc.abstractmethod
    def floor(self, smallest: float | Array) -> tuple[SymmetricMatrix, Violations]:
        """The matrix made positive definite, in its structure, and what was not.

        The floor is `smallest`, or what the floating type resolves beside the largest eigenvalue
        where that is more: below it a Cholesky factorization fails by rounding alone. A matrix with
        nothing below the floor comes back as it is, bit for bit.
        """

    def whiten(self, vector: Array) -> Array:
        """W v, (..., D) or (..., D, k), for a W with W^T W = A^-1: white if v has covariance A."""
        return self._on_columns(self._whiten, vector)

    def whiten_and_logdet(self, vector: Array) -> tuple[Array, Array]:
        """`whiten` and `logdet`, by one factorization of A = B + U U^T."""
        white, logdet = self._whiten_and_logdet(self._columns(vector))
        return white.reshape(jnp.shape(vector)), logdet

    def color(self, vector: Array) -> Array:
        """R v = W^-1 v, (..., D) or (..., D, k): of covariance A where v is white."""
        return self._on_columns(self._color, vector)

    @abc.abstractmethod
    def root_third_powers(self) -> Array:
        """sum_j |R_ij|^3 of each row of the root R of `color`, (..., D); of B + U U^T with D > 256
        those of B's root alone: columns that spread what they add over all of R's row have third
        powers that count little there."""

    def top_eigenpairs(self, count: int, *, krylov_vectors: int | None = None) -> Eigenpairs:
        """The k largest eigenvalues, (..., k), and their eigenvectors, (..., D, k).

        Exact for `Diagonal` and `Dense`, else by `lanczos.top_eigenpairs`, of which
        `residual_norms` and `converged` tell how good they are. Gradients flow through the
        eigenvalues; the eigenvectors are constants. ValueError unless 1 <= count <= D; for Lanczos
        see `lanczos.top_eigenpairs`.
        """
        check_counts(0, count=count)
        if not 1 <= count <= self.dim:
            raise ValueError(f"expected 1 <= count <= {self.dim}, got {count}")
        return _leading_eigenpairs(self, count, krylov_vectors)

    def function_product(
        self,
        function: SpectralFunction,
        vector: Array,
        *,
        krylov_vectors: int = KRYLOV_VECTORS,
        dense: Literal["eigh", "lanczos"] = "eigh",
    ) -> MatrixFunctionProduct:
        """f(A) v, exact where the structure allows it, else by Lanczos with an estimated error.

        Exact: `Diagonal` elementwise, `IsotropicPlusLowRank` through an r x r eigenproblem, `Dense`
        through its own. Products run at the highest precision, or TF32 would limit the accuracy.

        Args:
          function: f, elementwise on an array of eigenvalues; finite on the whole spectrum.
          vector: v, (..., D).
          krylov_vectors: K, for Lanczos, of which at most D are used; ValueError below 2.
          dense: the way for a `Dense` matrix: exact, in O(D^3), or Lanczos, in O(K D^2).
        """
        if dense not in ("eigh", "lanczos"):
            raise ValueError(f"expected dense 'eigh' or 'lanczos', got {dense!r}")
        check_counts(2, krylov_vectors=krylov_vectors)
        self._check_vector(vector)
        size = min(krylov_vectors, self.dim)

        def product(matrix: SymmetricMatrix, one: Array) -> MatrixFunctionProduct:
            value = matrix._exact_function_product(function, one, dense)
            if value is not None:
                return MatrixFunctionProduct(value, jnp.zeros((), value.dtype))
            matvec = type(self).matvec
            return lanczos_product(matvec, matrix, function, one, size)

        with jax.default_matmul_precision("highest"):
            return self._each(product, vector)

    @abc.abstractmethod
    def _plus(self, other: SymmetricMatrix) -> SymmetricMatrix:
        """A + B for shapes that agree."""

    def __add__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if not isinstance(other, SymmetricMatrix):
            return NotImplemented
        self._check_same(other)
        return self._plus(other)

    def __sub__(self, other: SymmetricMatrix) -> SymmetricMatrix:
        return self + (-other) if isinstance(other, SymmetricMatrix) else NotImplemented

    def __neg__(self) -> SymmetricMatrix:
        return self.scale(-1.0)

    def __mul__(self, factor: Array | float) -> SymmetricMatrix:
        return NotImplemented if isinstance(factor, SymmetricMatrix) else self.scale(factor)

    __rmul__ = __mul__

    @abc.abstractmethod
    def _matmul(self, columns: Array) -> Array:
        """A V, (..., D, k)."""

    @abc.abstractmethod
    def _solve(self, columns: Array) -> Array:
        """A^-1 V, (..., D, k)."""

    @abc.abstractmethod
    def _whiten(self, columns: Array) -> Array:
        """W V, (..., D, k)."""

    def _whiten_and_logdet(self, columns: Array) -> tuple[Array, Array]:
        """W V, (..., D, k), and log det A, (...)."""
        return self._whiten(columns), self.logdet()

    @abc.abstractmethod
    def _color(self, columns: Array) -> Array:
        """R V, (..., D, k)."""

    @abc.abstractmethod
    def _inverse_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        """v^T A^-1 v and log det A, (...)."""

    def _is_solvable(self) -> bool:
        """Whether solves and determinants are exact methods of this structure."""
        return True

    def _form(self, columns: Array) -> Array:
        """tr(V^T A V), (...)."""
        return jnp.sum(columns * self._matmul(columns), axis=(-2, -1))

    @abc.abstractmethod
    def _inner(self, other: SymmetricMatrix) -> Array:
        """<A, B> for shapes that agree."""

    @abc.abstractmethod
    def _draw(self, key: PRNGKey, count: int) -> Array:
        """Draws of N(0, A) of a single matrix, (count, D)."""

    def _top_eigenpairs(self, count: int, krylov_vectors: int | None) -> Eigenpairs:
        """The leading eigenpairs of a single matrix."""
        # Which random start it is does not matter; a fixed one gives the same answer each time.
        key, sizes = jax.random.key(0), (self.dim, count)
        return top_eigenpairs(
            key, self.matvec, *sizes, krylov_vectors=krylov_vectors, dtype=self.dtype
        )

    def _exact_function_product(
        self, function: SpectralFunction, vector: Array, dense: str
    ) -> Array | None:
        """f(A) v of a single matrix, (D,), where the structure allows it; else None."""
        return None

    def _each(self, function: Callable, *arguments: Any) -> Any:
        """A function of single matrices (and more), for each one of the batch."""
        return over_batch(function, len(self.batch_shape))(self, *arguments)

    def _on_columns(self, function: Callable[[Array], Array], vector: Array) -> Array:
        result = function(self._columns(vector))
        return result[..., 0] if jnp.ndim(vector) < len(self.shape) else result

    def _columns(self, vector: Array) -> Array:
        """A vector, (..., D), or columns, (..., D, k), as columns."""
        rows, found = self.shape[:-1], tuple(jnp.shape(vector))
        if found == rows:
            return vector[..., None]
        if found[:-1] != rows:
            columns = f"({', '.join(map(str, rows))}, k)"
            raise ValueError(f"expected shape {rows} or {columns}, got {found}; {OTHER_BATCHES}")
        return vector

    def _check_vector(self, vector: Array) -> None:
        rows, found = self.shape[:-1], tuple(jnp.shape(vector))
        if found != rows:
            raise ValueError(f"expected shape {rows}, got {found}; {OTHER_BATCHES}")

    def _check_same(self, other: SymmetricMatrix) -> None:
        if self.shape != other.shape:
            what = "batches" if self.dim == other.dim else "sizes"
            raise ValueError(f"{what} differ: {self.shape} and {other.shape}; {OTHER_BATCHES}")

    def _per_matrix(self, value: Array | float, axes: int) -> Array | float:
        """A scalar as it is, or one number for each matrix, (...), with so many axes more."""
        shape = tuple(jnp.shape(value))
        if shape == ():
            return value
        if shape != self.batch_shape:
            one_each = f"one number for each matrix, {self.batch_shape}"
            raise ValueError(f"expected a scalar or {one_each}, got {shape}; {OTHER_BATCHES}")
        return jnp.reshape(jnp.asarray(value), (*shape, *(1,) * axes))

    def _root(self, factor: Array | float, axes: int) -> Array:
        """sqrt(c) for each matrix, with so many axes more; ValueError for c < 0."""
        if not isinstance(factor, jax.core.Tracer) and np.any(np.asarray(factor) < 0):
            raise ValueError(f"{type(self).__name__} can be scaled by c >= 0 only, got {factor}")
        return safe_sqrt(jnp.asarray(self._per_matrix(factor, axes), self.dtype))


# Compiled once for matrices of one structure: Lanczos's loops by themselves would be at every call,
# and JAX keep each of the programs.
@functools.partial(jax.jit, static_argnums=(1, 2))
def _leading_eigenpairs(
    matrix: SymmetricMatrix, count: int, krylov_vectors: int | None
) -> Eigenpairs:
    return matrix._each(lambda each: each._top_eigenpairs(count, krylov_vectors))


class Solvable(SymmetricMatrix):
    """A structure whose root has a transpose too. From it follow solves, likelihoods and draws, and
    those of A + U U^T by `hos_jax.linops.woodbury`."""

    def whiten_transposed(self, vector: Array) -> Array:
        """W^T v, (..., D) or (..., D, k), for the W of `whiten`."""
        return self._on_columns(self._whiten_transposed, vector)

    @abc.abstractmethod
    def _whiten_transposed(self, columns: Array) -> Array:
        """W^T V, (..., D, k)."""

    def _of_each(self, function: Callable[[Array], Array], *columns: Array) -> Sequence[Array]:
        """f(V) of several arrays of columns, (..., D, k), for a method f of this matrix that does
        the same to every column."""
        return [function(each) for each in columns]

    def _solve(self, columns: Array) -> Array:
        return self._whiten_transposed(self._whiten(columns))

    def _inverse_form_and_logdet(self, vector: Array) -> QuadraticAndLogdet:
        white = self._whiten(vector[..., None])
        return QuadraticAndLogdet(jnp.sum(jnp.square(white), axis=(-2, -1)), self.logdet())

    def _draw(self, key: PRNGKey, count: int) -> Array:
        return self._color(jax.random.normal(key, (count, self.dim), self.dtype).T).T


# Second-order score s2(y) = Hessian of log q(y) at one point: (D,) -> structured (D, D).
HessianFn = Callable[[Array], SymmetricMatrix]
