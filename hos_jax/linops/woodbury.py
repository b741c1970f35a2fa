r"""Solves and likelihoods of A = B + U U^T through an r x r matrix, for one matrix.

B is any `Solvable`: with W^T W = B^-1 the r x r matrix is M = I + (W U)^T (W U), and

.. math:: A^{-1} = W^T (I - W U M^{-1} U^T W^T) W, \qquad \log\det A = \log\det B + \log\det M .
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl

from hos_jax.linops.base import Solvable
from hos_jax.types import Array

# Of a root, at once.
_COLUMNS = 32


class Factorization(NamedTuple):
    """P^-1 (r, r), F = W U P^-T (D, r) and the Cholesky factor of P^-1 M P^-T."""

    inverse: Array
    factor: Array
    outer: Array

    def logdet(self) -> Array:
        """log det M."""
        logs = jnp.log(jnp.diagonal(self.outer)) - jnp.log(jnp.diagonal(self.inverse))
        return 2.0 * jnp.sum(logs)

    def solve(self, white: Array) -> tuple[Array, Array]:
        """v - F w, which is A^-1 v where B is I, and w = (P^-1 M P^-T)^-1 F^T v."""
        weights = jsl.cho_solve((self.outer, True), self.factor.T @ white)
        return white - self.factor @ weights, weights


def factorize(scaled: Array) -> Factorization:
    """The factors of M that solves and log-determinants share, from W U, (D, r).

    M's eigenvalues are at least 1 but its entries may reach 1e7 in float32, where rounding
    alone can make it indefinite. So a Cholesky factor P of a shifted M only preconditions:
    with F = W U P^-T the matrix P^-1 M P^-T = P^-1 P^-T + F^T F is close to I and is formed
    without M (shifted Cholesky QR, Fukaya et al. 2020).
    """
    dim, rank = scaled.shape
    identity = jnp.eye(rank, dtype=scaled.dtype)
    constant = jax.lax.stop_gradient(scaled)
    gram = identity + constant.T @ constant
    rounding = 10.0 * jnp.finfo(gram.dtype).eps * (rank + math.sqrt(dim))
    shift = rounding * jnp.max(jnp.diagonal(gram), initial=1.0)
    inner = jnp.linalg.cholesky(gram + shift * identity)
    inverse = jsl.solve_triangular(inner, identity, lower=True)
    whitened = scaled @ inverse.T
    outer = jnp.linalg.cholesky(inverse @ inverse.T + whitened.T @ whitened)
    return Factorization(inverse, whitened, outer)


def _together(base: Solvable, factor: Array, columns: Array) -> tuple[Factorization, Array]:
    """The factors of M, and W V for columns V, (D, k).

    For losses, where every vector has a matrix of its own: under `vmap` over vectors alone the
    factorization would be repeated for each.
    """
    scaled, white = base._of_each(base.whiten, factor, columns)
    return factorize(scaled), white


def logdet(base: Solvable, factor: Array) -> Array:
    """log det A, a scalar."""
    return base.logdet() + factorize(base.whiten(factor)).logdet()


def solve(base: Solvable, factor: Array, columns: Array) -> Array:
    """A^-1 V, (D, k)."""
    rest, _ = factorize(base.whiten(factor)).solve(base.whiten(columns))
    return base.whiten_transposed(rest)


def whiten(base: Solvable, factor: Array, columns: Array) -> Array:
    r"""R^-1 V for a root R of A, (D, k).

    With V = W U, M = I + V^T V and its Cholesky factor Q it is R = W^-1 (I + V (I + Q)^-1 V^T),
    near to W^-1 where U is small, and R^-1 = (I - V (I + Q^T)^-1 Q^-1 V^T) W. (The product of the
    bracket with its transpose is I + V V^T, as (Q + I)(Q + I)^T = M + Q + Q^T + I.)
    """
    return _by_root(factorize(base.whiten(factor)), base.whiten(columns))


def whiten_and_logdet(base: Solvable, factor: Array, columns: Array) -> tuple[Array, Array]:
    """`whiten`, and log det A."""
    parts, white = _together(base, factor, columns)
    return _by_root(parts, white), base.logdet() + parts.logdet()


def _by_root(parts: Factorization, white: Array) -> Array:
    """R^-1 V for W V."""
    weights = jsl.solve_triangular(parts.outer, parts.factor.T @ white, lower=True)
    # In terms of F = V P^-T and Q = P outer, of which no entry is large.
    middle = parts.inverse + parts.outer
    return white - parts.factor @ jsl.solve_triangular(middle, weights, lower=True, trans=1)


def color(base: Solvable, factor: Array, columns: Array) -> Array:
    """R V, (D, k), for the root R of `whiten`."""
    parts = factorize(base.whiten(factor))
    middle = parts.inverse + parts.outer
    weights = jsl.solve_triangular(middle, parts.factor.T @ columns, lower=True)
    return base.color(columns) + factor @ weights


def root_third_powers(base: Solvable, factor: Array) -> Array:
    """sum_j |R_ij|^3 of each row of that root, (D,), in O(D^2 r); a few columns at a time."""
    parts, dim = factorize(base.whiten(factor)), factor.shape[0]
    weights = jsl.solve_triangular(parts.inverse + parts.outer, parts.factor.T, lower=True)

    def add(total: Array, places: Array) -> tuple[Array, None]:
        # Places beyond the last one are columns of zeros.
        units = jax.nn.one_hot(places, dim, axis=0, dtype=factor.dtype)
        own = jnp.take(weights, places, axis=1, mode="fill", fill_value=0)
        cubes = jnp.abs(base.color(units) + factor @ own) ** 3
        return total + jnp.sum(cubes, axis=1), None

    blocks = jnp.arange(-(-dim // _COLUMNS) * _COLUMNS, dtype=jnp.int32).reshape(-1, _COLUMNS)
    return jax.lax.scan(add, jnp.zeros(dim, factor.dtype), blocks)[0]


def _form_and_logdet(base: Solvable, parts: Factorization, white: Array):
    """Both values for W v, (D, 1), and W^-T A^-1 v, (D, 1).

    With w = M^-1 U^T B^-1 v the form is ||W (v - U w)||^2 + ||w||^2: a sum of squares, where
    Woodbury's difference of two large numbers would lose float32's digits.
    """
    rest, weights = parts.solve(white)
    form = jnp.sum(jnp.square(rest)) + jnp.sum(jnp.square(parts.inverse.T @ weights))
    return (form, base.logdet() + parts.logdet()), rest


@jax.custom_jvp
def quadratic_form_and_logdet(base: Solvable, factor: Array, vector: Array) -> tuple[Array, Array]:
    """v^T A^-1 v and log det A, scalars."""
    parts, white = factorize(base.whiten(factor)), base.whiten(vector[:, None])
    return _form_and_logdet(base, parts, white)[0]


@quadratic_form_and_logdet.defjvp
def _quadratic_form_and_logdet_jvp(primals, tangents):
    """Closed forms: d(v^T A^-1 v) = 2 w^T dv - w^T dA w with w = A^-1 v, d log det A = <A^-1, dA>.

    With H = F R^-T for the Cholesky factor R of P^-1 M P^-T, A^-1 = B^-1 - (W^T H) (W^T H)^T and
    A^-1 U = W^T H R^-1 P^-1. So they cost two products of size D r^2 beyond the values, less than
    to differentiate through the factorization.
    """
    base, factor, vector = primals
    base_dot, factor_dot, vector_dot = tangents
    parts, white = _together(base, factor, vector[:, None])
    values, rest = _form_and_logdet(base, parts, white)
    identity = jnp.eye(factor.shape[1], dtype=factor.dtype)
    root = jsl.solve_triangular(parts.outer, identity, lower=True)
    column, turned = base._of_each(base.whiten_transposed, rest, parts.factor @ root.T)
    solved = column[:, 0]
    inverse_factor = turned @ (root @ parts.inverse)
    _, (form_dot, logdet_dot) = jax.jvp(
        lambda b: (-b.quadratic_form(solved), b.logdet() - b.quadratic_form(turned)),
        (base,),
        (base_dot,),
    )
    form_dot += 2.0 * (solved @ vector_dot)
    form_dot -= 2.0 * jnp.sum(solved[:, None] * (factor.T @ solved)[None, :] * factor_dot)
    return values, (form_dot, logdet_dot + 2.0 * jnp.sum(inverse_factor * factor_dot))
