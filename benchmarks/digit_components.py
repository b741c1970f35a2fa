r"""Ozaki against Langevin on digits at one noise level: effective samples of principal components.

    python benchmarks/digit_components.py --run runs/diffusion [--sigmas 0.05 0.1] [--json PATH]

Needs a run of many noise levels with a second-order head. Chains sample the density of digits with
noise sigma, from noisy held-out digits; the components are the 50 leading ones of such digits. For
each sampler the step runs over a grid, in units of sigma^2. A step counts only while the chains
stay in the law: in the second half of the run the root mean square of (y - denoised) / sigma is
within 2% of what it is at fresh noisy digits, and so are the variances of the components, on
average, within 10%. Of those the best has the most effective samples (the median of the
components) per second. `langevin` has s1 alone; `ozaki, diagonal` s2 with the covariance cut down
to its diagonal; `ozaki, full` the whole s2, by Lanczos. Seconds are of the chains alone, without
compiling.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from chain_timing import timed_positions
from measure import Rows

from hos_jax import pointwise, samplers
from hos_jax.linops import Diagonal
from hos_jax.samplers import diagnostics
from hos_jax.training.runs import load_run

COMPONENTS = 50
GRID = {
    "langevin": (0.03, 0.1, 0.3, 0.6, 1.0),
    "ozaki, diagonal": (0.1, 0.3, 1.0, 3.0, 10.0),
    "ozaki, full": (0.1, 0.3, 1.0, 3.0, 10.0),
}


def sampler_of(run: Any, name: str, sigma: float, fraction: float, krylov_vectors: int) -> Any:
    """The chain of one name at one step size."""
    arguments = run.model, run.params, sigma, run.image_shape
    step_size = fraction * sigma**2
    if name == "langevin":
        return samplers.langevin.as_top_level_api(pointwise.score_fn(*arguments), step_size)
    derivatives_fn: Callable = pointwise.derivatives_fn(*arguments)

    def diagonal_fn(noisy: jax.Array) -> tuple[jax.Array, Diagonal]:
        score, hessian = derivatives_fn(noisy)
        return score, Diagonal(hessian.diagonal())

    chosen = diagonal_fn if name.endswith("diagonal") else derivatives_fn
    return samplers.ozaki.as_top_level_api(chosen, step_size, krylov_vectors=krylov_vectors)


class Law:
    """Noisy held-out digits at one level: where chains start, and what their states should be."""

    def __init__(self, run: Any, sigma: float, chains: int):
        data = run.problem.data
        clean = data.to_float(data.held_out).reshape(len(data.held_out), -1)
        rng = np.random.default_rng(0)
        noisy = clean + sigma * rng.normal(size=clean.shape)
        noisy = noisy[rng.permutation(len(noisy))].astype(np.float32)
        self.start = jnp.asarray(noisy[:chains])
        fresh = noisy[chains:]
        self.mean = fresh.mean(axis=0)
        _, _, rows = np.linalg.svd(fresh - self.mean, full_matrices=False)
        self.directions = rows[:COMPONENTS].T
        self.variances = np.var((fresh - self.mean) @ self.directions, axis=0)
        score_fn = pointwise.score_fn(run.model, run.params, sigma, run.image_shape)
        scores = jax.jit(jax.vmap(score_fn))
        # (y - denoised) / sigma is -sigma s1.
        self.residual = lambda noisy: sigma * float(np.sqrt(np.mean(np.square(scores(noisy)))))
        self.usual_residual = self.residual(jnp.asarray(fresh))


def measure(run: Any, law: Law, name: str, sigma: float, fraction: float, options) -> dict:
    """Effective samples, seconds and whether the chains stay in the law."""
    sampler = sampler_of(run, name, sigma, fraction, options.krylov_vectors)
    seconds, chains = timed_positions(sampler, law.start, options.steps, options.every, timed=20)
    row = {"sigma": sigma, "sampler": name, "step_size": fraction, "seconds_per_step": seconds}
    if not chains.is_finite.all():
        return row | {"stays": False}
    late = chains.trajectory[len(chains.trajectory) // 2 :]
    residual = float(np.mean([law.residual(jnp.asarray(one)) for one in late[::5]]))
    along = np.moveaxis((late - law.mean) @ law.directions, 0, 1)
    # About the law's mean: that of chains that are not yet mixed would take a part of the variance.
    spread = float(np.mean(np.mean(np.square(along), axis=(0, 1)) / law.variances))
    size = np.asarray(diagnostics.effective_sample_size(jnp.asarray(along)))
    steps = len(late) * options.every
    median = float(np.median(size))
    return row | {
        "residual": residual / law.usual_residual,
        "variances": spread,
        "effective": median,
        "effective_per_chain": median / options.chains,
        "effective_per_step": median / (steps * options.chains),
        "effective_per_second": median / (steps * seconds),
        "stays": abs(residual / law.usual_residual - 1.0) <= 0.02 and abs(spread - 1.0) <= 0.1,
    }


def summary(table: Rows, sigmas: list[float], names: list[str]) -> str:
    """The best step of each sampler at each level, and its gain over Langevin's, as Markdown."""
    lines = ["\n| sigma | sampler | step | effective in 1000 steps | per second | ratio |"]
    lines.append("|---" * 6 + "|")
    for sigma in sigmas:
        best = {}
        for name in names:
            rows = [row for row in table.rows if (row["sigma"], row["sampler"]) == (sigma, name)]
            good = [row for row in rows if row["stays"]]
            best[name] = max(good, key=lambda row: row["effective_per_second"], default=None)
        plain = best.get("langevin")
        for name, row in best.items():
            cells = ["no step stays in the law", "", "", ""]
            if row is not None:
                found = 1000 * row["effective_per_step"], row["effective_per_second"]
                ratio = f"{found[1] / plain['effective_per_second']:.2f}" if plain else ""
                cells = [f"{row['step_size']}", *(f"{value:.2f}" for value in found), ratio]
            lines.append(f"| {sigma} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5])
    parser.add_argument("--samplers", nargs="+", default=list(GRID), choices=GRID)
    parser.add_argument("--step-sizes", type=float, nargs="+", help="in place of each one's grid")
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--krylov-vectors", type=int, default=10)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("chains", "steps", "every")}
    table = Rows(options.json, ("sigma", "sampler", "step_size"), settings)
    run = load_run(options.run)
    for sigma in options.sigmas:
        law = Law(run, sigma, options.chains)
        for name in options.samplers:
            for fraction in options.step_sizes or GRID[name]:
                key = {"sigma": sigma, "sampler": name, "step_size": fraction}
                if not table.find(**key):
                    row = measure(run, law, name, sigma, fraction, options)
                    print({k: v for k, v in table.add(row).items() if k != "settings"}, flush=True)
    print(summary(table, options.sigmas, options.samplers))


if __name__ == "__main__":
    main()
