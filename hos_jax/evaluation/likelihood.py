"""Bits per dimension of held-out images, for models of a range of noise levels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import data, pointwise
from hos_jax.evaluation.held_out import standard_error
from hos_jax.linops import Diagonal
from hos_jax.noise import example_keys, geometric_sigmas, stream_key
from hos_jax.training.problem import Problem
from hos_jax.uncertainty import DEFAULT_FLOOR, bound, likelihood

logger = logging.getLogger(__name__)

IMAGES = 32
BOUND_STEPS = 20
BOUND_NAME = f"bound_{BOUND_STEPS}_steps"
# For a model that has s1 alone.
PROBES = 4
# The trace of s2 is compared with the derivative of s1 at so many levels and training images.
RATIO_LEVELS, RATIO_IMAGES, RATIO_PROBES = 8, 32, 4


def measured_ratios(problem: Problem, params: Any) -> tuple[jax.Array, jax.Array]:
    """Noise levels, rising, and `likelihood.trace_ratios` there, each (levels,); ones where s1 has
    no derivative."""
    model = problem.config.model
    sigmas = geometric_sigmas(model.largest_noise, model.smallest_noise, RATIO_LEVELS)[::-1]
    sigmas = sigmas.astype(jnp.float32)
    if not problem.model.differentiable:
        return sigmas, jnp.ones_like(sigmas)
    images = problem.data.to_float(problem.data.train[:RATIO_IMAGES])
    clean = jnp.asarray(images).reshape(len(images), -1)

    @jax.jit
    def measure(params: Any, key: jax.Array) -> jax.Array:
        derivatives_fn = make_derivatives_fn(problem, params)
        return likelihood.trace_ratios(key, clean, derivatives_fn, sigmas, probes=RATIO_PROBES)

    return sigmas, measure(params, stream_key("likelihood", problem.config.seed, 3))


def dequantized(problem: Problem, count: int) -> tuple[jax.Array, float]:
    """Held-out images spread over all there are, flat, (N, D), data units, with the width of a
    byte's bin, with which noise makes them continuous; numbers stay as they are, of width 1."""
    images = problem.data
    places = np.linspace(0, len(images.held_out) - 1, min(count, len(images.held_out)))
    chosen = images.held_out[places.round().astype(int)]
    width = 1.0
    if chosen.dtype == np.uint8:
        key = stream_key("likelihood", problem.config.seed)
        chosen = data.dequantize(key, chosen, images.value_range)
        width = data.bin_width(images.value_range)
    return jnp.asarray(chosen).reshape(len(chosen), -1), width


def law_at_largest(problem: Problem) -> likelihood.LogDensityFn:
    """The Gaussian with the mean and variances of the training images and of the largest level."""
    images, largest = problem.data, problem.config.model.largest_noise
    flat = images.train.reshape(len(images.train), -1)
    # Of the stored numbers, and no np.var: a copy of all images in floating point may not fit.
    mean = np.mean(flat, axis=0, dtype=np.float64)
    square = np.einsum("nd,nd->d", flat, flat, dtype=np.float64, casting="safe") / len(flat)
    variance = np.maximum(square - np.square(mean), 0.0)
    if flat.dtype == np.uint8:
        width = data.bin_width(images.value_range)
        mean, variance = images.value_range[0] + width * mean, width**2 * variance
    return likelihood.gaussian_log_density(
        jnp.asarray(mean, jnp.float32), jnp.asarray(largest**2 + variance, jnp.float32)
    )


def make_derivatives_fn(problem: Problem, params: Any) -> likelihood.DerivativesAtLevelFn:
    """(s1, s2) at one flat image, noise level and perhaps class; s2 = 0 of a model of s1 alone."""
    arguments = problem.model, params, None, problem.data.image_shape
    if problem.model.head is not None:
        return pointwise.derivatives_fn(*arguments)
    score_fn = pointwise.score_fn(*arguments)
    return lambda noisy, *at: (score_fn(noisy, *at), Diagonal(jnp.zeros_like(noisy)))


def smallest_variance(problem: Problem, width: float) -> float:
    """The floor of C at the smallest level: a bin's own variance, where there are bins."""
    spread = width**2 / 12.0 if width < 1.0 else 0.0
    return max(DEFAULT_FLOOR, spread / problem.config.model.smallest_noise**2)


@functools.lru_cache(maxsize=1)
def make_nats(problem: Problem, width: float) -> Callable[..., tuple]:
    """`nats(params, clean, keys, ratios)`: of each of N flat images the bound on -log p by the flow
    ODE and what the solver said of it, and the `Bound` of chains of `BOUND_STEPS` by covariance.
    `ratios` are of `measured_ratios`, or None for a model of s1 alone."""
    model, dim = problem.config.model, problem.data.dim
    smallest, largest = model.smallest_noise, model.largest_noise
    end, floor = law_at_largest(problem), smallest_variance(problem, width)
    has_head = problem.model.head is not None

    def of_one(params: Any, clean: jax.Array, key: jax.Array, ratios: Any) -> tuple:
        derivatives_fn = make_derivatives_fn(problem, params)
        encode_key, probe_key, bound_key = jax.random.split(key, 3)
        covariance = "full" if has_head else "large"
        encoding = bound.encode(
            encode_key, clean, derivatives_fn, smallest, covariance=covariance, floor=floor
        )
        if has_head:
            trace_fn = likelihood.calibrated_trace_fn(derivatives_fn, *ratios)
        else:
            score_fn = pointwise.score_fn(problem.model, params, None, problem.data.image_shape)
            trace_fn = likelihood.hutchinson_trace_fn(probe_key, score_fn, dim, probes=PROBES)
        found = likelihood.log_likelihood(encoding.noisy, trace_fn, smallest, largest, end)
        sigmas = geometric_sigmas(largest, smallest, BOUND_STEPS + 1).astype(clean.dtype)
        bounds = bound.ancestral_bound(
            bound_key,
            clean,
            derivatives_fn,
            sigmas,
            end,
            covariances=bound.COVARIANCES if has_head else ("small", "large"),
            floor=floor,
        )
        return encoding.cost - found.log_density, found, bounds

    return jax.jit(jax.vmap(of_one, (None, 0, 0, None)))


def likelihood_scores(problem: Problem, params: Any) -> dict[str, Any]:
    """Bounds on the bits per dimension of at most `IMAGES` held-out images, and standard errors.

    `bits_per_dim` by the flow ODE, with the `evaluations` of the model that it took, the mean over
    images; `bound_20_steps` of chains with the whole covariance of the step, `bounds` the same by
    covariance. Both begin with sigma_min z added to the image, and the model's Gaussian posterior
    is the way back (see `bound.encode`), so they differ by what the steps cost.

    The divergence of the flow is the trace of s2, set right by `measured_ratios`. Bytes get uniform
    noise; numbers are measured as a density in data units. A model of s1 alone
    has its divergence from `PROBES` probes, and no covariance but the small and the large one.
    """
    clean, width = dequantized(problem, IMAGES)
    keys = example_keys(stream_key("likelihood", problem.config.seed, 1), 0, len(clean))
    ratios = None if problem.model.head is None else measured_ratios(problem, params)
    nats, found, bounds = jax.device_get(make_nats(problem, width)(params, clean, keys, ratios))
    finite = found.converged
    if not finite.all():
        logger.warning(
            "the likelihood of %d of %d images is left out: the solver needed too many steps, or "
            "met values that are not finite",
            np.sum(~finite),
            len(finite),
        )
    dim = clean.shape[1]

    def bits(values: np.ndarray) -> np.ndarray:
        return np.asarray(likelihood.bits_per_dim(-values[finite], dim, width))

    best = "full" if problem.model.head is not None else "large"
    measured = {"bits_per_dim": bits(nats), BOUND_NAME: bits(bounds[best].total)}
    result: dict[str, Any] = {name: _mean(values) for name, values in measured.items()}
    result["bounds"] = {kind: _mean(bits(found.total)) for kind, found in bounds.items()}
    result["evaluations"] = _mean(found.evaluations[finite])
    result["standard_error"] = {name: standard_error(found) for name, found in measured.items()}
    return result | {"images": int(finite.sum())}


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean(dtype=float)) if len(values) else None
