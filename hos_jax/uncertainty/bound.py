r"""A bound on the likelihood from reverse steps: what a chain of Gaussian steps costs, by step.

A chain comes from sigma_max down to sigma_min and to the data by steps N(E[y_s | y_t], Q), whose
covariance Q may be anything (see `hos_jax.samplers.diffusion`). The bound on -log p(x) is the sum
of what each step is off the true one given x, q(y_s | y_t, x). With rho = sigma_s^2 / sigma_t^2,
A = rho I + (1 - rho) C, Q = (sigma_t^2 - sigma_s^2) A and e = (x - posterior mean) / sigma_t,

.. math:: \mathrm{KL} = \tfrac12 \big[ \log\det A - D \log \rho + \rho \, \mathrm{tr}\, A^{-1} - D
    + (1 - \rho) \, e^T A^{-1} e \big] .

The gap to the likelihood is what Q is off the true covariance of the reverse step, and that this is
not Gaussian; it falls with the number of steps. See Sohl-Dickstein et al. 2015; Ho et al. 2020;
Bao et al. 2022 (scalar), Ou et al. 2024 (diagonal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import KRYLOV_VECTORS, SymmetricMatrix
from hos_jax.samplers.diffusion import COVARIANCES, simplified
from hos_jax.types import (
    Array,
    PRNGKey,
    check_falling_levels,
    check_floating_vectors,
    check_positive,
    derivatives_at,
)
from hos_jax.uncertainty.likelihood import DerivativesAtLevelFn, LogDensityFn
from hos_jax.uncertainty.posterior import DEFAULT_FLOOR, posterior


class Bound(NamedTuple):
    """A bound on -log p(x), nats, by its terms, of which each is an unbiased estimate.

    Attributes:
      prior: what the law at sigma_max costs, a scalar.
      steps: what each reverse step costs, (levels - 1,).
      reconstruction: -log p(x | y) of the last step, from sigma_min to the data, a scalar.
    """

    prior: Array
    steps: Array
    reconstruction: Array

    @property
    def total(self) -> Array:
        """The bound, nats, a scalar."""
        return self.prior + jnp.sum(self.steps, axis=-1) + self.reconstruction


def _last_step(kind: str, error: Array, covariance: SymmetricMatrix) -> Array:
    """-2 log p(x | y) less its constant, D log(2 pi sigma^2)."""
    spread = simplified(covariance, "large" if kind == "small" else kind)
    form, logdet = spread.inverse_quadratic_form_and_logdet(error)
    return form + logdet


def _standardized(
    noisy: Array, clean: Array, derivatives_fn: DerivativesAtLevelFn, sigma: Array, floor: float
) -> tuple[Array, SymmetricMatrix]:
    """e and C at a noisy point."""
    found = posterior(noisy, *derivatives_at(derivatives_fn, noisy, sigma), sigma, floor=floor)
    return (clean - found.mean) / sigma, found.covariance.scale(sigma**-2)


class Encoding(NamedTuple):
    """A noisy point y of x, (D,), data units, and log q(y | x) - log p(x | y), nats."""

    noisy: Array
    cost: Array


def encode(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigma: Array | float,
    *,
    covariance: str = "full",
    floor: float = DEFAULT_FLOOR,
) -> Encoding:
    r"""From data to the smallest noise level, and what the way back costs.

    With p(x | y) the Gaussian of the model's posterior, a bound on the likelihood of the data
    follows from the density at the smallest level, however it is known:

    .. math:: -\log p(x) \le \mathrm{E} \big[ -\log q_{min}(y) + \log q(y | x) - \log p(x | y) \big]

    Arguments and errors are those of `ancestral_bound`, at one level sigma, a positive scalar.
    """
    check_floating_vectors(clean=clean)
    clean = jnp.asarray(clean)
    check_positive(sigma=sigma)
    _check_covariances((covariance,))
    sigma = jnp.asarray(sigma, clean.dtype)
    noise = jax.random.normal(key, clean.shape, clean.dtype)
    noisy = clean + sigma * noise
    last = _last_step(covariance, *_standardized(noisy, clean, derivatives_fn, sigma, floor))
    return Encoding(noisy, 0.5 * (last - jnp.sum(jnp.square(noise))))


def _check_covariances(covariances: Sequence[str]) -> None:
    if not covariances or set(covariances) - set(COVARIANCES):
        known = ", ".join(COVARIANCES)
        raise ValueError(f"expected covariances of {known}, got {', '.join(covariances)}")


def ancestral_bound(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigmas: Array,
    log_density_fn: LogDensityFn,
    *,
    covariances: Sequence[str] = COVARIANCES,
    floor: float = DEFAULT_FLOOR,
    probes: int = 4,
    krylov_vectors: int = KRYLOV_VECTORS,
) -> dict[str, Bound]:
    """What chains of reverse steps say of -log p(x) at most, on average, by covariance of the step.

    At each level one y_t = x + sigma_t z and one y_s are drawn: one evaluation of the model, for
    all covariances together, from the same draws, so that differences have less noise. With `full`
    a local covariance plus rho I has no factor: the quadratic form is found by Lanczos, and
    log det A is an unbiased estimate by `probes`, both up to an error that falls fast with
    `krylov_vectors` as the spectrum lies above rho (see
    `SymmetricMatrix.estimate_inverse_form_and_logdet`).

    Args:
      key: of all draws.
      clean: x, (D,), data units; continuous data, bytes by `data.dequantize`.
      derivatives_fn: (y, sigma) -> (s1, s2), s2 structured.
      sigmas: the levels from sigma_max to sigma_min, falling, (levels,), data units; between two of
        them is a step.
      log_density_fn: of the law at sigma_max; see `gaussian_log_density`.
      covariances: some of `COVARIANCES`. The last step, to the data, has no small covariance: it is
        the large one there.
      floor: smallest variance of C, which matters in the last step alone; see
        `posterior_from_covariance`.
      probes, krylov_vectors: see above.

    Returns:
      A `Bound` for each of `covariances`.

    Raises:
      ValueError: for an unknown covariance, shapes that do not fit, and levels that do not fall.
    """
    check_floating_vectors(clean=clean)
    clean = jnp.asarray(clean)
    check_falling_levels(sigmas)
    _check_covariances(covariances)
    dim, dtype = clean.shape[0], clean.dtype
    sigmas = jnp.asarray(sigmas, dtype)
    prior_key, levels_key = jax.random.split(key)

    def level(index: Array) -> dict[str, Array]:
        noise_key, rest_key = jax.random.split(jax.random.fold_in(levels_key, index))
        noisy = clean + sigmas[index] * jax.random.normal(noise_key, (dim,), dtype)
        error, covariance = _standardized(noisy, clean, derivatives_fn, sigmas[index], floor)

        def step(key: PRNGKey) -> dict[str, Array]:
            draw_key, probe_key = jax.random.split(key)
            share = jnp.square(sigmas[index + 1] / sigmas[index])
            draw = jax.random.normal(draw_key, (dim,), dtype)
            # y_s less the model's mean, in units of the step.
            moved = jnp.sqrt(share) * draw + jnp.sqrt(1.0 - share) * error

            def cost(kind: str) -> Array:
                spread = simplified(covariance, kind).scale(1.0 - share).add_identity(share)
                form, logdet = spread.estimate_inverse_form_and_logdet(
                    probe_key, moved, probes=probes, krylov_vectors=krylov_vectors
                )
                return 0.5 * (logdet - dim * jnp.log(share) + form - jnp.sum(jnp.square(draw)))

            return {kind: cost(kind) for kind in covariances}

        def last(_: PRNGKey) -> dict[str, Array]:
            constant = dim * jnp.log(2.0 * math.pi * jnp.square(sigmas[index]))
            return {
                kind: 0.5 * (_last_step(kind, error, covariance) + constant) for kind in covariances
            }

        # One place for both: the model is compiled once.
        return jax.lax.cond(index < len(sigmas) - 1, step, last, rest_key)

    noise = jax.random.normal(prior_key, (dim,), dtype)
    drawn = -0.5 * jnp.sum(jnp.square(noise) + jnp.log(2.0 * math.pi * jnp.square(sigmas[0])))
    prior = drawn - log_density_fn(clean + sigmas[0] * noise)
    costs = jax.lax.map(level, jnp.arange(len(sigmas)))
    return {kind: Bound(prior, costs[kind][:-1], costs[kind][-1]) for kind in covariances}
