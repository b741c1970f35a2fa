r"""How quickly chains on digits change class: Ozaki against Langevin with the scores of a run.

    make demo
    python benchmarks/digit_mixing.py --run runs/demo [--json PATH] [--figure PATH]

Chains sample the noisy density of the run from noisy held-out digits. Every few steps each state
is denoised by one Tweedie step and classified, by a classifier trained here. A step size counts
only while the chains stay in the learned law: in the second half of the run the mean confidence is
at least 90% of that of Langevin's chains at their smallest step, which are nearest to that law, and
the sliced Wasserstein distance of the states to fresh noisy digits is at most `--distance` times
that between two fresh samples of the same size. Of those the best has the most changes of class
per chain and second. Seconds are of the chains alone, compilation left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from chain_timing import timed_positions
from classify import class_change_rate, train_classifier

from hos_jax.evaluation import figures
from hos_jax.evaluation.generate import make_denoiser, sampler_at
from hos_jax.files import write_atomically
from hos_jax.samplers import diagnostics
from hos_jax.training.runs import load_run

# In units of sigma^2.
GRID = {"langevin": (0.1, 0.3, 0.6, 1.0, 1.5), "ozaki": (0.3, 1.0, 3.0, 10.0, 30.0)}


class Digits:
    """A run, a classifier, and noisy held-out digits."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        run = load_run(options.run)
        self.problem, self.params, self.sigma = run.problem, run.params, run.sigma
        self.denoise = make_denoiser(self.problem)
        self.classifier = train_classifier(self.problem.data)
        data = self.problem.data
        clean = data.to_float(data.held_out).reshape(len(data.held_out), -1)
        order = np.random.default_rng(0).permutation(len(clean))
        noise = np.random.default_rng(1).normal(size=clean.shape).astype(np.float32)
        noisy = (clean + self.sigma * noise)[order]
        self.start = jnp.asarray(noisy[: options.chains])
        self.fresh = jnp.asarray(noisy[options.chains : 2 * options.chains])
        self.typical_confidence = float(np.mean(self.classify(self.start).confidence))
        self.typical_distance = self.distance(self.start)

    def distance(self, positions) -> float:
        key = jax.random.key(0)
        return float(
            diagnostics.sliced_wasserstein(key, jnp.asarray(positions), self.fresh, projections=100)
        )

    def classify(self, positions):
        return self.classifier.judge(self.denoise(self.params, jnp.asarray(positions), self.sigma))

    def measure(self, name: str, fraction: float) -> dict:
        """Changes of class, quality and seconds of one sampler at one step size."""
        options, problem = self.options, self.problem
        with problem.config.unlocked():
            problem.config.sampling.sampler = name
            problem.config.sampling.krylov_vectors = options.krylov_vectors
            problem.config.sampling.step_fraction = fraction
        sampler = sampler_at(problem, self.params, self.sigma)
        seconds, chains = timed_positions(
            sampler, self.start, options.steps, options.every, timed=options.every
        )
        row = {"sampler": name, "step_size": fraction, "seconds_per_step": seconds}
        if not chains.is_finite.all():
            return row | {"changes": 0.0, "confidence": 0.0, "distance": np.inf}
        verdicts = [self.classify(positions) for positions in chains.trajectory]
        classes = np.stack([verdict.classes for verdict in verdicts])
        late = slice(len(verdicts) // 2, None)
        confidence = float(np.mean([verdict.confidence for verdict in verdicts[late]]))
        distance = np.mean([self.distance(x) for x in chains.trajectory[late]])
        ratio = float(distance / self.typical_distance)
        changes = class_change_rate(classes) / options.every
        return row | {
            "changes": changes,
            "changes_per_second": changes / seconds,
            "confidence": confidence,
            "distance": ratio,
            "histogram": np.bincount(
                classes[late].ravel(), minlength=self.classifier.classes
            ).tolist(),
            "apart_from_start": np.mean(classes != classes[0], axis=1).tolist(),
        }


def stays_in_law(row: dict, first: dict, largest_distance: float) -> bool:
    """Whether the chains of a row stay in the learned law; those of `first` are nearest to it."""
    sure = row["confidence"] >= 0.9 * first["confidence"] > 0.0
    return bool(sure and row["distance"] <= largest_distance)


def figure(rows: list[dict], options, path: Path) -> None:
    """Share of chains whose class is not that of their start, by step and by second."""
    plot, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for row in rows:
        if "apart_from_start" not in row:
            continue
        steps = options.every * np.arange(1, len(row["apart_from_start"]) + 1)
        style = {"ls": "-" if row["sampler"] == "ozaki" else "--", "lw": 1 + row["allowed"]}
        label = f"{row['sampler']} {row['step_size']:g}" + (
            "" if row["allowed"] else " (off digits)"
        )
        axes[0].plot(steps, row["apart_from_start"], label=label, **style)
        axes[1].plot(steps * row["seconds_per_step"], row["apart_from_start"], **style)
    axes[0].set_xlabel("steps")
    axes[1].set_xlabel("seconds")
    axes[0].set_ylabel("share of chains in another class")
    axes[0].legend(fontsize=7)
    figures.save(plot, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--chains", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--krylov-vectors", type=int, default=10)
    parser.add_argument("--distance", type=float, default=2.0)
    options = parser.parse_args()
    digits = Digits(options)
    print(
        f"classifier: held-out accuracy {digits.classifier.held_out_accuracy:.3f}, confidence on "
        f"denoised digits {digits.typical_confidence:.3f}"
    )
    print(
        f"{'sampler':<10}{'step':>7}{'ms/step':>9}{'changes/1000 steps':>20}{'changes/s':>11}"
        f"{'confidence':>12}{'distance':>10}"
    )
    rows = []
    for name, grid in GRID.items():
        for fraction in grid:
            row = digits.measure(name, fraction)
            rows.append(row)
            row["allowed"] = stays_in_law(row, rows[0], options.distance)
            print(
                f"{name:<10}{fraction:>7g}{1000 * row['seconds_per_step']:>9.1f}"
                f"{1000 * row['changes']:>20.2f}{row.get('changes_per_second', 0.0):>11.4f}"
                f"{row['confidence']:>12.3f}{row['distance']:>10.2f}"
                f"{'' if row['allowed'] else '  off digits'}",
                flush=True,
            )
    best = {
        name: max(
            (r["changes_per_second"] for r in rows if r["sampler"] == name and r["allowed"]),
            default=float("nan"),
        )
        for name in GRID
    }
    print(f"changes per second, Ozaki / Langevin: {best['ozaki'] / best['langevin']:.2f}")
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")
    if options.figure:
        figure(rows, options, options.figure)


if __name__ == "__main__":
    main()
