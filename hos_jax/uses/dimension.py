r"""How many dimensions data have around a point, how large an error is, and how strong the noise.

All of it comes from s1 and the posterior covariance C in units of sigma^2 at one point y = x +
sigma z. The noise that the model sees in y is zhat = -sigma s1, and

.. math:: \mathrm{E} \, n_2(\hat z) = D - \mathrm{E} \, \mathrm{tr} \, C .

For small sigma, C is nearly the projection onto the tangent space of the data at y: tr C counts
its dimensions, and the diagonal of C says how they are shared out among the D values. So every
function that ends in `_map` gives D numbers whose sum is the number for the whole point, and whose
sum over a region (`over_regions`) is that of the region.

Functions take one point, (D,); batch with `vmap`. `score1` is (D,), 1 / data units; `covariance`
is C, structured (D, D), dimensionless; sigma is a positive scalar, data units. ValueError for
shapes that do not fit and for a sigma that is not positive.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.tweedie import scaled_covariance
from hos_jax.types import (
    Array,
    PRNGKey,
    check_counts,
    check_floating_vectors,
    check_positive,
    check_rising_levels,
    check_vectors,
    derivatives_at,
)
from hos_jax.uncertainty.likelihood import DerivativesAtLevelFn


def dimension_map(covariance: SymmetricMatrix) -> Array:
    r"""The diagonal of C at a noisy point, (D,), whose sum tr C is the dimension for small sigma.

    On a d-dimensional manifold of curvature radius R and density of scale t, the mean of tr C over
    y is d up to terms of order d (sigma / t)^2 and d (sigma / R)^2; single points scatter by
    C's own variation, not by the noise. Data that are only near to a manifold, up to a spread s,
    need sigma above s: tr C counts each direction as t^2 / (t^2 + sigma^2).
    """
    return covariance.diagonal()


def flipd_map(score1: Array, covariance: SymmetricMatrix, sigma: Array | float) -> Array:
    r"""C_ii + sigma^2 s1_i^2 with s1 and C at the *clean* point x, (D,); the sum is FLIPD.

    .. math:: \mathrm{FLIPD} = D + \sigma^2 (\mathrm{tr}\, s_2 + n_2(s_1))
        = \mathrm{tr}\, C + \sigma^2 n_2(s_1)

    It is D + d log q_sigma(x) / d log sigma: at a point of the manifold the density falls as
    sigma^(d - D). At a noisy point it has the mean D whatever the data are.

    References:
      Kamkari et al., "A Geometric View of Data Complexity: Efficient Local Intrinsic Dimension
      Estimation with Diffusion Models", 2024.
    """
    _check(score1, covariance, sigma)
    return covariance.diagonal() + jnp.square(sigma * score1)


def sure_map(score1: Array, covariance: SymmetricMatrix, sigma: Array | float) -> Array:
    r"""Stein's estimate of each value's squared error of denoising, (D,), data units^2.

    .. math:: \sigma^4 s_{1,i}^2 - \sigma^2 + 2 \sigma^2 C_{ii}

    Without the clean point: for x + sigma z with any fixed x its mean over z is that of
    (y + sigma^2 s1 - x)_i^2, if C = I + sigma^2 ds1/dy. A learned C counts the errors of the
    learned s1 as uncertainty, which that derivative does not: multiply tr C by the ratio of
    `confirmed_and_stated` for an estimate without bias. One value may be negative; the sum over D
    values scatters by about sigma^2 sqrt(2 D) for the noise alone. Where the data are those of
    training, sigma^2 tr C itself is the better estimate for a single image, as its noise is less.

    References:
      Stein, "Estimation of the Mean of a Multivariate Normal Distribution", 1981.
    """
    _check(score1, covariance, sigma)
    variance = jnp.square(jnp.asarray(sigma, score1.dtype))
    return variance * (variance * jnp.square(score1) - 1.0 + 2.0 * covariance.diagonal())


def over_regions(values: Array, regions: Array, count: int) -> Array:
    """Sums of a map over the regions of an image, (count,).

    Args:
      values: a map of this module, (D,).
      regions: the number of the region that each value belongs to, integers (D,), 0 to count - 1;
        others are left out.
      count: how many regions there are.
    """
    check_counts(count=count)
    check_vectors(values=values, regions=regions)
    if not jnp.issubdtype(regions.dtype, jnp.integer):
        raise ValueError(f"expected regions as integers, got {regions.dtype}")
    # In 8 bits the count may be no number at all.
    if jnp.iinfo(regions.dtype).bits < 32:
        regions = regions.astype(jnp.int32)
    places = jnp.where((regions >= 0) & (regions < count), regions, count)
    return jax.ops.segment_sum(values, places, count + 1)[:count]


class LocalDimension(NamedTuple):
    """The dimension around a point: of each value, (D,), in all, and the standard error of that
    over draws of the noise (infinite for one draw), scalars."""

    values: Array
    total: Array
    standard_error: Array


def local_dimension(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigma: Array | float,
    *,
    draws: int = 4,
) -> LocalDimension:
    """tr C at x + sigma z, averaged over so many draws of z, one evaluation each.

    Args:
      clean: x, (D,), data units.
      derivatives_fn: (noisy, sigma) -> s1 and s2.
      sigma: the scale that is looked at: directions in which data vary by less do not count.

    Raises:
      ValueError: for another shape, integers, a sigma that is not positive, or no draws.
    """
    check_floating_vectors(clean=clean)
    check_positive(sigma=sigma)
    check_counts(draws=draws)
    clean = jnp.asarray(clean)
    sigma = jnp.asarray(sigma, clean.dtype)
    noise = jax.random.normal(key, (draws, *clean.shape), clean.dtype)

    def one(z: Array) -> Array:
        _, score2 = derivatives_at(derivatives_fn, clean + sigma * z, sigma)
        return dimension_map(scaled_covariance(score2, sigma))

    maps = jax.lax.map(one, noise)
    totals = jnp.sum(maps, axis=1)
    error = jnp.asarray(jnp.inf, clean.dtype)
    if draws > 1:
        error = jnp.std(totals, ddof=1) / math.sqrt(draws)
    return LocalDimension(jnp.mean(maps, axis=0), jnp.mean(totals), error)


class ConfirmedAndStated(NamedTuple):
    """Two numbers of one noisy point, scalars: z^T (z + sigma s1), which has the mean of
    tr(I + sigma^2 ds1/dy), and tr C."""

    confirmed: Array
    stated: Array


def confirmed_and_stated(
    key: PRNGKey, clean: Array, derivatives_fn: DerivativesAtLevelFn, sigma: Array | float
) -> ConfirmedAndStated:
    r"""How much of tr C the derivative of s1 confirms, without a product with that derivative.

    By Stein's lemma, with the noise z that was added to x,

    .. math:: \mathrm{E} \, z^T (z + \sigma s_1) = \mathrm{E} \, \mathrm{tr}
        (I + \sigma^2 \nabla s_1) .

    The mean of the first number over many points, over that of the second, is the ratio at this
    level that `uncertainty.likelihood.trace_ratios` measures by Jacobian-vector products.
    Arguments and errors as of `local_dimension`.
    """
    check_floating_vectors(clean=clean)
    check_positive(sigma=sigma)
    clean = jnp.asarray(clean)
    sigma = jnp.asarray(sigma, clean.dtype)
    noise = jax.random.normal(key, clean.shape, clean.dtype)
    score1, score2 = derivatives_at(derivatives_fn, clean + sigma * noise, sigma)
    stated = scaled_covariance(score2, sigma).trace()
    return ConfirmedAndStated(jnp.sum(noise * (noise + sigma * score1)), stated)


def likelihood_slope(score1: Array, covariance: SymmetricMatrix, sigma: Array | float) -> Array:
    r"""d log q_sigma(y) / d log sigma = sigma^2 s1^T s1 - D + tr C, a scalar.

    The equation of Fokker and Planck for the law smoothed by sigma. Its mean over y ~ q_sigma is 0;
    it is positive where the noise in y is stronger than sigma.
    """
    _check(score1, covariance, sigma)
    return jnp.sum(jnp.square(sigma * score1)) - score1.shape[0] + covariance.trace()


# The smallest share of D, of directions without signal, from which a noise level can be told.
LEAST_FREE = 1e-5


class NoiseLevel(NamedTuple):
    """What `noise_level` returns.

    Attributes:
      sigma: the estimate, a scalar, data units.
      log_likelihood: of the given levels, (levels,), nats, 0 at the first.
      slopes: `likelihood_slope` there, (levels,).
    """

    sigma: Array
    log_likelihood: Array
    slopes: Array


def noise_level(
    noisy: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigmas: Array,
    *,
    steps: int = 3,
) -> NoiseLevel:
    r"""The standard deviation of the noise in one point: the most likely level.

    `likelihood_slope` at each given level, integrated over log sigma, is the log likelihood of
    sigma up to a constant, whose largest value is where the search begins. Its derivative vanishes
    where zhat^T zhat = D - tr C, and each step goes to where that would hold if zhat scaled as
    noise does and tr C stayed,

    .. math:: \sigma \leftarrow \sigma \sqrt{n_2(\hat z) / (D - \mathrm{tr}\, C)} ,

    which is MacKay's rule with tr C the number of well-determined parameters. The standard error is
    about sigma / sqrt(2 (D - tr C)). The smallest `sure_map` over assumed levels is *no* estimate
    of sigma: with sigma itself assumed, - D sigma^2 makes the largest level win.

    Args:
      noisy: y, (D,), data units.
      derivatives_fn: (noisy, sigma) -> s1 and s2, of a model of many noise levels.
      sigmas: levels to begin with, (levels,), rising, two or more: as dense as the likelihood
        asks, a ratio of 1.5 between them will do. The estimate stays between first and last.
      steps: of the rule, 0 or more: one evaluation each after the first.

    Raises:
      ValueError: for shapes that do not fit, integers, or levels that do not rise.

    References:
      MacKay, "Bayesian Interpolation", 1992, for the rule.
    """
    check_floating_vectors(noisy=noisy)
    check_rising_levels(sigmas)
    check_counts(0, steps=steps)
    noisy = jnp.asarray(noisy)
    dim = noisy.shape[0]
    levels = jnp.asarray(sigmas, noisy.dtype)

    def sizes(sigma: Array) -> tuple[Array, Array]:
        """zhat^T zhat and tr C at one level."""
        score1, score2 = derivatives_at(derivatives_fn, noisy, sigma)
        return jnp.sum(jnp.square(sigma * score1)), scaled_covariance(score2, sigma).trace()

    seen, traces = jax.lax.map(sizes, levels)
    slopes = seen - dim + traces
    logs = jnp.log(levels)
    gains = 0.5 * (slopes[1:] + slopes[:-1]) * jnp.diff(logs)
    log_likelihood = jnp.concatenate([jnp.zeros_like(logs[:1]), jnp.cumsum(gains)])

    def follow(sigma: Array, seen: Array, trace: Array) -> Array:
        # A learned C may leave no direction free, of which no noise can be told.
        none = dim - trace <= LEAST_FREE * dim
        free = jnp.where(none, 1.0, dim - trace)
        moved = jnp.clip(sigma * jnp.sqrt(seen / free), levels[0], levels[-1])
        return jnp.where(none, sigma, moved)

    best = jnp.argmax(log_likelihood)
    sigma = levels[best]
    if steps:
        sigma = follow(sigma, seen[best], traces[best])
        sigma = jax.lax.fori_loop(1, steps, lambda _, s: follow(s, *sizes(s)), sigma)
    return NoiseLevel(sigma, log_likelihood, slopes)


def _check(score1: Array, covariance: SymmetricMatrix, sigma: Array | float) -> None:
    check_positive(sigma=sigma)
    check_floating_vectors(score1=score1)
    check_vectors(score1=score1, covariance_rows=covariance.shape[:-1])
