"""One self-contained page for a run: its numbers, its figures, and its posteriors to play with."""

from __future__ import annotations

import base64
import importlib.resources
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.evaluation.held_out import Examples
from hos_jax.evaluation.likelihood import BOUND_NAME
from hos_jax.files import write_atomically
from hos_jax.linops import Dense, Diagonal, Local, PlusLowRank, SymmetricMatrix
from hos_jax.linops.local import earlier_pixels
from hos_jax.training.problem import Problem
from hos_jax.uncertainty import Interval, Posterior, calibration

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
DIRECTIONS = 6
INTERVAL_LEVEL = 0.9
# Values per image beyond which the page would grow by megabytes for each image, and those of a
# dense covariance, whose rows are 0.9 MB then.
LARGEST_DIM, LARGEST_DENSE = 20_000, 400

MEANINGS = {
    "denoise_mse": "mean squared error of the denoised image, data units squared",
    "predicted_mse": "the mean squared error that the predicted variances imply; should equal "
    "denoise_mse",
    "nll_per_dim": "NLL of error / sigma under the predicted law",
    "calibration": "e^T K^-1 e / D: 1 when the covariance is right",
    "residual_loss": "compares two runs on the same data: lower is better; "
    "(|K|^2 / 2 - e^T K e) / D with e in units of sigma and K of sigma^2",
    "coverage_50": "share of the errors inside the 50% interval of their value",
    "coverage_80": "the same at 80%",
    "coverage_90": "the same at 90%",
    "coverage_95": "the same at 95%",
    "third_order": "score of the predicted skewness: negative when it says something true",
    "bits_per_dim": "bound on the negative log2 likelihood per value, by the flow ODE",
    BOUND_NAME: "the same by reverse steps, with the whole covariance where the model has one",
}
RECALIBRATED = (
    "share of the errors inside {}% intervals whose widths were learned on every other held-out "
    "image, of the images in between"
)
CAPTIONS = {
    "loss_curves.png": "Training and held-out losses",
    "denoising.png": "Held-out images: clean, noisy, denoised, predicted and realised error",
    "calibration.png": "Calibration of the predicted variances, and error in leading directions",
    "directions.png": "Directions of largest posterior variance",
    "covariance_rows.png": "Posterior covariance of marked pixels with all others",
    "posterior_samples.png": "Draws of the clean image",
    "samples.png": "Samples, each denoised once",
    "trajectories.png": "The first chains over time, each position denoised",
    "mixing.png": "How the chains forget their start and approach the data",
}


def _floats(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def embedded(figure: Path, caption: str, *, small: bool = False) -> dict[str, Any]:
    """A picture file as the page takes it, to be enlarged there if it is `small`."""
    encoded = base64.b64encode(figure.read_bytes()).decode()
    return {"source": f"data:image/png;base64,{encoded}", "caption": caption, "small": small}


def _parts(covariance: SymmetricMatrix) -> dict[str, Any]:
    """The arrays from which the page makes a row of a covariance."""
    base, columns = covariance, {}
    if isinstance(covariance, PlusLowRank):
        base, columns = covariance.base, {"factor": covariance.factor}
    if isinstance(base, Diagonal):
        return {"diag": base.diag, **columns}
    if isinstance(base, Local):
        return {"scales": base.scales, "taps": base.taps, **columns}
    return {"matrix": covariance.to_dense()}


def _left_out(problem: Problem, examples: Examples) -> str:
    """Why the page cannot have posteriors to play with, or nothing."""
    posterior, dim = examples.denoised.posterior, problem.data.dim
    if posterior is None:
        return "Nothing is shown here: the model has s1 alone, which predicts no covariance."
    dense = isinstance(posterior.covariance, Dense)
    if dim <= (LARGEST_DENSE if dense else LARGEST_DIM):
        return ""
    kind = "dense covariances" if dense else "covariances"
    return f"The interactive part is left out: with {kind} of {dim} values the page would be large."


def interval_fn(multipliers: Any, sigma: float) -> Callable[[Posterior], Interval]:
    """The interval of each value at `INTERVAL_LEVEL`: by `calibration.recalibrated_interval` with
    these multipliers, or the model's own without any."""
    if multipliers is None:
        return lambda posterior: posterior.marginal_interval(INTERVAL_LEVEL)
    table = jnp.asarray(multipliers, jnp.float32)
    return lambda posterior: calibration.recalibrated_interval(
        posterior, sigma, table, INTERVAL_LEVEL
    )


def _images(problem: Problem, examples: Examples, multipliers: Any) -> list[dict[str, str]]:
    """What the page needs of each of the held-out images, as base64 of float32; nothing where
    that is `_left_out`."""
    clean, denoised, pairs = examples
    if pairs is None or denoised.posterior is None or _left_out(problem, examples):
        return []

    intervals_of = interval_fn(multipliers, problem.config.noise)
    intervals = jax.jit(jax.vmap(intervals_of))(denoised.posterior)
    arrays = {
        "clean": clean,
        "noisy": denoised.noisy,
        "mean": denoised.mean,
        "lower": intervals.lower,
        "upper": intervals.upper,
        "deviation": denoised.standard_deviation,
        "directions": pairs.eigenvectors.mT,
        "deviations": np.sqrt(pairs.eigenvalues),
        **_parts(denoised.posterior.covariance),
    }
    arrays = jax.device_get(arrays)
    return [
        {name: _floats(values[index]) for name, values in arrays.items()}
        for index in range(len(clean))
    ]


def measured(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and standard error of each held-out number of `evaluate_run`, as text."""
    rows = []
    parts = [result] + ([result["likelihood"]] if "likelihood" in result else [])
    for part in parts:
        for name, error in part["standard_error"].items():
            value, shown = ("unknown" if x is None else f"{x:.4f}" for x in (part[name], error))
            rows.append((name, value, shown))
    for name, value in result.get("recalibrated", {}).items():
        if name.startswith("coverage_"):
            rows.append((name.replace("coverage", "recalibrated"), f"{value:.4f}", ""))
    return rows


def _of_rows(text: str) -> str:
    """What is said of images, said of a table."""
    return text.replace("image", "row").replace("pixel", "value")


def _name(problem: Problem) -> str:
    """What the data are called: a file or folder by its name."""
    data = problem.config.data
    if data.root is None or data.name not in ("arrays", "image_folder", "image_crops"):
        return data.name
    path = Path(data.root).absolute()
    return path.stem if data.name == "arrays" else path.name


def write_report(
    problem: Problem, examples: Examples, result: dict, figures: Iterable[Path], path: Path
) -> None:
    """Write the page of `examples`, with `DIRECTIONS` directions each, of what `evaluate_run`
    found, and of figures whose names have `CAPTIONS`. Images of height 1 are called rows."""
    config, rows = problem.config, problem.data.image_shape[0] == 1
    say = _of_rows if rows else str
    ordered = sorted(figures, key=lambda figure: list(CAPTIONS).index(figure.name))
    drawn = [embedded(figure, say(CAPTIONS[figure.name])) for figure in ordered]
    percents = [round(100 * level) for level in calibration.LEVELS]
    meanings = MEANINGS | {f"recalibrated_{p}": RECALIBRATED.format(p) for p in percents}
    if problem.data.train.dtype != np.uint8:
        meanings["bits_per_dim"] += "; of a density in the units of the data"
    measures = [[*row, say(meanings[row[0]])] for row in measured(result) if row[0] in meanings]
    runner = f"{config.runner}, " if config.runner else ""
    count, seconds = result["held_out_images"], result["training_seconds"]
    # Parameters that came in a file were trained elsewhere.
    took = f" in {seconds:.0f} s" if seconds > 0 else ""
    measured_on = say(f"{count} image{'' if count == 1 else 's'}")
    content = {
        "heading": say("Held-out images"),
        "title": f"{_name(problem)} at sigma {config.noise:g}",
        "summary": (
            f"{runner}{config.model.name}, head {config.model.head}, {result['step']} steps"
            f"{took}. Measured on {measured_on} that training never saw."
        ),
        "measures": measures,
        "figures": drawn,
        "images": _images(problem, examples, result.get("recalibrated", {}).get("multipliers")),
        "left_out": _left_out(problem, examples),
        "rows": rows,
        "shape": list(problem.data.image_shape),
        "offsets": earlier_pixels(problem.data.image_shape, config.model.reach),
        "range": list(problem.data.value_range),
    }
    write_page(content, path)


def write_page(content: dict[str, Any], path: Path) -> None:
    """Write the page with this content, as JSON types."""
    page = importlib.resources.files("hos_jax.evaluation").joinpath("report.html")
    # A "</script>" in a name must not end the script element.
    text = json.dumps(content).replace("<", "\\u003c")
    write_atomically(path, page.read_text("utf-8").replace("__DATA__", text))
