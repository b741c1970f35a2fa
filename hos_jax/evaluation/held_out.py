"""Numbers of a run on its held-out images: errors, calibration, the posterior's directions."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import autodiff, pointwise, tweedie
from hos_jax.config.checks import takes_marginal_weight
from hos_jax.linops.lanczos import Eigenpairs
from hos_jax.models.score_model import ModelOutputs, outputs_of
from hos_jax.noise import example_keys, stream_key
from hos_jax.training.problem import Problem
from hos_jax.uncertainty import Posterior, Violations, calibration, metrics

logger = logging.getLogger(__name__)

# Directions of each posterior that are scored, over so many images, against so many images' PCA.
DIRECTIONS = 12
DIRECTION_IMAGES = 200
PCA_IMAGES = 2000
# Values, roughly, from which the widths of intervals are learned.
LARGEST_SAMPLE = 4_000_000


class Denoised(NamedTuple):
    """Denoising of a batch of images, flattened to (N, D), data units; the posteriors and the
    deviation of each value, (N, D), or None for a first-order model; and what the model said."""

    noisy: jax.Array
    mean: jax.Array
    posterior: Posterior | None
    standard_deviation: jax.Array | None
    outputs: ModelOutputs


@functools.lru_cache(maxsize=1)
def make_noise_and_denoise(problem: Problem) -> Callable[[Any, jax.Array, jax.Array], Denoised]:
    """`denoise(params, clean, keys)`: add noise to clean images (N, H, W, C) and take it away; one
    function for all, so that the network is compiled once for each number of images."""
    sigma = problem.config.noise

    @jax.jit
    def denoise(params, clean, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:], clean.dtype))(keys)
        noisy = clean + sigma * noise
        outputs = outputs_of(problem.model, params, noisy, sigma)
        flat = noisy.reshape(len(noisy), -1)
        mean = jax.vmap(tweedie.posterior_mean, (0, 0, None))(flat, outputs.score1, sigma)
        if outputs.head is None:
            return Denoised(flat, mean, None, None, outputs)
        posterior = pointwise.posteriors(flat, outputs, sigma)
        return Denoised(flat, mean, posterior, posterior.standard_deviation(), outputs)

    return denoise


def _batches(problem: Problem, limit: int | None = None):
    """Held-out images in batches of one size, with the keys of their noise and which are new: the
    last batch is moved back to keep its size, and repeats some."""
    config, data = problem.config, problem.data
    total = len(data.held_out) if limit is None else min(limit, len(data.held_out))
    size = min(config.sampling.batch_size, total)
    for start in range(0, total, size):
        first = min(start, total - size)
        clean = data.to_float(data.held_out[first : first + size])
        keys = example_keys(stream_key("held-out noise", config.seed), first, size)
        yield clean, keys, np.arange(size) >= start - first


def _make_scores(problem: Problem, stride: int) -> Callable:
    """`scores(clean, denoised, fresh)`: values per image, violations, samples, which are predicted
    variance and error of every `stride`-th value in units of sigma; and sums by bin."""
    sigma = problem.config.noise

    @jax.jit
    def scores(clean, denoised, fresh):
        flat = clean.reshape(len(clean), -1)
        error = flat - denoised.mean
        scaled = error / sigma
        values = {"denoise_mse": jnp.mean(jnp.square(error), axis=1)}
        posterior, variance = denoised.posterior, jnp.zeros_like(error)
        sums = violations = samples = None
        if posterior is not None:
            covariance = posterior.covariance.scale(sigma**-2)
            variance = covariance.diagonal()
            values["predicted_mse"] = sigma**2 * jnp.mean(variance, axis=1)
            score = functools.partial(metrics.covariance_scores, tails=posterior.tails)
            values |= jax.vmap(score)(scaled, covariance)._asdict()
            inside = jax.vmap(calibration.inside_intervals)(posterior, flat)
            shares = jnp.mean(inside.astype(error.dtype), axis=1).T
            values |= zip(map(calibration.coverage_name, calibration.LEVELS), shares, strict=True)
            sums = jax.vmap(calibration.bin_sums)(variance, scaled, inside)
            sums = jax.tree.map(lambda leaf: jnp.tensordot(fresh, leaf, 1), sums)
            violations = posterior.violations
            samples = variance[:, ::stride], scaled[:, ::stride]
        if denoised.outputs.raw_third_order is not None:
            third = denoised.outputs.scaled_third_diagonal
            values["third_order"] = jax.vmap(metrics.third_order_score)(third, scaled, variance)
        return (values, violations, samples), sums

    return scores


def _stride(least: int, size: int) -> int:
    """The smallest stride from `least` on that has no factor in common with the size of an image:
    another would see some columns or channels only."""
    stride = max(1, least)
    while math.gcd(stride, size) > 1:
        stride += 1
    return stride


def held_out_metrics(problem: Problem, params: Any) -> dict[str, Any]:
    """Averages over the whole held-out set, each with its standard error over images: None for one.

    `denoise_mse` in data units^2; with a second-order model also `predicted_mse`, what the
    covariances make it, tr K / D; `nll_per_dim`, `calibration` and `residual_loss` of the error in
    units of sigma (see `metrics.CovarianceScores`), `coverage_50`
    ... `coverage_95`, the shares of values inside their intervals, `reliability`, the same by
    predicted variance (see `calibration.reliability`), `recalibrated` (see `recalibrate`) if there
    are two images and all is finite, and `violations` (see `uncertainty.Violations`). With a
    third-order model `third_order` (see `metrics.third_order_score`).
    """
    data = problem.data
    stride = _stride(data.held_out.size // LARGEST_SAMPLE, data.held_out[0].size)
    scores, denoise = _make_scores(problem, stride), make_noise_and_denoise(problem)
    parts, sums = [], []
    for clean, keys, fresh in _batches(problem):
        denoised = denoise(params, clean, keys)
        found, total = jax.device_get(scores(clean, denoised, fresh.astype(np.float32)))
        parts.append(jax.tree.map(lambda leaf, fresh=fresh: leaf[fresh], found))
        sums.append(total)
    joined, violations, samples = _join(parts)
    result: dict[str, Any] = {name: float(np.mean(values)) for name, values in joined.items()}
    errors = {name: standard_error(values) for name, values in joined.items()}
    result |= {"standard_error": errors, "held_out_images": len(data.held_out)}
    if sums[0] is not None:
        total = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0, dtype=float), *sums)
        result["reliability"] = calibration.reliability(total)
        if len(data.held_out) > 1 and all(np.isfinite(part).all() for part in samples):
            result["recalibrated"] = recalibrate(*samples)
        result["violations"] = _violations(violations)
        _name_wrong_size(problem, result["denoise_mse"], result["predicted_mse"])
    return result


def _name_wrong_size(problem: Problem, found: float, predicted: float) -> None:
    """A warning where the predicted errors are far too small or large, which `calibration` may not
    show: it weights the directions of small variance most."""
    if not found > 2.0 * predicted and not predicted > 2.0 * found:
        return
    config, remedy = problem.config, "train longer"
    if takes_marginal_weight(config) and config.loss.marginal_weight < 0.5:
        remedy += f", or with a larger loss.marginal_weight than {config.loss.marginal_weight:g}"
    logger.warning(
        "the mean squared error is %.3g and the covariances make it %.3g: maps and draws are off "
        "by as much; %s",
        *(found, predicted, remedy),
    )


def standard_error(values: np.ndarray) -> Any:
    """Of the mean over the first axis, as JSON types; None where one value does not tell."""
    if len(values) < 2:
        return None
    return (values.std(axis=0, ddof=1) / np.sqrt(len(values))).tolist()


def _join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _violations(found: Violations) -> dict[str, Any]:
    count, largest = int(found.count.sum()), float(found.largest.max())
    if count:
        logger.warning(
            "%d values of the predicted covariances were not positive (up to %.3g sigma^2 below "
            "the floor) and were raised: model.positive_definite=True rules that out",
            count,
            largest,
        )
    return {"count": count, "largest": largest}


def recalibrate(variance: np.ndarray, error: np.ndarray) -> dict[str, Any]:
    """Intervals whose widths are learned on every other image, tested on the images in between.

    From predicted variances and errors, (images, D), units of sigma^2 and sigma: `multipliers` for
    `calibration.recalibrated_interval`, `coverage_50` ... `coverage_95` of the images in between,
    and their `reliability`.
    """
    learn, test = slice(0, None, 2), slice(1, None, 2)
    multipliers = calibration.interval_multipliers(variance[learn].ravel(), error[learn].ravel())
    places = np.asarray(calibration.bin_of(variance[test]))
    ratio = np.abs(error[test]) / np.sqrt(variance[test])
    inside = ratio[..., None] <= multipliers[places]
    add = jax.jit(jax.vmap(calibration.bin_sums))
    sums = jax.device_get(add(variance[test], error[test], inside))
    total = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=float), sums)
    shares = inside.mean(axis=(0, 1)).tolist()
    names = map(calibration.coverage_name, calibration.LEVELS)
    result: dict[str, Any] = dict(zip(names, shares, strict=True))
    result["reliability"] = calibration.reliability(total)
    return result | {"multipliers": multipliers.round(4).tolist()}


def direction_scores(problem: Problem, params: Any) -> dict[str, Any]:
    """How much of the error the posterior's leading directions hold, against other directions.

    Over at most `DIRECTION_IMAGES` held-out images, for 1 ... k directions: `model`, the share of
    e^T e in each image's own leading directions, with `standard_error`; `refined`, in those after
    one step of `autodiff.refine_eigenpairs`, k products with the derivative of s1, if it has one;
    `predicted`, the share of the predicted variance in the model's own; `pca`, in the leading
    principal components of the training images if there are two or more; `random`, in random ones:
    k / D.
    """
    data = problem.data
    dim = data.dim
    flat = data.train[:PCA_IMAGES].reshape(-1, dim)
    count = min(DIRECTIONS, dim, max(len(flat) - 1, 1))
    principal = None
    if len(flat) > 1:
        principal = jnp.asarray(calibration.principal_directions(flat, count), jnp.float32)
    denoise, sigma = make_noise_and_denoise(problem), problem.config.noise

    @jax.jit
    def scores(params, clean, denoised):
        error = clean.reshape(len(clean), -1) - denoised.mean
        pairs = denoised.posterior.top_eigenpairs(count)
        total = denoised.posterior.covariance.trace()
        shares = {
            "model": jax.vmap(calibration.captured_shares)(error, pairs.eigenvectors),
            "predicted": jnp.cumsum(pairs.eigenvalues, axis=1) / total[:, None],
            "converged": pairs.converged,
        }
        if problem.model.differentiable:
            score_fn = pointwise.score_fn(problem.model, params, sigma, data.image_shape)

            def refine(noisy, covariance, directions):
                return autodiff.refine_eigenpairs(
                    score_fn, noisy, sigma, covariance, count, directions=directions
                )

            known = denoised.posterior.covariance, pairs.eigenvectors
            refined = jax.vmap(refine)(denoised.noisy, *known)
            shares["refined"] = jax.vmap(calibration.captured_shares)(error, refined.eigenvectors)
        if principal is not None:
            shares["pca"] = jax.vmap(calibration.captured_shares, (0, None))(error, principal)
        return shares

    parts = []
    for clean, keys, fresh in _batches(problem, DIRECTION_IMAGES):
        found = jax.device_get(scores(params, clean, denoise(params, clean, keys)))
        parts.append({name: value[fresh] for name, value in found.items()})
    joined = _join(parts)
    _warn_of_unconverged(joined.pop("converged"))
    result = {name: values.mean(axis=0).tolist() for name, values in joined.items()}
    errors = standard_error(joined["model"])
    result |= {"standard_error": errors, "images": len(joined["model"])}
    return result | {"random": ((1 + np.arange(count)) / dim).tolist()}


def _warn_of_unconverged(converged: np.ndarray) -> None:
    if not converged.all():
        logger.warning(
            "%d of %d leading directions of posteriors did not converge: near ones are mixed",
            np.sum(~converged),
            converged.size,
        )


def first_held_out(problem: Problem, params: Any, count: int) -> tuple[np.ndarray, Denoised]:
    """The first held-out images, clean (N, H, W, C), and their denoising."""
    data, config = problem.data, problem.config
    clean = data.to_float(data.held_out[:count])
    keys = example_keys(stream_key("held-out noise", config.seed), 0, len(clean))
    return np.asarray(clean), make_noise_and_denoise(problem)(params, clean, keys)


class Examples(NamedTuple):
    """The first held-out images, (N, H, W, C), data units, to be shown, with their denoising and
    the leading eigenpairs of the posterior covariances, or None for a first-order model."""

    clean: np.ndarray
    denoised: Denoised
    eigenpairs: Eigenpairs | None

    def first(self, count: int) -> Examples:
        """The first `count` of them."""
        return jax.tree.map(lambda leaf: leaf[:count], self)


def held_out_examples(problem: Problem, params: Any, count: int, directions: int) -> Examples:
    """The first `count` held-out images with that many leading directions each, at most D."""
    # A whole batch, as for the numbers: quicker than to compile for another number of images.
    batch = max(count, problem.config.sampling.batch_size)
    examples = Examples(*first_held_out(problem, params, batch), None).first(count)
    posterior = examples.denoised.posterior
    if posterior is None:
        return examples
    leading = min(directions, examples.denoised.mean.shape[1])
    pairs = jax.jit(lambda p: p.top_eigenpairs(leading))(posterior)
    return examples._replace(eigenpairs=pairs)
