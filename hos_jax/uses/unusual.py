r"""Which points are unlike the data that a model was trained on, and where in an image.

To a point x noise of several levels is added, and one evaluation at each, with s1 and the posterior
covariance C in units of sigma^2, gives the numbers of `Features`. With zhat = -sigma s1 the noise
that the model sees in y = x + sigma z, and r = zhat - z = (x - posterior mean) / sigma the error
that it makes, which is known, as x is:

- `trace`, `leading`: log tr C and the log of the sum of the k largest eigenvalues of C. The model
  is unsure where it knows little (EigenScore).
- `ratio`: log of s1^T s1 / -tr s2 = zhat^T zhat / (D - tr C), which is near 0 for data (SCOPED).
- `spread`: log of the mean of r_i^2 / C_ii, near 0 for data: the error in units of what the model
  expects of each value. It and the following numbers need a covariance, the others y alone.
- `distance`: log of r^T C^-1 r / D, the same with the correlations.
- `cost`: (r^T C^-1 r + log det C) / (2 D), nats per dimension, that of describing r: a term of the
  bound on -log p(x), see `hos_jax.uncertainty.bound`.

What is usual is learned from the numbers of training points, `usual`, and no unusual one is needed.
Points are judged by `excess`, for numbers that grow where points are unusual, or by `distances`,
for any. `unusual_map` says where.

Functions take one point, (D,); batch with `vmap`.

References:
  Shoushtari et al., "EigenScore: OOD detection using posterior covariance in diffusion models",
  2025; Barkley et al., "SCOPED: score-curvature out-of-distribution proximity evaluator for
  diffusion", 2025. Both have these numbers from s1 alone, by many more evaluations of it.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.tweedie import scaled_covariance
from hos_jax.types import (
    Array,
    PRNGKey,
    check_counts,
    check_floating,
    check_floating_vectors,
    check_positive,
    check_rising_levels,
    check_vectors,
    derivatives_at,
)
from hos_jax.uncertainty.likelihood import DerivativesAtLevelFn
from hos_jax.uncertainty.posterior import DEFAULT_FLOOR
from hos_jax.uses.dimension import LEAST_FREE


class Features(NamedTuple):
    """The numbers of one point, see the head of the module; each (levels,), dimensionless."""

    trace: Array
    leading: Array
    ratio: Array
    spread: Array
    distance: Array
    cost: Array

    def stacked(self, *names: str) -> Array:
        """Those of these names, all unless some are given, in one vector, (..., names x levels).

        AttributeError for a name that is none of them.
        """
        chosen = [getattr(self, name) for name in names or self._fields]
        return jnp.concatenate(chosen, axis=-1)


def features(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigmas: Array,
    *,
    draws: int = 1,
    leading: int = 4,
    krylov_vectors: int = 20,
    floor: float = DEFAULT_FLOOR,
) -> Features:
    """The numbers of one point at so many levels, means over draws of the noise.

    One evaluation of the model for each level and draw; what is done with C is linear in D for a C
    that is.

    Args:
      clean: x, (D,), data units.
      derivatives_fn: (noisy, sigma) -> s1 and s2, of a model of many noise levels.
      sigmas: noise levels, (levels,), rising, two or more.
      leading: k of the leading eigenvalues; at most D are taken.
      krylov_vectors: for these, by Lanczos where C is no `Diagonal` or `Dense`; at most D are used.
      floor: the least variance in units of sigma^2, see `SymmetricMatrix.floor`.

    Raises:
      ValueError: for shapes that do not fit, integers, or counts below 1.
    """
    check_floating_vectors(clean=clean)
    check_rising_levels(sigmas)
    check_counts(draws=draws, leading=leading, krylov_vectors=krylov_vectors)
    check_positive(floor=floor)
    clean = jnp.asarray(clean)
    dim = clean.shape[0]
    leading = min(dim, leading)
    krylov_vectors = min(dim, max(krylov_vectors, leading))

    def one(key: PRNGKey, sigma: Array) -> Features:
        noise = jax.random.normal(key, clean.shape, clean.dtype)
        score1, covariance = _at(clean + sigma * noise, derivatives_fn, sigma, floor)
        residual = -sigma * score1 - noise
        form, logdet = covariance.inverse_quadratic_form_and_logdet(residual)
        pairs = covariance.top_eigenpairs(leading, krylov_vectors=krylov_vectors)
        trace = covariance.trace()
        # A learned C may leave no direction free.
        free = jnp.maximum(dim - trace, LEAST_FREE * dim)
        return Features(
            jnp.log(trace),
            jnp.log(jnp.sum(pairs.eigenvalues)),
            jnp.log(jnp.sum(jnp.square(sigma * score1)) / free),
            jnp.log(jnp.mean(jnp.square(residual) / covariance.diagonal())),
            jnp.log(form / dim),
            0.5 * (form + logdet) / dim,
        )

    levels = jnp.asarray(sigmas, clean.dtype)
    keys = jax.random.split(key, draws * len(levels))
    found = jax.vmap(one)(keys, jnp.tile(levels, draws))
    return jax.tree.map(lambda value: jnp.mean(value.reshape(draws, -1), axis=0), found)


def _at(
    noisy: Array, derivatives_fn: DerivativesAtLevelFn, sigma: Array, floor: float
) -> tuple[Array, SymmetricMatrix]:
    """s1, and C made positive definite."""
    score1, score2 = derivatives_at(derivatives_fn, noisy, sigma)
    return score1, scaled_covariance(score2, sigma).floor(floor)[0]


class Usual(NamedTuple):
    """What the numbers of usual points are: mean and standard deviation, (F,), and the (F, F)
    root of the inverse of their correlations."""

    mean: Array
    std: Array
    whitening: Array


def usual(values: Array, *, shrinkage: float = 0.1) -> Usual:
    """Mean, spread and correlations of the numbers of usual points, (N, F), such as training data.

    The correlations are drawn to the identity by `shrinkage`, from 0 to 1, so that numbers that
    say nearly the same do not make a distance of their rounding.

    Raises:
      ValueError: for another shape, fewer than two points, a number that is the same for all, or a
        shrinkage outside of (0, 1].
    """
    check_floating(values=values)
    if values.ndim != 2 or len(values) < 2:
        raise ValueError(f"expected values (N, F) of two points or more, got {values.shape}")
    if not 0 < shrinkage <= 1:
        raise ValueError(f"expected 0 < shrinkage <= 1, got {shrinkage}")
    mean, std = jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1)
    # The rounding of the mean gives a number that never varies a deviation.
    varies = (jnp.max(values, axis=0) > jnp.min(values, axis=0)) & (std > 0)
    if not isinstance(std, jax.core.Tracer) and not bool(jnp.all(varies)):
        raise ValueError("a number is the same for all points, or not finite: leave it out")
    scaled = (values - mean[None]) / std[None]
    correlation = scaled.T @ scaled / (len(values) - 1)
    mixed = (1.0 - shrinkage) * correlation + shrinkage * jnp.eye(len(std), dtype=std.dtype)
    eigenvalues, vectors = jnp.linalg.eigh(mixed)
    return Usual(mean, std, vectors * (eigenvalues**-0.5)[None])


def z_scores(known: Usual, values: Array) -> Array:
    """How many standard deviations each number of one point, (F,), lies above the mean, (F,)."""
    check_vectors(values=values, mean=known.mean)
    return (values - known.mean) / known.std


def excess(known: Usual, values: Array) -> Array:
    """How far the numbers of one point, (F,), lie above the usual: the mean square of the positive
    z-scores, a scalar, 1/2 on average for usual points whose numbers are Gaussian."""
    return jnp.mean(jnp.square(jnp.maximum(z_scores(known, values), 0.0)))


def distances(known: Usual, values: Array) -> Array:
    """How unusual one point is by all of its numbers, (F,): the mean square of its whitened
    z-scores, a scalar, 1 for usual points but for the shrinkage (Mahalanobis, squared, over F)."""
    return jnp.mean(jnp.square(z_scores(known, values) @ known.whitening))


def unusual_map(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigmas: Array,
    *,
    draws: int = 4,
    floor: float = DEFAULT_FLOOR,
) -> Array:
    r"""Where a point is unusual: r_i^2 / C_ii, (D,), a mean over draws of the noise and levels.

    It is near 1 where the error of denoising is what the model expects, and large where it removes
    or adds what it does not expect to. Arguments and errors as of `features`.
    """
    check_floating_vectors(clean=clean)
    check_rising_levels(sigmas)
    check_counts(draws=draws)
    check_positive(floor=floor)
    clean = jnp.asarray(clean)

    def one(key: PRNGKey, sigma: Array) -> Array:
        noise = jax.random.normal(key, clean.shape, clean.dtype)
        score1, covariance = _at(clean + sigma * noise, derivatives_fn, sigma, floor)
        return jnp.square(sigma * score1 + noise) / covariance.diagonal()

    levels = jnp.asarray(sigmas, clean.dtype)
    keys = jax.random.split(key, draws * len(levels))
    return jnp.mean(jax.vmap(one)(keys, jnp.tile(levels, draws)), axis=0)
