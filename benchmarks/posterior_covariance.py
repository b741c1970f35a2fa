r"""Posterior covariances of held-out images: the second-order model against autodiff of s1.

    make demo
    python benchmarks/posterior_covariance.py --run runs/demo [--other RUN ...] [--json PATH]
        [--without-jacobian]

The same noisy images and the same s1 for all methods of a run:

* direct: the second-order model, one forward pass.
* autodiff: C = I + sigma^2 (J + J^T) / 2 from the whole Jacobian J of s1, D forward derivatives in
  chunks. It need not be positive: eigenvalues are raised to a floor, and of several floors the one
  with the best likelihood on these very images is shown, which no honest user could choose.
* Lanczos: the leading directions of that C from products alone.
* refined: the direct model's directions, corrected by 12 and 24 products with the Jacobian.
* subspace iteration: 12 directions from a random start, 50 steps of 12 finite differences of the
  denoiser (Manor, Michaeli, "On the Posterior Distribution in Denoising", ICLR 2024).
* Hutchinson: the diagonal of that C from random probes, variances raised to the same floors.

NLL, calibration and coverage as in the table of `--test`, in units of sigma; captured: shares of
the squared error in the 5 and 12 leading directions; median seconds per image, compilation left
out, and the memory that XLA plans for one image besides its arguments. `--other` adds the direct
model of other runs, such as one trained with another loss; it has to be of the same data and noise
level.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import autodiff, pointwise, tweedie
from hos_jax.evaluation.held_out import first_held_out
from hos_jax.files import write_atomically
from hos_jax.linops import Diagonal
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import calibration, metrics, posterior_from_covariance

FLOORS = (1e-4, 1e-3, 1e-2, 3e-2, 0.1)
SHOWN, DIRECTIONS = 5, 12
SUBSPACE_STEPS, DIFFERENCE = 50, 0.01


class Images:
    """A run's first held-out images with noise, and its networks at one of them."""

    def __init__(self, folder: Path, count: int):
        self.run = run = load_run(folder)
        self.problem, self.params, self.sigma = run.problem, run.params, run.sigma
        clean, denoised = first_held_out(run.problem, run.params, count)
        self.clean, self.noisy = jnp.asarray(clean.reshape(count, -1)), denoised.noisy

    def score_fn(self, params):
        return pointwise.score_fn(self.run, params)

    def direct(self, params, noisy):
        """C, structured."""
        return pointwise.covariance_fn(self.run, params)(noisy)

    def jacobian(self, params, noisy):
        """C from the whole Jacobian, `Dense`."""
        hessian_fn = autodiff.chunked_hessian_fn(self.score_fn(params), chunk_size=56)
        return hessian_fn(noisy).scale(self.sigma**2).add_identity()

    def leading(self, params, noisy):
        """The leading directions of C from products alone, (D, k)."""
        pairs = autodiff.posterior_eigenpairs(
            jax.random.key(0),
            self.score_fn(params),
            noisy,
            self.sigma,
            count=DIRECTIONS,
            krylov_vectors=40,
        )
        return pairs.eigenvectors

    def refined(self, params, noisy, steps, count=DIRECTIONS):
        """The leading directions of the direct model, corrected by the Jacobian, (D, k)."""
        known = self.direct(params, noisy).scale(self.sigma**2)
        pairs = autodiff.refine_eigenpairs(
            self.score_fn(params), noisy, self.sigma, known, count, steps=steps
        )
        return pairs.eigenvectors

    def iterated(self, params, noisy, directions=DIRECTIONS, steps=SUBSPACE_STEPS):
        """Subspace iteration from a random start by finite differences of the denoiser, (D, k)."""
        score_fn = self.score_fn(params)

        def mean(point):
            return tweedie.posterior_mean(point, score_fn(point), self.sigma)

        def step(vectors, _):
            moved = jax.lax.map(lambda v: mean(noisy + DIFFERENCE * v), vectors.T).T
            left, _, _ = jnp.linalg.svd(moved - mean(noisy)[:, None], full_matrices=False)
            return left, None

        start = jax.random.normal(jax.random.key(2), (len(noisy), directions))
        return jax.lax.scan(step, jnp.linalg.qr(start)[0], length=steps)[0]

    def probed(self, params, noisy, probes):
        """The diagonal of C from random probes, `Diagonal`."""
        found = autodiff.hutchinson_diagonal(
            jax.random.key(1), self.score_fn(params), noisy, probes=probes, chunk_size=25
        )
        return Diagonal(1.0 + self.sigma**2 * found.estimate)

    def timed(self, function):
        """Values for every image, median seconds of one, planned bytes."""
        compiled = jax.jit(function).lower(self.params, self.noisy[0]).compile()
        values, seconds = [], []
        for noisy in self.noisy:
            begun = time.perf_counter()
            values.append(jax.block_until_ready(compiled(self.params, noisy)))
            seconds.append(time.perf_counter() - begun)
        return values, float(np.median(seconds)), compiled.memory_analysis().temp_size_in_bytes


def judge(
    images: Images, covariances, floor: float, directions=None, tails: str = "gaussian"
) -> dict:
    """Averages over the images, and the standard error of the likelihood."""
    sigma = images.sigma

    @jax.jit
    def one(covariance, noisy, clean, given):
        score1 = images.score_fn(images.params)(noisy)
        mean = tweedie.posterior_mean(noisy, score1, sigma)
        found = posterior_from_covariance(mean, covariance, sigma, floor=floor, tails=tails)
        scaled = found.covariance.scale(sigma**-2)
        scores = metrics.covariance_scores((clean - mean) / sigma, scaled, tails)
        inside = calibration.inside_intervals(found, clean)
        vectors = found.top_eigenpairs(DIRECTIONS).eigenvectors if given is None else given
        captured = calibration.captured_shares(clean - mean, vectors)
        return {
            **scores._asdict(),
            "coverage_90": jnp.mean(inside[:, calibration.LEVELS.index(0.9)]),
            "captured_5": captured[SHOWN - 1],
            "captured_12": captured[-1],
            "violations": found.violations.count,
        }

    given = directions or [None] * len(covariances)
    rows = [
        jax.device_get(one(*each))
        for each in zip(covariances, images.noisy, images.clean, given, strict=True)
    ]
    result = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    spread = np.std([row["nll_per_dim"] for row in rows], ddof=1)
    return result | {"nll_standard_error": float(spread / np.sqrt(len(rows))), "floor": floor}


def best_floor(images: Images, covariances, tails: str = "gaussian") -> dict:
    """With the floor that has the best likelihood."""
    rows = [judge(images, covariances, floor, tails=tails) for floor in FLOORS]
    return min(rows, key=lambda row: row["nll_per_dim"])


def judge_direct(images: Images, covariances) -> dict:
    """With the floor of the head, which `--test` has too; without a positive one, the best."""
    head = images.problem.model.head
    if not head.positive_definite:
        return best_floor(images, covariances)
    return judge(images, covariances, min(FLOORS[0], head.floor), tails=head.tails)


def compare(options) -> list[dict]:
    images = Images(options.run, options.images)
    rows = []

    def add(method, found, seconds, memory):
        rows.append({"method": method, **found, "seconds": seconds, "bytes": memory})
        print(_line(rows[-1]), flush=True)

    direct, seconds, memory = images.timed(images.direct)
    add("direct", judge_direct(images, direct), seconds, memory)
    if not options.without_jacobian:
        covariances, seconds, memory = images.timed(images.jacobian)
        add("autodiff, whole Jacobian", best_floor(images, covariances), seconds, memory)
    searches = {
        "autodiff, Lanczos directions": images.leading,
        "refined, 12 products": functools.partial(images.refined, steps=1),
        "refined, 24 products": functools.partial(images.refined, steps=2),
        "subspace iteration, 600 differences": images.iterated,
    }
    for method, search in searches.items():
        directions, seconds, memory = images.timed(search)
        found = judge(images, direct, 0.1, directions)
        shares = {name: found[name] for name in ("captured_5", "captured_12")}
        add(method, shares, seconds, memory)
    for probes in options.probes:
        covariances, seconds, memory = images.timed(functools.partial(images.probed, probes=probes))
        found = best_floor(images, covariances)
        del found["captured_5"], found["captured_12"]
        add(f"autodiff, {probes} Hutchinson probes", found, seconds, memory)
    for folder in options.other:
        other = Images(folder, options.images)
        if not np.array_equal(other.noisy, images.noisy):
            raise SystemExit(f"{folder} has other data or noise than {options.run}")
        covariances, seconds, memory = other.timed(other.direct)
        loss = other.problem.config.loss.second_order
        add(f"direct, {folder.name} ({loss})", judge_direct(other, covariances), seconds, memory)
    return rows


COLUMNS = (
    "nll_per_dim",
    "calibration",
    "coverage_90",
    "captured_5",
    "captured_12",
    "violations",
    "floor",
)


def _line(row: dict) -> str:
    cells = "".join(f"{row[name]:>13.4g}" if name in row else f"{'':>13}" for name in COLUMNS)
    return f"{row['method']:<36}{cells}{row['seconds']:>11.4f}{row['bytes'] / 2**20:>10.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--probes", type=int, nargs="*", default=[25, 200])
    parser.add_argument("--without-jacobian", action="store_true", help="no D x D array is made")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    titles = "".join(f"{name:>13}" for name in COLUMNS)
    print(f"{'method':<36}{titles}{'s / image':>11}{'MiB':>10}")
    rows = compare(options)
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
