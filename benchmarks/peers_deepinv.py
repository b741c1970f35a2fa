r"""Posterior samples of linear inverse problems beside deepinv's, judged by the exact posterior.

    pip install deepinv==0.5.0
    python benchmarks/peers_deepinv.py [--json PATH] [--budgets 20 100 500]

A Gaussian and a mixture of three Gaussians in 16 dimensions, written once for JAX and once for
PyTorch, so that all see exact scores; the first 8 values are measured with noise of deviation 0.1.
The posterior is known. Of deepinv: `DDRM`, `ULA` and `PosteriorDiffusion` (exploding noise, its
`AncestralSolver`, the last point denoised) guided as DPS, as pseudoinverse guidance and by matched
moments, which takes the Jacobian by automatic differentiation for the covariance. (`DiffPIR` is
left out, as it takes images of values in [0, 1].) Ours: `inverse.sample_posterior` with the exact
covariance, which is exact in law on a Gaussian, for any number of steps.

A pass is one evaluation of the denoiser or one product with its transposed Jacobian; both are
counted. A pass of ours gives mean and covariance at once, as those of a second-order model do. Each
way takes as many steps as the passes of a budget allow, and the setting of a grid (`GRIDS`) that
has the smallest distance on another measurement. What is said:

- mean: of the samples, off the exact mean, in exact deviations, root mean square; of exact draws
  about 1 / sqrt(draws).
- deviation: of the samples over the exact one, mean over values that are not measured.
- measured deviation: the same over values that are.
- distance: sliced 2-Wasserstein distance to exact draws, over that of as many exact draws.

Means and standard errors over measurements, each with its own random numbers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
from pathlib import Path
from typing import Any, NamedTuple

import deepinv
import jax
import jax.numpy as jnp
import numpy as np
import torch
from deepinv import physics as physics_of
from deepinv import sampling
from deepinv.optim import ScorePrior
from deepinv.optim.data_fidelity import L2
from measure import Rows

from hos_jax import distributions, uncertainty
from hos_jax.noise import geometric_sigmas
from hos_jax.samplers.diagnostics import sliced_wasserstein
from hos_jax.uncertainty import inverse

DIM, SEEN, NOISE_STD = 16, 8, 0.1
LARGEST, SMALLEST = 10.0, 0.05
SHAPE = 1, 4, 4
WAYS = ("ours", "DDRM", "ULA", "DPS", "pseudoinverse", "matched moments")
# Step size over the variance of the noise; weight; iterations of conjugate gradients; eta.
GRIDS = {
    "ULA": [0.3, 1.0, 1.5],
    "DPS": [1.0, 10.0, 100.0, 1000.0],
    "matched moments": [3, 8],
    "DDRM": [0.5, 0.85, 1.0],
}


def make_law(count: int) -> distributions.GaussianMixture:
    """So many Gaussians, with means about as far apart as they are wide."""
    keys = jax.random.split(jax.random.key(0), count)
    parts = [distributions.random_correlated_gaussian(key, DIM, 30.0) for key in keys]
    means = jax.random.normal(jax.random.key(1), (count, DIM))
    covariances = jnp.stack([part.covariance for part in parts])
    return distributions.GaussianMixture(jnp.full(count, 1 / count), means, covariances)


def posterior_of(law: distributions.GaussianMixture, values: np.ndarray) -> Any:
    """The exact law of x given its first values with noise, a mixture too."""
    weights, means, covariances = map(np.asarray, (law.weights, law.means, law.covariances))
    logs, centres, spreads = [], [], []
    for weight, mean, covariance in zip(weights, means, covariances, strict=True):
        inside = covariance[:SEEN, :SEEN] + NOISE_STD**2 * np.eye(SEEN)
        gain = covariance[:, :SEEN] @ np.linalg.inv(inside)
        off = values - mean[:SEEN]
        logs.append(
            np.log(weight)
            - 0.5 * (off @ np.linalg.solve(inside, off) + np.linalg.slogdet(inside)[1])
        )
        centres.append(mean + gain @ off)
        spread = covariance - gain @ covariance[:SEEN]
        spreads.append(0.5 * (spread + spread.T))
    shares = np.exp(np.array(logs) - max(logs))
    parts = (shares / shares.sum(), np.stack(centres), np.stack(spreads))
    return distributions.GaussianMixture(*(jnp.asarray(part, jnp.float32) for part in parts))


class Denoiser(deepinv.models.Denoiser):
    """The posterior mean of the law in PyTorch, with counts of passes."""

    def __init__(self, law: distributions.GaussianMixture) -> None:
        super().__init__()
        self.passes = 0
        self.logs = torch.tensor(np.log(np.asarray(law.weights)))
        self.means = torch.tensor(np.asarray(law.means))
        self.variances, self.axes = torch.linalg.eigh(torch.tensor(np.asarray(law.covariances)))

    def forward(self, x: torch.Tensor, sigma: Any, **_: Any) -> torch.Tensor:
        self.passes += 1
        sigma = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1)
        off = torch.einsum("bkd,kde->bke", x.reshape(len(x), 1, DIM) - self.means, self.axes)
        spread = self.variances + sigma**2
        logs = self.logs - 0.5 * torch.sum(off**2 / spread + torch.log(spread), dim=-1)
        shares = torch.softmax(logs, dim=-1)
        parts = torch.einsum("bke,kde->bkd", self.variances / spread * off, self.axes)
        mean = torch.einsum("bk,bkd->bd", shares, self.means + parts).reshape(x.shape)
        if mean.requires_grad:
            mean.register_hook(self.count)
        return mean

    def count(self, gradient: torch.Tensor) -> None:
        """A product with the transposed Jacobian."""
        self.passes += 1


def observe(law: distributions.GaussianMixture, seed: int) -> np.ndarray:
    """Values that are measured, (SEEN,)."""
    clean_key, noise_key = jax.random.split(jax.random.key(seed))
    clean = law.sample(clean_key, 1)[0, :SEEN]
    return np.asarray(clean + NOISE_STD * jax.random.normal(noise_key, (SEEN,)))


def by_deepinv(
    way: str, setting: float, passes: int, denoiser: Denoiser, values, count: int, seed: int
) -> np.ndarray:
    """Samples (count, DIM) by a sampler of deepinv."""
    mask = torch.zeros(SHAPE)
    mask.reshape(-1)[:SEEN] = 1.0
    physics = physics_of.Inpainting(SHAPE, mask=mask)
    physics.noise_model = physics_of.GaussianNoise(NOISE_STD)
    measured = torch.zeros(count, DIM)
    measured[:, :SEEN] = torch.tensor(values)
    measured = measured.reshape(count, *SHAPE)
    torch.manual_seed(seed)
    sigmas = np.geomspace(LARGEST, SMALLEST, passes)
    if way == "DDRM":
        found = sampling.DDRM(denoiser, sigmas=sigmas, eta=setting)(measured, physics)
    elif way == "ULA":
        step = setting * NOISE_STD**2
        sampler = sampling.ULA(
            *(ScorePrior(denoiser), L2(sigma=NOISE_STD), step, SMALLEST),
            **{"max_iter": passes, "thinning": 1, "clip": None, "thresh_conv": 0.0},
            save_chain=True,
        )
        sampler(measured, physics, x_init=torch.randn(measured.shape))
        found = sampler.get_chain()[-1]["x"]
    else:
        fidelities = {
            "DPS": (sampling.DPSDataFidelity, 2, {"weight": setting}),
            "pseudoinverse": (sampling.PiGDMDataFidelity, 2, {}),
            "matched moments": (
                *(sampling.MomentMatchingDataFidelity, setting + 3),
                {"cg_max_iter": setting},
            ),
        }
        make, each, settings = fidelities[way]
        steps = max(int((passes - 1) // each), 2)
        times = np.linspace(1.0, 0.0, steps + 1)
        exploding = sampling.VarianceExplodingDiffusion(
            denoiser, sigma_min=SMALLEST, sigma_max=LARGEST
        )
        sampler = sampling.PosteriorDiffusion(
            make(denoiser=denoiser, **settings),
            denoiser,  # that of `exploding` is taken for one of images in [-1, 1]
            exploding,
            solver=sampling.AncestralSolver(timesteps=times),
            minus_one_one=False,
        )
        found = sampler(measured, physics, x_init=measured.shape, seed=seed)
    return found.detach().reshape(count, DIM).numpy().astype(np.float32)


def ours(
    law: distributions.GaussianMixture, passes: int, values, count: int, seed: int
) -> np.ndarray:
    """Samples (count, DIM) by `inverse.sample_posterior`."""
    observation = inverse.Observation(
        jnp.asarray(values, jnp.float32), NOISE_STD, lambda x: x[:SEEN]
    )
    sigmas = geometric_sigmas(LARGEST, SMALLEST, passes)

    def posterior_fn(noisy: jax.Array, sigma: Any) -> Any:
        smooth = law.smooth(sigma)
        return uncertainty.posterior(noisy, smooth.score(noisy), smooth.hessian(noisy), sigma)

    def draw(key: jax.Array) -> jax.Array:
        start_key, key = jax.random.split(key)
        start = sigmas[0] * jax.random.normal(start_key, (DIM,))
        return inverse.sample_posterior(key, posterior_fn, observation, start, sigmas)

    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(seed), count)))


def judge(
    found: np.ndarray, posterior: distributions.GaussianMixture, seed: int
) -> dict[str, float]:
    """The numbers of the head of this file."""
    exact_key, more_key, key = jax.random.split(jax.random.fold_in(jax.random.key(2), seed), 3)
    exact = posterior.sample(exact_key, 20_000)
    mean, spread = np.asarray(exact.mean(axis=0)), np.asarray(exact.std(axis=0))
    more = np.asarray(posterior.sample(more_key, len(found)))
    ratios = found.std(axis=0) / spread

    def distance(samples: np.ndarray) -> float:
        at = jax.random.clone(key)
        reference = exact[: len(samples)]
        return float(sliced_wasserstein(at, jnp.asarray(samples), reference, projections=200))

    return {
        "mean": float(np.sqrt(np.mean(((found.mean(axis=0) - mean) / spread) ** 2))),
        "deviation": float(np.mean(ratios[SEEN:])),
        "measured deviation": float(np.mean(ratios[:SEEN])),
        "distance": distance(found) / distance(more),
    }


class Case(NamedTuple):
    """A law, measurements of it, and what x is given each."""

    name: str
    law: distributions.GaussianMixture
    denoiser: Denoiser
    observed: list[np.ndarray]
    posteriors: list[distributions.GaussianMixture]

    def run(self, way: str, setting: float, budget: int, number: int, draws: int) -> dict:
        """What `judge` says of one way and measurement, and its passes."""
        self.denoiser.passes, values = 0, self.observed[number]
        if way == "ours":
            found, passes = ours(self.law, budget, values, draws, number), budget
        else:
            found = by_deepinv(way, setting, budget, self.denoiser, values, draws, number)
            passes = self.denoiser.passes
        return judge(found, self.posteriors[number], number) | {"passes": passes}


def make_case(count: int, measurements: int) -> Case:
    """One measurement more than said: the first is that by which settings are chosen."""
    law = make_law(count)
    observed = [observe(law, seed) for seed in range(measurements + 1)]
    posteriors = [posterior_of(law, values) for values in observed]
    return Case(f"{count} Gaussian{'s' * (count > 1)}", law, Denoiser(law), observed, posteriors)


def measure(rows: Rows, options: argparse.Namespace) -> None:
    """A row for each law, budget and way."""
    cases = [make_case(count, options.measurements) for count in (1, 3)]
    for case, budget, way in itertools.product(cases, options.budgets, WAYS):
        if rows.find(case=case.name, budget=budget, way=way):
            continue
        run = functools.partial(case.run, way, budget=budget, draws=options.draws)
        grid = GRIDS.get(way, [1.0])
        distances = [run(setting, number=0)["distance"] for setting in grid]
        setting = grid[int(np.argmin(distances))]
        each = [run(setting, number=n + 1) for n in range(options.measurements)]
        row: dict[str, Any] = {"case": case.name, "budget": budget, "way": way, "setting": setting}
        for name in each[0]:
            values = np.array([found[name] for found in each])
            row[name] = float(values.mean())
            row[f"{name}_error"] = float(values.std(ddof=1) / np.sqrt(len(values)))
        rows.add(row)
        judged = "".join(
            f"{row[name]:>9.3f} ({row[name + '_error']:.3f})"
            for name in ("mean", "deviation", "measured deviation", "distance")
        )
        print(f"{case.name:<13}{way:<17}{setting:>6g}{row['passes']:>6.0f}{judged}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 100, 500])
    parser.add_argument("--measurements", type=int, default=8)
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("measurements", "draws")}
    titles = "".join(f"{name:>17}" for name in ("mean", "deviation", "of measured", "distance"))
    print(f"{'law':<13}{'way':<17}{'':>6}{'passes':>6}{titles}")
    measure(Rows(options.json, ("case", "budget", "way"), settings), options)


if __name__ == "__main__":
    main()
