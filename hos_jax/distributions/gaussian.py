"""Correlated Gaussians and mixtures of Gaussians: smoothing adds sigma^2 I to the covariance."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
import numpy as np

from hos_jax.distributions import base
from hos_jax.distributions.base import Law, law
from hos_jax.linops import Dense
from hos_jax.types import Array, PRNGKey, check_counts


def _cholesky(covariances: Array) -> Array:
    """Lower Cholesky factors, (..., D, D); ValueError if a known matrix has none."""

    def is_symmetric(c):
        return np.allclose(c, np.swapaxes(c, -1, -2), rtol=0, atol=1e-5 * np.abs(c).max())

    base.require("covariance", covariances, is_symmetric, "symmetric and finite")
    cholesky = jnp.linalg.cholesky(covariances)
    base.require("covariance", cholesky, lambda _: True, "positive definite")
    return cholesky


class _Factored(Law):
    """A law whose leaves have the Cholesky factor in the place of the covariance, so that what is
    made of changed leaves, by a gradient step for instance, is one law."""

    cholesky: Array | None

    def __getattr__(self, name: str):
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every law is a dataclass
        if name not in {field.name for field in fields if not field.metadata.get("leaf", True)}:
            raise AttributeError(f"{type(self).__name__} has no {name}")
        if self.cholesky is None:
            return None
        # Nothing else looks above the diagonal, so that no gradient may be there.
        lower = jnp.tril(self.cholesky)
        return lower @ lower.mT


def _log_normalizer(cholesky: Array) -> Array:
    """1/2 log det(2 pi Sigma) from the factor (..., D, D)."""
    diagonal = jnp.diagonal(cholesky, axis1=-2, axis2=-1)
    return jnp.sum(jnp.log(diagonal) + 0.5 * math.log(2 * math.pi), axis=-1)


def _precision(cholesky: Array) -> Array:
    """Sigma^-1, (D, D): the Hessian is this matrix, so it has to be formed."""
    return jsl.cho_solve((cholesky, True), jnp.eye(len(cholesky), dtype=cholesky.dtype))


@law
class Gaussian(_Factored):
    r"""The normal law N(m, Sigma): s1 = -Sigma^-1 (y - m), s2 = -Sigma^-1, s_n = 0 for n >= 3.

    Attributes:
      mean: m, (D,), data units.
      covariance: Sigma, (D, D), symmetric positive definite, data units^2.
      cholesky: its lower Cholesky factor, computed once. As a pytree the law is (mean, cholesky):
        gradients are in these two.
    """

    mean: Array
    covariance: Array = dataclasses.field(metadata={"leaf": False})
    cholesky: Array = dataclasses.field(init=False, repr=False)

    def __post_init__(self):
        base.set_arrays(self, "mean", "covariance")
        if self.mean.ndim != 1:
            raise ValueError(f"mean must have shape (D,), got {tuple(self.mean.shape)}")
        base.require_shape("covariance", self.covariance, (self.dim, self.dim))
        base.require("mean", self.mean, lambda _: True, "finite")
        object.__setattr__(self, "cholesky", _cholesky(self.covariance))

    @property
    def dim(self) -> int:
        return self.mean.shape[0]

    def sample(self, key: PRNGKey, count: int) -> Array:
        check_counts(0, count=count)
        noise = jax.random.normal(key, (count, self.dim), self.mean.dtype)
        return self.mean[None, :] + noise @ self.cholesky.T

    def smooth(self, sigma: Array | float) -> Gaussian:
        sigma = base.as_sigma(sigma, self.mean.dtype)
        return Gaussian(self.mean, Dense(self.covariance).add_identity(sigma**2).matrix)

    def log_density(self, point: Array) -> Array:
        self._check_point(point)
        whitened = jsl.solve_triangular(self.cholesky, point - self.mean, lower=True)
        return -0.5 * jnp.sum(jnp.square(whitened)) - _log_normalizer(self.cholesky)

    def score(self, point: Array) -> Array:
        self._check_point(point)
        return -jsl.cho_solve((self.cholesky, True), point - self.mean)

    def hessian(self, point: Array) -> Dense:
        self._check_point(point)
        return Dense(-_precision(self.cholesky))


def random_correlated_gaussian(key: PRNGKey, dim: int, condition: float) -> Gaussian:
    """A Gaussian with a uniformly random eigenbasis and log-spaced eigenvalues of mean 1.

    `condition` is the ratio of the largest to the smallest. ValueError if it or dim is below 1.
    """
    if dim < 1 or not condition >= 1:
        raise ValueError(f"need dim >= 1 and condition >= 1, got {dim} and {condition}")
    basis_key, mean_key = jax.random.split(key)
    eigenvalues = jnp.geomspace(1.0, float(condition), dim)
    eigenvalues = eigenvalues / jnp.mean(eigenvalues)
    basis = jax.random.orthogonal(basis_key, dim)
    covariance = (basis * eigenvalues[None, :]) @ basis.T
    return Gaussian(jax.random.normal(mean_key, (dim,)), 0.5 * (covariance + covariance.T))


@law
class GaussianMixture(_Factored):
    r"""sum_k w_k N(m_k, Sigma_k), with full covariances or isotropic ones, Sigma_k = std_k^2 I.

    With responsibilities r_k(y), g_k = -Sigma_k^-1 (y - m_k) and P_k = Sigma_k^-1,

    .. math:: s_1 = \sum_k r_k g_k, \qquad
        s_2 = \sum_k r_k \big[ (g_k - s_1)(g_k - s_1)^T - P_k \big] .

    Higher orders are exact derivatives of s2. With isotropic components no D x D array per
    component is formed, so thousands of them are cheap. A component of weight 0 is allowed.

    Attributes:
      weights: w, (K,), non-negative, summing to 1.
      means: m, (K, D), data units.
      covariances: Sigma, (K, D, D), data units^2; or None.
      stds: (K,), data units; or None. Exactly one of the two is given.
      cholesky: lower Cholesky factors of the covariances, computed once; or None. As a pytree the
        law has them in the place of the covariances.
    """

    weights: Array
    means: Array
    covariances: Array | None = dataclasses.field(
        default_factory=lambda: None, metadata={"leaf": False}
    )
    stds: Array | None = None
    cholesky: Array | None = dataclasses.field(init=False, repr=False, default=None)

    def __post_init__(self):
        if (self.covariances is None) == (self.stds is None):
            raise ValueError("give exactly one of covariances (K, D, D) and stds (K,)")
        spread = "stds" if self.covariances is None else "covariances"
        base.set_arrays(self, "weights", "means", spread)
        if self.means.ndim != 2:
            raise ValueError(f"means must have shape (K, D), got {tuple(self.means.shape)}")
        count, dim = self.means.shape
        base.require_shape("weights", self.weights, (count,))
        base.require_weights(self.weights)
        base.require("means", self.means, lambda _: True, "finite")
        if self.stds is not None:
            base.require_shape("stds", self.stds, (count,))
            base.require_positive("stds", self.stds)
        if self.covariances is not None:
            base.require_shape("covariances", self.covariances, (count, dim, dim))
            object.__setattr__(self, "cholesky", _cholesky(self.covariances))

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    def sample(self, key: PRNGKey, count: int) -> Array:
        check_counts(0, count=count)
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.categorical(label_key, jnp.log(self.weights), shape=(count,))
        noise = jax.random.normal(noise_key, (count, self.dim), self.means.dtype)
        if self.stds is not None:
            return self.means[labels] + self.stds[labels][:, None] * noise

        # One component after the other: gathering a D x D factor for each sample would not fit.
        def colour(total, component):
            index, factor = component
            return jnp.where((labels == index)[:, None], noise @ factor.T, total), None

        components = (jnp.arange(self.weights.shape[0]), self.cholesky)
        coloured, _ = jax.lax.scan(colour, noise, components)
        return self.means[labels] + coloured

    def smooth(self, sigma: Array | float) -> GaussianMixture:
        sigma = base.as_sigma(sigma, self.means.dtype)
        if self.stds is not None:
            return GaussianMixture(self.weights, self.means, stds=jnp.hypot(self.stds, sigma))
        assert self.covariances is not None
        covariances = Dense(self.covariances).add_identity(sigma**2).matrix
        return GaussianMixture(self.weights, self.means, covariances)

    def log_density(self, point: Array) -> Array:
        self._check_point(point)
        return jax.scipy.special.logsumexp(self._log_terms(point))

    def score(self, point: Array) -> Array:
        self._check_point(point)
        return jax.nn.softmax(self._log_terms(point)) @ self._gradients(point)

    def hessian(self, point: Array) -> Dense:
        self._check_point(point)
        weights = jax.nn.softmax(self._log_terms(point))
        gradients = self._gradients(point)
        # Centred: g g^T and s s^T are both far larger than their difference in the tails.
        deviations = gradients - (weights @ gradients)[None, :]
        spread = deviations.T @ (weights[:, None] * deviations)
        if self.stds is not None:
            return Dense(spread).add_identity(-jnp.sum(weights / jnp.square(self.stds)))
        assert self.cholesky is not None
        precisions = jax.vmap(_precision)(self.cholesky)
        return Dense(spread - jnp.tensordot(weights, precisions, axes=1))

    def _log_terms(self, point: Array) -> Array:
        """log w_k + log N(point; m_k, Sigma_k), (K,)."""
        offsets = point[None, :] - self.means
        if self.stds is not None:
            scaled = offsets / self.stds[:, None]
            normalizers = self.dim * jnp.log(self.stds * math.sqrt(2 * math.pi))
        else:
            assert self.cholesky is not None
            solve = jax.vmap(lambda factor, v: jsl.solve_triangular(factor, v, lower=True))
            scaled, normalizers = solve(self.cholesky, offsets), _log_normalizer(self.cholesky)
        return jnp.log(self.weights) - 0.5 * jnp.sum(jnp.square(scaled), axis=1) - normalizers

    def _gradients(self, point: Array) -> Array:
        """g_k, the gradient of each component's log density, (K, D)."""
        offsets = point[None, :] - self.means
        if self.stds is not None:
            return -offsets / jnp.square(self.stds)[:, None]
        return -jax.vmap(lambda factor, v: jsl.cho_solve((factor, True), v))(self.cholesky, offsets)
