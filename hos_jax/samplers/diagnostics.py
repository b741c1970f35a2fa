r"""Diagnostics of chains: how many independent draws they are worth, and how far from the target.

Draws are (chains, draws, D), floating and finite: leave other chains out first, which
`samplers.Chains` names. ValueError for another shape, fewer draws than needed and integers::

    draws = jnp.swapaxes(chains.trajectory[:, chains.is_finite], 0, 1)
    diagnostics.effective_sample_size(draws), diagnostics.split_r_hat(draws)
"""

from __future__ import annotations

import blackjax.diagnostics
import jax
import jax.numpy as jnp

from hos_jax.linops.lanczos import safe_sqrt
from hos_jax.types import Array, PRNGKey, at_least_float32, check_counts, check_floating


def _checked(draws: Array, least: int) -> Array:
    draws = jnp.asarray(draws)
    check_floating(draws=draws)
    if draws.ndim != 3 or draws.shape[1] < least or not len(draws):
        raise ValueError(
            f"expected draws of shape (chains, draws, D) with at least {least} draws, "
            f"got {tuple(draws.shape)}"
        )
    return at_least_float32(draws)


def _is_stuck(draws: Array) -> Array:
    """Whether some chain never moves in a dimension, (D,)."""
    return jnp.any(jnp.max(draws, axis=1) == jnp.min(draws, axis=1), axis=0)


def effective_sample_size(draws: Array) -> Array:
    """The number of independent draws that would give means as accurate, (D,).

    Blackjax's multi-chain estimate (Geyer's initial monotone sequence). 0 in a dimension where some
    chain never moves: its draws say nothing about the target. At least 4 draws.
    """
    draws = _checked(draws, 4)
    size = blackjax.diagnostics.effective_sample_size(draws)
    return jnp.where(_is_stuck(draws), 0.0, jnp.reshape(size, draws.shape[-1:]))


def split_r_hat(draws: Array) -> Array:
    """Gelman and Rubin's ratio over half chains, (D,): near 1 when chains agree and are stationary.

    Infinite where some chain never moves. At least 4 draws; an odd last one is left out.
    """
    draws = _checked(draws, 4)
    # A ratio of 0 to 0 is not taken first: where JAX looks for NaN it would be an error.
    stuck, count = _is_stuck(draws), draws.shape[1]
    draws = jnp.where(stuck, jnp.arange(count, dtype=draws.dtype)[:, None], draws)
    half = count // 2
    halves = jnp.concatenate([draws[:, :half], draws[:, half : 2 * half]])
    ratio = blackjax.diagnostics.potential_scale_reduction(halves)
    return jnp.where(stuck, jnp.inf, jnp.reshape(ratio, draws.shape[-1:]))


def autocorrelation(draws: Array, max_lag: int) -> Array:
    r"""Correlation of draws t apart, (max_lag + 1, D), t = 0 ... max_lag, pooled over chains.

    .. math:: \rho_t = \frac{\sum_{c,i} (x_{c,i} - m)(x_{c,i+t} - m)}{\sum_{c,i} (x_{c,i} - m)^2}

    with the mean m over all chains, so that chains which stay in different places correlate. The
    sum at lag t has t terms less: biased towards 0. 1 at every lag where all draws are the same.
    """
    check_counts(0, max_lag=max_lag)
    draws = _checked(draws, max_lag + 1)
    count = draws.shape[1]
    centred = draws - jnp.mean(draws, axis=(0, 1), keepdims=True)
    spectrum = jnp.fft.rfft(centred, n=2 * count, axis=1)
    products = jnp.fft.irfft(jnp.square(jnp.abs(spectrum)), n=2 * count, axis=1)
    sums = jnp.sum(products[:, : max_lag + 1], axis=0)
    # Not by the sums alone: the rounding of the mean is in them. What is not finite gives NaN.
    largest = jnp.max(draws, axis=(0, 1))
    moves = (largest != jnp.min(draws, axis=(0, 1))) | ~jnp.isfinite(largest)
    moves &= sums[0] != 0
    return jnp.where(moves[None], sums / jnp.where(moves, sums[0], 1.0)[None], 1.0)


def sliced_wasserstein(key: PRNGKey, first: Array, second: Array, *, projections: int) -> Array:
    r"""Sliced 2-Wasserstein distance of two samples, a scalar in data units.

    .. math:: \Big( \frac1P \sum_{p=1}^P W_2^2(\theta_p^T X, \theta_p^T Y) \Big)^{1/2}

    over directions theta uniform on the sphere; in one dimension W_2 compares sorted values. Two
    samples of one law, (N, D) both, have a distance of order N^(-1/2), not 0. See Bonneel, Rabin,
    Peyre, Pfister, "Sliced and Radon Wasserstein Barycenters of Measures", 2015.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise ValueError(
            f"expected two samples of one shape (N, D), got {first.shape} and {second.shape}"
        )
    check_floating(first=first, second=second)
    check_counts(projections=projections)
    directions = jax.random.normal(key, (projections, first.shape[1]), first.dtype)

    def squared_distance(direction: Array) -> Array:
        unit = direction / jnp.linalg.norm(direction)
        return jnp.mean(jnp.square(jnp.sort(first @ unit) - jnp.sort(second @ unit)))

    return safe_sqrt(jnp.mean(jax.lax.map(squared_distance, directions)))
