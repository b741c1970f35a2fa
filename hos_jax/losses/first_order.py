r"""First-order denoising losses: least-squares fits of the score s1(y) = grad log q(y).

Every loss takes network outputs at one example and returns one value; batch with `vmap`::

    noisy = clean + sigma * noise
    values = jax.vmap(losses.dsm, (0, 0, None))(jax.vmap(score_fn)(noisy), noise, sigma)  # (N,)

Arguments are s1 at y = x + sigma z, (D,), in 1 / data units; at the clean point x, `score_clean`;
noise z, (D,); sigma, scalar, data units. ||.|| is the Euclidean norm. ValueError for shapes that
differ or are not (D,), for vectors of integers, and for a sigma that is no positive scalar.
"""

from __future__ import annotations

import jax.numpy as jnp

from hos_jax.types import Array, as_positive, check_floating_vectors


def residual(score: Array, noise: Array, sigma: Array | float) -> Array:
    r"""The residual r = z + sigma s1(y), (D,), dimensionless.

    For the exact score it equals (posterior mean - x) / sigma, so E[r | y] = 0 and
    E[r r^T | y] = C(y), the posterior covariance in units of sigma^2. At the antithetic point
    y- = x - sigma z pass `-noise`.
    """
    check_floating_vectors(score=score, noise=noise)
    return noise + as_positive(sigma) * score


def dsm(score: Array, noise: Array, sigma: Array | float) -> Array:
    r"""Denoising score matching: the squared norm of s1(y) + z / sigma, in 1 / data units^2.

    Its mean over (x, z) is minimized by the score of the smoothed density q. See Vincent, "A
    Connection Between Score Matching and Denoising Autoencoders", 2011, eq. 11.
    """
    check_floating_vectors(score=score, noise=noise)
    return jnp.sum(jnp.square(score + noise / as_positive(sigma)))


def dsm_vr(score: Array, score_clean: Array, noise: Array, sigma: Array | float) -> Array:
    r"""Denoising score matching with a control variate at the clean point, a scalar.

    .. math:: \|s_1(y) + z/\sigma\|^2 - 2 s_1(x) \cdot z / \sigma - \|z\|^2 / \sigma^2
        = \|s_1(y)\|^2 + 2 (s_1(y) - s_1(x)) \cdot z / \sigma

    The subtracted terms do not change the gradient of the mean; for small sigma they cancel its
    variance, which otherwise grows as 1 / sigma^2. The form on the right is the one computed: the
    squares of z / sigma, which would cancel, do not appear. See Wang et al., "A Wasserstein Minimum
    Velocity Approach to Learning Unnormalized Models", 2020; Song & Kingma, "How to Train Your
    Energy-Based Models", 2021, section 4.
    """
    check_floating_vectors(score=score, score_clean=score_clean, noise=noise)
    contrast = jnp.sum((score - score_clean) * noise) / as_positive(sigma)
    return jnp.sum(jnp.square(score)) + 2.0 * contrast
