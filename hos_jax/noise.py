"""Perturbation of the data: keys, noise, antithetic pairs and noise levels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.types import Array, PRNGKey, check_vectors


class AntitheticPair(NamedTuple):
    """The two points y+ = x + sigma z and y- = x - sigma z, each (D,)."""

    plus: Array
    minus: Array


def perturb(clean: Array, noise: Array, sigma: Array | float) -> AntitheticPair:
    """The antithetic pair y+- = x +- sigma z around one clean point.

    Args:
      clean: x, (D,), data units.
      noise: z, (D,), standard normal.
      sigma: standard deviation of the perturbation, scalar, data units.

    Raises:
      ValueError: if the shapes differ or are not (D,).
    """
    check_vectors(clean=clean, noise=noise)
    return AntitheticPair(clean + sigma * noise, clean - sigma * noise)


def step_key(seed: int | Array, step: int | Array) -> PRNGKey:
    """The key of one training step, derived from (seed, step) and nothing else."""
    return jax.random.fold_in(jax.random.key(seed), step)


def example_keys(key: PRNGKey, first_index: int | Array, count: int) -> PRNGKey:
    """Keys of the examples `first_index ... first_index + count - 1` of a global batch.

    The index of an example is fixed by (process, device, position on the device), so the noise
    that an example receives does not depend on how many devices share the batch.

    Returns:
      Array of `count` keys.
    """
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(first_index + jnp.arange(count))


def geometric_sigmas(largest: float, smallest: float, count: int) -> Array:
    """Noise levels from `largest` to `smallest` with a constant ratio, (count,), data units.

    Raises:
      ValueError: unless largest >= smallest > 0 and count >= 1.
    """
    if not largest >= smallest > 0 or count < 1:
        raise ValueError(
            f"need largest >= smallest > 0 and count >= 1, got {largest}, {smallest}, {count}"
        )
    return jnp.geomspace(largest, smallest, count)
