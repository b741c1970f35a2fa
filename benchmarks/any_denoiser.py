r"""Error bars for a denoiser that is only called, on photographs that nothing was trained on.

    python benchmarks/photographs.py PHOTOGRAPHS --wheels WHEELS
    hos-jax second_order --denoiser FILE.py:NAME --data PHOTOGRAPHS --sigma 15/255:50/255 --doc NAME
    python benchmarks/any_denoiser.py --run RUN [--diagonal RUN] [--jacobian] [--json PATH]
    python benchmarks/any_denoiser.py --run RUN --beside RUN --picture FILE --figure PATH

At each of `--sigmas`, of 255, squares of the pictures in PHOTOGRAPHS/held_out. Every second picture
(by name) chooses: the variance of "constant", the floors of autodiff, the widths of recalibrated
intervals. The others report, so that nothing is chosen on what judges it. NLL and calibration in
units of sigma as in the table of `--test`; coverage of 90% intervals, the model's own and
recalibrated; the share of the squared error in the 5 and 12 leading directions; median seconds per
square.

* direct: the run's covariance, one pass. diagonal: that of another run, with a diagonal head.
  scaled: times the mean of r^T C^-1 r / D on the pictures that choose, one number a level, which
  is right for second moments and best for the Gaussian likelihood alone.
* constant: one variance for all values, the mean squared error at that level.
* autodiff: the whole Jacobian of the denoiser (`--jacobian`), where there is a derivative.
* Runs of Student's tails have the likelihood and the intervals of these; then constant and autodiff
  are shown with the Gaussian law and with these, autodiff each time with the floor that is best.
* refined: the direct model's directions, corrected by 12 products with the Jacobian, six in each of
  two steps; subspace iteration: 5 directions from a random start, 30 steps of 5 differences. The
  searches of `posterior_covariance.py`, with other counts.
* wrong sigma: direct, where the noise is 20% larger or smaller than the run and the denoiser are
  told.

The second form draws a picture with noise at the first of `--sigmas`, a row for each run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import posterior_covariance
from measure import Rows
from posterior_covariance import FLOORS, SHOWN, best_floor, judge

from hos_jax import pointwise, tweedie
from hos_jax.data import to_float
from hos_jax.data.crops import HELD_OUT_FOLDER, cut
from hos_jax.data.pictures import read_picture
from hos_jax.evaluation import figures, picture
from hos_jax.linops import Diagonal
from hos_jax.training.runs import LoadedRun, load_run
from hos_jax.uncertainty import calibration, posterior_from_covariance

CHOOSE, REPORT = 0, 1


def squares(run: LoadedRun, size: int, count: int, part: int) -> np.ndarray:
    """So many squares of every second held-out picture, evenly over them, data units."""
    folder = Path(run.problem.config.data.root) / HELD_OUT_FOLDER
    rng, chosen = np.random.default_rng(part), []
    files = sorted(folder.iterdir())[part::2]
    for file in files:
        crops = cut(read_picture(file, grey=run.image_shape[2] == 1), size)
        chosen.append(crops[rng.permutation(len(crops))[: -(-count // len(files))]])
    return to_float(np.concatenate(chosen)[:count], run.problem.data.value_range)


class Squares(posterior_covariance.Images):
    """Squares of held-out pictures with noise at one level, and the run at one of them."""

    def __init__(self, run: LoadedRun, clean: np.ndarray, sigma: float, noise: float):
        self.run, self.problem, self.params, self.sigma = run, run.problem, run.params, sigma
        self.shape = clean.shape[1:]
        self.clean = jnp.asarray(clean.reshape(len(clean), -1))
        drawn = jax.random.normal(jax.random.key(7), self.clean.shape)
        self.noisy = self.clean + noise * drawn

    def score_fn(self, params: Any) -> Any:
        return pointwise.score_fn(self.run.model, params, self.sigma, self.shape)

    def direct(self, params: Any, noisy: jax.Array) -> Any:
        return pointwise.covariance_fn(self.run.model, params, self.sigma, self.shape)(noisy)

    def errors(self) -> np.ndarray:
        """What the denoiser leaves, in units of sigma, (N, D)."""

        def one(noisy: jax.Array, clean: jax.Array) -> jax.Array:
            score = self.score_fn(self.params)(noisy)
            return (clean - tweedie.posterior_mean(noisy, score, self.sigma)) / self.sigma

        return np.asarray(
            jax.jit(lambda *pair: jax.lax.map(lambda p: one(*p), pair))(self.noisy, self.clean)
        )


def recalibrated(choose: Squares, report: Squares, floor: float) -> float:
    """The share of values in 90% intervals whose widths were learned on other pictures."""

    def known(images: Squares) -> tuple[np.ndarray, np.ndarray]:
        @jax.jit
        def variance(noisy: jax.Array) -> jax.Array:
            found = posterior_from_covariance(
                noisy, images.direct(images.params, noisy), images.sigma, floor=floor
            )
            return found.diagonal() / images.sigma**2

        return np.stack([np.asarray(variance(noisy)) for noisy in images.noisy]), images.errors()

    table = calibration.interval_multipliers(*(each.ravel() for each in known(choose)))
    variance, error = known(report)
    widths = table[np.asarray(calibration.bin_of(variance)), calibration.LEVELS.index(0.9)]
    return float(np.mean(np.abs(error) <= widths * np.sqrt(variance)))


def measure(options: argparse.Namespace, table: Rows) -> None:
    """A row for each noise level and way."""
    run = load_run(options.run)
    diagonal = None if options.diagonal is None else load_run(options.diagonal)
    low, high = run.problem.data.value_range
    parts = [squares(run, options.size, options.squares, part) for part in (CHOOSE, REPORT)]
    for level in options.sigmas:
        sigma = level / 255.0 * (high - low)
        choose, report = (Squares(run, clean, sigma, sigma) for clean in parts)

        def add(way: str, seconds: float | None = None, level: float = level, **found: Any) -> None:
            table.add({"sigma": level, "way": way, "seconds": seconds, **found})
            print(level, way, found, flush=True)

        floor, tails = min(FLOORS[0], run.problem.model.head.floor), run.model.head.tails
        direct, seconds, _ = report.timed(report.direct)
        found = judge(report, direct, floor, tails=tails)
        add("direct", seconds, **found, recalibrated_90=recalibrated(choose, report, floor))
        factor = judge(choose, choose.timed(choose.direct)[0], floor)["calibration"]
        add("direct, scaled", None, **scaled(report, direct, floor, factor, tails))
        laws = {"": "gaussian"} | ({", Student's tails": tails} if tails == "student" else {})
        mean_square = float(np.mean(np.square(choose.errors())))
        same = Diagonal(jnp.full(report.noisy.shape[1], mean_square))
        for name, law in laws.items():
            add("constant" + name, **judge(report, [same] * len(report.noisy), floor, tails=law))
        if diagonal is not None:
            other = Squares(diagonal, parts[REPORT], sigma, sigma)
            found, seconds, _ = other.timed(other.direct)
            law = diagonal.model.head.tails
            add("diagonal", seconds, **judge(other, found, floor, tails=law))
            before = Squares(diagonal, parts[CHOOSE], sigma, sigma)
            factor = judge(before, before.timed(before.direct)[0], floor)["calibration"]
            add("diagonal, scaled", None, **scaled(other, found, floor, factor, law))
        for share in (0.8, 1.2):
            wrong = Squares(run, parts[REPORT], sigma, share * sigma)
            found = judge(wrong, wrong.timed(wrong.direct)[0], floor, tails=tails)
            add(f"direct, noise {share} of what is told", **found)
        if not run.model.differentiable:
            continue
        if options.jacobian:
            choices, (covariances, seconds, _) = (
                images.timed(images.jacobian) for images in (choose, report)
            )
            for name, law in laws.items():
                chosen = best_floor(choose, choices[0], law)
                known, factor = chosen["floor"], chosen["calibration"]
                found = judge(report, covariances, known, tails=law)
                add("autodiff, whole Jacobian" + name, seconds, **found)
                found = scaled(report, covariances, known, factor, law)
                add("autodiff, scaled" + name, None, **found)
        for way, search in (
            (
                "refined, 12 products",
                lambda p, y, images=report: images.refined(p, y, steps=2, count=6),
            ),
            (
                "subspace iteration, 150 differences",
                lambda p, y, images=report: images.iterated(p, y, SHOWN, 30),
            ),
        ):
            directions, seconds, _ = report.timed(search)
            found = judge(report, direct, floor, directions)
            add(way, seconds, captured_5=found["captured_5"])


def draw(runs: list[LoadedRun], file: Path, level: float, path: Path) -> None:
    """The picture, noisy, denoised, with predicted and true deviations, by each of the runs."""
    rows = []
    for run in runs:
        low, high = run.problem.data.value_range
        sigma = level / 255.0 * (high - low)
        rows.append(picture.denoise_file(run, file, sigma=sigma, add_noise=True))
        print(rows[-1].summary())
    columns = [[getattr(row, name) for row in rows] for name in ("clean", "noisy", "mean")]
    deviations = np.stack([row.deviation for row in rows])
    stacked = (np.stack(column) for column in columns)
    # As the runs say with --config.comment.
    names = [run.problem.config.comment or run.problem.config.model.denoiser for run in runs]
    shown = figures.denoising_panel(*stacked, deviations, rows[0].value_range, sigma, names)
    figures.save(shown, path)


def scaled(images: Squares, covariances: list, floor: float, factor: float, tails: str) -> dict:
    """With all covariances, raised to the floor, times one factor."""
    raised = [each.floor(floor)[0].scale(factor) for each in covariances]
    return judge(images, raised, floor * factor, tails=tails)


COLUMNS = (
    "nll_per_dim",
    "calibration",
    "coverage_90",
    "recalibrated_90",
    "captured_5",
    "captured_12",
)


def markdown(rows: list[dict]) -> str:
    """The rows as a table."""
    lines = ["| sigma of 255 | way | " + " | ".join(COLUMNS) + " | seconds |"]
    lines.append("|---" * (3 + len(COLUMNS)) + "|")
    for row in rows:
        cells = [f"{row[name]:.3f}" if row.get(name) is not None else "" for name in COLUMNS]
        seconds = "" if row.get("seconds") is None else f"{row['seconds']:.4f}"
        lines.append(f"| {row['sigma']} | {row['way']} | " + " | ".join([*cells, seconds]) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--diagonal", type=Path)
    parser.add_argument("--sigmas", type=float, nargs="+", default=[15, 25, 50])
    parser.add_argument("--size", type=int, default=32, help="side of a square")
    parser.add_argument("--squares", type=int, default=48)
    parser.add_argument("--jacobian", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--beside", type=Path, nargs="*", default=[], help="more runs, to draw")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    if options.picture is not None:
        runs = [load_run(each, images=False) for each in (options.run, *options.beside)]
        draw(runs, options.picture, options.sigmas[0], options.figure)
        return
    settings = {"run": options.run.name, "size": options.size, "squares": options.squares}
    table = Rows(options.json, ("sigma", "way"), settings)
    measure(options, table)
    print(markdown(table.rows))


if __name__ == "__main__":
    main()
