"""Perturbation of the data: keys, noise, antithetic pairs and noise levels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.types import Array, PRNGKey, check_counts, check_floating_vectors


class AntitheticPair(NamedTuple):
    """The two points y+ = x + sigma z and y- = x - sigma z, each (D,)."""

    plus: Array
    minus: Array


def perturb(clean: Array, noise: Array, sigma: Array | float) -> AntitheticPair:
    """The antithetic pair y+- = x +- sigma z around one clean point x; all but sigma are (D,).

    Raises:
      ValueError: if the shapes differ or are not (D,), for vectors that are not floating, or for a
        sigma that is no scalar.
    """
    check_floating_vectors(clean=clean, noise=noise)
    if jnp.ndim(sigma):
        raise ValueError(f"expected a scalar sigma, got shape {jnp.shape(sigma)}; use vmap")
    return AntitheticPair(clean + sigma * noise, clean - sigma * noise)


# Every use of randomness in a run, each with keys of its own. A stream's number is its place here:
# new ones go to the end, so that a run resumed with a later version draws what it would have drawn.
# Of one that has no steps, "likelihood", the step tells its uses apart.
STREAMS = (
    "parameters",
    "training noise",
    "training levels",
    "held-out noise",
    "held-out levels",
    "chains",
    "course of chains",
    "imported networks",
    "training probes",
    "held-out probes",
    "likelihood",
    "training labels",
    "posterior samples",
    "added noise",
    "denoiser check",
    "denoiser answer",
)


def stream_key(stream: str, seed: int | Array, step: int | Array = 0) -> PRNGKey:
    """The key of one stream at one step, of all examples: `example_keys` has one for each.

    Raises:
      ValueError: for a name that is not in `STREAMS`.
    """
    if stream not in STREAMS:
        raise ValueError(f"unknown stream {stream!r}; choose one of {', '.join(STREAMS)}")
    key = jax.random.fold_in(jax.random.key(seed), STREAMS.index(stream))
    return jax.random.fold_in(key, step)


def example_keys(key: PRNGKey, first_index: int | Array, count: int) -> PRNGKey:
    """Keys of the examples `first_index ... first_index + count - 1` of a global batch, (count,).

    So the noise of an example does not depend on how many devices share the batch; but of JAX's
    `rbg` keys it does, as what they draw under `vmap` depends on the whole batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first_index + jnp.arange(count))


def geometric_sigmas(largest: float, smallest: float, count: int) -> Array:
    """Noise levels from `largest` to `smallest` with a constant ratio, (count,), data units.

    Raises:
      ValueError: unless infinity > largest >= smallest > 0 and count >= 1.
    """
    _check_range(largest, smallest, count)
    return jnp.geomspace(largest, smallest, count)


def karras_sigmas(largest: float, smallest: float, count: int, power: float = 7.0) -> Array:
    r"""Noise levels that are closer where they are small, (count,), data units.

    .. math:: \sigma_i = \Big( \sigma_{\max}^{1/p} + \tfrac{i}{\mathrm{count} - 1}
        \big( \sigma_{\min}^{1/p} - \sigma_{\max}^{1/p} \big) \Big)^p

    See Karras, Aittala, Aila, Laine, "Elucidating the Design Space of Diffusion-Based Generative
    Models", 2022, eq. 5.

    Raises:
      ValueError: as `geometric_sigmas`, and for a power that is not positive.
    """
    _check_range(largest, smallest, count)
    if not power > 0:
        raise ValueError(f"expected power > 0, got {power}")
    return jnp.linspace(largest ** (1 / power), smallest ** (1 / power), count) ** power


def log_uniform_sigmas(quantiles: Array, largest: float, smallest: float) -> Array:
    """Noise levels, data units, at these quantiles of the law whose logarithm is uniform.

    Raises:
      ValueError: unless infinity > largest >= smallest > 0.
    """
    _check_range(largest, smallest)
    return smallest * (largest / smallest) ** jnp.asarray(quantiles)


def log_normal_sigmas(
    quantiles: Array, largest: float, smallest: float, mean: float, std: float
) -> Array:
    """Noise levels, data units, at these quantiles of a log-normal law cut off at both ends.

    `mean` and `std` are of the natural logarithm of sigma before that. Most examples then are of
    levels at which there is something to learn (Karras et al. 2022, table 1: -1.2 and 1.2).

    Raises:
      ValueError: unless infinity > largest >= smallest > 0 and std > 0, and for a range more than 8
        standard deviations away from the mean, of which float32 cannot tell the quantiles.
    """
    _check_range(largest, smallest)
    if not std > 0:
        raise ValueError(f"expected std > 0, got {std}")
    low, high = ((math.log(end) - mean) / std for end in (smallest, largest))
    if not (low < 8 and high > -8):
        raise ValueError(f"{smallest} to {largest} is too far from exp({mean} +- {std})")
    quantiles = jnp.asarray(quantiles)
    # The upper tail by the lower one, which floating-point numbers resolve.
    sign = 1.0 if low + high < 0 else -1.0
    first, last = jax.scipy.special.ndtr(sign * jnp.asarray([low, high], quantiles.dtype))
    standard = sign * jax.scipy.special.ndtri(first + quantiles * (last - first))
    return jnp.clip(jnp.exp(mean + std * standard), smallest, largest)


def _check_range(largest: float, smallest: float, count: int = 1) -> None:
    check_counts(0, count=count)
    if not math.inf > largest >= smallest > 0 or count < 1:
        got = f"got {largest}, {smallest}, {count}"
        raise ValueError(f"need finite largest >= smallest > 0 and count >= 1, {got}")


def is_within(sigma: Any, levels: tuple[float, float], tolerance: float = 1e-3) -> Any:
    """Whether a noise level is between the smallest and the largest of two, up to that part."""
    low, high = levels
    return (low * (1.0 - tolerance) <= sigma) & (sigma <= high * (1.0 + tolerance))
