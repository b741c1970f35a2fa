"""Evaluation of a finished run: what `--test` prints, writes and draws."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from hos_jax import config as run_config
from hos_jax.evaluation import figures
from hos_jax.evaluation.generate import course_curves, draw_samples
from hos_jax.evaluation.held_out import (
    Examples,
    direction_scores,
    first_held_out,
    held_out_examples,
    held_out_metrics,
)
from hos_jax.evaluation.report import DIRECTIONS, REPORT_FILE, write_report
from hos_jax.files import write_atomically
from hos_jax.training.logs import RunLog, read_history
from hos_jax.training.problem import Problem
from hos_jax.training.runs import LoadedRun, load_run_as
from hos_jax.uncertainty import Posterior

METRICS_FILE = "metrics.json"
SHOWN_DIRECTIONS = 5
SHOWN_PIXELS = 3
# The report shows at least so many images.
REPORTED_IMAGES = 8


def panel(problem: Problem, examples: Examples) -> Any:
    """The denoising panel of some held-out images, as a figure."""
    clean, denoised = examples.clean, examples.denoised
    noisy, mean = (np.asarray(a).reshape(clean.shape) for a in (denoised.noisy, denoised.mean))
    predicted = denoised.standard_deviation
    deviation = None if predicted is None else np.asarray(predicted).reshape(clean.shape)
    return figures.denoising_panel(
        clean, noisy, mean, deviation, problem.data.value_range, problem.config.noise
    )


def posterior_figures(problem: Problem, examples: Examples) -> tuple[Any, Any]:
    """Leading directions and covariance rows of some held-out images, two figures.

    Raises:
      ValueError: for the images of a first-order model.
    """
    clean, denoised, pairs = examples
    if pairs is None:
        raise ValueError("a first-order model has no posterior to be drawn")
    shape, value_range = clean.shape[1:], problem.data.value_range
    directions = np.moveaxis(np.asarray(pairs.eigenvectors), 2, 1).reshape(len(clean), -1, *shape)
    directions = directions[:, :SHOWN_DIRECTIONS]
    noisy, mean = (np.asarray(a).reshape(clean.shape) for a in (denoised.noisy, denoised.mean))
    deviations = np.sqrt(np.asarray(pairs.eigenvalues)[:, :SHOWN_DIRECTIONS])
    first = figures.posterior_directions(noisy, mean, directions, deviations, value_range)
    deviation = np.asarray(denoised.standard_deviation).reshape(clean.shape)
    pixels = np.stack([figures.uncertain_pixels(image, SHOWN_PIXELS) for image in deviation])
    rows = jax.jit(jax.vmap(jax.vmap(Posterior.row, (None, 0))))(denoised.posterior, pixels)
    rows = np.asarray(rows).reshape(len(clean), -1, *shape)
    return first, figures.covariance_rows(mean, pixels, rows, value_range)


def log_panel(problem: Problem, params: Any, step: int, log: RunLog) -> None:
    """The panel as an image in tensorboard; the `on_evaluation` of the command line."""
    examples = first_held_out(problem, params, min(4, problem.config.sampling.images))
    figure = panel(problem, Examples(*examples, None))
    log.image(step, "held_out/denoising", figures.as_array(figure))


def evaluate_run(
    config: ml_collections.ConfigDict, workdir: Path | str, image_folder: str = "figures"
) -> dict[str, Any]:
    """Evaluate a run: figures into `workdir / image_folder`, `metrics.json` and `report.html`.

    Returns:
      What was written to `metrics.json`.

    Raises:
      UserError: see `load_run_as`.
    """
    begun = time.monotonic()
    workdir = Path(workdir)
    run = load_run_as(config, workdir)
    folder = workdir / image_folder
    folder.mkdir(parents=True, exist_ok=True)
    result = held_out_metrics(run.problem, run.params)
    examples = held_out_examples(
        run.problem, run.params, max(config.sampling.images, REPORTED_IMAGES), DIRECTIONS
    )
    shown = examples.first(config.sampling.images)
    figures.save(panel(run.problem, shown), folder / "denoising.png")
    if config.model.head != "none":
        result["directions"] = direction_scores(run.problem, run.params)
        recalibrated = result.get("recalibrated", {}).get("reliability")
        drawn = figures.calibration(result["reliability"], recalibrated, result["directions"])
        figures.save(drawn, folder / "calibration.png")
        directions, rows = posterior_figures(run.problem, shown)
        figures.save(directions, folder / "directions.png")
        figures.save(rows, folder / "covariance_rows.png")
    history = read_history(workdir)
    if history:
        figures.save(figures.loss_curves(history), folder / "loss_curves.png")
    result["sampling"] = _sample(run, folder)
    result |= {
        "step": run.step,
        "noise": config.noise,
        "data": config.data.name,
        "training_seconds": run.training_seconds,
        "test_seconds": time.monotonic() - begun,
        "versions": run_config.versions(),
    }
    write_atomically(workdir / METRICS_FILE, json.dumps(result, indent=2) + "\n")
    write_report(run.problem, examples, result, folder, workdir / REPORT_FILE)
    return result


def _sample(run: LoadedRun, folder: Path) -> dict[str, Any]:
    """Draw samples, show them and how their chains went; the numbers of the latter."""
    problem, sampling = run.problem, run.problem.config.sampling
    samples = draw_samples(problem, run.params, progress=sys.stderr.isatty())
    value_range = problem.data.value_range
    figures.save(figures.sample_grid(samples.images, value_range), folder / "samples.png")
    annealed = sampling.sampler.startswith("annealed")
    titles = [
        f"sigma {sigma:.2g}" if annealed else f"step {step}"
        for step, sigma in zip(samples.steps, samples.sigmas, strict=True)
    ]
    shown = figures.trajectories(samples.course[:, : sampling.images], titles, value_range)
    figures.save(shown, folder / "trajectories.png")
    curves = course_curves(problem, run.params, samples)
    figures.save(figures.mixing_curves(curves), folder / "mixing.png")
    finite = samples.images.shape[0]
    return {"sampler": sampling.sampler, "chains": sampling.chains, "finite": finite, **curves}


def table(result: dict[str, Any]) -> str:
    """The held-out numbers of `evaluate_run` as a table for the terminal."""
    lines = [f"{'held out':<14}{'value':>10}{'std. error':>12}"]
    for name, error in result["standard_error"].items():
        shown = "unknown" if error is None else f"{error:.4f}"
        lines.append(f"{name:<14}{result[name]:>10.4f}{shown:>12}")
    for name, value in result.get("recalibrated", {}).items():
        if name.startswith("coverage_"):
            lines.append(f"{name:<14}{value:>10.4f}  recalibrated")
    return "\n".join(lines)
