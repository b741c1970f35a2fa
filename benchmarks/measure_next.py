r"""Images seen value by value: the error after k values, by what chooses the next one.

    hos-jax import_checkpoint diffusion --doc diffusion  # the packaged weights; or train them
    python benchmarks/measure_next.py --run runs/diffusion [--json PATH] [--figure PATH]

Needs a run of many noise levels with a second-order head. Each value is measured with noise of
deviation 0.05. Who chooses:

* random: any value not seen yet.
* fixed order: greedily by the covariance of the training images, the same for every image: what a
  Gaussian law of images would do, with no network.
* variance: the values of the largest variance over N samples of x given what was seen.
* samples: greedily, `measure_next.choose`, by the covariance of N such samples.
* s2: greedily by K of the second-order score over N chains that end at `--end`, and the spread of
  their means, `measure_next.belief_of_chains`.

The last three have the same number of evaluations of the network in each round. The error is the
mean squared one of the mean over N chains of another key, the same for all choosers: the mean of
E[x | y, b] at their ends, at `--end`. `--split train`
takes training images instead of held-out ones: what was chosen (levels, samples, the end of s2) was
chosen there. Standard errors are over images.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from hos_jax import pointwise
from hos_jax.errors import UserError
from hos_jax.evaluation import figures
from hos_jax.files import write_atomically
from hos_jax.linops import Dense
from hos_jax.training.runs import LoadedRun, load_run
from hos_jax.uses import measure_next

NOISE_STD = 0.05
CHOOSERS = ("random", "fixed order", "variance", "samples", "s2")
# Values measured in each round, and after how many the error is measured.
ROUNDS = (8, 8, 8, 8, 8, 20, 20)
MARKS = (16, 40, 80)
ROOM = 40


def levels(largest, smallest, count):
    """Noise levels, evenly spaced in their seventh root (Karras et al. 2022)."""
    ends = largest ** (1 / 7), smallest ** (1 / 7)
    return jnp.linspace(*ends, count) ** 7


@functools.partial(jax.jit, static_argnums=3)
def randomly(key, belief, seen, count):
    dim = len(belief.mean)
    scores = jnp.where(seen.unseen(dim), jax.random.uniform(key, (dim,)), -1.0)
    return jax.lax.top_k(scores, count)[1]


@functools.partial(jax.jit, static_argnums=3)
def by_variance(_, belief, seen, count):
    unseen = seen.unseen(len(belief.mean))
    return jax.lax.top_k(jnp.where(unseen, belief.diagonal(), -1.0), count)[1]


belief_of_chains = jax.jit(measure_next.belief_of_chains)


@jax.jit
def belief_of_draws(keys, posteriors, seen):
    draw = jax.vmap(measure_next.conditional_sample, (0, 0, None))
    return measure_next.belief_of_samples(draw(keys, posteriors, seen))


def chains_from(centre, posterior_fn):
    """(keys, seen, sigmas) -> the posteriors at the ends of chains that start around a centre."""

    def one(key, seen, sigmas):
        start_key, key = jax.random.split(key)
        start = centre + sigmas[0] * jax.random.normal(start_key, centre.shape)
        return measure_next.chain(key, posterior_fn, seen, start, sigmas)

    return jax.jit(jax.vmap(one, (0, None, None)))


class Bench:
    """A run's chains, and what the training images say of the order."""

    def __init__(self, run, options):
        self.posterior_fn = pointwise.posterior_fn(run)
        data, model = run.problem.data, run.problem.config.model
        self.shape, self.options = data.image_shape, options
        training = data.to_float(data.train).reshape(len(data.train), -1)
        self.centre = jnp.mean(jnp.asarray(training), axis=0)
        covariance = Dense(jnp.cov(jnp.asarray(training).T))
        self.order = measure_next.choose(
            covariance.matvec, len(self.centre), NOISE_STD, MARKS[-1]
        ).places
        ends = model.largest_noise, model.smallest_noise
        self.sigmas = levels(*ends, options.levels)
        self.short = levels(model.largest_noise, options.end, options.levels)

    @functools.cached_property
    def ends(self):
        """(key, seen, sigmas) -> the posteriors at the ends of N chains."""
        many = chains_from(self.centre, self.posterior_fn)

        def ends(key, seen, sigmas):
            count = self.options.samples if seen.valid.any() else self.options.first
            return many(jax.random.split(key, count), seen, sigmas)

        return ends

    def at_first_or(self, by):
        """What is believed before anything was seen is the same for all images: found once."""

        @functools.cache
        def at_first():
            return by(jax.random.key(3), measure_next.Seen.none(ROOM, NOISE_STD))

        return lambda key, seen: by(key, seen) if seen.valid.any() else at_first()

    def by_samples(self, key, seen):
        chain_key, draw_key = jax.random.split(key)
        posteriors = self.ends(chain_key, seen, self.sigmas)
        keys = jax.random.split(draw_key, len(posteriors.mean))
        return belief_of_draws(keys, posteriors, seen)

    def by_second_order(self, key, seen):
        return belief_of_chains(self.ends(key, seen, self.short), seen)

    def without(self, key, seen):
        """For choosers that ask nothing of the network."""
        return measure_next.Belief(self.centre, jnp.zeros((len(self.centre), 1)))

    def in_order(self, _, belief, seen, count):
        begin = int(jnp.sum(seen.valid))
        return self.order[begin : begin + count]

    @functools.cached_property
    def choosers(self):
        """(belief_fn, choose_fn) of each."""
        samples, second = self.at_first_or(self.by_samples), self.at_first_or(self.by_second_order)
        return {
            "random": (self.without, randomly),
            "fixed order": (self.without, self.in_order),
            "variance": (samples, by_variance),
            "samples": (samples, measure_next.greedy),
            "s2": (second, measure_next.greedy),
        }

    def reveal(self, name, key, clean, index):
        """What was seen of one image, and the seconds that it took."""
        noise = NOISE_STD * jax.random.normal(jax.random.key(7 + index), clean.shape)
        measured = clean + noise
        begun = time.perf_counter()
        found = measure_next.reveal(
            key,
            self.choosers[name][0],
            lambda places: measured[places],
            NOISE_STD,
            ROUNDS,
            choose_fn=self.choosers[name][1],
            room=ROOM,
        )
        return found.seen, time.perf_counter() - begun


def first(seen, count):
    """What was seen first."""
    valid = seen.valid & (jnp.arange(len(seen.valid)) < count)
    return dataclasses.replace(seen, valid=valid).trim(ROOM)


def measure(bench, clean, options):
    """After each image a row for each chooser so far, and its places and means of the first."""
    choosers = options.choosers
    errors, expected, seconds = ({name: [] for name in choosers} for _ in range(3))
    pictures = {}
    for index, image in enumerate(clean, options.skip):
        for name in choosers:
            key = jax.random.fold_in(jax.random.key(1), index)
            seen, spent = bench.reveal(name, key, image, index)
            judge_key = jax.random.fold_in(jax.random.key(2), index)
            judged = [bench.by_second_order(judge_key, first(seen, mark)) for mark in MARKS]
            means = np.stack([belief.mean for belief in judged])
            seconds[name].append(spent)
            errors[name].append(np.square(means - np.asarray(image)).mean(axis=1))
            expected[name].append([float(belief.diagonal().mean()) for belief in judged])
            pictures.setdefault(name, (np.asarray(seen.places), means))
        line = "  ".join(f"{name} {errors[name][-1][MARKS.index(40)]:.4f}" for name in choosers)
        print(f"image {index}, error after 40 values: {line}", flush=True)
        yield [_row(name, errors, expected, seconds) for name in choosers], pictures


def _row(name, errors, expected, seconds):
    found = np.stack(errors[name])
    freedom = max(len(found) - 1, 1) ** 0.5
    row = {"chooser": name, "images": len(found), "values": MARKS}
    row |= {"mse": found.mean(axis=0).tolist()}
    row |= {"standard_error": (found.std(axis=0) / freedom).tolist()}
    row |= {"expected": np.mean(expected[name], axis=0).tolist()}
    if "random" in errors:
        random = np.stack(errors["random"])
        row["of_random"] = (found.mean(axis=0) / random.mean(axis=0)).tolist()
    if "samples" in errors:
        apart = found - np.stack(errors["samples"])
        row["from_samples"] = apart.mean(axis=0).tolist()
        row["from_samples_error"] = (apart.std(axis=0) / freedom).tolist()
    row["by_image"] = found.tolist()
    # The first images pay for compiling.
    return row | {"seconds_per_image": float(np.median(seconds[name]))}


def draw_figure(bench, clean, pictures, choosers):
    """One image: what was seen and the mean, after each mark, by chooser."""
    shape = bench.shape
    rows, columns = len(choosers), 1 + 2 * len(MARKS)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.15 * columns, 1.3 * rows), layout="constrained"
    )
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0, "interpolation": "nearest"}
    for row, name in zip(np.atleast_2d(axes), choosers, strict=True):
        places, means = pictures[name]
        image = np.asarray(clean[0]).reshape(shape)[..., 0]
        row[0].imshow(image, **grey)
        row[0].set_ylabel(name, fontsize=9)
        for number, mark in enumerate(MARKS):
            masked = np.full(image.size, np.nan)
            masked[places[:mark]] = image.ravel()[places[:mark]]
            seen, mean = row[1 + 2 * number], row[2 + 2 * number]
            seen.set_facecolor("tab:blue")
            seen.imshow(masked.reshape(image.shape), **grey)
            seen.set_title(f"{mark} values", fontsize=9)
            mean.imshow(means[number].reshape(image.shape), **grey)
            mean.set_title("mean", fontsize=9)
        for axis in row:
            axis.set(xticks=[], yticks=[])
    np.atleast_2d(axes)[0, 0].set_title("digit", fontsize=9)
    return figure


def add_arguments(parser: argparse.ArgumentParser, choosers: Sequence[str]) -> None:
    """Those of a search by chains."""
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=8, help="N, the chains of a round")
    parser.add_argument("--levels", type=int, default=6, help="evaluations of a chain")
    parser.add_argument("--end", type=float, default=0.3, help="sigma at which K of s2 is taken")
    parser.add_argument("--choosers", nargs="*", default=list(choosers), choices=choosers)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--json", type=Path)


def run_of_many_levels(folder: Path) -> LoadedRun:
    """The run in a folder, or the end of the program where it cannot do this."""
    run = load_run(folder)
    if run.problem.config.model.smallest_noise is None or run.problem.model.head is None:
        error = UserError(f"{folder} has no second-order model of many noise levels")
        raise SystemExit(f"error: {error}; train with --config diffusion_mnist5k")
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, CHOOSERS)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument(
        "--first",
        type=int,
        default=64,
        help="chains of the first round, of which there is one for all images",
    )
    parser.add_argument("--split", choices=("held_out", "train"), default="held_out")
    parser.add_argument("--skip", type=int, default=0, help="images left out at the beginning")
    options = parser.parse_args()
    if options.images < 2 or options.samples < 2 or options.levels < 3:
        parser.error("expected --images and --samples of 2 or more, and --levels of 3 or more")
    run = run_of_many_levels(options.run)
    data = run.problem.data
    taken = getattr(data, options.split)[options.skip : options.skip + options.images]
    clean = jnp.asarray(data.to_float(taken)).reshape(len(taken), -1)
    bench = Bench(run, options)
    # A long run that is cut off leaves what it has.
    for rows, pictures in measure(bench, clean, options):
        if options.json:
            write_atomically(options.json, json.dumps(rows, indent=1) + "\n")
        if options.figure and rows[0]["images"] == 1:
            figures.save(draw_figure(bench, clean, pictures, options.choosers), options.figure)
    print(
        f"\n{'mean squared error':<14}"
        + "".join(f"{mark:>18}" for mark in MARKS)
        + "     s / image"
    )
    for row in rows:
        pairs = zip(row["mse"], row["standard_error"], strict=True)
        cells = "".join(f"{mse:>9.4f} ({error:.4f})" for mse, error in pairs)
        print(f"{row['chooser']:<14}{cells}{row['seconds_per_image']:>12.1f}")


if __name__ == "__main__":
    main()
