"""Evaluation of a finished run: what `--test` prints, writes and draws."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np

from hos_jax import config as run_config
from hos_jax.errors import UserError, reason
from hos_jax.evaluation import figures, held_out
from hos_jax.evaluation.generate import Samples, course_curves, draw_samples
from hos_jax.evaluation.held_out import Examples
from hos_jax.evaluation.likelihood import likelihood_scores
from hos_jax.evaluation.report import (
    CAPTIONS,
    DIRECTIONS,
    METRICS_FILE,
    REPORT_FILE,
    measured,
    write_report,
)
from hos_jax.files import expanded, try_to_write, write_atomically
from hos_jax.noise import stream_key
from hos_jax.training.logs import RunLog, read_history, shows_progress
from hos_jax.training.problem import Problem
from hos_jax.training.runs import LoadedRun, load_run_as
from hos_jax.uncertainty import Posterior

logger = logging.getLogger(__name__)

SHOWN_DIRECTIONS = 5
SHOWN_PIXELS = 3
SHOWN_DRAWS = 4
SHOWN_SAMPLES = 100
# The report shows at least so many images.
REPORTED_IMAGES = 8


def _images(examples: Examples) -> tuple[Any, Any, Any]:
    """Noisy and denoised images and the predicted deviations, None for a first-order model."""
    flat = examples.denoised.noisy, examples.denoised.mean, examples.denoised.standard_deviation
    return jax.tree.map(lambda a: np.asarray(a).reshape(examples.clean.shape), flat)


def panel(problem: Problem, examples: Examples) -> Any:
    """The denoising panel of some held-out images, as a figure."""
    value_range, sigma = problem.data.value_range, problem.config.noise
    return figures.denoising_panel(examples.clean, *_images(examples), value_range, sigma)


def posterior_figures(problem: Problem, examples: Examples) -> tuple[Any, Any]:
    """Leading directions and covariance rows of some held-out images, two figures.

    ValueError for the images of a first-order model.
    """
    clean, denoised, pairs = examples
    if pairs is None:
        raise ValueError("a first-order model has no posterior to be drawn")
    shape, value_range = clean.shape[1:], problem.data.value_range
    directions = np.moveaxis(np.asarray(pairs.eigenvectors), 2, 1)[:, :SHOWN_DIRECTIONS]
    directions = directions.reshape(len(clean), -1, *shape)
    noisy, mean, deviation = _images(examples)
    deviations = np.sqrt(np.asarray(pairs.eigenvalues)[:, :SHOWN_DIRECTIONS])
    first = figures.posterior_directions(noisy, mean, directions, deviations, value_range)
    pixels = np.stack([figures.uncertain_pixels(image, SHOWN_PIXELS) for image in deviation])
    rows = jax.jit(jax.vmap(jax.vmap(Posterior.row, (None, 0))))(denoised.posterior, pixels)
    rows = np.asarray(rows).reshape(len(clean), -1, *shape)
    return first, figures.covariance_rows(mean, pixels, rows, value_range)


def posterior_samples(problem: Problem, examples: Examples) -> Any:
    """Draws of the clean image for some held-out images, as a figure.

    ValueError for the images of a first-order model.
    """
    posterior = examples.denoised.posterior
    if posterior is None:
        raise ValueError("a first-order model has no posterior to be drawn")
    key = stream_key("posterior samples", problem.config.seed)
    draw = jax.jit(lambda posterior: posterior.sample(key, SHOWN_DRAWS))
    drawn = np.asarray(draw(posterior)).reshape(len(examples.clean), -1, *examples.clean.shape[1:])
    noisy, mean, _ = _images(examples)
    return figures.posterior_samples(noisy, mean, drawn, problem.data.value_range)


def log_panel(problem: Problem, params: Any, step: int, log: RunLog) -> None:
    """The panel as an image in tensorboard; the `on_evaluation` of the command line."""
    examples = held_out.first_held_out(problem, params, min(4, problem.config.sampling.images))
    figure = panel(problem, Examples(*examples, None))
    log.image(step, "held_out/denoising", figures.as_array(figure))


def evaluate_run(
    config: ml_collections.ConfigDict, workdir: Path | str, image_folder: str = "figures"
) -> dict[str, Any]:
    """Evaluate a run: `metrics.json`, figures into `workdir / image_folder`, and `report.html`.

    Returns what was written to `metrics.json`. UserError as `load_run_as`, before the work for a
    folder that cannot be written or is not one for figures, and where a figure cannot be.
    """
    begun = time.monotonic()
    workdir = expanded(workdir)
    own = {"checkpoints", "corrupt_checkpoints", "tensorboard", METRICS_FILE, REPORT_FILE}
    if own & set(Path(image_folder).parts[:1]):
        raise UserError(f"--image_folder={image_folder!r} is the run's own: choose another name")
    run = load_run_as(config, workdir)
    if Path(image_folder) not in (Path("figures"), Path(".")):
        _check_own(workdir / image_folder)
    _check_room(workdir, "test a copy of the run")
    _check_room(workdir / image_folder, "choose another --image_folder")
    result = held_out.held_out_metrics(run.problem, run.params)
    count = max(config.sampling.images, REPORTED_IMAGES)
    examples = held_out.held_out_examples(run.problem, run.params, count, DIRECTIONS)
    shown = examples.first(config.sampling.images)
    if config.model.head != "none":
        result["directions"] = held_out.direction_scores(run.problem, run.params)
    if config.model.smallest_noise is not None:
        logger.info("held-out numbers are there; likelihoods and samples take longer")
        result["likelihood"] = likelihood_scores(run.problem, run.params)
    samples = None
    if config.model.denoiser is None:
        result["sampling"], samples = _sample(run)
    result |= {
        "step": run.step,
        "noise": config.noise,
        "data": config.data.name,
        "training_seconds": run.training_seconds,
        "test_seconds": time.monotonic() - begun,
        "versions": run_config.versions(),
    }
    # Before anything is drawn: the numbers are kept whatever happens to the figures.
    try:
        write_atomically(workdir / METRICS_FILE, json.dumps(result, indent=2) + "\n")
    except OSError:
        logger.warning("the numbers cannot be saved:\n%s", table(result))
        raise
    logger.info("numbers: %s; figures and %s are next", workdir / METRICS_FILE, REPORT_FILE)
    drawn = []
    history = read_history(workdir, at_most=4000)
    try:
        # No page of older numbers is left beside them.
        (workdir / REPORT_FILE).unlink(missing_ok=True)
        for name, figure in _figures(run.problem, shown, result, samples, history):
            drawn.append(workdir / image_folder / name)
            figures.save(figure, drawn[-1])
        write_report(run.problem, examples, result, drawn, workdir / REPORT_FILE)
    except OSError as error:
        what = f"the figures in {workdir / image_folder} or {REPORT_FILE} are not whole"
        raise UserError(
            f"{what} ({reason(error)}): mend that and test again; {METRICS_FILE} is whole"
        ) from error
    return result


def _check_own(folder: Path) -> None:
    """Raise UserError where figures might be written over another's files."""
    paths = folder.iterdir() if folder.is_dir() else ()
    inside = {path.name for path in paths if not path.name.startswith(".")}
    if inside - CAPTIONS.keys() and inside & CAPTIONS.keys():
        raise UserError(f"{folder} holds other files: choose another --image_folder")


def _check_room(folder: Path, remedy: str) -> None:
    """Make the folder, and raise UserError where no file can be written in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try_to_write(folder)
    except OSError as error:
        what = f"cannot write to {folder} ({reason(error)}), where numbers and figures belong"
        raise UserError(f"{what}: {remedy}") from error


def _figures(
    problem: Problem,
    shown: Examples,
    result: dict[str, Any],
    samples: Samples | None,
    history: list[dict],
) -> Iterator[tuple[str, Any]]:
    """The files of a run's figures and the figures, each made when its turn comes."""
    yield "denoising.png", panel(problem, shown)
    if "directions" in result:
        rows = result["reliability"], result.get("recalibrated", {}).get("reliability")
        yield "calibration.png", figures.calibration(*rows, result["directions"])
        directions, covariances = posterior_figures(problem, shown)
        yield "directions.png", directions
        yield "covariance_rows.png", covariances
    if history:
        yield "loss_curves.png", figures.loss_curves(history)
    if problem.config.model.denoiser is not None:
        yield "posterior_samples.png", posterior_samples(problem, shown)
    if samples is None:
        return
    value_range, sampling = problem.data.value_range, problem.config.sampling
    grid = figures.sample_grid(samples.images[:SHOWN_SAMPLES], value_range)
    yield "samples.png", grid
    titles = [f"step {step}" for step in samples.steps]
    if sampling.sampler not in ("langevin", "ozaki"):
        titles = [f"sigma {sigma:.2g}" for sigma in samples.sigmas]
    course = samples.course[:, : sampling.images]
    yield "trajectories.png", figures.trajectories(course, titles, value_range)
    yield "mixing.png", figures.mixing_curves(result["sampling"])


def _sample(run: LoadedRun) -> tuple[dict[str, Any], Samples | None]:
    """Numbers of samples and of how their chains went, and the samples, None if there are none."""
    problem, sampling = run.problem, run.problem.config.sampling
    result = {"sampler": sampling.sampler, "chains": sampling.chains, "finite": 0}
    if problem.config.model.classes is not None:
        result |= {"label": sampling.label, "guidance": sampling.guidance}
    try:
        samples = draw_samples(problem, run.params, progress=shows_progress())
    except UserError as error:  # the other numbers are worth keeping
        logger.warning("no samples: %s", error)
        return result, None
    curves = course_curves(problem, run.params, samples)
    return result | {"finite": len(samples.images), **curves}, samples


def table(result: dict[str, Any]) -> str:
    """The held-out numbers of `evaluate_run` as a table for the terminal."""
    rows = [("held out", "value", "std. error"), *measured(result)]
    return "\n".join(f"{name:<16}{value:>10}{error:>12}".rstrip() for name, value, error in rows)
