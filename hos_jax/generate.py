"""Samples from a trained run: which chains the config asks for, and their Tweedie denoising."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import tweedie
from hos_jax.errors import UserError
from hos_jax.noise import geometric_sigmas, step_key
from hos_jax.samplers import SamplingAlgorithm, anneal_chains, langevin, ozaki, run_chains
from hos_jax.train import EVALUATION_STEP, Problem

logger = logging.getLogger(__name__)


def sampler_at(
    problem: Problem, params: Any, sigma: jax.Array | float, step_size: jax.Array | float
) -> SamplingAlgorithm:
    """Langevin or Ozaki, as `sampling.sampler` says, for one flat image at one noise level."""
    shape, sampling = problem.data.image_shape, problem.config.sampling

    def outputs_at(position):
        return problem.model.apply(params, position.reshape(1, *shape), sigma)

    if "ozaki" not in sampling.sampler:
        return langevin.as_top_level_api(lambda x: outputs_at(x).score1[0], step_size)

    def derivatives_fn(position):
        outputs = outputs_at(position)
        return outputs.score1[0], jax.tree.map(lambda leaf: leaf[0], outputs.score2)

    return ozaki.as_top_level_api(derivatives_fn, step_size, krylov_vectors=sampling.krylov_vectors)


def make_denoiser(
    problem: Problem, params: Any, sigma: jax.Array | float
) -> Callable[[jax.Array], jax.Array]:
    """One Tweedie step at a noise level: flat noisy images (N, D) -> (N, H, W, C), data units."""
    shape = (-1, *problem.data.image_shape)

    @jax.jit
    def denoise(noisy):
        score1 = problem.model.apply(params, noisy.reshape(shape), sigma).score1
        return jax.vmap(tweedie.posterior_mean, (0, 0, None))(noisy, score1, sigma).reshape(shape)

    return denoise


def draw_samples(problem: Problem, params: Any, *, progress: bool = False) -> np.ndarray:
    """`sampling.chains` samples, each denoised once by Tweedie's formula.

    Chains at one noise level start at uniform noise over the range of the data plus Gaussian noise
    of size sigma; annealed ones at Gaussian noise of the largest level.

    Returns:
      (chains, H, W, C), data units; a chain that left finite values is left out, with a warning.

    Raises:
      UserError: if no chain stayed finite.
    """
    config = problem.config
    key = step_key(config.seed, EVALUATION_STEP)
    annealed = config.sampling.sampler.startswith("annealed")
    run = _annealed if annealed else _single_level
    label = config.sampling.sampler.replace("_", " ") if progress else None
    positions, finite, sigma = run(problem, params, key, label)
    if not finite.all():
        logger.warning("%d of %d chains diverged and are left out", np.sum(~finite), len(finite))
    if not finite.any():
        hint = "sampling.step_fraction"
        if not annealed:
            hint = f"sampling.step_size (Langevin is stable below 2 sigma^2 = {2 * sigma**2:g})"
        raise UserError(f"every chain diverged: choose a smaller {hint}")

    return jax.device_get(make_denoiser(problem, params, sigma)(positions))[finite]


def _single_level(problem: Problem, params: Any, key: jax.Array, label: str | None):
    config, sampling = problem.config, problem.config.sampling
    start_key, noise_key, chain_key = jax.random.split(key, 3)
    size = (sampling.chains, int(np.prod(problem.data.image_shape)))
    low, high = problem.data.value_range
    start = jax.random.uniform(start_key, size, minval=low, maxval=high)
    start += config.noise * jax.random.normal(noise_key, size)
    sampler = sampler_at(problem, params, config.noise, sampling.step_size)
    states = jax.jit(jax.vmap(sampler.init))(start)
    chains = run_chains(chain_key, sampler.step, states, sampling.steps, progress=label)
    return chains.states.position, chains.is_finite, config.noise


def _annealed(problem: Problem, params: Any, key: jax.Array, label: str | None):
    model, sampling = problem.config.model, problem.config.sampling
    noise_key, chain_key = jax.random.split(key)
    size = (sampling.chains, int(np.prod(problem.data.image_shape)))
    sigmas = geometric_sigmas(model.largest_noise, model.smallest_noise, sampling.levels)
    low, high = problem.data.value_range
    start = 0.5 * (low + high) + model.largest_noise * jax.random.normal(noise_key, size)
    chains = anneal_chains(
        chain_key,
        lambda sigma: sampler_at(problem, params, sigma, sampling.step_fraction * sigma**2),
        start,
        jnp.asarray(sigmas),
        sampling.steps_per_level,
        progress=label,
    )
    return chains.positions, chains.is_finite, model.smallest_noise
