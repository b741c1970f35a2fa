r"""Linear inverse problems: draw the clean point x given a few noisy measurements of it.

Observed is b = A x + t n with n standard normal and A any linear map. At noise level sigma,
y = x + sigma z, Tweedie's formula gives the mean m(y) and the covariance K(y) of x given y. With
the Gaussian of these moments in place of the law of x given y, b given y is Gaussian too:

.. math:: b \mid y \approx N(A m, S), \qquad S = t^2 I + A K A^T

.. math:: \nabla_y \log p(b \mid y) \approx C A^T S^{-1} (b - A m), \qquad
    C = \partial m / \partial y = K / \sigma^2

.. math:: E[x \mid y, b] \approx m + K A^T S^{-1} (b - A m), \qquad
    \mathrm{Cov}[x \mid y, b] \approx K - K A^T S^{-1} A K

All of it is exact where the law of x is Gaussian. The usual heuristic has K = r^2 I instead,
whatever y is; `isotropic` gives that posterior, so that both run through the same functions.

Nothing is a D x D array: A is a function, A^T its transpose by JAX, and S^-1 is applied by
conjugate gradients, which needs products with K alone. All functions act on one point; batch with
`vmap`.

References:
  Boys et al., "Tweedie Moment Projected Diffusions for Inverse Problems", 2023, arXiv 2310.06721;
  Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023
  (K = r^2 I).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg

from hos_jax.linops import Diagonal
from hos_jax.types import Array, PRNGKey, check_vectors
from hos_jax.uncertainty.posterior import Posterior, Violations

PosteriorFn = Callable[[Array, Array | float], Posterior]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
    """What was measured: b = A x + t n, with n standard normal.

    Attributes:
      values: b, (M,), units of A x.
      noise_std: t, positive scalar, units of A x.
      forward: A, a linear function (D,) -> (M,) that JAX can transpose.
    """

    values: Array
    noise_std: Array | float
    forward: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})

    def adjoint(self, vector: Array, like: Array) -> Array:
        """A^T v, (D,), for v of shape (M,); `like` is any array of shape (D,)."""
        shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
        return jax.linear_transpose(self.forward, shape)(vector)[0]

    def residual(self, point: Array) -> Array:
        """b - A x, (M,).

        Raises:
          ValueError: if A x has not the shape of b.
        """
        predicted = self.forward(point)
        check_vectors(values=self.values, predicted=predicted)
        return self.values - predicted


def isotropic(mean: Array, sigma: Array | float, data_std: Array | float) -> Posterior:
    r"""The heuristic posterior N(m, r^2 I) of x given y, whatever y is.

    .. math:: r^2 = \frac{\sigma^2 s^2}{\sigma^2 + s^2}

    which is right for independent Gaussian values of standard deviation s.

    Args:
      mean: m = E[x | y], (D,), data units.
      sigma: noise level, scalar, data units.
      data_std: s, scalar, data units.
    """
    variance = sigma**2 * data_std**2 / (sigma**2 + data_std**2)
    none = Violations(jnp.zeros((), jnp.int32), jnp.zeros((), mean.dtype))
    return Posterior(mean, Diagonal(jnp.full_like(mean, variance)), none)


def _weights(
    posterior: Posterior,
    observation: Observation,
    residual: Array,
    tolerance: float,
    max_iterations: int,
) -> Array:
    """S^-1 times a residual, (M,)."""

    def product(vector: Array) -> Array:
        spread = posterior.matvec(observation.adjoint(vector, posterior.mean))
        return observation.noise_std**2 * vector + observation.forward(spread)

    # The rounding of float32 ends the iteration above any tighter bound.
    smallest = 4.0 * float(jnp.finfo(residual.dtype).eps)
    solution, _ = cg(product, residual, tol=max(tolerance, smallest), maxiter=max_iterations)
    return solution


def guidance(
    posterior: Posterior,
    observation: Observation,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> Array:
    """A^T S^-1 (b - A m), (D,): where the observation pulls the mean, before K / sigma^2.

    Args:
      posterior: of x given y.
      observation: b, A and t.
      tolerance: conjugate gradients stop at this residual, relative to n2(b - A m)^(1/2).
      max_iterations: or after so many products with S.

    Raises:
      ValueError: if A x has not the shape of b.
    """
    residual = observation.residual(posterior.mean)
    weights = _weights(posterior, observation, residual, tolerance, max_iterations)
    return observation.adjoint(weights, posterior.mean)


class _Solver(TypedDict, total=False):
    """The options of `guidance`."""

    tolerance: float
    max_iterations: int


def conditional_score(
    score1: Array,
    posterior: Posterior,
    observation: Observation,
    sigma: Array | float,
    **solver: Unpack[_Solver],
) -> Array:
    r"""The score of y given b, (D,), 1 / data units: for any sampler that takes a score.

    .. math:: s_1(y) + \frac{1}{\sigma^2} K A^T S^{-1} (b - A m)

    Args:
      score1: s1(y), (D,).
      posterior: of x given y.
      observation: b, A and t.
      sigma: scalar, data units.
      solver: `tolerance` and `max_iterations` of `guidance`.
    """
    return score1 + posterior.matvec(guidance(posterior, observation, **solver)) / sigma**2


def conditional_mean(
    posterior: Posterior, observation: Observation, **solver: Unpack[_Solver]
) -> Array:
    """E[x | y, b] = m + K A^T S^-1 (b - A m), (D,), data units; `solver` as in `guidance`."""
    return posterior.mean + posterior.matvec(guidance(posterior, observation, **solver))


def conditional_sample(
    key: PRNGKey, posterior: Posterior, observation: Observation, **solver: Unpack[_Solver]
) -> Array:
    """One draw of x given y and b, (D,), data units, exact for Gaussian posteriors.

    Matheron's rule: for x' ~ N(m, K) and b' = A x' + t n the point x' + K A^T S^-1 (b - b') has the
    conditional mean and covariance. One solve, and no root of the conditional covariance.

    Args:
      key: JAX key.
      posterior: of x given y.
      observation: b, A and t.
      solver: `tolerance` and `max_iterations` of `guidance`.

    References:
      Wilson et al., "Pathwise Conditioning of Gaussian Processes", 2021.
    """
    draw_key, noise_key = jax.random.split(key)
    draw = posterior.sample(draw_key, 1)[0]
    values = observation.values
    noise = observation.noise_std * jax.random.normal(noise_key, values.shape, values.dtype)
    shaken = dataclasses.replace(observation, values=values - noise)
    around = dataclasses.replace(posterior, mean=draw)
    return draw + posterior.matvec(guidance(around, shaken, **solver))


def descend(
    key: PRNGKey,
    draw_fn: Callable[[PRNGKey, Array, Array], Array],
    start: Array,
    sigmas: Array,
) -> Array:
    r"""One draw of x, (D,), data units, down a ladder of noise levels.

    At each level x is drawn given y, then y at the next level :math:`\sigma' < \sigma` given both,

    .. math:: y' = x + \rho (y - x) + \sigma' \sqrt{1 - \rho} \, w, \qquad
        \rho = \sigma'^2 / \sigma^2

    as the law of a Brownian path asks for. The last x is the result. Where x is drawn from its
    exact law the result is exact too, however far apart the levels are, but for the start.

    Args:
      key: JAX key.
      draw_fn: `(key, y, sigma) -> x`; sigma is traced.
      start: y at sigmas[0], (D,): sigmas[0] times standard normal noise around the data's centre.
      sigmas: the levels in falling order, (levels,), data units; the first is large against the
        data's standard deviation.

    Raises:
      ValueError: if there is no level.
    """
    if sigmas.ndim != 1 or not len(sigmas):
        raise ValueError(f"expected noise levels of shape (levels,), got {tuple(sigmas.shape)}")

    def step(noisy: Array, level: tuple[Array, Array, Array]) -> tuple[Array, None]:
        index, sigma, following = level
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        clean = draw_fn(draw_key, noisy, sigma)
        noise = jax.random.normal(noise_key, noisy.shape, noisy.dtype)
        kept = (following / sigma) ** 2
        noisy = clean + kept * (noisy - clean) + following * jnp.sqrt(1.0 - kept) * noise
        return noisy, None

    last = len(sigmas) - 1
    levels = jnp.arange(last, dtype=jnp.int32), sigmas[:-1], sigmas[1:]
    noisy, _ = jax.lax.scan(step, start, levels)
    return draw_fn(jax.random.fold_in(key, last), noisy, sigmas[-1])


def sample_posterior(
    key: PRNGKey,
    posterior_fn: PosteriorFn,
    observation: Observation,
    start: Array,
    sigmas: Array,
    **solver: Unpack[_Solver],
) -> Array:
    """One draw of x given b, (D,), data units: `descend` with `conditional_sample` at each level.

    Exact in law on a Gaussian for any number of levels; elsewhere they have to be close enough that
    N(m, K) is a fair law of x over one step.

    Args:
      key: JAX key.
      posterior_fn: `(y, sigma) -> Posterior` at one point; sigma is traced.
      observation: b, A and t.
      start, sigmas: see `descend`.
      solver: `tolerance` and `max_iterations` of `guidance`.

    Raises:
      ValueError: if there is no level, or A x has not the shape of b.
    """

    def draw_fn(draw_key: PRNGKey, noisy: Array, sigma: Array) -> Array:
        posterior = posterior_fn(noisy, sigma)
        return conditional_sample(draw_key, posterior, observation, **solver)

    return descend(key, draw_fn, start, sigmas)
