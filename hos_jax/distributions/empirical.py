"""The empirical law of a data set, plain and smoothed: exact scores without N x D temporaries."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from hos_jax.distributions.base import Law, as_sigma, law, require, require_shape, set_arrays
from hos_jax.linops import Dense
from hos_jax.types import Array, PRNGKey, check_counts

CHUNK = 4096


class _Points(Law):
    """What both laws share: the points, and how many are looked at together."""

    points: Array
    chunk: int

    def __post_init__(self):
        set_arrays(self, "points")
        if self.points.ndim != 2 or 0 in self.points.shape:
            raise ValueError(f"points must have shape (N, D), got {tuple(self.points.shape)}")
        require("points", self.points, lambda _: True, "finite")
        check_counts(chunk=self.chunk)

    @property
    def dim(self) -> int:
        return self.points.shape[1]


@law
class Empirical(_Points):
    """The law of a point drawn uniformly from a data set.

    It has no density: `log_density`, `score` and `hessian` raise ValueError; `smooth` gives the
    law that has them.

    Attributes:
      points: (N, D), data units.
      chunk: how many points the smoothed law looks at together, static.
    """

    points: Array
    chunk: int = dataclasses.field(default=CHUNK, metadata={"static": True})

    def sample(self, key: PRNGKey, count: int) -> Array:
        check_counts(0, count=count)
        return self.points[jax.random.randint(key, (count,), 0, self.points.shape[0])]

    def smooth(self, sigma: Array | float) -> SmoothedEmpirical:
        return SmoothedEmpirical(self.points, sigma, self.chunk)

    def log_density(self, point: Array) -> Any:
        raise ValueError("an empirical law has no density; call smooth(sigma) first")

    score = hessian = log_density


@law
class SmoothedEmpirical(_Points):
    r"""q(y) = 1/N sum_i N(y; x_i, sigma^2 I): the exact smoothed density of a finite data set.

    The posterior of x given y puts the weight r_i on x_i, a softmax of the squared distances of y
    over -2 sigma^2, so

    .. math:: s_1 = \frac{\mu - y}{\sigma^2}, \quad s_2 = \frac{K}{\sigma^4} - \frac{I}{\sigma^2},
        \quad \mu = \sum_i r_i x_i, \quad K = \sum_i r_i (x_i - \mu)(x_i - \mu)^T .

    Sums run over chunks of points with a streaming logsumexp: no N x D temporary.

    Attributes:
      points: (N, D), data units.
      sigma: (), data units.
      chunk: how many points are looked at together, static.
    """

    points: Array
    sigma: Array | float
    chunk: int = dataclasses.field(default=CHUNK, metadata={"static": True})

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "sigma", as_sigma(self.sigma, self.points.dtype))

    def sample(self, key: PRNGKey, count: int) -> Array:
        point_key, noise_key = jax.random.split(key)
        clean = Empirical(self.points, self.chunk).sample(point_key, count)
        return clean + self.sigma * jax.random.normal(noise_key, clean.shape, clean.dtype)

    def smooth(self, sigma: Array | float) -> SmoothedEmpirical:
        total = jnp.hypot(self.sigma, as_sigma(sigma, self.points.dtype))
        return SmoothedEmpirical(self.points, total, self.chunk)

    def _fold(self, step: Callable, carry):
        """step(carry, points of one chunk) over all chunks; the data are never copied whole."""
        full, rest = divmod(self.points.shape[0], self.chunk)

        def one_chunk(carry, index):
            block = jax.lax.dynamic_slice_in_dim(self.points, index * self.chunk, self.chunk)
            return step(carry, block), None

        if full:
            carry, _ = jax.lax.scan(one_chunk, carry, jnp.arange(full))
        return step(carry, self.points[full * self.chunk :]) if rest else carry

    def log_density(self, point: Array) -> Array:
        (largest, total), _ = self._posterior(self._promoted(point))
        log_sum = largest + jnp.log(total)
        per_coordinate = jnp.log(self.sigma) + 0.5 * math.log(2 * math.pi)
        return log_sum - math.log(self.points.shape[0]) - self.dim * per_coordinate

    def posterior_mean(self, point: Array) -> Array:
        """mu = E[x | y], (D,), data units."""
        return self._posterior(self._promoted(point))[1]

    def score(self, point: Array) -> Array:
        return (self.posterior_mean(point) - point) / jnp.square(self.sigma)

    def hessian(self, point: Array) -> Dense:
        """s2 as a dense (D, D) matrix; for images use `hessian_matvec`."""
        covariance = self._scaled_covariance(self._promoted(point))
        return Dense(covariance).add_identity(-1.0).scale(1.0 / jnp.square(self.sigma))

    def posterior_covariance_matvec(self, point: Array, vector: Array) -> Array:
        """K v, the posterior covariance times a vector v, (D,), matrix-free."""
        require_shape("vector", vector, (self.dim,))
        point = self._promoted(point)
        return self._covariance_matvec(point, jnp.asarray(vector, point.dtype))

    def hessian_matvec(self, point: Array, vector: Array) -> Array:
        """s2 v = K v / sigma^4 - v / sigma^2, (D,), matrix-free."""
        square = jnp.square(self.sigma)
        # The fourth power leaves float32 where sigma is 1e-10 or 1e10.
        return (self.posterior_covariance_matvec(point, vector) / square - vector) / square

    def _promoted(self, point: Array) -> Array:
        """The point, of the type of all that is computed, which is that of the points or more."""
        self._check_point(point)
        return jnp.asarray(point, jnp.result_type(point, self.points))

    # Each is compiled once for the shapes: loops by themselves would be at every call.
    @jax.jit
    def _scaled_covariance(self, point: Array) -> Array:
        """K / sigma^2, (D, D)."""
        kernels, mean = self._posterior(point)

        def step(total, block):
            offsets = (block - mean[None, :]) / self.sigma
            weighted = self._weights(point, block, kernels)[:, None] * offsets
            return total + weighted.T @ offsets

        return self._fold(step, jnp.zeros((self.dim, self.dim), point.dtype))

    @jax.jit
    def _covariance_matvec(self, point: Array, vector: Array) -> Array:
        kernels, mean = self._posterior(point)

        def step(total, block):
            weighted = self._weights(point, block, kernels) * (block @ vector - mean @ vector)
            return total + weighted @ block - jnp.sum(weighted) * mean

        return self._fold(step, jnp.zeros_like(mean))

    def _log_kernels(self, point: Array, block: Array) -> Array:
        """The squared distances over -2 sigma^2, (M,), by differences: norms would cancel."""
        return -0.5 * jnp.sum(jnp.square((point[None, :] - block) / self.sigma), axis=1)

    def _weights(self, point: Array, block: Array, kernels: tuple[Array, Array]) -> Array:
        """r_i, with the two numbers of `_posterior`: their log sum would cancel in float32."""
        largest, total = kernels
        return jnp.exp(self._log_kernels(point, block) - largest) / total

    @jax.jit
    def _posterior(self, point: Array) -> tuple[tuple[Array, Array], Array]:
        """The largest log kernel k with sum_i exp(k_i - k), and the posterior mean, in one pass."""

        def step(carry, block):
            largest, total, weighted = carry
            log_kernels = self._log_kernels(point, block)
            new_largest = jnp.maximum(largest, jax.lax.stop_gradient(jnp.max(log_kernels)))
            kernels = jnp.exp(log_kernels - new_largest)
            decay = jnp.exp(largest - new_largest)
            total = total * decay + jnp.sum(kernels)
            return new_largest, total, weighted * decay + kernels @ block

        dtype = point.dtype
        largest, total = jnp.asarray([jnp.finfo(dtype).min, 0.0], dtype)
        largest, total, weighted = self._fold(step, (largest, total, jnp.zeros_like(point)))
        return (largest, total), weighted / total
