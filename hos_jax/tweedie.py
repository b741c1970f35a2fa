r"""Tweedie's formula: from scores of the smoothed density to moments of the clean point.

With y = x + sigma z, the posterior of x given y has

.. math:: \kappa_1 = y + \sigma^2 s_1(y), \qquad \kappa_2 = \sigma^4 s_2(y) + \sigma^2 I .
"""

from __future__ import annotations

from hos_jax.linops import SymmetricMatrix
from hos_jax.types import Array, check_vectors


def posterior_mean(noisy: Array, score1: Array, sigma: Array | float) -> Array:
    r"""E[x | y] = y + sigma^2 s1(y), the denoised point, (D,), data units.

    Args:
      noisy: y, (D,), data units.
      score1: s1(y), (D,), 1 / data units.
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ or are not (D,).

    References:
      Efron, "Tweedie's Formula and Selection Bias", 2011; Meng et al. 2021, eq. 5.
    """
    check_vectors(noisy=noisy, score1=score1)
    return noisy + sigma**2 * score1


def posterior_covariance(score2: SymmetricMatrix, sigma: Array | float) -> SymmetricMatrix:
    r"""Cov[x | y] = sigma^4 s2(y) + sigma^2 I, in data units^2, of the structure of `score2`.

    Args:
      score2: s2(y), a structured (D, D) matrix, 1 / data units^2.
      sigma: scalar, data units.

    References:
      Meng et al. 2021, theorem 1.
    """
    return score2.scale(sigma**4).add_identity(sigma**2)
