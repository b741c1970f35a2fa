"""What every law shares: the contract, its pytree registration and the checks of parameters."""

from __future__ import annotations

import abc
import dataclasses
from typing import TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.linops import Diagonal, SymmetricMatrix
from hos_jax.types import Array, PRNGKey, check_counts, check_vectors

_T = TypeVar("_T")


@dataclass_transform(eq_default=False, frozen_default=True, field_specifiers=(dataclasses.field,))
def law(cls: type[_T]) -> type[_T]:
    """Make a class a frozen dataclass and a pytree; fields with `static=True` metadata are static,
    those with `leaf=False` are no part of it: the class knows them from the others.

    The checks of `__post_init__` run for laws that a caller builds, not for those that JAX
    rebuilds with placeholders, tracers or stacked arrays in their fields.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]  # the line above made it one
    static = [field.name for field in fields if field.metadata.get("static")]
    kept = [field.name for field in fields if field.metadata.get("leaf", True)]
    data = [name for name in kept if name not in static]

    def flatten(instance):
        children = [(jax.tree_util.GetAttrKey(name), getattr(instance, name)) for name in data]
        return children, tuple(getattr(instance, name) for name in static)

    def unflatten(constants, children):
        instance = object.__new__(cls)
        vars(instance).update(zip((*data, *static), (*children, *constants), strict=True))
        return instance

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


def set_arrays(instance: object, *names: str) -> None:
    """Make these fields of a law under construction arrays of one floating dtype."""
    arrays = {name: jnp.asarray(getattr(instance, name)) for name in names}
    floating = [a.dtype for a in arrays.values() if jnp.issubdtype(a.dtype, jnp.floating)]
    dtype = max(floating, key=lambda d: jnp.finfo(d).bits) if floating else jnp.zeros(()).dtype
    for name, array in arrays.items():
        object.__setattr__(instance, name, array.astype(dtype))


def require(name: str, value: Array, condition, what: str) -> None:
    """Raise ValueError unless `condition` holds for the value; a traced value is not looked at."""
    if not isinstance(value, jax.core.Tracer):
        concrete = np.asarray(value, dtype=np.float64)
        if not np.all(np.isfinite(concrete)) or not condition(concrete):
            raise ValueError(f"{name} must be {what}")


def require_positive(name: str, value: Array) -> None:
    require(name, value, lambda v: np.all(v > 0), "positive and finite")


def require_shape(name: str, value: Array, shape: tuple) -> None:
    if tuple(value.shape) != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(value.shape)}")


def require_weights(weights: Array) -> None:
    require("weights", weights, lambda w: np.all(w >= 0), "non-negative and finite")
    sums = "summing to 1 over the last axis"
    # Each is rounded by half of eps in its own type.
    rounding = max(1e-6, 0.5 * float(jnp.finfo(weights.dtype).eps))
    require(
        "weights", weights, lambda w: np.allclose(w.sum(axis=-1), 1, rtol=0, atol=rounding), sums
    )


def as_sigma(sigma: Array | float, dtype) -> Array:
    """sigma as a scalar array of the dtype; ValueError unless it is a positive finite scalar."""
    sigma = jnp.asarray(sigma).astype(dtype)
    require_shape("sigma", sigma, ())
    require_positive("sigma", sigma)
    return sigma


class Law(abc.ABC):
    """A law on R^D with a density whose log has exact derivatives of every order.

    Methods take one point y, (D,), and raise ValueError for another shape; use `vmap` for batches.
    A law is a pytree, so it may be an argument of a jitted function. To make one of parameters that
    are no law, by their shape or their value where it is not traced, raises ValueError.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """D."""

    @abc.abstractmethod
    def sample(self, key: PRNGKey, count: int) -> Array:
        """`count` independent points, (count, D), data units."""

    @abc.abstractmethod
    def smooth(self, sigma: Array | float) -> Law:
        """The law of x + sigma z, z standard normal, for a positive scalar sigma; repeated
        smoothing adds the variances."""

    @abc.abstractmethod
    def log_density(self, point: Array) -> Array:
        """log q at one point, a scalar, normalized."""

    @abc.abstractmethod
    def score(self, point: Array) -> Array:
        """s1 = grad log q, (D,), 1 / data units."""

    @abc.abstractmethod
    def hessian(self, point: Array) -> SymmetricMatrix:
        """s2, the Hessian of log q, a structured (D, D) matrix, 1 / data units^2."""

    def score_tensor(self, point: Array, order: int) -> Array:
        """s_n, the n-th derivative tensor of log q, dense, (D,) * n, n >= 1; for small D."""
        check_counts(order=order)
        if order == 1:
            return self.score(point)

        # Forward mode on the exact Hessian: every derivative keeps its centred, stable form.
        def derivative(y: Array) -> Array:
            return self.hessian(y).to_dense()

        for _ in range(order - 2):
            derivative = jax.jacfwd(derivative)
        return derivative(point)

    def _check_point(self, point: Array) -> None:
        check_vectors(point=point, law=(self.dim,))


class FactorizedLaw(Law):
    """A law with independent coordinates: every score tensor is diagonal."""

    @abc.abstractmethod
    def score_diagonal(self, point: Array, order: int) -> Array:
        """The n-th derivative of each factor's log density, (D,), 1 / data units^n, n >= 1."""

    def score(self, point: Array) -> Array:
        return self.score_diagonal(point, 1)

    def hessian(self, point: Array) -> Diagonal:
        return Diagonal(self.score_diagonal(point, 2))

    def score_tensor(self, point: Array, order: int) -> Array:
        diagonal = self.score_diagonal(point, order)
        index = (jnp.arange(self.dim),) * order
        return jnp.zeros((self.dim,) * order, diagonal.dtype).at[index].set(diagonal)
