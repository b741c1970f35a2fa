r"""Annealed sampling: from pure noise to data through noise levels, with any kernel.

At each level sigma_i, from the largest to the smallest, a few steps of Langevin or Ozaki on the
density smoothed by sigma_i; the state of one level starts the next. It needs scores at every level:
one noise-conditional model, or exact ones. See Song, Ermon, "Generative Modeling by Estimating
Gradients of the Data Distribution", 2019, algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hos_jax.samplers.base import Chains, SamplingAlgorithm, advance, as_partial, start_carry
from hos_jax.samplers.devices import over_devices
from hos_jax.types import (
    Array,
    PRNGKey,
    check_counts,
    check_falling_levels,
    check_floating,
    check_positive,
)


def anneal_chains(
    key: PRNGKey,
    sampler_at: Callable[[Array], SamplingAlgorithm],
    positions: Array,
    sigmas: Array,
    steps: int,
    *,
    collect: Callable[[Any], Any] | None = None,
    devices: list[Any] | None = None,
    progress: str | None = None,
) -> Chains:
    """Run chains through noise levels, `steps` steps at each, compiled once for all levels.

    Chain i at step t of level l uses the key fold_in(fold_in(fold_in(key, l), t), i)::

        def sampler_at(sigma):
            return langevin.as_top_level_api(law.smooth(sigma).score, 0.1 * sigma**2)

        start = sigmas[0] * jax.random.normal(start_key, (chains, dim))
        samples = anneal_chains(key, sampler_at, start, sigmas, 20).states.position

    ValueError if steps < 1, for other shapes or integers, levels that are not positive and falling,
    or devices that do not divide the chains.

    Args:
      key: one key for all chains.
      sampler_at: `sigma -> SamplingAlgorithm` for one chain at that level; sigma is traced.
      positions: where the chains start, (chains, D), such as sigmas[0] times standard normal noise.
      sigmas: the levels, falling, (levels,), data units.
      steps: per level, at least 1.
      collect, devices, progress: see `run_chains`; it keeps something after each level, and
        functions must not change what they close over.
    """
    check_counts(steps=steps)
    positions, sigmas = jnp.asarray(positions), jnp.asarray(sigmas)
    check_floating(positions=positions, sigmas=sigmas)
    if sigmas.ndim != 1 or not len(sigmas):
        raise ValueError(f"expected noise levels of shape (levels,), got {sigmas.shape}")
    if len(sigmas) > 1:
        check_falling_levels(sigmas)
    check_positive(sigma=sigmas[0])
    if positions.ndim != 2:
        raise ValueError(f"expected positions of shape (chains, D), got {positions.shape}")
    sigmas = sigmas.astype(positions.dtype)
    functions, structure = jax.tree.flatten((as_partial(sampler_at), as_partial(collect)))
    one_level = _level(structure)
    positions, *finite = start_carry(over_devices(positions, devices))
    parts = []
    for index in tqdm(range(len(sigmas)), desc=progress, disable=progress is None, unit="level"):
        level_key = jax.random.fold_in(key, index)
        carry, kept = one_level(functions, level_key, positions, finite, sigmas[index], steps)
        positions, finite = carry[0].position, list(carry[1:])
        parts.append(jax.device_get(kept))
    return Chains.of(carry, parts, np.stack)


@functools.lru_cache(maxsize=8)
def _level(structure: Any) -> Callable:
    """All steps of one level; `structure` and `functions` give (sampler_at, collect)."""

    @jax.jit
    def one_level(functions, key, positions, finite, sigma, steps):
        sampler_at, collect = jax.tree.unflatten(structure, functions)
        sampler = sampler_at(sigma)
        carry = (jax.vmap(sampler.init)(positions), *finite)
        carry = advance(sampler.step, key, carry, 0, steps)
        return carry, None if collect is None else jax.vmap(collect)(carry[0])

    return one_level
