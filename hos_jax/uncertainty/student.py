r"""White values with heavy tails: Student's law with 3 degrees of freedom and unit variance.

Its density is 2 / (pi (1 + w^2)^2), that of each white value of the law which
`hos_jax.losses.residual_student_nll` fits.
"""

import functools
import statistics

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hos_jax.types import Array, PRNGKey

_SHARES = np.linspace(0.0, 1.0, 65)


def draw(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
    """Independent values of that law: a normal one over the length of three others.

    `jax.random.t` rejects some of its draws, in a loop that is much slower.
    """
    normal = jax.random.normal(key, (4, *shape), dtype)
    return normal[0] / jnp.sqrt(jnp.sum(jnp.square(normal[1:]), axis=0))


def interval_multiplier(level: float, third_powers: Array) -> Array:
    r"""Half the width of the central interval of sum_j a_j w_j, with sum_j a_j^2 = 1.

    The logarithm of its characteristic function is :math:`-u^2/2 + |u|^3/3 \sum_j |a_j|^3` up to
    order 4. To this order it is the law of b w + (1 - b^2)^(1/2) z with z standard normal and
    b^3 = sum_j |a_j|^3: exact for one value, and Gaussian for many small ones. Its quantiles come
    from a table in b.

    `third_powers` is sum_j |a_j|^3, of any shape.
    """
    shares = jnp.cbrt(third_powers)
    return jnp.interp(
        shares, jnp.asarray(_SHARES, shares.dtype), _table(float(level)).astype(shares.dtype)
    )


@functools.lru_cache(maxsize=32)
def _table(level: float) -> np.ndarray:
    """The quantile of b w + (1 - b^2)^(1/2) z at 1/2 + level / 2, for each b of `_SHARES`.

    By bisection; the law's distribution function is the mean over z of that of w, which is
    F(w) = 1/2 + (arctan(w) + w / (1 + w^2)) / pi.
    """
    normal, probability = statistics.NormalDist(), 0.5 + level / 2
    z = np.linspace(-9.0, 9.0, 2001)
    weights = np.exp(-0.5 * z**2)
    own = _SHARES[1:, None]
    rest = np.sqrt(1.0 - own**2) * z
    # What either of the two exceeds half as often bounds the sum: 1 - F(w) < 4 / (3 pi w^3).
    half = 0.25 - level / 4
    low = np.zeros(len(own))
    high = low - normal.inv_cdf(half) + (4.0 / (3.0 * np.pi * half)) ** (1 / 3)
    for _ in range(60):
        middle = (low + high) / 2
        w = (middle[:, None] - rest) / own
        below = 0.5 + (np.arctan(w) + w / (1.0 + w**2)) / np.pi
        small = below @ weights < probability * weights.sum()
        low, high = np.where(small, middle, low), np.where(small, high, middle)
    return np.insert(high, 0, -normal.inv_cdf(0.5 - level / 2))
