r"""Functions of symmetric matrices times a vector, f(A) v: the ways that structures choose from.

* `spectral_matrix`: f(A) of a small dense matrix through its eigendecomposition.
* `isotropic_product`, for c I + U U^T: through the eigenvalues l of the r x r matrix U^T U, as

  .. math:: f(A) v = f(c) v + U W \, \mathrm{diag}\Big(\frac{f(c + l) - f(c)}{l}\Big) W^T U^T v

* `lanczos_product`, for any matrix known by its products: with K Krylov vectors Q of (A, v) and
  T = Q^T A Q it is \|v\| Q f(T) e_1, exact when K reaches the number of distinct eigenvalues that v
  sees.

First derivatives are those of the function of a matrix (Daleckii and Krein), through the divided
differences of f: finite and right at repeated eigenvalues and at 0, where those of eigenvectors are
not. Second ones go through eigenvectors: they are NaN, or with Lanczos inaccurate, at repeated
eigenvalues.

See Higham, "Functions of Matrices", 2008, theorem 3.11; Kressner, "A Krylov subspace method for the
approximation of bivariate matrix functions", 2019.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops.lanczos import krylov_space, safe_norm
from hos_jax.types import Array

SpectralFunction = Callable[[Array], Array]


class MatrixFunctionProduct(NamedTuple):
    """f(A) v and how far it may be off.

    `relative_error`, (...), is for Lanczos the norm of what the last Krylov vector changed over the
    norm of the value: an estimate of the error, not a bound. It is 0 for the exact ways.
    """

    value: Array
    relative_error: Array

    @property
    def converged(self) -> Array:
        """Whether the estimated error is below the square root of the rounding, bool (...)."""
        return self.relative_error <= jnp.finfo(self.relative_error.dtype).eps ** 0.5


def _divided_difference(function: SpectralFunction, left: Array, right: Array) -> Array:
    """(f(a) - f(b)) / (a - b), and f' between them where a and b are too close for that.

    That is where f' foretells the difference up to the rounding of f.
    """
    gap, middle = left - right, 0.5 * (left + right)
    _, slope = jax.jvp(function, (middle,), (jnp.ones_like(middle),))
    first, second = function(left), function(right)
    rounding = 4.0 * jnp.finfo(left.dtype).eps * jnp.maximum(jnp.abs(first), jnp.abs(second))
    near = (gap == 0) | (jnp.abs(slope * gap - (first - second)) <= rounding)
    return jnp.where(near, slope, (first - second) / jnp.where(near, 1.0, gap))


def _closed(function: SpectralFunction, like: Array) -> tuple[Callable, list[Any]]:
    """The function as `f(values, *constants)`, with the numbers it closes over as arguments, for
    values that are made of `like`."""
    # A zero that, inside `jax.shard_map`, varies over the devices as such values do.
    one, constants = jax.closure_convert(function, jnp.sum(like.ravel()[:0]))

    def of(values: Array, *arguments: Any) -> Array:
        flat = jax.vmap(lambda value: one(value, *arguments))(values.ravel())
        return flat.reshape(values.shape)

    return of, constants


def spectral_matrix(matrix: Array, function: SpectralFunction) -> Array:
    """f(A), (D, D), for a symmetric A, (D, D); in O(D^3)."""
    of, constants = _closed(function, matrix)
    return _spectral(of, matrix, constants)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _spectral(of: Callable, matrix: Array, constants: list) -> Array:
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * of(values, *constants)[None]) @ vectors.T


@_spectral.defjvp
def _spectral_jvp(of, primals, tangents):
    (matrix, constants), (matrix_dot, constants_dot) = primals, tangents
    values, vectors = jnp.linalg.eigh(matrix)
    of_values, values_dot = jax.jvp(lambda c: of(values, *c), (constants,), (constants_dot,))
    turned = vectors.T @ (0.5 * (matrix_dot + matrix_dot.T)) @ vectors
    table = _divided_difference(lambda x: of(x, *constants), values[:, None], values[None])
    slope = vectors @ (table * turned + jnp.diag(values_dot)) @ vectors.T
    return (vectors * of_values[None]) @ vectors.T, slope


def isotropic_product(
    multiple: Array, factor: Array, function: SpectralFunction, vector: Array
) -> Array:
    """f(c I + U U^T) v, (D,), exactly, in O(D r^2), for a scalar c and U of shape (D, r)."""

    def difference(value: Array) -> Array:
        # Rounding may leave an eigenvalue of U^T U below 0, where f need not be defined.
        shifted = multiple + jnp.maximum(value, 0.0)
        return _divided_difference(function, shifted, jnp.full_like(value, multiple))

    inner = spectral_matrix(factor.T @ factor, difference)
    return function(multiple) * vector + factor @ (inner @ (factor.T @ vector))


def lanczos_product(
    matvec: Callable[[Any, Array], Array],
    matrix: Any,
    function: SpectralFunction,
    vector: Array,
    size: int,
) -> MatrixFunctionProduct:
    """f(A) v by Lanczos, with an estimate of its error.

    The derivative in reverse mode takes a second Krylov space, that of A and the cotangent; there
    is none in forward mode. No gradient flows through the estimate.

    `matvec(matrix, columns)` is A V, (D, k), differentiable in `matrix`, any pytree; K = `size` is
    at most D.
    """
    of, constants = _closed(function, vector)
    value, error = _lanczos(of, matvec, size, matrix, constants, vector)
    return MatrixFunctionProduct(value, jax.lax.stop_gradient(error))


class _Ritz(NamedTuple):
    """v on a Krylov space: v = Z w, A is nearly Z diag(l) Z^T; l, Z (D, K), w and T (K, K)."""

    values: Array
    vectors: Array
    weights: Array
    projected: Array


def _ritz(matvec: Callable, matrix: Any, vector: Array, size: int) -> _Ritz:
    dim, norm = vector.shape[0], safe_norm(vector)
    direction = jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1.0), dim**-0.5)
    # Fixed and all different: nothing here depends on what they are.
    noise = jnp.cos(1.0 + jnp.arange(dim, dtype=vector.dtype))
    basis, projected = krylov_space(lambda v: matvec(matrix, v), direction, noise, size)
    values, small = jnp.linalg.eigh(projected)
    return _Ritz(values, basis.T @ small, norm * small[0], projected)


def gauss_quadrature(
    matvec: Callable[[Any, Array], Array], matrix: Any, vector: Array, size: int
) -> tuple[Array, Array]:
    """l and w, (K,), such that v^T f(A) v is nearly sum_i w_i f(l_i): exact for polynomials of
    degree 2 K - 1. Arguments are those of `lanczos_product`. See Golub, Meurant, "Matrices, Moments
    and Quadrature", 2010, chapter 3."""
    ritz = _ritz(matvec, matrix, vector, size)
    return ritz.values, jnp.square(ritz.weights)


def _relative_change(of: Callable, constants: list, projected: Array, dim: int) -> Array:
    """What the last Krylov vector changed in f(T) e_1, over its norm."""
    if len(projected) == dim:  # the whole space
        return jnp.zeros((), projected.dtype)
    last = _spectral(of, projected, constants)[:, 0]
    before = _spectral(of, projected[:-1, :-1], constants)[:, 0]
    change = last - jnp.pad(before, (0, 1))
    total = jnp.linalg.norm(last)
    return jnp.linalg.norm(change) / jnp.where(total > 0, total, 1.0)


def _lanczos_forward(of, matvec, size, matrix, constants, vector):
    ritz = _ritz(matvec, matrix, vector, size)
    value = ritz.vectors @ (of(ritz.values, *constants) * ritz.weights)
    error = _relative_change(of, constants, ritz.projected, len(vector))
    return (value, error), (matrix, constants, ritz)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _lanczos(of, matvec, size, matrix, constants, vector):
    return _lanczos_forward(of, matvec, size, matrix, constants, vector)[0]


def _lanczos_backward(of, matvec, size, saved, cotangents):
    r"""g^T df(A) v = sum_ij (g.y_i) D_ij (z_j.v) y_i^T dA z_j over Ritz vectors y of g and z of v,
    with the divided differences D of f at their values."""
    matrix, constants, right = saved
    left = _ritz(matvec, matrix, cotangents[0], size)
    pairs = left.values[:, None], right.values[None]
    table = _divided_difference(lambda x: of(x, *constants), *pairs)
    weighted = left.vectors @ (left.weights[:, None] * table * right.weights[None, :])

    def along(matrix, constants):
        moved = jnp.sum(weighted * matvec(matrix, right.vectors))
        seen = right.weights * (right.vectors.T @ cotangents[0])
        return moved + jnp.sum(of(right.values, *constants) * seen)

    slopes = jax.grad(along, (0, 1))(matrix, constants)
    return *slopes, left.vectors @ (of(left.values, *constants) * left.weights)


_lanczos.defvjp(_lanczos_forward, _lanczos_backward)
