"""The types that every numerical module accepts, and the checks of arguments that they share."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, Literal, TypeGuard, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

Array = jax.Array
PRNGKey = jax.Array


# First-order score s1(y) = grad log q(y) at one point: (D,) -> (D,).
ScoreFn = Callable[[Array], Array]


# Of the law of x given y beside its mean and covariance.
Tails = Literal["gaussian", "student"]
TAILS = get_args(Tails)


def check_tails(tails: str) -> None:
    """Raise ValueError for what is none of `TAILS`."""
    if tails not in TAILS:
        raise ValueError(f"unknown tails {tails!r}: {', '.join(TAILS)}")


def check_vectors(**vectors: Array | tuple[int, ...]) -> None:
    """Raise ValueError unless all arguments, arrays or shapes, are of one and the same shape (D,),
    and none of them has masked values.

    Under `vmap` the shapes seen here are those of one example.
    """
    check_unmasked(**vectors)
    for name, vector in vectors.items():
        # Lists would be joined by +, not added.
        if isinstance(vector, (list, tuple)) and not _is_shape(vector):
            raise ValueError(f"{name} is a {type(vector).__name__}: jnp.asarray makes an array")
    shapes = {
        name: vector if _is_shape(vector) else np.shape(vector) for name, vector in vectors.items()
    }
    if len(set(shapes.values())) != 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"expected vectors of one shape (D,), got {listed}; use vmap for batches")


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(isinstance(size, numbers.Integral) for size in value)


def check_floating_vectors(**vectors: Array | tuple[int, ...]) -> None:
    """`check_vectors`, and none of the arrays may be of integers."""
    check_vectors(**vectors)
    check_floating(**vectors)


def checked_score_fn(score_fn: ScoreFn) -> ScoreFn:
    """The same score, which raises ValueError for a value that is not of the point's shape (D,): a
    log density in place of its gradient, say, whose derivatives would be numbers all the same."""

    def score_at(noisy: Array) -> Array:
        score = score_fn(noisy)
        check_vectors(noisy=noisy, score=score)
        return score

    return score_at


def check_floating(**arrays: Any) -> None:
    """Raise ValueError for an array of integers; what has no dtype, as a shape, passes."""
    for name, array in arrays.items():
        if not jnp.issubdtype(getattr(array, "dtype", float), jnp.floating):
            raise ValueError(f"expected floating-point numbers, got {name} of {array.dtype}")


def check_real(**arrays: Any) -> None:
    """Raise ValueError for an array of complex numbers."""
    for name, array in arrays.items():
        if jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise ValueError(f"{name} are complex; stack their real and imaginary part")


def check_unmasked(**arrays: Any) -> None:
    """Raise ValueError for a masked array of NumPy of which something is masked: what is behind the
    mask would be taken for data."""
    for name, array in arrays.items():
        if np.ma.is_masked(array):
            raise ValueError(f"{name} has masked values: leave them out, or fill them")


def check_structured(hessian: Any, name: str) -> None:
    """Raise TypeError for a plain array or a function in place of a structured matrix, or none."""
    if isinstance(hessian, (jax.Array, np.ndarray)):
        shape = np.shape(hessian)
        what = f"{name} is an array of the shape {shape}: wrap it, linops.Dense({name})"
        vector = ", if it is (D, D); a vector is a score, of the first order"
        raise TypeError(what + (vector if len(shape) == 1 else ""))
    if callable(hessian):
        raise TypeError(f"{name} is a function: give what it says at one point, {name}(noisy)")
    if hessian is None:
        raise TypeError(f"{name} is None: this needs a model of the second order")


def derivatives_at(derivatives_fn: Callable, noisy: Array, *more: Any) -> tuple[Array, Any]:
    """s1 and s2 of one point, (D,), as `derivatives_fn(noisy, *more)` gives them, s2 perhaps None.

    TypeError for a function that gives something else than two; ValueError for sizes that are not
    those of the point, which would be broadcast. What s2 is is for those to check that use it.
    """
    found = derivatives_fn(noisy, *more)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        kind = f"{len(found)} things" if isinstance(found, (tuple, list)) else type(found).__name__
        raise TypeError(f"derivatives_fn has to give (s1, s2), or (s1, None); it gave {kind}")
    score, hessian = found
    shapes = {"noisy": noisy, "s1": score}
    if hasattr(hessian, "shape"):
        shapes["s2_rows"] = hessian.shape[:-1]
    check_vectors(**shapes)
    return score, hessian


def check_function(function: Any, claim: str, remedy: str) -> None:
    """Raise TypeError for what is no function: what it should be, what it is, what to give."""
    if not callable(function):
        raise TypeError(f"{claim}, got a {type(function).__name__}: {remedy}")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether this is one known number, which others can be held against."""
    if isinstance(value, jax.core.Tracer):
        return False
    return isinstance(value, numbers.Real) or (hasattr(value, "dtype") and np.ndim(value) == 0)


def check_counts(least: int = 1, /, **counts: int) -> None:
    """Raise ValueError for what is no whole number, or one below `least`."""
    for name, count in counts.items():
        if not isinstance(count, numbers.Integral) or count < least:
            raise ValueError(f"expected a whole number {name} >= {least}, got {count}")


def check_positive(**scalars: Any) -> None:
    """Raise ValueError for what is no scalar, or is not positive and finite unless it is traced."""
    for name, value in scalars.items():
        known = 1.0 if isinstance(value, jax.core.Tracer) else np.asarray(value)
        if np.shape(value) or not 0 < known < np.inf:
            raise ValueError(f"expected a positive and finite scalar {name}, got {value}")


def as_positive(value: Any, name: str = "sigma") -> Any:
    """`value` as a scalar of floating type, as in its own an integer's powers would overflow;
    ValueError as `check_positive`."""
    check_positive(**{name: value})
    if jnp.issubdtype(jnp.result_type(value), jnp.floating):
        return value
    # Python's type: to promotion the number stays a scalar of no type of its own.
    traced = isinstance(value, jax.core.Tracer)
    return jax.lax.convert_element_type(value, float) if traced else float(value)


def native(array: np.ndarray) -> np.ndarray:
    """The array in the byte order of this machine, as JAX wants it: FITS files have another."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def at_least_float32(values: Array) -> Array:
    """The same of 32 bits, where they are of 16, of which JAX has no linear algebra."""
    return values.astype(jnp.float32) if jnp.finfo(values.dtype).bits < 32 else values


def as_precise_as(other: Any, values: Array) -> Array:
    """`values` in the type of `other` where that has more digits."""
    more = jnp.finfo(other.dtype).eps < jnp.finfo(values.dtype).eps
    return values.astype(other.dtype) if more else values


def check_falling_levels(sigmas: Array) -> None:
    """Raise ValueError unless noise levels are two or more floating-point numbers, (levels,), and,
    unless they are traced, positive, finite and falling."""
    check_floating(sigmas=sigmas)
    if np.ndim(sigmas) != 1 or len(sigmas) < 2:
        raise ValueError(f"expected two noise levels or more, (levels,), got {np.shape(sigmas)}")
    if not isinstance(sigmas, jax.core.Tracer):
        known = np.asarray(sigmas)
        if not (np.all(np.diff(known) < 0) and known[-1] > 0 and known[0] < np.inf):
            raise ValueError(f"expected positive noise levels that fall, got {known}")


def check_rising_levels(sigmas: Array) -> None:
    """`check_falling_levels`, of levels that rise."""
    if not isinstance(sigmas, jax.core.Tracer) and np.ndim(sigmas) == 1 and len(sigmas) > 1:
        known = np.asarray(sigmas)
        if not (np.all(np.diff(known) > 0) and known[0] > 0 and known[-1] < np.inf):
            raise ValueError(f"expected positive noise levels that rise, got {known}")
    check_falling_levels(sigmas[::-1] if np.ndim(sigmas) else sigmas)


def compiled_for_one_call(function: Callable, *arguments: Any) -> Any:
    """`function(*arguments)`, for what has loops of its own and calls functions of the user's.

    JAX compiles a loop that nobody compiled at every call, and keeps each of these programs; those
    of a function are gone with it. What the function closes over is given to the program, or would
    be a part of it. Where JAX looks for faults, operation by operation, nothing is compiled.
    """
    config: Any = jax.config
    if config.jax_disable_jit or config.jax_debug_nans or config.jax_debug_infs:
        return function(*arguments)
    leaves = jax.tree.leaves(arguments)
    traced, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)

    def run(closed_over: list[Any], leaves: list[Any]) -> list[Any]:
        return jaxpr_as_fun(ClosedJaxpr(traced.jaxpr, closed_over))(*leaves)

    return jax.tree.unflatten(jax.tree.structure(shapes), jax.jit(run)(traced.consts, leaves))


def short_repr(value: Any) -> str:
    """What a dataclass prints of itself: its fields, of long arrays their ends."""
    with np.printoptions(threshold=32, edgeitems=2):
        fields = (f"{f.name}={getattr(value, f.name)!r}" for f in dataclasses.fields(value))
        return f"{type(value).__name__}({', '.join(fields)})"


def nan_unless(known: Array | bool, value: Array | float) -> Array:
    """`value`, real, where `known`, a scalar or of its shape, is true, and NaN elsewhere, where its
    derivative is NaN too; a Python scalar stays one to promotion.

    Where JAX runs operation by operation, as in `jax.disable_jit` or when `jax_debug_nans` looks
    for the origin of a NaN, a constant NaN in a `jnp.where` would itself be found.
    """
    return value * jnp.sqrt(jnp.where(known, 1.0, -1.0))
