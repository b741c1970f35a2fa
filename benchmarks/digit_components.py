r"""Ozaki against Langevin on digits at one noise level: effective samples of principal components.

    python benchmarks/digit_components.py --run runs/diffusion [--told] [--json PATH]
    python benchmarks/digit_components.py --run runs/diffusion --told --time 180 [--json PATH]

Needs a run of many noise levels with a second-order head. Chains sample the density of digits with
noise sigma, from noisy held-out digits, of all classes in turn. With `--told` each chain is told
the class of its digit, which it keeps. The components are the 50 leading ones of the training
digits, less the mean of all, or with `--told` of their class. For each sampler the step runs over a
grid, in units of sigma^2. A step counts only while the chains stay in the law: in the second half
of the run the root mean square of (y - denoised) / sigma is within 2% of what it is at noisy
held-out digits, and the mean square of the components, on average, within 10% of that of noisy
training digits. Of those the best has the most effective samples (the median of the components) per
second. `--figure` draws both measures by time.
`langevin` has s1 alone; `ozaki, diagonal` s2 with the covariance cut down to its diagonal; `ozaki,
full` the whole s2, by Lanczos, its positive eigenvalues taken as 0 (`growth_bound=0`); `ozaki,
growing` the same with the usual bound. Seconds are of the chains alone, without compiling.

Where nothing mixes, there is still how fast the chains move: `moved` is the mean squared difference
of states so many steps apart, over twice the law's variance, the mean of the components. For a
chain in the law it is 1 less the autocorrelation. With `--time`, in units of sigma^2, all chains
run equally long, and the steps until `moved` is `--far` are compared.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from chain_timing import timed_positions
from measure import Rows

from hos_jax import pointwise, samplers
from hos_jax.evaluation import figures
from hos_jax.linops import Diagonal
from hos_jax.samplers import diagnostics
from hos_jax.training.runs import load_run

COMPONENTS = 50
BLOCKS = 20
# Effective samples a chain, below which nothing is said of mixing: without any there are 0.6.
MIXED = 2.0
GRID = {
    "langevin": (0.03, 0.06, 0.1),
    "ozaki, diagonal": (0.1, 0.3, 0.6, 1.0),
    "ozaki, full": (0.3, 1.0, 3.0),
    "ozaki, growing": (0.1,),
}


class Told(NamedTuple):
    """The state of a chain that keeps a class, or no class, `()`."""

    inner: Any
    label: Any

    @property
    def position(self) -> jax.Array:
        """Where the chain is, (D,), data units."""
        return self.inner.position


def sampler_of(
    run: Any, name: str, sigma: float, fraction: float, krylov_vectors: int
) -> samplers.SamplingAlgorithm:
    """The chain of one name at one step size: `init((position, label))`."""
    arguments = run.model, run.params, sigma, run.image_shape
    step_size = fraction * sigma**2
    evaluate = (pointwise.score_fn if name == "langevin" else pointwise.derivatives_fn)(*arguments)
    module: Any = samplers.langevin if name == "langevin" else samplers.ozaki
    if name == "langevin":
        kernel = module.build_kernel()
    else:
        bound = module.GROWTH_BOUND if name.endswith("growing") else 0.0
        kernel = module.build_kernel(krylov_vectors=krylov_vectors, growth_bound=bound)

    def of_label(label: Any) -> Any:
        def target(noisy: jax.Array) -> Any:
            found = evaluate(noisy, None, *label)
            if not name.endswith("diagonal"):
                return found
            return found[0], Diagonal(found[1].diagonal())

        return target

    def init(start: tuple[jax.Array, Any], rng_key: Any = None) -> Told:
        return Told(module.init(start[0], of_label(start[1])), start[1])

    def step(key: jax.Array, state: Told) -> tuple[Told, Any]:
        inner, info = kernel(key, state.inner, of_label(state.label), step_size)
        return Told(inner, state.label), info

    return samplers.SamplingAlgorithm(init, step)


def moved(along: np.ndarray, variances: np.ndarray, every: int) -> list[list[float]]:
    """Pairs of a number of steps and what chains (N, T, K) have moved in it, see above."""
    lags = np.unique(np.geomspace(1, along.shape[1] // 4, 16).astype(int))
    squares = [np.mean(np.square(along[:, lag:] - along[:, :-lag]) / variances) for lag in lags]
    return [
        [int(lag * every), round(float(found) / 2, 5)]
        for lag, found in zip(lags, squares, strict=True)
    ]


def steps_to_move(row: dict, far: float) -> float | None:
    """Steps until `moved` is `far`, or None where it never is."""
    steps, found = np.transpose(row["moved"])
    if found.max() < far:
        return None
    # Between the first that has and the one before, on logarithmic scales.
    after = max(1, int(np.argmax(found >= far)))
    part = slice(after - 1, after + 1)
    return float(np.exp(np.interp(np.log(far), np.log(found[part]), np.log(steps[part]))))


class Law:
    """Noisy digits at one level: where chains start, and what their states should be."""

    def __init__(self, run: Any, sigma: float, chains: int, *, told: bool):
        data = run.problem.data
        train = data.to_float(data.train).reshape(len(data.train), -1)
        held_out = data.to_float(data.held_out).reshape(len(data.held_out), -1)
        kinds = np.asarray(data.train_labels), np.asarray(data.held_out_labels)
        groups = range(10) if told else [slice(None)]
        means = np.stack([train[kinds[0] == c if told else c].mean(axis=0) for c in groups])
        centred = train - (means[kinds[0]] if told else means)
        _, singular, rows = np.linalg.svd(centred, full_matrices=False)
        self.directions = rows[:COMPONENTS].T
        self.variances = singular[:COMPONENTS] ** 2 / len(train) + sigma**2

        rng = np.random.default_rng(0)
        noisy = held_out + sigma * rng.normal(size=held_out.shape)
        noisy = jnp.asarray(noisy, jnp.float32)
        # All classes in turn: the first of each, the second of each, and so on.
        ranks = np.array([np.sum(kinds[1][:i] == c) for i, c in enumerate(kinds[1])])
        first = np.lexsort((kinds[1], ranks))[:chains]
        self.means = means[kinds[1][first]] if told else means
        labels = (jnp.asarray(kinds[1], jnp.int32),) if told else ()
        self.start = noisy[first], jax.tree.map(lambda all_of: all_of[first], labels)
        score_fn = pointwise.score_fn(run.model, run.params, sigma, run.image_shape)
        scores = jax.jit(jax.vmap(lambda noisy, label: score_fn(noisy, None, *label)))
        # (y - denoised) / sigma is -sigma s1.
        self.residual = lambda noisy, labels: (
            sigma * float(np.sqrt(np.mean(np.square(scores(noisy, labels)))))
        )
        self.usual_residual = self.residual(noisy, labels)


def key_of(options: argparse.Namespace, sigma: float, name: str, fraction: float) -> dict:
    """What tells a row from others."""
    key = {"told": options.told, "sigma": sigma, "sampler": name, "step_size": fraction}
    steps = options.steps if options.time is None else round(options.time / fraction)
    return key | {"steps": steps}


def measure(run: Any, law: Law, name: str, sigma: float, fraction: float, options) -> dict:
    """Effective samples, seconds and whether the chains stay in the law."""
    sampler = sampler_of(run, name, sigma, fraction, options.krylov_vectors)
    row = key_of(options, sigma, name, fraction)
    seconds, chains = timed_positions(sampler, law.start, row["steps"], options.every, timed=20)
    row |= {"seconds_per_step": seconds}
    if not chains.is_finite.all():
        return row | {"stays": False}
    along = np.moveaxis((chains.trajectory - law.means) @ law.directions, 0, 1)
    # About the law's mean: that of chains that are not yet mixed would take a part of the variance.
    squares = np.mean(np.square(along) / law.variances, axis=(0, 2))
    blocks = np.array_split(np.arange(len(squares)), BLOCKS)
    residuals = [
        np.mean([law.residual(jnp.asarray(chains.trajectory[i]), law.start[1]) for i in few])
        for few in (block[:: -(-len(block) // 5)] for block in blocks)
    ]
    residuals = np.array(residuals) / law.usual_residual
    # Times, in units of sigma^2: of equal ones equally much is known, whatever the step.
    curve = [
        [fraction * options.every * (block[-1] + 1), squares[block].mean(), residual]
        for block, residual in zip(blocks, residuals, strict=True)
    ]
    residual, spread = residuals[BLOCKS // 2 :].mean(), squares[len(squares) // 2 :].mean()
    speed = moved(along, law.variances, options.every)
    along = along[:, len(squares) // 2 :]
    size = np.asarray(diagnostics.effective_sample_size(jnp.asarray(along)))
    steps = along.shape[1] * options.every
    median = float(np.median(size))
    return row | {
        "residual": float(residual),
        "variances": float(spread),
        "effective": median,
        "effective_per_chain": median / options.chains,
        "effective_per_step": median / (steps * options.chains),
        "effective_per_second": median / (steps * seconds),
        "stays": bool(abs(residual - 1.0) <= 0.02 and abs(spread - 1.0) <= 0.1),
        "curve": np.round(np.array(curve, float), 4).tolist(),
        "moved": speed,
    }


def summary(table: Rows, options: argparse.Namespace) -> str:
    """The best step of each sampler at each level, and its gain over Langevin's, as Markdown."""
    same = [row for row in table.rows if row["told"] == options.told]
    lines = ["\n| sigma | sampler | step | effective in 1000 steps | per second | ratio |"]
    lines.append("|---" * 6 + "|")
    for sigma in options.sigmas:
        best = {}
        for name in options.samplers:
            rows = [row for row in same if (row["sigma"], row["sampler"]) == (sigma, name)]
            good = [row for row in rows if row["stays"] and row["effective_per_chain"] >= MIXED]
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


def speeds(table: Rows, options: argparse.Namespace) -> str:
    """Steps until the chains have moved, and how often they go into the least of Langevin's of
    those that stay in the law, by steps and by seconds, as Markdown."""
    lines = ["\n| sigma | sampler | step | residual | variances | stays | steps | ms | ratio |"]
    lines.append("|---" * 9 + "|")
    for sigma in options.sigmas:
        rows = [
            row | {"needs": needs}
            for row in table.rows
            if (row["told"], row["sigma"]) == (options.told, sigma) and "moved" in row
            if (needs := steps_to_move(row, options.far)) is not None
        ]
        plain = [row for row in rows if row["sampler"] == "langevin" and row["stays"]]
        best = min(plain, key=lambda row: row["needs"], default=None)
        for row in rows:
            ratio = ""
            if best is not None:
                steps = best["needs"] / row["needs"]
                seconds = steps * best["seconds_per_step"] / row["seconds_per_step"]
                ratio = f"{steps:.1f}, {seconds:.1f}"
            found = f"{row['residual']:.3f} | {row['variances']:.2f} | {row['stays']}"
            cost = f"{row['needs']:.0f} | {1000 * row['seconds_per_step']:.1f}"
            cells = f"{row['step_size']} | {found} | {cost} | {ratio}"
            lines.append(f"| {sigma} | {row['sampler']} | {cells} |")
    return "\n".join(lines)


def figure(table: Rows, options: argparse.Namespace) -> Any:
    """Both measures of the law by time, in units of sigma^2, a column for each level."""
    shown, axes = plt.subplots(
        2, len(options.sigmas), figsize=(3.2 * len(options.sigmas), 6), squeeze=False, sharex="col"
    )
    for column, sigma in enumerate(options.sigmas):
        for row in sorted(table.rows, key=lambda row: (row["sampler"], row["step_size"])):
            if (row["told"], row["sigma"]) != (options.told, sigma) or "curve" not in row:
                continue
            time, squares, residual = np.transpose(row["curve"])
            look = {"label": f"{row['sampler']}, step {row['step_size']}"}
            look["color"] = f"C{list(GRID).index(row['sampler'])}"
            look["linestyle"] = {0.03: "--", 0.6: "--", 1.0: "--", 2.0: ":"}.get(
                row["step_size"], "-"
            )
            for axis, values in zip(axes[:, column], (squares, residual), strict=True):
                axis.plot(time, values, **look)
        for axis, width in zip(axes[:, column], (0.1, 0.02), strict=True):
            axis.axhspan(1 - width, 1 + width, color="gray", alpha=0.2, linewidth=0)
        axes[0, column].set_title(f"sigma {sigma}")
        axes[1, column].set_xlabel("time, units of sigma^2")
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.25)}
        axes[1, column].legend(fontsize="x-small", **below)
    axes[0, 0].set_ylabel("mean square of components")
    axes[1, 0].set_ylabel("residual")
    shown.tight_layout()
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.5])
    parser.add_argument("--told", action="store_true", help="each chain its class")
    parser.add_argument("--samplers", nargs="+", default=list(GRID), choices=GRID)
    parser.add_argument("--step-sizes", type=float, nargs="+", help="in place of each one's grid")
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--time", type=float, help="in place of --steps, units of sigma^2")
    parser.add_argument("--far", type=float, default=0.05, help="see above, with --time")
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--krylov-vectors", type=int, default=10)
    options = parser.parse_args()
    if options.time is None and options.steps < BLOCKS * options.every:
        parser.error(f"--steps must be at least {BLOCKS} times --every")
    settings = {name: getattr(options, name) for name in ("chains", "every")}
    table = Rows(options.json, ("told", "sigma", "sampler", "step_size", "steps"), settings)
    run = load_run(options.run)
    for sigma in options.sigmas:
        law = Law(run, sigma, options.chains, told=options.told)
        for name in options.samplers:
            for fraction in options.step_sizes or GRID[name]:
                if not table.find(**key_of(options, sigma, name, fraction)):
                    row = measure(run, law, name, sigma, fraction, options)
                    print({k: v for k, v in table.add(row).items() if k != "settings"}, flush=True)
    print((summary if options.time is None else speeds)(table, options))
    if options.figure is not None:
        figures.save(figure(table, options), options.figure)


if __name__ == "__main__":
    main()
