"""Samples of the posterior of noisy images by runs with different heads, side by side.

    python benchmarks/posterior_samples.py runs/diagonal runs/low_rank runs/demo --figure PATH

Each block of rows is one held-out image: clean, noisy and denoised by the last run at the left, and
then a row of draws of N(mean, K) for each run, the same noise for all of them. The runs must be of
the same data, noise and seed, so that they have the same noisy images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from hos_jax.evaluation import figures
from hos_jax.evaluation.held_out import first_held_out
from hos_jax.training.runs import load_run

DRAWS = 6


def draws(folder: Path, chosen: list[int]):
    """Clean, noisy, denoised, (N, D), and draws, (N, DRAWS, D), of the chosen held-out images."""
    run = load_run(folder)
    clean, found = first_held_out(run.problem, run.params, max(chosen) + 1)
    keys = jax.random.split(jax.random.key(0), len(clean))
    samples = jax.jit(jax.vmap(lambda p, key: p.sample(key, DRAWS)))(found.posterior, keys)
    every = clean.reshape(len(clean), -1), found.noisy, found.mean, samples
    return run, [np.asarray(array)[np.array(chosen)] for array in every]


def picture(folders: list[Path], chosen: list[int]):
    found = [draws(folder, chosen) for folder in folders]
    run, (clean, noisy, mean, _) = found[-1]
    shape, (low, high) = run.image_shape, run.problem.data.value_range
    if any(not np.array_equal(noisy, other[1]) for _, other in found):
        raise SystemExit("the runs have different noisy images")
    lines, widths = len(chosen) * len(folders), [1.0, 1.0, 1.0, 0.3, *[1.0] * DRAWS]
    plot, axes = plt.subplots(
        lines, len(widths), figsize=(1.07 * sum(widths), 1.1 * lines), width_ratios=widths
    )
    top = 1 - 0.3 / (1.1 * lines)
    plot.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=top, wspace=0.06, hspace=0.06)
    for axis in axes.flat:
        axis.set_axis_off()

    def show(axis, image, title=""):
        image = np.clip((image.reshape(shape) - low) / (high - low), 0.0, 1.0)
        axis.imshow(image[..., 0] if shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9, pad=3)

    for index in range(len(chosen)):
        first = index * len(folders)
        titles = ("clean", "noisy", "denoised") if index == 0 else ("", "", "")
        for place, (image, title) in enumerate(zip((clean, noisy, mean), titles, strict=True)):
            show(axes[first, place], image[index], title)
        for row, (other, (*_, samples)) in enumerate(found, start=first):
            head = other.problem.config.model.head.replace("_", " ")
            label = head.replace("low rank", "low-rank").replace("local low", "local + low")
            axes[row, 3].text(0.5, 0.5, label, fontsize=8, rotation=90, va="center", ha="center")
            for place in range(DRAWS):
                title = "draws of the posterior" if index == row == 0 and place == 2 else ""
                show(axes[row, 4 + place], samples[index, place], title)
    return plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--images", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, required=True)
    options = parser.parse_args()
    figures.save(picture(options.runs, options.images), options.figure)


if __name__ == "__main__":
    main()
