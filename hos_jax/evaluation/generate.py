"""Samples from a trained run: the chains that the config asks for, denoised, and their course."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import pointwise, samplers, tweedie
from hos_jax.config.checks import (
    EVALUATIONS_PER_STEP,
    networks_per_evaluation,
    reverse_covariance,
)
from hos_jax.data.image_data import ImageData
from hos_jax.errors import UserError
from hos_jax.evaluation.likelihood import make_derivatives_fn
from hos_jax.models.score_model import outputs_of
from hos_jax.noise import geometric_sigmas, karras_sigmas, stream_key
from hos_jax.training.problem import Problem
from hos_jax.types import Array

logger = logging.getLogger(__name__)

# At most so many steps of a chain are shown.
KEPT = 10
# Training images of whose mean, and covariance, chains from pure noise start.
MEAN_IMAGES = 2000


def sampler_at(problem: Problem, params: Any, sigma: Array | float) -> samplers.SamplingAlgorithm:
    """Langevin or Ozaki, as `sampling.sampler` says, for one flat image at one noise level."""
    shape, sampling = problem.data.image_shape, problem.config.sampling
    step_size = sampling.step_fraction * sigma**2
    model = problem.model, params, sigma, shape
    if "ozaki" not in sampling.sampler:
        return samplers.langevin.as_top_level_api(pointwise.score_fn(*model), step_size)
    settings = {"krylov_vectors": sampling.krylov_vectors}
    return samplers.ozaki.as_top_level_api(pointwise.derivatives_fn(*model), step_size, **settings)


@functools.lru_cache(maxsize=1)
def make_denoiser(problem: Problem) -> Callable[[Any, Array, Array | float], Array]:
    """One Tweedie step: parameters, flat noisy images (N, D), sigma -> (N, H, W, C), data units."""
    shape = (-1, *problem.data.image_shape)

    @jax.jit
    def denoise(params, noisy, sigma):
        score1 = outputs_of(problem.model, params, noisy.reshape(shape), sigma).score1
        return jax.vmap(tweedie.posterior_mean, (0, 0, None))(noisy, score1, sigma).reshape(shape)

    return denoise


class Samples(NamedTuple):
    """What `draw_samples` returns; chains that left finite values are left out.

    Attributes:
      images: the end of every chain, denoised, (chains, H, W, C), data units.
      course: the same at several steps, the last included, (kept, chains, H, W, C).
      steps, sigmas: how many steps were taken by then, and the noise level there, (kept,).
      labels: the classes that the network was told, (chains,), or None.
    """

    images: np.ndarray
    course: np.ndarray
    steps: np.ndarray
    sigmas: np.ndarray
    labels: np.ndarray | None = None


def draw_samples(problem: Problem, params: Any, *, progress: bool = False) -> Samples:
    """`sampling.chains` samples, each denoised once by Tweedie's formula.

    Chains at one noise level start at uniform noise over the range of the data plus Gaussian noise
    of size sigma. Annealed ones start at Gaussian noise of the largest level around the mean of the
    training images: any other centre would be a wrong brightness that the first level, whose steps
    are few, must undo. Those of reverse diffusion, where nothing is undone, start with the mean and
    the covariance of noisy training images. A model that is told the class draws `sampling.label`,
    or all of them in turn, each from the moments of its own class. UserError if no chain stayed
    finite.
    """
    sampling, key = problem.config.sampling, stream_key("chains", problem.config.seed)
    run, remedy = _single_level, "a smaller sampling.step_fraction"
    if sampling.sampler.startswith("annealed"):
        run = _annealed
    elif sampling.sampler in EVALUATIONS_PER_STEP:
        run, remedy = _reverse, "more sampling.evaluations"
    label = sampling.sampler.replace("_", " ") if progress else None
    if "langevin" in sampling.sampler and sampling.step_fraction > 2:
        logger.warning(
            "sampling.step_fraction=%g: Langevin is stable below 2", sampling.step_fraction
        )
    chains, trajectory, steps, sigmas = run(problem, params, key, label)
    finite = chains.is_finite
    if not finite.all():
        logger.warning("%d of %d chains diverged and are left out", np.sum(~finite), len(finite))
    if not finite.any():
        raise UserError(f"every chain diverged: choose {remedy}")
    error = chains.lanczos_error[finite].max()
    # The bound of `MatrixFunctionProduct.converged`; an estimate may be NaN where a chain is not.
    if not error <= np.finfo(np.float32).eps ** 0.5:
        logger.warning(
            "steps of chains did not converge, by up to %.2g of their size: choose a larger "
            "sampling.krylov_vectors than %d",
            error,
            sampling.krylov_vectors,
        )
    labels = _labels(problem)
    labels = None if labels is None else labels[finite]
    denoise = _denoiser_of_classes(problem, params, labels)
    levels = zip(trajectory[:, finite], sigmas, strict=True)
    course = np.stack([np.asarray(denoise(*level)) for level in levels])
    return Samples(course[-1], course, steps, sigmas, labels)


def _labels(problem: Problem) -> np.ndarray | None:
    """The class of each chain, int32 (chains,), or None where the network is not told it."""
    sampling, classes = problem.config.sampling, problem.config.model.classes
    if not classes or sampling.sampler not in EVALUATIONS_PER_STEP:
        return None
    if sampling.label is not None:
        return np.full(sampling.chains, sampling.label, np.int32)
    return np.arange(sampling.chains, dtype=np.int32) % np.int32(classes)


def _reverse_derivatives_fn(problem: Problem, params: Any, guidance: float) -> Callable:
    """(s1, s2) as the steps of reverse diffusion take them, with guidance unless it is 1."""
    derivatives_fn = make_derivatives_fn(problem, params)
    if guidance == 1.0:
        return derivatives_fn
    unknown = jnp.int32(problem.config.model.classes)
    return samplers.diffusion.guided(derivatives_fn, guidance, unknown)


def _denoiser_of_classes(problem: Problem, params: Any, labels: np.ndarray | None) -> Callable:
    """`make_denoiser` of these parameters, at these classes where the network is told them."""
    if labels is None:
        return functools.partial(make_denoiser(problem), params)
    denoise = _make_class_denoiser(problem, problem.config.sampling.guidance)
    known = jnp.asarray(labels)
    return lambda noisy, sigma: denoise(params, noisy, sigma, known)


@functools.lru_cache(maxsize=1)
def _make_class_denoiser(problem: Problem, guidance: float) -> Callable:
    """`denoise(params, noisy, sigma, labels)`, compiled once for all who ask with this guidance."""
    shape = problem.data.image_shape

    @jax.jit
    def denoise(params: Any, noisy: Array, sigma: Array, labels: Array) -> Array:
        derivatives_fn = _reverse_derivatives_fn(problem, params, guidance)

        def one(noisy: Array, label: Array) -> Array:
            return tweedie.posterior_mean(noisy, derivatives_fn(noisy, sigma, label)[0], sigma)

        return jax.vmap(one)(noisy, labels).reshape(-1, *shape)

    return denoise


def _single_level(problem: Problem, params: Any, key: jax.Array, label: str | None):
    config, sampling = problem.config, problem.config.sampling
    start_key, noise_key, chain_key = jax.random.split(key, 3)
    size = (sampling.chains, problem.data.dim)
    low, high = problem.data.value_range
    start = jax.random.uniform(start_key, size, jnp.float32, low, high)
    start += config.noise * jax.random.normal(noise_key, size, jnp.float32)
    sampler = sampler_at(problem, params, config.noise)
    states = jax.jit(jax.vmap(sampler.init))(start)
    kept = max(k for k in range(1, KEPT + 1) if sampling.steps % k == 0)
    chains = samplers.run_chains(
        chain_key,
        sampler.step,
        states,
        sampling.steps,
        thinning=sampling.steps // kept,
        collect=lambda state: state.position,
        chunk=1,
        progress=label,
    )
    steps = np.arange(1, kept + 1) * (sampling.steps // kept)
    return chains, chains.trajectory, steps, np.full(kept, config.noise, np.float32)


def _annealed(problem: Problem, params: Any, key: jax.Array, label: str | None):
    model, sampling = problem.config.model, problem.config.sampling
    noise_key, chain_key = jax.random.split(key)
    size = (sampling.chains, problem.data.dim)
    sigmas = geometric_sigmas(model.largest_noise, model.smallest_noise, sampling.levels)
    sigmas = sigmas.astype(jnp.float32)
    start = jnp.mean(_some_images(problem), axis=0)
    start += model.largest_noise * jax.random.normal(noise_key, size, jnp.float32)
    chains = samplers.anneal_chains(
        chain_key,
        lambda sigma: sampler_at(problem, params, sigma),
        start,
        sigmas,
        sampling.steps_per_level,
        collect=lambda state: state.position,
        progress=label,
    )
    kept = _kept_of(len(sigmas))
    steps = (kept + 1) * sampling.steps_per_level
    return chains, chains.trajectory[kept], steps, np.asarray(sigmas)[kept]


def _reverse(problem: Problem, params: Any, key: jax.Array, label: str | None):
    model, sampling = problem.config.model, problem.config.sampling
    start_key, chain_key = jax.random.split(key)
    # The last evaluation denoises.
    evaluations = sampling.evaluations // networks_per_evaluation(sampling)
    steps = (evaluations - 1) // EVALUATIONS_PER_STEP[sampling.sampler]
    # Churn raises each level, and the model knows none above its largest, but for rounding.
    largest = model.largest_noise / (1.0 + sampling.churn)
    if largest <= model.smallest_noise:
        raise UserError(
            f"sampling.churn={sampling.churn} raises levels beyond the model's: lower it below "
            f"{model.largest_noise / model.smallest_noise - 1.0:.3g}"
        )
    sigmas = karras_sigmas(largest, model.smallest_noise, steps + 1)
    sigmas = sigmas.astype(jnp.float32)
    chains = samplers.reverse_chains(
        chain_key,
        reverse_kernel(problem),
        _reverse_derivatives_fn(problem, params, sampling.guidance),
        _noisy_start(problem, start_key, sigmas[0]),
        sigmas,
        conditions=_labels(problem),
        collect=lambda state: state.position,
        progress=label,
    )
    kept = _kept_of(steps)
    return chains, chains.trajectory[kept], kept + 1, np.asarray(sigmas)[kept + 1]


def reverse_kernel(problem: Problem) -> Callable:
    """The step of reverse diffusion that `sampling.sampler` names, with its settings."""
    sampling, diffusion = problem.config.sampling, samplers.diffusion
    if sampling.sampler == "heun":
        return diffusion.heun(sampling.churn)
    if sampling.sampler == "second_order":
        return diffusion.second_order(krylov_vectors=sampling.krylov_vectors)
    step: Callable = {"ancestral": diffusion.ancestral, "ddim": diffusion.ddim}[sampling.sampler]
    below = math.inf if sampling.covariance_below is None else sampling.covariance_below
    return step(reverse_covariance(sampling), below=below)


def _noisy_start(problem: Problem, key: jax.Array, sigma: Array) -> Array:
    """Draws of the Gaussian with the mean and the covariance of noisy training images, (chains, D):
    with n images X, centred, X^T w / sqrt(n) has their covariance, and no D x D array is made."""
    labels, known = _labels(problem), problem.data.train_labels
    if labels is None or known is None:
        return _like(_some_images(problem), key, problem.config.sampling.chains, sigma)
    parts, places = [], []
    for label in np.unique(labels):
        places.append(np.flatnonzero(labels == label))
        images = _some_images(problem, np.flatnonzero(known == label))
        parts.append(_like(images, jax.random.fold_in(key, label), len(places[-1]), sigma))
    return jnp.concatenate(parts)[np.argsort(np.concatenate(places))]


def _like(images: Array, key: jax.Array, count: int, sigma: Array) -> Array:
    """Draws of the Gaussian with the moments of these images, (N, D), and noise: (count, D)."""
    weights_key, noise_key = jax.random.split(key)
    mean = jnp.mean(images, axis=0)
    weights = jax.random.normal(weights_key, (count, len(images)), jnp.float32)
    noise = jax.random.normal(noise_key, (count, images.shape[1]), jnp.float32)
    return mean + weights @ (images - mean) / np.float32(len(images) ** 0.5) + sigma * noise


def _some_images(problem: Problem, places: np.ndarray | None = None) -> Array:
    train = problem.data.train
    chosen = train[:MEAN_IMAGES] if places is None else train[places[:MEAN_IMAGES]]
    return jnp.reshape(problem.data.to_float(chosen), (len(chosen), -1))


def _kept_of(count: int) -> np.ndarray:
    """Which of `count` levels are shown."""
    return np.unique(np.linspace(0, count - 1, min(KEPT, count)).round().astype(int))


def _images_like(samples: Samples, data: ImageData) -> np.ndarray:
    """Two sets of training images to compare samples with, of the same classes where they have any:
    rows of `data.train`, (2, count)."""
    if samples.labels is None or data.train_labels is None:
        count = min(samples.course.shape[1], len(data.train) // 2)
        return np.arange(2 * count).reshape(2, count)
    rows = np.empty((2, len(samples.labels)), int)
    for label in np.unique(samples.labels):
        places = np.flatnonzero(samples.labels == label)
        known = np.flatnonzero(data.train_labels == label)
        rows[:, places] = np.resize(known, 2 * len(places)).reshape(2, -1)
    return rows


def course_curves(problem: Problem, params: Any, samples: Samples) -> dict[str, list[float]]:
    """How chains forget their start and approach the data, at the steps of `samples.course`.

    `step`; `correlation` of the denoised images with those at the first kept step, over chains and
    pixels; `distance`, sliced Wasserstein, from training images that got the same noise and were
    denoised by the same model; `distance_of_data`, that between two such sets of the same size,
    which is what perfect samples would have. Both are empty with one training image.
    """
    data = problem.data
    rows = _images_like(samples, data)
    count = rows.shape[1]
    key = stream_key("course of chains", problem.config.seed)
    noise_key, directions_key = jax.random.split(key)
    labels = None if samples.labels is None else samples.labels[:count]
    denoise = _denoiser_of_classes(problem, params, labels)
    clean = data.to_float(data.train[rows]).reshape(2, count, data.dim)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    wasserstein = samplers.diagnostics.sliced_wasserstein
    distance_fn = jax.jit(functools.partial(wasserstein, projections=200))
    first = samples.course[0] - samples.course[0].mean(axis=0)
    correlation: list[float] = []
    distances: list[float] = []

    def apart(a, b):
        key = jax.random.fold_in(directions_key, len(distances))
        return float(distance_fn(key, a.reshape(count, -1), b.reshape(count, -1)))

    for images, sigma in zip(samples.course, samples.sigmas, strict=True):
        centred = images - images.mean(axis=0)
        size = np.sqrt(np.sum(first**2) * np.sum(centred**2))
        correlation.append(float(np.sum(first * centred) / size) if size > 0 else 1.0)
        if not count:  # one training image has no distance from another
            continue
        # In two parts, which are of the size that the chains mostly have: compiled once.
        half, other = (denoise(noisy, sigma) for noisy in clean + sigma * noise)
        distances.append(apart(images[:count], half))
        distances.append(apart(other, half))
    found = {"correlation": correlation, "distance": distances[::2]}
    return {"step": samples.steps.tolist(), **found, "distance_of_data": distances[1::2]}
