r"""First-order denoising losses: least-squares fits of the score s1(y) = grad log q(y).

Every loss takes network outputs at one example, (D,), and returns one value; batch with `vmap`.
"""

from __future__ import annotations

import jax.numpy as jnp

from hos_jax.types import Array, check_vectors


def residual(score: Array, noise: Array, sigma: Array | float) -> Array:
    r"""The residual r = z + sigma s1(y), (D,), dimensionless.

    For the exact score it equals (posterior mean - x) / sigma, so E[r | y] = 0 and
    E[r r^T | y] = C(y), the posterior covariance in units of sigma^2. At the antithetic point
    y- = x - sigma z pass `-noise`.

    Args:
      score: s1 at y = x + sigma z, (D,), 1 / data units.
      noise: z, (D,).
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ or are not (D,).
    """
    check_vectors(score=score, noise=noise)
    return noise + sigma * score


def dsm(score: Array, noise: Array, sigma: Array | float) -> Array:
    r"""Denoising score matching, n2(s1(y) + z / sigma), a scalar in 1 / data units^2.

    Its mean over (x, z) is minimized by the score of the smoothed density q.

    Args:
      score: s1 at y = x + sigma z, (D,).
      noise: z, (D,).
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ or are not (D,).

    References:
      Vincent, "A Connection Between Score Matching and Denoising Autoencoders", 2011, eq. 11.
    """
    check_vectors(score=score, noise=noise)
    return jnp.sum(jnp.square(score + noise / sigma))


def dsm_vr(score: Array, score_clean: Array, noise: Array, sigma: Array | float) -> Array:
    r"""Denoising score matching with a control variate at the clean point, a scalar.

    .. math:: n2(s_1(y) + z/\sigma) - 2 s_1(x) \cdot z / \sigma - n2(z) / \sigma^2

    The subtracted terms do not change the gradient of the mean; for small sigma they cancel its
    variance, which otherwise grows as 1 / sigma^2.

    Args:
      score: s1 at y = x + sigma z, (D,).
      score_clean: s1 at x, (D,).
      noise: z, (D,).
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ or are not (D,).

    References:
      Wang et al., "A Wasserstein Minimum Velocity Approach to Learning Unnormalized Models", 2020;
      Song & Kingma, "How to Train Your Energy-Based Models", 2021, section 4.
    """
    check_vectors(score=score, score_clean=score_clean, noise=noise)
    linear = jnp.sum(score_clean * noise) / sigma
    return dsm(score, noise, sigma) - 2.0 * linear - jnp.sum(jnp.square(noise)) / sigma**2
