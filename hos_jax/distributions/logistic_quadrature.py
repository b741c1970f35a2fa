r"""The trapezoid rule for a logistic density times a Gaussian; its nodes follow the integrand.

In units of the logistic scale s, with a = (y - m)/s, b = (sigma/s)^2 and x = m + s v, the
integrand is exp(psi(v)) with psi(v) = g(v) - (v - a)^2 / (2 b), g the standard logistic log
density. It is log-concave, and analytic for |Im v| < pi. So the trapezoid rule converges like
exp(-2 pi^2 / step) where the logistic dominates and like exp(-2 pi^2 b / step^2) where the Gaussian
does, and it may be cut where psi has fallen by `drop` below its maximum. The nodes needed grow as
drop^2, so float32 needs about a quarter of float64's.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import logistic

from hos_jax.types import Array

LIMIT_STEPS = 6


class Rule(NamedTuple):
    """One quadrature for each pair (coordinate, component), in units of s; N nodes.

    Attributes:
      log_terms: log of step times integrand, so that logsumexp over N is the log density of
        (y - m)/s under one smoothed component, (D, K, N).
      standardized: v = (x - m)/s at the nodes, (D, K, N).
      gap: (x - y)/s at the nodes, (D, K, N).
      share: c, the part of a shift of y that the nodes follow, (D, K, 1).
      gap_share: (1 - c) s^2 / sigma^2, (D, K, 1).
    """

    log_terms: Array
    standardized: Array
    gap: Array
    share: Array
    gap_share: Array


def node_budget(dtype) -> tuple[float, int]:
    """How far below its maximum the log integrand is cut, and the number of nodes."""
    drop = 4.0 - math.log(float(jnp.finfo(dtype).eps))
    return drop, math.ceil(0.12 * drop**2)


def _centre(a: Array, b: Array) -> tuple[Array, Array]:
    """A point v near the maximum of psi, between 0 and it, where psi is at most 2 log 2 below it,
    and v - a, which has its digits where a is large.

    psi' = 0 is v + b tanh(v/2) = a; for a >= 0, tanh(v/2) <= min(v/2, 1) gives two lower bounds.
    """
    target = jnp.abs(a)
    centre = jnp.sign(a) * jnp.maximum(target / (1.0 + 0.5 * b), target - b)
    return centre, -jnp.sign(a) * jnp.minimum(target * (b / (2.0 + b)), b)


def _rise(centre: Array, t: Array) -> Array:
    """g(centre + t) - g(centre), which has its digits where both are large."""
    v = centre + t
    further = jnp.where(centre * v > 0, jnp.sign(centre) * t, jnp.abs(v) - jnp.abs(centre))
    tails = jnp.log1p(jnp.exp(-jnp.abs(v))) - jnp.log1p(jnp.exp(-jnp.abs(centre)))
    return -further - 2.0 * tails


def _limits(centre: Array, gap: Array, b: Array, drop: float) -> Array:
    """How far left and right of the centre psi has fallen by `drop`, (D, K, 2), the left negative.

    psi is concave: from a point outside, Newton's method stays outside but for rounding, which ends
    it there. The start is where bounds of psi by straight lines and parabolas have fallen so far:
    with p = |gap| / b, g is below -|v| + 2 log 2, of which -|v| falls by t on the way to a, and on
    the other rises by t, or by 2 |centre| - t.
    """
    centre, gap, b = centre[..., None], gap[..., None], b[..., None]

    def slope(t: Array) -> Array:  # b psi'(centre + t)
        return -(gap + t) - b * jnp.tanh(0.5 * (centre + t))

    pull, least = jnp.abs(gap) / b, drop + 2.0 * math.log(2.0)

    def root(linear: Array, most: Array | float) -> Array:  # of t^2 / (2 b) + linear t = most
        return 2.0 * most / (linear + jnp.sqrt(jnp.square(linear) + 2.0 * most / b))

    to_a = root(1.0 - pull, least)
    rising = b * ((1.0 - pull) + jnp.sqrt(jnp.square(1.0 - pull) + 2.0 * least / b))
    to_zero = jnp.minimum(rising, root(1.0 + pull, 2.0 * jnp.abs(centre) + least))
    right = gap <= 0  # a is on that side
    t = jnp.concatenate([-jnp.where(right, to_zero, to_a), jnp.where(right, to_a, to_zero)], -1)
    side = jnp.array([[[-1.0, 1.0]]], t.dtype)
    for _ in range(LIMIT_STEPS):
        psi = _rise(centre, t) - t * (gap + 0.5 * t) / b
        nearer = t - (psi + drop) * b / jnp.where(slope(t) == 0, 1.0, slope(t))
        t = jnp.where((psi + drop < 0) & (side * slope(t) < 0) & (side * nearer > 0), nearer, t)
    return t


@jax.jit
def quadrature(a: Array, b: Array) -> Rule:
    """The rule at one point: a = (y - m)/s, (D, K), and b = (sigma/s)^2, (D, K), positive."""
    drop, count = node_budget(a.dtype)
    fixed_a, fixed_b = jax.lax.stop_gradient((a, b))
    centre, centre_gap = _centre(fixed_a, fixed_b)
    limits = _limits(centre, centre_gap, fixed_b, drop)
    left = limits[:, :, :1]
    step = (limits[:, :, 1:] - left) / (count - 1)
    offsets = left + step * jnp.arange(count, dtype=a.dtype)[None, None, :]

    curvature = 2.0 * jax.nn.sigmoid(centre) * jax.nn.sigmoid(-centre)
    share = 1.0 / (1.0 + fixed_b * curvature)
    # The nodes are constants for autodiff but for their part of the shift of y, so that nested
    # autodiff of log q evaluates the same well-conditioned formulas as the scores.
    shift = a - fixed_a
    v = (centre + share * shift)[:, :, None] + offsets
    gap = (centre_gap - (1.0 - share) * shift)[:, :, None] + offsets
    log_kernel = -0.5 * jnp.square(gap) / b[:, :, None] + logistic.logpdf(v)
    log_terms = log_kernel + jnp.log(step) - 0.5 * jnp.log(2.0 * jnp.pi * b)[:, :, None]
    share = share[:, :, None]
    return Rule(log_terms, v, gap, share, share * curvature[:, :, None])
