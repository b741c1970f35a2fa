"""Evaluation of a finished run: the held-out table, panels, variance maps and samples."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from hos_jax import config as run_config
from hos_jax import figures, metrics, tweedie
from hos_jax.checkpoint import Checkpoints
from hos_jax.data import to_float
from hos_jax.errors import UserError
from hos_jax.files import write_atomically
from hos_jax.generate import draw_samples
from hos_jax.models.score_model import ModelOutputs
from hos_jax.noise import example_keys, step_key
from hos_jax.train import EVALUATION_STEP, Problem, RunLog, read_history

METRICS_FILE = "metrics.json"


class Denoised(NamedTuple):
    """Denoising of a batch of images, flattened to (N, D), data units."""

    noisy: jax.Array
    mean: jax.Array
    standard_deviation: jax.Array | None
    outputs: ModelOutputs


def make_denoiser(problem: Problem) -> Callable[[Any, jax.Array, jax.Array], Denoised]:
    """`denoise(params, clean, keys)`: add noise to clean images (N, H, W, C) and take it away."""
    sigma = problem.config.noise

    @jax.jit
    def denoise(params, clean, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, clean.shape[1:]))(keys)
        noisy = clean + sigma * noise
        outputs = problem.model.apply(params, noisy, sigma)
        flat = noisy.reshape(len(noisy), -1)
        mean = jax.vmap(tweedie.posterior_mean, (0, 0, None))(flat, outputs.score1, sigma)
        deviation = None
        if outputs.head is not None:
            variances = jax.vmap(lambda c: c.diagonal())(outputs.covariance)
            deviation = sigma * jnp.sqrt(jnp.maximum(variances, 0.0))
        return Denoised(flat, mean, deviation, outputs)

    return denoise


def held_out_metrics(problem: Problem, params: Any) -> dict[str, float]:
    """Averages over the whole held-out set, each with its standard error over images.

    `denoise_mse` in data units^2; with a second-order model also `nll_per_dim`, `calibration` and
    `coverage_90` of the error in units of sigma (see `metrics.CovarianceScores`), and with a
    third-order model `third_order` (see `metrics.third_order_score`).
    """
    config, data = problem.config, problem.data
    size = min(config.sampling.batch_size, len(data.held_out))
    denoise = make_denoiser(problem)

    @jax.jit
    def scores(params, clean, keys):
        denoised = denoise(params, clean, keys)
        error = clean.reshape(len(clean), -1) - denoised.mean
        scaled = error / config.noise
        values = {"denoise_mse": jnp.mean(jnp.square(error), axis=1)}
        if denoised.outputs.head is not None:
            found = jax.vmap(metrics.covariance_scores)(scaled, denoised.outputs.covariance)
            values |= found._asdict()
        if denoised.outputs.raw_third_order is not None:
            variance = jnp.zeros_like(error)
            if denoised.standard_deviation is not None:
                variance = jnp.square(denoised.standard_deviation / config.noise)
            third = denoised.outputs.scaled_third_diagonal
            values["third_order"] = jax.vmap(metrics.third_order_score)(third, scaled, variance)
        return values

    parts = []
    for start in range(0, len(data.held_out), size):
        # The last batch is moved back to keep its shape; the images it repeats are cut off.
        first = min(start, len(data.held_out) - size)
        clean = to_float(data.held_out[first : first + size], data.value_range)
        keys = example_keys(step_key(config.seed, EVALUATION_STEP), first, size)
        values = jax.device_get(scores(params, clean, keys))
        parts.append({name: value[start - first :] for name, value in values.items()})
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    result = {name: float(np.mean(values)) for name, values in joined.items()}
    errors = {name: float(np.std(values) / np.sqrt(len(values))) for name, values in joined.items()}
    return {**result, "standard_error": errors, "held_out_images": len(data.held_out)}


def panel(problem: Problem, params: Any, count: int) -> Any:
    """The denoising panel of the first `count` held-out images, as a figure."""
    data, config = problem.data, problem.config
    clean = to_float(data.held_out[:count], data.value_range)
    keys = example_keys(step_key(config.seed, EVALUATION_STEP), 0, len(clean))
    denoised = make_denoiser(problem)(params, clean, keys)
    as_images = [
        None if values is None else np.asarray(values).reshape(clean.shape)
        for values in (denoised.noisy, denoised.mean, denoised.standard_deviation)
    ]
    return figures.denoising_panel(np.asarray(clean), *as_images, data.value_range, config.noise)


def log_panel(problem: Problem, params: Any, step: int, log: RunLog) -> None:
    """The panel as an image in tensorboard; the `on_evaluation` of the command line."""
    figure = panel(problem, params, min(4, problem.config.sampling.images))
    log.image(step, "held_out/denoising", figures.as_array(figure))


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run read back from its folder."""

    problem: Problem
    params: Any
    step: int
    training_seconds: float


def load_run(config: ml_collections.ConfigDict, workdir: Path) -> LoadedRun:
    """Read the newest readable checkpoint of a run.

    Raises:
      UserError: if there is no run, or it was made with other settings than `config`.
    """
    run_config.check_same_run(run_config.load(workdir), config)
    problem = Problem.from_config(config)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train it first")
    checkpoints = Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints)
    try:
        restored = checkpoints.restore(problem.abstract_state())
    finally:
        checkpoints.close()
    state = restored.state
    return LoadedRun(problem, state.best_params, restored.step, restored.details["seconds"])


def evaluate_run(
    config: ml_collections.ConfigDict, workdir: Path | str, image_folder: str = "figures"
) -> dict[str, Any]:
    """Evaluate a run: figures into `workdir / image_folder`, numbers into `metrics.json`.

    Returns:
      What was written to `metrics.json`.

    Raises:
      UserError: see `load_run`.
    """
    begun = time.monotonic()
    workdir = Path(workdir)
    run = load_run(config, workdir)
    folder = workdir / image_folder
    folder.mkdir(parents=True, exist_ok=True)
    result = held_out_metrics(run.problem, run.params)
    figures.save(panel(run.problem, run.params, config.sampling.images), folder / "denoising.png")
    history = read_history(workdir)
    if history:
        figures.save(figures.loss_curves(history), folder / "loss_curves.png")
    samples = draw_samples(run.problem, run.params, progress=sys.stderr.isatty())
    value_range = run.problem.data.value_range
    figures.save(figures.sample_grid(samples, value_range), folder / "samples.png")
    result |= {
        "step": run.step,
        "noise": config.noise,
        "data": config.data.name,
        "training_seconds": run.training_seconds,
        "test_seconds": time.monotonic() - begun,
        "versions": run_config.versions(),
    }
    write_atomically(workdir / METRICS_FILE, json.dumps(result, indent=2) + "\n")
    return result


def table(result: dict[str, Any]) -> str:
    """The held-out numbers of `evaluate_run` as a table for the terminal."""
    lines = [f"{'held out':<14}{'value':>10}{'std. error':>12}"]
    for name, error in result["standard_error"].items():
        lines.append(f"{name:<14}{result[name]:>10.4f}{error:>12.4f}")
    return "\n".join(lines)
