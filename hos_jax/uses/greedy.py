r"""Which of many measurements of a Gaussian removes most of its variance; see `measure_next`.

A measurement a^T x + t n takes |K a|^2 / (t^2 + a^T K a) from tr K. A group of them, with rows A,
takes

.. math:: \operatorname{tr} K - \operatorname{tr} K'
    = \operatorname{tr} \big( (t^2 I + A K A^T)^{-1} A K K A^T \big).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

from hos_jax.errors import reason
from hos_jax.types import (
    Array,
    check_counts,
    check_function,
    check_positive,
    check_real,
    compiled_for_one_call,
)

Product = Callable[[Array], Array]
# Places (m,) -> a of each, (m, D).
RowsFn = Callable[[Array], Array]
# a of each candidate, (M, D); or of D ones by their places; None for the D values of x themselves.
Candidates = Array | RowsFn | None
# Products with K that are made at once for candidates: memory D times this.
_AT_ONCE = 64
_PRODUCT = "product is the function v -> K v"
_REMEDY = "give its matvec, or jnp.asarray(K).dot"
_ROWS = "rows are a function of places"


class Choice(NamedTuple):
    """Measurements in the order in which they are best made.

    Attributes:
      places: the index of each among the candidates, (count,).
      removed: what each takes from tr K after those before it, (count,), data units^2.
      columns: G, (D, count): with all of them made the covariance is K - G G^T.
    """

    places: Array
    removed: Array
    columns: Array


def _check_product(product: Product, dim: int, dtype: Any) -> None:
    """TypeError for what is no function of JAX's arrays; ValueError unless it gives (dim,)."""
    check_function(product, _PRODUCT, _REMEDY)
    try:
        found = jax.eval_shape(product, jax.ShapeDtypeStruct((dim,), dtype))
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(f"{_PRODUCT}, and this one is of NumPy: {_REMEDY}") from error
    # Of which kind depends on the operation that does not fit.
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_PRODUCT}, and this one fails at ({dim},): {reason(error)}") from error
    shape = getattr(found, "shape", type(found).__name__)
    if shape != (dim,):
        raise ValueError(f"{_PRODUCT}, ({dim},) -> ({dim},), and it gave {shape}")


def _check_rows(rows_fn: RowsFn, count: int, dim: int | None = None) -> jax.ShapeDtypeStruct:
    """What `rows_fn` gives for so many places, (count, D); raises for what is no function of JAX's
    arrays, or gives another shape."""
    check_function(rows_fn, _ROWS, "lambda places: jnp.asarray(A)[places]")
    try:
        rows = jax.eval_shape(rows_fn, jax.ShapeDtypeStruct((count,), jnp.int32))
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(f"{_ROWS}, and this one is of NumPy: take jnp.asarray(A)") from error
    shape: Any = getattr(rows, "shape", ())
    if len(shape) != 2 or shape[0] != count or dim not in (None, shape[1]):
        raise ValueError(f"{_ROWS}, ({count},) -> ({count}, {dim or 'D'}), and it gave {shape}")
    check_real(rows=rows)
    return rows


def _checked(candidates: Candidates, dim: int) -> tuple[Candidates, int]:
    """The candidates as JAX takes them, and how many there are; raises for those of another
    shape, or known ones that are not finite."""
    if candidates is None:
        return None, dim
    if callable(candidates):
        _check_rows(candidates, 1, dim)
        return candidates, dim
    candidates = jnp.asarray(candidates)
    check_real(candidates=candidates)
    if candidates.ndim != 2 or candidates.shape[1] != dim:
        raise ValueError(f"expected candidates of shape (M, {dim}), got {candidates.shape}")
    known = not isinstance(candidates, jax.core.Tracer)
    if known and not np.isfinite(np.asarray(candidates)).all():
        raise ValueError("candidates must be finite: leave others out")
    return candidates, len(candidates)


def _free(size: int, allowed: Any, count: int, what: str) -> Array:
    """Which of so many candidates may be taken, bool (size,); ValueError where fewer than `count`
    may, unless it is traced."""
    allowed = np.ones(size, bool) if allowed is None else allowed
    allowed = allowed if isinstance(allowed, jax.Array) else np.asarray(allowed)
    if allowed.shape != (size,) or allowed.dtype != bool:
        got = f"{allowed.dtype} of shape {allowed.shape}"
        raise ValueError(f"expected bool allowed of shape ({size},), got {got}")
    left = size if isinstance(allowed, jax.core.Tracer) else int(np.sum(np.asarray(allowed)))
    if not 1 <= count <= left:
        raise ValueError(f"expected 1 <= count <= {left}, the {what} left, got {count}")
    return jnp.asarray(allowed)


def _row(dim: int, candidates: Candidates, place: Array, dtype: Any) -> Array:
    """a of one candidate, (D,)."""
    if candidates is None:
        return jax.nn.one_hot(place, dim, dtype=dtype)
    return candidates(place[None])[0] if callable(candidates) else candidates[place]


def _along(candidates: Candidates, vector: Array, size: int) -> Array:
    """a^T v of each of `size` candidates, (size,), for v of shape (D,)."""
    if candidates is None:
        return vector
    if not callable(candidates):
        return candidates @ vector
    places = jnp.arange(size, dtype=jnp.int32)

    def one(place: Array) -> Array:
        return jnp.sum(candidates(place[None])[0] * vector)

    return jax.lax.map(one, places, batch_size=_AT_ONCE)


def _variances(
    product: Product, dim: int, candidates: Candidates, size: int, dtype: Any
) -> tuple[Array, Array]:
    """a^T K a and |K a|^2 of each of `size` candidates, (size,)."""

    def one(place: Array) -> tuple[Array, Array]:
        row = _row(dim, candidates, place, dtype)
        spread = product(row)
        return jnp.sum(row * spread), jnp.sum(jnp.square(spread))

    over_all = functools.partial(jax.lax.map, one, batch_size=_AT_ONCE)
    return compiled_for_one_call(over_all, jnp.arange(size, dtype=jnp.int32))


def variance_removed(
    product: Product,
    dim: int,
    noise_std: Array | float,
    *,
    candidates: Candidates = None,
    dtype: Any = None,
) -> Array:
    """|K a|^2 / (t^2 + a^T K a) of each candidate, (M,), data units^2.

    Args:
      product: v -> K v, (D,) -> (D,); TypeError for what is no function of JAX's arrays.
      dim: D.
      noise_std: t, the deviation of a measurement's noise; ValueError unless it is positive.
      candidates: a of each, (M, D); of D ones also a function, places (m,) -> (m, D); None for the
        D values of x themselves. ValueError for other shapes, or known ones that are not finite.
      dtype: of the vectors that `product` takes; JAX's usual floating type by default.
    """
    check_positive(noise_std=noise_std)
    dtype = jnp.result_type(dtype or float)
    _check_product(product, dim, dtype)
    form, norm = _variances(product, dim, *_checked(candidates, dim), dtype)
    return norm / (noise_std**2 + form)


def _noise_variance(noise_std: Array | float, form: Array) -> Array:
    """t^2 beside a^T K a, `form`, of its shape: what is less than its rounding counts as that.

    Below the rounding of what was there no variance is told from none, nor is noise.
    """
    limits = jnp.finfo(form.dtype)
    least = jnp.maximum(jnp.asarray(8.0 * float(limits.eps), form.dtype) * form, limits.tiny)
    return jnp.maximum(jnp.asarray(noise_std, form.dtype) ** 2, least)


def choose(
    product: Product,
    dim: int,
    noise_std: Array | float,
    count: int,
    *,
    candidates: Candidates = None,
    allowed: Array | None = None,
    dtype: Any = None,
) -> Choice:
    """The `count` measurements that greedily remove most of tr K, each candidate at most once.

    A product with K for each candidate, and two for each choice. Where little is left of K, in
    float32 3% of the variances, what was carried along is rounding: then, and each time it has
    fallen as far again, the products of all candidates are made anew.

    Args:
      product, dim, noise_std, candidates, dtype: as `variance_removed` takes them. Noise of less
        variance than the rounding of a^T K a counts as that.
      count: how many.
      allowed: which candidates may be taken, bool (M,); all by default. ValueError where fewer than
        `count` are, unless traced: then the rest remove nothing.
    """
    check_positive(noise_std=noise_std)
    check_counts(count=count)
    dtype = jnp.result_type(dtype or float)
    _check_product(product, dim, dtype)
    candidates, size = _checked(candidates, dim)
    free = _free(size, allowed, count, "candidates")
    form, norm = _variances(product, dim, candidates, size, dtype)
    variance = _noise_variance(noise_std, form)

    rounding = 3.0 * float(jnp.finfo(form.dtype).eps) ** 0.5

    def largest(norm: Array, free: Array) -> Array:
        return jnp.max(norm, where=free, initial=0.0)

    def step(carry: Any, number: Array) -> tuple[Any, tuple[Array, Array]]:
        form, norm, begun, free, columns = carry

        def current(vector: Array) -> Array:
            return (product(vector) - columns @ (columns.T @ vector)).astype(dtype)

        def anew(_: Any) -> tuple[Array, Array, Array, Array]:
            form, norm = _variances(current, dim, candidates, size, dtype)
            return jnp.maximum(form, 0.0), norm, largest(norm, free), jnp.zeros((), bool)

        lost = largest(norm, free) < rounding * begun
        # A loop of one turn or none: mapped, a condition would take both ways at every choice.
        form, norm, begun, _ = jax.lax.while_loop(
            lambda state: state[3], anew, (form, norm, begun, lost)
        )
        gains = jnp.where(free, norm / (variance + form), -jnp.inf)
        place = jnp.argmax(gains).astype(jnp.int32)
        row = _row(dim, candidates, place, dtype)
        spread = current(row)
        column = spread / jnp.sqrt(variance[place] + jnp.maximum(jnp.sum(row * spread), 0.0))
        column = jnp.where(free[place], column, 0.0)
        # What a candidate has left follows from one product more, not from one for each.
        seen, further = _along(candidates, column, size), _along(candidates, current(column), size)
        removed = jnp.sum(jnp.square(column))
        norm = jnp.maximum(norm - 2.0 * seen * further + jnp.square(seen) * removed, 0.0)
        form = jnp.maximum(form - jnp.square(seen), 0.0)
        free = free.at[place].set(False)
        return (form, norm, begun, free, columns.at[:, number].set(column)), (place, removed)

    start = form, norm, largest(norm, free), free, jnp.zeros((dim, count), dtype)
    one_by_one = functools.partial(jax.lax.scan, step)
    (*_, columns), (places, removed) = compiled_for_one_call(
        one_by_one, start, jnp.arange(count, dtype=jnp.int32)
    )
    return Choice(places, removed, columns)


def choose_groups(
    product: Product,
    groups: Array,
    rows_fn: RowsFn,
    noise_std: Array | float,
    count: int,
    *,
    allowed: Array | None = None,
) -> Array:
    """The indices of the `count` groups that greedily remove most of tr K, (count,).

    Makes the D x r array of one group at a time; r products with K for each group and choice, and r
    between one choice and the next.

    Args:
      product, noise_std, count: as `choose` takes them.
      groups: the places that are measured together, integers (groups, r); a place below 0 is none,
        for groups of fewer than r.
      rows_fn: places (m,) -> a of each, (m, D).
      allowed: which groups may be taken, bool (groups,); all by default. ValueError where fewer
        than `count` are, unless traced: then -1 stands for the rest.
    """
    check_positive(noise_std=noise_std)
    check_counts(count=count)
    try:
        groups = jnp.asarray(groups)
    except (TypeError, ValueError) as error:
        remedy = "where groups are of fewer than r, fill them with -1"
        raise ValueError(f"expected groups (groups, r): {remedy} ({reason(error)})") from error
    if groups.ndim != 2 or not groups.shape[1]:
        raise ValueError(f"expected groups of shape (groups, r), got {groups.shape}")
    if not jnp.issubdtype(groups.dtype, jnp.integer):
        raise ValueError(f"expected groups of integers, got {groups.dtype}")
    free = _free(len(groups), allowed, count, "groups")
    rows = _check_rows(rows_fn, groups.shape[1])
    _check_product(product, rows.shape[1], rows.dtype)
    width = groups.shape[1]

    def columns_of(group: Array, removed: Array) -> Array:
        """G, (D, r), of a group whose measurements follow those that removed G G^T from K."""
        rows = rows_fn(jnp.maximum(group, 0))
        rows *= (group >= 0).astype(rows.dtype)[:, None]
        spread = jax.vmap(product, in_axes=0, out_axes=1)(rows)
        variance = group_noise_variance(rows, spread, noise_std)
        spread -= removed @ (rows @ removed).T
        return columns_of_gain(rows, spread, variance)[0]

    def best(free: Array, removed: Array) -> Array:
        gains = jax.lax.map(lambda group: jnp.sum(jnp.square(columns_of(group, removed))), groups)
        return jnp.argmax(jnp.where(free, gains, -jnp.inf)).astype(jnp.int32)

    def step(carry: tuple[Array, Array], start: Array) -> tuple[tuple[Array, Array], Array]:
        free, removed = carry
        place = best(free, removed)
        found = columns_of(groups[place], removed)
        removed = jax.lax.dynamic_update_slice(removed, found, (jnp.zeros_like(start), start))
        return (free.at[place].set(False), removed), jnp.where(free[place], place, -1)

    def one_by_one(free: Array) -> Array:
        left_out = (count - 1) * width
        state = free, jnp.zeros((rows.shape[1], left_out), rows.dtype)
        taken = jnp.zeros(0, jnp.int32)
        if count > 1:
            starts = jnp.arange(0, left_out, width, dtype=jnp.int32)
            state, taken = jax.lax.scan(step, state, starts)
        last = best(*state)
        return jnp.append(taken, jnp.where(state[0][last], last, -1))

    return compiled_for_one_call(one_by_one, free)


def check_places(places: np.ndarray, dim: int) -> None:
    """Raise ValueError for a place beyond D."""
    if (places >= dim).any():
        raise ValueError(f"expected places below {dim}, got {places.tolist()}")


def group_noise_variance(rows: Array, spread: Array, noise_std: Array | float) -> Array:
    """t^2, or the rounding of A K A^T where that is more, a scalar, from A and K A^T."""
    return _noise_variance(noise_std, jnp.max(jnp.sum(rows * spread.T, axis=1), initial=0.0))


def columns_of_gain(rows: Array, spread: Array, variance: Array) -> tuple[Array, Array]:
    """G with G G^T = K A^T S^-1 A K, (D, m), and the Cholesky factor of S = t^2 I + A K A^T, from
    A, K A^T and t^2."""
    inner = variance * jnp.eye(len(rows), dtype=rows.dtype) + rows @ spread
    root = jnp.linalg.cholesky(inner)
    return jsl.solve_triangular(root, spread.T, lower=True).T, root
