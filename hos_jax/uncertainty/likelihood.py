r"""The log density of a point under a model of many noise levels, by the flow that leads to it.

`log_likelihood` follows one point along the probability flow ODE, on which the law smoothed by
sigma moves as sigma grows, up to a law that is known (Song et al. 2021; Karras et al. 2022):

.. math:: \frac{dy}{d\sigma} = -\sigma s_1, \qquad
    \log q_{min}(y_{min}) = \log q_{max}(y_{max})
        - \int_{min}^{max} \sigma \, \mathrm{tr}\, s_2 \, d\sigma .

A second-order model gives the integrand, (tr C - D) / sigma, with s1 in the same evaluation; by s1
alone it takes D products with its derivative, or random probes, which leave a standard error. The
step size is adapted in log sigma, by `diffrax`.

Functions take one point, (D,); batch with `vmap`. All log densities are in nats and data units.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import autodiff
from hos_jax.linops import SymmetricMatrix
from hos_jax.types import (
    Array,
    PRNGKey,
    at_least_float32,
    check_counts,
    check_floating_vectors,
    check_positive,
    check_rising_levels,
    check_structured,
    check_vectors,
    derivatives_at,
    nan_unless,
)

# s1 at a noise level: (y, sigma) -> (D,); with s2, structured; with tr s2, a scalar, or one for
# each probe, (P,).
ScoreAtLevelFn = Callable[[Array, Array], Array]
DerivativesAtLevelFn = Callable[[Array, Array], tuple[Array, SymmetricMatrix]]
ScoreAndTraceFn = Callable[[Array, Array], tuple[Array, Array]]
LogDensityFn = Callable[[Array], Array]

# What a step of Tsitouras' method costs beyond the first: its last stage is the next one's first.
_EVALUATIONS_PER_STEP = 6


def gaussian_log_density(mean: Array, variance: Array | float) -> LogDensityFn:
    """log N(mean, variance I), for the law at the largest noise level: with the data's mean, (D,),
    and sigma_max^2 plus the data's variance, a scalar or (D,), data units^2. ValueError for other
    shapes, and for a variance that is not positive unless it is traced."""
    if np.ndim(variance):
        check_vectors(mean=mean, variance=jnp.shape(variance))
    if not isinstance(variance, jax.core.Tracer) and not np.all(np.asarray(variance) > 0):
        raise ValueError("expected a positive variance")

    def log_density(point: Array) -> Array:
        check_vectors(point=point, mean=mean)
        spread = jnp.broadcast_to(jnp.asarray(variance, point.dtype), point.shape)
        terms = jnp.square(point - mean) / spread + jnp.log(2.0 * math.pi * spread)
        return -0.5 * jnp.sum(terms)

    return log_density


def structured_trace_fn(derivatives_fn: DerivativesAtLevelFn) -> ScoreAndTraceFn:
    """s1 and tr s2 from a second-order model, `(y, sigma) -> (s1, s2)`: one evaluation of it."""

    def score_and_trace(noisy: Array, sigma: Array) -> tuple[Array, Array]:
        score, hessian = derivatives_at(derivatives_fn, noisy, sigma)
        check_structured(hessian, "s2")
        return score, hessian.trace()

    return score_and_trace


def calibrated_trace_fn(
    derivatives_fn: DerivativesAtLevelFn, sigmas: Array, ratios: Array
) -> ScoreAndTraceFn:
    """`structured_trace_fn` with tr C multiplied by a ratio, of `trace_ratios`, that depends on the
    noise level alone; between the levels it is interpolated linearly in log sigma.

    A learned C is the covariance of what a learned s1 leaves, errors of s1 included; the flow of s1
    needs the divergence of s1 itself.

    Raises:
      ValueError: unless sigmas, rising, and ratios are of one shape (levels,).
    """
    check_floating_vectors(sigmas=sigmas, ratios=ratios)
    check_rising_levels(sigmas)

    trace_fn = structured_trace_fn(derivatives_fn)

    def score_and_trace(noisy: Array, sigma: Array) -> tuple[Array, Array]:
        score, trace = trace_fn(noisy, sigma)
        known = jnp.asarray(sigmas, noisy.dtype), jnp.asarray(ratios, noisy.dtype)
        ratio = jnp.interp(jnp.log(sigma), jnp.log(known[0]), known[1])
        variance = jnp.square(sigma)
        covariance = noisy.shape[0] + variance * trace
        return score, (ratio * covariance - noisy.shape[0]) / variance

    return score_and_trace


def trace_ratios(
    key: PRNGKey,
    clean: Array,
    derivatives_fn: DerivativesAtLevelFn,
    sigmas: Array,
    *,
    probes: int = 4,
) -> Array:
    """How much of a second-order model's tr C the derivative J of its s1 confirms, (levels,).

    At each level: the mean of tr(I + sigma^2 J) over noisy points, by random signs, over that of
    tr C, for `calibrated_trace_fn`. Measured once, on training data, by so many Jacobian-vector
    products for each point and level.

    Args:
      clean: points, (N, D), data units.
      derivatives_fn: s1 and s2 at a noise level.
      sigmas: noise levels, (levels,), rising.

    Raises:
      ValueError: for other shapes, integers, or probes < 1.
    """
    check_counts(probes=probes)
    if clean.ndim != 2:
        raise ValueError(f"expected points (N, D), got {clean.shape}")
    check_rising_levels(sigmas)
    dim = clean.shape[1]

    def traces(key: PRNGKey, clean: Array, sigma: Array) -> tuple[Array, Array]:
        noise_key, probe_key = jax.random.split(key)
        noisy = clean + sigma * jax.random.normal(noise_key, clean.shape, clean.dtype)
        trace_fn = hutchinson_trace_fn(
            probe_key, lambda y, s: derivatives_fn(y, s)[0], dim, probes=probes
        )
        known = structured_trace_fn(derivatives_fn)(noisy, sigma)[1]
        found = jnp.mean(trace_fn(noisy, sigma)[1])
        return dim + jnp.square(sigma) * found, dim + jnp.square(sigma) * known

    def at_level(level: tuple[PRNGKey, Array]) -> Array:
        keys = jax.random.split(level[0], len(clean))
        derived, modelled = jax.vmap(traces, (0, 0, None))(keys, clean, level[1])
        return jnp.mean(derived) / jnp.mean(modelled)

    levels = jax.random.split(key, len(sigmas)), jnp.asarray(sigmas, clean.dtype)
    return jax.lax.map(at_level, levels)


def exact_trace_fn(score_fn: ScoreAtLevelFn, *, chunk_size: int = 32) -> ScoreAndTraceFn:
    """s1 and the trace of its derivative: D Jacobian-vector products, `chunk_size` at a time."""
    check_counts(chunk_size=chunk_size)

    def score_and_trace(noisy: Array, sigma: Array) -> tuple[Array, Array]:
        diagonal_fn = autodiff.chunked_hessian_diagonal_fn(
            lambda y: score_fn(y, sigma), chunk_size=chunk_size
        )
        return score_fn(noisy, sigma), jnp.sum(diagonal_fn(noisy))

    return score_and_trace


def hutchinson_trace_fn(
    key: PRNGKey, score_fn: ScoreAtLevelFn, dim: int, *, probes: int = 1
) -> ScoreAndTraceFn:
    """s1 and unbiased estimates v^T J v of the trace of its derivative J, (P,), by so many probes
    of random signs, which stay the same at every call: one Jacobian-vector product each.
    ValueError, when it is called, for a point of another size than `dim`."""
    check_counts(dim=dim, probes=probes)
    signs = jax.random.rademacher(key, (probes, dim))

    def score_and_trace(noisy: Array, sigma: Array) -> tuple[Array, Array]:
        check_vectors(noisy=noisy, probe=(dim,))
        vectors = signs.astype(noisy.dtype)
        score, product_fn = jax.linearize(lambda y: score_fn(y, sigma), noisy)
        return score, jnp.sum(vectors * jax.vmap(product_fn)(vectors), axis=1)

    return score_and_trace


class LogLikelihood(NamedTuple):
    """What `log_likelihood` returns, scalars.

    Attributes:
      log_density: nats, of a density in data units; NaN where the solver did not get to the end.
      evaluations: calls of `score_and_trace_fn` that this point needed.
      standard_error: over probes, nats; 0 for an exact trace, infinite for one probe.
      converged: whether the solver got to the end within `max_steps`, through finite numbers.
    """

    log_density: Array
    evaluations: Array
    standard_error: Array
    converged: Array


def log_likelihood(
    noisy: Array,
    score_and_trace_fn: ScoreAndTraceFn,
    smallest: Array | float,
    largest: Array | float,
    log_density_fn: LogDensityFn,
    *,
    rtol: float = 1e-4,
    atol: float = 1e-4,
    max_steps: int = 1000,
) -> LogLikelihood:
    r"""log q_min of one point, the density of the data smoothed by sigma_min, by the flow ODE.

    With t = log sigma, dy/dt = -sigma^2 s1 and d log q / dt = sigma^2 tr s2 = tr C - D::

        end = likelihood.gaussian_log_density(mean, 5.0**2 + variance)
        trace_fn = likelihood.structured_trace_fn(pointwise.derivatives_fn(run))
        found = jax.vmap(lambda y: likelihood.log_likelihood(y, trace_fn, 0.05, 5.0, end))(points)

    Where the networks of s1 and s2 are apart it is the likelihood of neither exactly: it differs
    from that of s1 by what the traces differ.

    Args:
      noisy: y, (D,), data units, where the model of sigma_min is at home: x + sigma_min z.
      score_and_trace_fn: (y, sigma) -> s1 (D,) and tr s2, a scalar, or (P,) of P probes.
      smallest, largest: sigma_min < sigma_max, scalars, data units.
      log_density_fn: log q_max, (D,) -> scalar; see `gaussian_log_density`.
      rtol, atol: tolerances of one step, for the root mean square error of y in data units, and
        for the log density in nats per dimension.
      max_steps: at most so many, rejected ones included.

    Returns:
      See `LogLikelihood`: NaN and `converged` False where `max_steps` were too few, or values were
      not finite.

    Raises:
      ValueError: for shapes that do not fit, integers, or numbers that are not positive.

    References:
      Song et al. 2021, "Score-based generative modeling through stochastic differential equations",
      section 4.3; Tsitouras 2011, the solver; Kidger 2021, "On neural differential equations".
    """
    import diffrax  # takes as long to load as JAX, and nothing else needs it

    check_floating_vectors(noisy=noisy)
    noisy = at_least_float32(jnp.asarray(noisy))
    check_positive(rtol=rtol, atol=atol)
    _check_levels(smallest, largest)
    check_counts(max_steps=max_steps)
    dim, dtype = noisy.shape[0], noisy.dtype
    start, stop = (jnp.log(jnp.asarray(sigma, dtype)) for sigma in (smallest, largest))

    def slopes(t: Array, state: tuple[Array, Array], _: None) -> tuple[Array, Array]:
        sigma = jnp.exp(t).astype(dtype)
        score, trace = score_and_trace_fn(state[0], sigma)
        check_vectors(noisy=noisy, score=score)
        return -jnp.square(sigma) * score, jnp.square(sigma) * trace / dim

    def norm(state: tuple[Array, Array]) -> Array:
        sizes = [jnp.sqrt(jnp.mean(jnp.square(leaf))) for leaf in state]
        return jnp.maximum(*sizes)

    trace = jax.eval_shape(score_and_trace_fn, noisy, start)[1]
    if trace.ndim > 1:
        raise ValueError(f"expected a trace, or one for each probe, (P,), got {trace.shape}")
    # From what is not finite no step is short enough, and each is a try.
    known = jnp.all(jnp.isfinite(noisy))
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slopes),
        diffrax.Tsit5(),
        start,
        stop,
        (stop - start) / 50,
        (jnp.where(known, noisy, 0.0), jnp.zeros(trace.shape, dtype)),
        stepsize_controller=diffrax.PIDController(
            rtol, atol, dtmin=1e-6 * (stop - start), force_dtmin=False, norm=norm
        ),
        max_steps=max_steps,
        throw=False,
    )
    (end,), (fallen,) = solution.ys
    found = log_density_fn(end) - dim * fallen
    converged = (solution.result == diffrax.RESULTS.successful) & jnp.all(jnp.isfinite(found))
    converged &= known
    evaluations = 1 + _EVALUATIONS_PER_STEP * solution.stats["num_steps"]
    error = jnp.zeros((), dtype)
    if trace.ndim:
        count = trace.shape[0]
        error = jnp.std(found, ddof=1) / math.sqrt(count) if count > 1 else error + jnp.inf
    value = nan_unless(converged, jnp.mean(found))
    return LogLikelihood(value, evaluations, error, converged)


def _check_levels(smallest: Array | float, largest: Array | float) -> None:
    check_positive(smallest=smallest, largest=largest)
    traced = any(isinstance(sigma, jax.core.Tracer) for sigma in (smallest, largest))
    # Of NumPy: within a trace what JAX compares is traced, constants too.
    if not traced and not np.asarray(smallest) < np.asarray(largest):
        raise ValueError(f"expected smallest < largest, got {smallest} and {largest}")


def bits_per_dim(log_density: Array, dim: int, bin_width: float = 1.0) -> Array:
    r"""Bits for each of D values, from a log density in nats and data units.

    .. math:: -\frac{1}{\log 2} \Big( \frac{\log q}{D} + \log w \Big)

    w is the width of a value's bin: for bytes that `data.dequantize` made continuous it bounds the
    negative log2 probability of the bytes from above, on average (Theis et al. 2016).
    """
    return -(log_density / dim + math.log(bin_width)) / math.log(2.0)
