"""Data of a known dimension in R^D with exact scores: planes and spheres, turned at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax import autodiff, distributions


class Manifold(NamedTuple):
    """`sample(key, count)`, (count, D), and `derivatives_fn(noisy, sigma)` of what has d
    dimensions."""

    sample: Callable
    derivatives_fn: Callable


def plane(d: int, dim: int) -> Manifold:
    """A Gaussian on d dimensions with standard deviations from 0.7 to 1.4."""
    span = jax.random.orthogonal(jax.random.key(d), dim)[:, :d] * jnp.linspace(0.7, 1.4, d)
    law = distributions.Gaussian(jnp.zeros(dim), span @ span.T + 1e-6 * jnp.eye(dim))

    def derivatives_fn(noisy, sigma):
        smooth = law.smooth(sigma)
        return smooth.score(noisy), smooth.hessian(noisy)

    return Manifold(lambda key, count: jax.random.normal(key, (count, d)) @ span.T, derivatives_fn)


def sphere(d: int, dim: int) -> Manifold:
    """Uniform on the unit sphere of d dimensions in R^(d + 1).

    The posterior of x is a law of von Mises and Fisher with kappa = |y| / sigma^2 along the part
    of y in R^(d + 1), whose mean is I_(n / 2) / I_(n / 2 - 1) of kappa with n = d + 1, here by
    Gauss' continued fraction.
    """
    frame = jax.random.orthogonal(jax.random.key(d), dim)[:, : d + 1]

    def score(noisy, sigma):
        inside = noisy @ frame
        length = jnp.linalg.norm(inside)
        kappa = length / sigma**2

        def fold(index, ratio):
            return 1.0 / (2.0 * (0.5 * (d + 1) + 399 - index) / kappa + ratio)

        # A scan, not a loop of unknown length, so that it has derivatives of both modes.
        ratio, _ = jax.lax.scan(
            lambda ratio, index: (fold(index, ratio), None), jnp.zeros_like(kappa), jnp.arange(400)
        )
        return (frame @ (inside / length * ratio) - noisy) / sigma**2

    def derivatives_fn(noisy, sigma):
        def score_fn(y):
            return score(y, sigma)

        return score_fn(noisy), autodiff.dense_hessian_fn(score_fn)(noisy)

    def sample(key, count):
        points = jax.random.normal(key, (count, d + 1))
        return points / jnp.linalg.norm(points, axis=1, keepdims=True) @ frame.T

    return Manifold(sample, derivatives_fn)
