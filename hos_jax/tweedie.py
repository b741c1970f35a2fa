r"""Tweedie's formula: from scores of the smoothed density to moments of the clean point, and back.

With y = x + sigma z, the law of x given y is an exponential family in eta = y / sigma^2 whose
log-partition is log q(y) + y^T y / (2 sigma^2) + const. Its derivatives by eta are the cumulants:

.. math:: \kappa_1 = y + \sigma^2 s_1(y), \qquad \kappa_2 = \sigma^4 s_2(y) + \sigma^2 I, \qquad
    \kappa_n = \sigma^{2n} s_n(y) \quad (n \ge 3)

and the raw moments M_n = E[x (x) ... (x) x | y] are sums over set partitions of products of
cumulants. The maps scores <-> cumulants <-> moments are exact and finite at every order, and each
is the inverse of the other.

`posterior_covariance` and `scaled_covariance` keep the structure of their argument and suit images.
The maps of any order are dense: a tensor of order n is a symmetric array (D,) * n, and a family of
them is a sequence whose element n - 1 has order n.

Everywhere `noisy` is one point y, (D,), in data units (batch with `vmap`), and `sigma` a positive
scalar in data units. `score1`, `score2` and `scores` are s_n at y in 1 / data units^n; cumulants
and moments of order n are in data units^n. ValueError is raised for shapes that do not fit, and for
a sigma that is no positive scalar.
"""

import itertools
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.types import Array, ScoreFn, as_positive, check_structured, check_vectors


def posterior_mean(noisy: Array, score1: Array, sigma: Array | float) -> Array:
    """E[x | y] = y + sigma^2 s1(y), the denoised point, (D,), data units.

    See Efron, "Tweedie's Formula and Selection Bias", 2011; Meng et al. 2021, eq. 5.
    """
    check_vectors(noisy=noisy, score1=score1)
    return noisy + as_positive(sigma) ** 2 * score1


def posterior_covariance(score2: SymmetricMatrix, sigma: Array | float) -> SymmetricMatrix:
    """Cov[x | y] = sigma^4 s2(y) + sigma^2 I, in data units^2, of the structure of `score2` (Meng
    et al. 2021, theorem 1)."""
    # The fourth power leaves float32 where sigma is 1e-10 or 1e10.
    return scaled_covariance(score2, sigma).scale(as_positive(sigma) ** 2)


def scaled_covariance(score2: SymmetricMatrix, sigma: Array | float) -> SymmetricMatrix:
    """C = I + sigma^2 s2(y) = Cov[x | y] / sigma^2, dimensionless, of the structure of `score2`:
    what models predict. TypeError for a plain array as `score2`."""
    check_structured(score2, "score2")
    return score2.scale(as_positive(sigma) ** 2).add_identity(1.0)


def posterior_third_cumulant(score3: Array, sigma: Array | float) -> Array:
    r"""kappa_3 = sigma^6 s3(y), data units^3, of the shape of `score3`.

    The formula holds entry by entry and for every linear function of s3: give the dense tensor, its
    diagonal s3_iii (the per-pixel third central moments follow), or a contraction s3[v, v, .].
    """
    if score3.ndim not in (1, 3) or len(set(score3.shape)) != 1:
        raise ValueError(f"expected shape (D,) or (D, D, D), got {tuple(score3.shape)}")
    cube = as_positive(sigma) ** 3
    return cube * (cube * score3)


def denoise(score_fn: ScoreFn, noisy: Array, sigma: Array | float) -> Array:
    """One Tweedie step: `posterior_mean` from the score function of that noise level."""
    check_vectors(noisy=noisy)
    return posterior_mean(noisy, score_fn(noisy), sigma)


def _check_tensors(name: str, tensors: Sequence[Array], dim: int | None = None) -> None:
    """Raise ValueError unless element n - 1 of `tensors` has shape (D,) * n, for one D."""
    if not tensors:
        raise ValueError(f"expected {name} of order 1 and higher, got none")
    dim = tensors[0].shape[0] if dim is None and tensors[0].ndim == 1 else dim
    for order, tensor in enumerate(tensors, start=1):
        if tensor.shape != (dim,) * order:
            size = "D" if dim is None else dim
            raise ValueError(
                f"expected {name} of order {order} to have shape ({size},) * {order}, "
                f"got {tuple(tensor.shape)}"
            )


def _of_noise(name: str, tensors: Sequence[Array], noisy: Array, sigma: Array | float) -> Iterator:
    """Each order n with its tensor and what the noise adds to kappa_n: y, sigma^2 I, or nothing."""
    check_vectors(noisy=noisy)
    _check_tensors(name, tensors, noisy.shape[0])
    known = [noisy, sigma**2 * jnp.eye(noisy.shape[0], dtype=noisy.dtype)]
    return zip(itertools.count(1), tensors, itertools.chain(known, itertools.repeat(0.0)))


def scores_to_cumulants(
    noisy: Array, scores: Sequence[Array], sigma: Array | float
) -> tuple[Array, ...]:
    r"""Cumulants of x given y, orders 1 to N, from the scores of the same orders.

    .. math:: \kappa_n = \sigma^{2n} s_n(y) + [n = 1]\, y + [n = 2]\, \sigma^2 I

    See Efron 2011, section 2.
    """
    sigma = as_positive(sigma)
    parts = _of_noise("scores", scores, noisy, sigma)
    # Half of the power at a time: all of it leaves float32 at order 4 where sigma is 1e-6 or 1e6.
    return tuple(sigma**n * (sigma**n * s) + part for n, s, part in parts)


def cumulants_to_scores(
    noisy: Array, cumulants: Sequence[Array], sigma: Array | float
) -> tuple[Array, ...]:
    r"""Scores s_1 ... s_N at y from the cumulants of x given y: inverts `scores_to_cumulants`.

    .. math:: s_n = \sigma^{-2n} (\kappa_n - [n = 1]\, y - [n = 2]\, \sigma^2 I)
    """
    sigma = as_positive(sigma)
    parts = _of_noise("cumulants", cumulants, noisy, sigma)
    return tuple((k - part) / sigma**n / sigma**n for n, k, part in parts)


def _placed_products(first: Array, second: Array) -> Array:
    """Sum of first (x) second, symmetric tensors of orders m and n - m, over the C(n - 1, m - 1)
    ways to share out the indices, index 0 going to `first`."""
    outer = jnp.tensordot(first, second, axes=0)
    positions = range(outer.ndim)
    total = jnp.zeros_like(outer)
    for chosen in itertools.combinations(positions[1:], first.ndim - 1):
        kept = (0, *chosen)
        rest = tuple(position for position in positions if position not in kept)
        total = total + jnp.moveaxis(outer, tuple(positions), kept + rest)
    return total


def _proper_partitions(order: int, cumulants: Sequence[Array], moments: Sequence[Array]) -> Array:
    """M_n - kappa_n, (D,) * n: the partitions of n indices into two blocks or more, grouped by the
    block that holds index 0: its cumulant times the moment of the other indices."""
    total = jnp.zeros_like(cumulants[0], shape=cumulants[0].shape * order)
    for size in range(1, order):
        total = total + _placed_products(cumulants[size - 1], moments[order - size - 1])
    return total


def cumulants_to_moments(cumulants: Sequence[Array]) -> tuple[Array, ...]:
    r"""Raw moments E[x (x) ... (x) x], orders 1 to N, from the cumulants of the same orders.

    The sum over the set partitions pi of the n indices, blocks B placed at their own indices,

    .. math:: M_n = \sum_{\pi} \bigotimes_{B \in \pi} \kappa_{|B|}
        = \sum_{A \subseteq \{2, \dots, n\}} \kappa_{1 + |A|} \otimes M_{n - 1 - |A|},

    is computed as on the right, where the block of index 1 takes the indices A as well: 2^(n-1)
    terms of D^n entries at order n instead of one for each partition (1, 2, 5, 15, 52, ...).
    Memory O(D^N); for small D. See McCullagh, "Tensor Methods in Statistics", 1987, section 2.3.
    """
    _check_tensors("cumulants", cumulants)
    moments: list[Array] = []
    for order, cumulant in enumerate(cumulants, start=1):
        moments.append(cumulant + _proper_partitions(order, cumulants, moments))
    return tuple(moments)


def moments_to_cumulants(moments: Sequence[Array]) -> tuple[Array, ...]:
    r"""Cumulants from raw moments of orders 1 to N: inverts `cumulants_to_moments`.

    Order by order, kappa_n is M_n less the partitions into two blocks or more, which need lower
    orders only. Same cost. The subtraction cancels: where the mean m is large against the spread
    t, about n log10(m / t) decimal digits of kappa_n are lost, so centre the data or use float64.
    """
    _check_tensors("moments", moments)
    cumulants: list[Array] = [moments[0]]
    for order, moment in enumerate(moments[1:], start=2):
        cumulants.append(moment - _proper_partitions(order, cumulants, moments))
    return tuple(cumulants)


def scores_to_moments(
    noisy: Array, scores: Sequence[Array], sigma: Array | float
) -> tuple[Array, ...]:
    r"""Raw moments E[x (x) ... (x) x | y], orders 1 to N, from the scores of the same orders.

    `scores_to_cumulants`, then `cumulants_to_moments`. The result obeys
    M_{n+1} = sigma^2 grad_y M_n + M_n (x) M_1 (Meng et al. 2021, section 3).
    """
    return cumulants_to_moments(scores_to_cumulants(noisy, scores, sigma))


def moments_to_scores(
    noisy: Array, moments: Sequence[Array], sigma: Array | float
) -> tuple[Array, ...]:
    """Scores s_1 ... s_N at y from raw moments of x given y: inverts `scores_to_moments`."""
    return cumulants_to_scores(noisy, moments_to_cumulants(moments), sigma)
