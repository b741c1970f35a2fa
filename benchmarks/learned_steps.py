r"""Samples of trained models in few steps, by sampler and number of evaluations, judged on digits.

    python benchmarks/few_steps.py learned --run RUN [RUN ...] [--json PATH] [--figure PATH]
    python benchmarks/few_steps.py learned --run RUN --picture PATH

The runs are of one config and several seeds; numbers are means over them, with the standard error
where there are two or more. Of `--samples` images: Frechet distance to the training images on the
features of a classifier that is trained here, its mean confidence, the total variation of its
classes from uniform, and the sliced 2-Wasserstein distance of the pixels from as many training
images. "held out" is what that many held-out images have. And the bound on the likelihood of
held-out images that ancestral steps give, in bits per dimension, by covariance and number of steps.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from classify import frechet_distance, train_classifier
from matplotlib.ticker import LogLocator, StrMethodFormatter
from measure import Rows

from hos_jax.config import validate
from hos_jax.evaluation import figures
from hos_jax.evaluation import likelihood as of_run
from hos_jax.evaluation.generate import draw_samples
from hos_jax.noise import example_keys, karras_sigmas, stream_key
from hos_jax.samplers.diagnostics import sliced_wasserstein
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import bound

EVALUATIONS = (5, 10, 20, 40)
BOUND_IMAGES = 64
SHOWN = 50
# By name: the sampler, the covariance, and perhaps up to which noise level it is used.
SAMPLERS: dict[str, tuple] = {
    "ancestral, small": ("ancestral", "small"),
    "ancestral, scalar": ("ancestral", "scalar"),
    "ancestral, diagonal": ("ancestral", "diagonal"),
    "ancestral, full": ("ancestral", "full"),
    "ancestral, full below 1": ("ancestral", "full", 1.0),
    "ddim": ("ddim", "small"),
    "ddim, full": ("ddim", "full"),
    "ddim, full below 1": ("ddim", "full", 1.0),
    "heun": ("heun", None),
    "second order": ("second_order", None),
}
# In figures a sampler is a kind of line and a covariance a colour.
LINESTYLES = {"ancestral": "-", "ddim": "--", "heun": "-.", "second_order": ":"}
COLUMNS = {
    "frechet": "Frechet",
    "confidence": "confidence",
    "variation": "classes from uniform",
    "wasserstein": "sliced W2",
}


_distance = jax.jit(functools.partial(sliced_wasserstein, projections=500))


class Judge:
    """What samples of a data set are judged by: a classifier, and training images."""

    def __init__(self, data: Any):
        self.classifier = train_classifier(data)
        self.training = data.to_float(data.train)
        self.known = self.classifier.judge(self.training).features

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """The numbers of one set of images, (N, H, W, C), data units."""
        verdict, classes = self.classifier.judge(images), self.classifier.classes
        shares = np.bincount(verdict.classes, minlength=classes) / len(images)
        pair = (images, self.training[: len(images)])
        flat = (jnp.asarray(each).reshape(len(each), -1) for each in pair)
        return {
            "frechet": frechet_distance(verdict.features, self.known),
            "confidence": float(verdict.confidence.mean()),
            "variation": float(0.5 * np.abs(shares - 1 / classes).sum()),
            "wasserstein": float(_distance(jax.random.key(0), *flat)),
        }


def samples_of(run: Any, sampler: str, evaluations: int, options: argparse.Namespace) -> Any:
    """What `--test` would draw of the run with these settings, and the seconds that it took."""
    kind, covariance, *below = SAMPLERS[sampler]
    with run.problem.config.unlocked():
        run.problem.config.sampling.update(
            sampler=kind,
            covariance=covariance,
            covariance_below=below[0] if below else None,
            evaluations=evaluations,
            chains=options.samples,
            guidance=options.guidance,
        )
    validate(run.problem.config)
    begun = time.perf_counter()
    images = draw_samples(run.problem, run.params).images
    return images, time.perf_counter() - begun


def bounds_of(run: Any, steps: int) -> dict[str, float]:
    """Bits per dimension by covariance: the bound of `--test` at Karras levels, so many steps."""
    problem, model = run.problem, run.problem.config.model
    clean, width = of_run.dequantized(problem, BOUND_IMAGES)
    end, floor = of_run.law_at_largest(problem), of_run.smallest_variance(problem, width)
    sigmas = karras_sigmas(model.largest_noise, model.smallest_noise, steps + 1)

    def of_one(params: Any, clean: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
        derivatives_fn = of_run.make_derivatives_fn(problem, params)
        found = bound.ancestral_bound(
            key, clean, derivatives_fn, sigmas.astype(clean.dtype), end, floor=floor
        )
        return {name: value.total for name, value in found.items()}

    keys = example_keys(stream_key("likelihood", problem.config.seed, 2), 0, len(clean))
    nats = jax.jit(jax.vmap(of_one, (None, 0, 0)))(run.params, clean, keys)
    per_bit = clean.shape[1] * np.log(2.0)
    return {name: float(np.mean(value) / per_bit - np.log2(width)) for name, value in nats.items()}


def measure(options: argparse.Namespace) -> Rows:
    """A row for each run, sampler and number of evaluations, and for each bound."""
    settings = {"samples": options.samples, "guidance": options.guidance}
    rows = Rows(options.json, ("run", "sampler", "evaluations"), settings)
    judge = None
    for folder in options.run:
        run = load_run(folder)
        data = run.problem.data
        judge = judge or Judge(data)
        key = {"run": folder.name, "sampler": "held out", "evaluations": 0}
        if not rows.find(**key):
            real = data.to_float(data.held_out)[: options.samples]
            rows.add({**key, **judge(real)})
        for evaluations in options.evaluations:
            for sampler in options.samplers:
                key = {"run": folder.name, "sampler": sampler, "evaluations": evaluations}
                if rows.find(**key):
                    continue
                images, seconds = samples_of(run, sampler, evaluations, options)
                row = {**key, "finite": len(images), "seconds": seconds}
                print(rows.add({**row, **judge(images)}), flush=True)
                if options.grids is not None:
                    name = f"{folder.name}_{sampler.replace(', ', '_')}_{evaluations}.png"
                    grid = figures.sample_grid(images[:SHOWN], data.value_range)
                    figures.save(grid, options.grids / name)
            key = {"run": folder.name, "sampler": "bound", "evaluations": evaluations}
            if not rows.find(**key):
                print(rows.add({**key, **bounds_of(run, evaluations)}), flush=True)
    return rows


def _cell(rows: Rows, runs: list[str], column: str, **key: Any) -> tuple[float, float] | None:
    """The mean of one column over the runs and its standard error, NaN of a single run."""
    found = [rows.find(run=run, **key) for run in runs]
    values = [row[column] for row in found if row is not None]
    if not values:
        return None
    spread = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return float(np.mean(values)), float(spread)


def tables(rows: Rows, runs: list[str], evaluations: list[int]) -> str:
    """Markdown."""
    lines = []

    def table(column: str, title: str, names: list[str], sampler_of: Any) -> None:
        lines.append(f"\n| {title} | " + " | ".join(map(str, evaluations)) + " |")
        lines.append("|---" * (1 + len(evaluations)) + "|")
        for name in names:
            cells = []
            for count in evaluations:
                key = {"sampler": sampler_of(name), "evaluations": count}
                cell = _cell(rows, runs, name if column == "bits" else column, **key)
                spread = "" if cell is None or np.isnan(cell[1]) else f" ({cell[1]:.3f})"
                cells.append("" if cell is None else f"{cell[0]:.3f}{spread}")
            if any(cells):
                lines.append(f"| {name} | " + " | ".join(cells) + " |")

    for column, title in COLUMNS.items():
        table(column, title, list(SAMPLERS), lambda name: name)
        real = _cell(rows, runs, column, sampler="held out", evaluations=0)
        assert real is not None
        lines.append(f"| held out | {real[0]:.3f}" + " |" * len(evaluations))
    table("bits", "bound, bits per dimension", list(bound.COVARIANCES), lambda _: "bound")
    return "\n".join(lines)


def figure(rows: Rows, runs: list[str], evaluations: list[int]) -> Any:
    """Frechet and sliced Wasserstein distance by number of evaluations, a line for each sampler."""
    shown, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
    covariances = list(dict.fromkeys(each[1:] for each in SAMPLERS.values()))
    for axis, column in zip(axes, ("frechet", "wasserstein"), strict=True):
        for name in SAMPLERS:
            cells = [
                _cell(rows, runs, column, sampler=name, evaluations=count) for count in evaluations
            ]
            known = [(n, *cell) for n, cell in zip(evaluations, cells, strict=True) if cell]
            if known:
                x, y, spread = map(np.array, zip(*known, strict=True))
                look = {"color": f"C{covariances.index(SAMPLERS[name][1:])}", "label": name}
                look["linestyle"] = LINESTYLES[SAMPLERS[name][0]]
                axis.errorbar(x, y, np.nan_to_num(spread), marker="o", markersize=3, **look)
        real = _cell(rows, runs, column, sampler="held out", evaluations=0)
        assert real is not None
        axis.axhline(real[0], color="0.7", linewidth=3, zorder=0, label="held-out images")
        axis.set(xscale="log", yscale="log", xlabel="evaluations")
        axis.set_ylabel(f"{COLUMNS[column]} distance")
        axis.set_xticks(evaluations, [str(count) for count in evaluations])
        axis.minorticks_off()
        axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 4.0, 6.0)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    handles, labels = axes[1].get_legend_handles_labels()
    shown.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    return shown


def picture(run: Any, options: argparse.Namespace) -> Any:
    """Samples of all classes in turn from the same noise, a row for each number of evaluations."""
    shown, axes = plt.subplots(
        len(options.evaluations), 1, figsize=(10, 0.6 * len(options.evaluations)), squeeze=False
    )
    for axis, evaluations in zip(axes[:, 0], options.evaluations, strict=True):
        images, _ = samples_of(run, options.samplers[0], evaluations, options)
        axis.imshow(np.concatenate(images[..., 0], axis=1), cmap="gray", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
        axis.set_ylabel(f"{evaluations} evaluations", rotation=0, ha="right", va="center")
    shown.subplots_adjust(left=0.13, right=0.995, bottom=0.01, top=0.99, hspace=0.03)
    return shown


def learned(options: argparse.Namespace) -> None:
    """Rows, tables, figure and grids of trained runs, or only a picture of the first one."""
    if options.picture is not None:
        figures.save(picture(load_run(options.run[0]), options), options.picture)
        return
    rows = measure(options)
    runs = [folder.name for folder in options.run]
    print(tables(rows, runs, options.evaluations))
    if options.figure is not None:
        figures.save(figure(rows, runs, options.evaluations), options.figure)


def add_arguments(part: argparse.ArgumentParser) -> None:
    """Those of `few_steps.py learned`."""
    part.add_argument("--run", type=Path, nargs="+", required=True)
    part.add_argument("--json", type=Path)
    part.add_argument("--figure", type=Path)
    part.add_argument("--grids", type=Path, help=f"a folder for {SHOWN} samples of each kind")
    part.add_argument(
        "--picture", type=Path, help="only draw --samples of the first of --samplers, in rows"
    )
    part.add_argument("--samples", type=int, default=500)
    part.add_argument("--guidance", type=float, default=1.0)
    part.add_argument("--evaluations", type=int, nargs="+", default=EVALUATIONS)
    part.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    part.set_defaults(run_part=learned)
