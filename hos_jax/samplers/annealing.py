r"""Annealed sampling: from pure noise to data through noise levels, with any kernel.

At each level sigma_i, from the largest to the smallest, a few steps of Langevin or Ozaki on the
density smoothed by sigma_i; the state of one level starts the next. It needs scores at every level:
one noise-conditional model, or exact ones.

References:
  Song, Ermon, "Generative Modeling by Estimating Gradients of the Data Distribution", 2019,
  algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from hos_jax.samplers.base import SamplingAlgorithm, check_counts, step_chains
from hos_jax.samplers.devices import over_devices
from hos_jax.types import Array, PRNGKey


class AnnealedChains(NamedTuple):
    """What `anneal_chains` returns.

    Attributes:
      positions: where the chains are after the last level, (chains, D), data units.
      is_finite: whether a chain stayed finite throughout, (chains,); leave the others out.
      trajectory: positions after each level, (levels, chains, D), numpy; None unless asked for.
    """

    positions: Array
    is_finite: np.ndarray
    trajectory: np.ndarray | None


def anneal_chains(
    key: PRNGKey,
    sampler_at: Callable[[Array], SamplingAlgorithm],
    positions: Array,
    sigmas: Array,
    steps: int,
    *,
    keep_trajectory: bool = False,
    devices: list[Any] | None = None,
    progress: str | None = None,
) -> AnnealedChains:
    """Run chains through noise levels, `steps` steps at each, compiled once for all levels.

    Chain i at step t of level l uses the key fold_in(fold_in(fold_in(key, l), t), i).

    Args:
      key: one key for all chains.
      sampler_at: `sigma -> SamplingAlgorithm` for one chain at that level; sigma is traced.
      positions: where the chains start, (chains, D), such as sigmas[0] times standard normal noise.
      sigmas: the levels in the order they are run, (levels,), data units.
      steps: per level, at least 1.
      keep_trajectory: keep the positions after each level, on the host.
      devices: see `run_chains`.
      progress: the label of a progress bar; None for none.

    Raises:
      ValueError: if steps < 1, there is no level, or devices do not divide the chains.
    """
    check_counts(steps=steps)
    if sigmas.ndim != 1 or not len(sigmas):
        raise ValueError(f"expected noise levels of shape (levels,), got {tuple(sigmas.shape)}")

    @jax.jit
    def one_level(level_key, positions, finite, sigma):
        sampler = sampler_at(sigma)

        def body(t, carry):
            states, finite = carry
            step_key = jax.random.fold_in(level_key, t)
            states, stayed_finite = step_chains(step_key, sampler.step, states)
            return states, finite & stayed_finite

        start = jax.vmap(sampler.init)(positions), finite
        states, finite = jax.lax.fori_loop(0, steps, body, start)
        return states.position, finite

    positions = over_devices(positions, devices)
    finite = jnp.ones(len(positions), bool)
    kept = []
    for index in tqdm(range(len(sigmas)), desc=progress, disable=progress is None, unit="level"):
        level_key = jax.random.fold_in(key, index)
        positions, finite = one_level(level_key, positions, finite, sigmas[index])
        if keep_trajectory:
            kept.append(jax.device_get(positions))
    return AnnealedChains(positions, jax.device_get(finite), np.stack(kept) if kept else None)
