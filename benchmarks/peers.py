"""Beside the libraries that one would take otherwise, each judged by exact scores, in one run.

    python benchmarks/peers.py [--json PATH] [--parts PART ...]

* chains: Langevin and Ozaki steps of this package, MALA and NUTS of blackjax, on targets of
  `mixing.py`, each at its own best step size of a grid: effective samples (of the worst direction
  of x and x^2) per evaluation of the score and per second. A step size counts only where mean and
  standard deviation along every direction are right within 10%. One compiled loop for all. NUTS has
  no mass matrix, as the others have none.
* derivatives: the diagonal and the trace of the Hessian of a mixture in 50 dimensions: a head that
  `fit.train_second_order` learned, matfree's estimates from random signs, all columns by JAX, and
  `jax.hessian` of the log density. Root mean square errors over points, relative to that of the
  exact values, and seconds a point. The score itself is a formula here, not a network: for the
  cost beside a network see `hessian_cost.py`.
* schedules: DDIM of `diffusers` and `samplers.ddim`, the same levels and exact scores: the largest
  difference of their ends over the deviation of these; and DDPM's ancestral step beside
  `samplers.ancestral("small")`, by mean and deviation of many chains.

A package that is not installed is skipped with a word.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import mixing
import numpy as np
from matfree import stochtrace
from measure import Compiled, Rows, seconds_side_by_side

from hos_jax import distributions, fit, models, tweedie
from hos_jax.samplers import diffusion, langevin, ozaki

TARGETS = (
    *("gaussian2, condition 100", "gaussian100, condition 10", "gaussian100, condition 100"),
    "two modes, 3 apart",
)
GRID = np.geomspace(0.01, 10.0, 8)
PARTS = ("chains", "derivatives", "schedules")
SIGMA, DIM, POINTS = 0.5, 50, 64


def samplers(law: Any) -> dict[str, Callable[[float], Any]]:
    """What makes each sampler of a step, in units of what it is limited by."""
    covariance = np.cov(np.asarray(law.sample(jax.random.key(0), 20_000)).T)
    narrow, *_, wide = np.linalg.eigvalsh(covariance)
    joined = ozaki.join(law.score, law.hessian)
    mass = jnp.ones(law.dim)

    def nuts(step: float) -> Any:
        root = float(np.sqrt(narrow * step))
        return blackjax.nuts(law.log_density, root, mass, max_num_doublings=6)

    return {
        "Langevin": lambda step: langevin.as_top_level_api(law.score, narrow * step),
        "Ozaki": lambda step: ozaki.as_top_level_api(joined, wide * step),
        "MALA, blackjax": lambda step: blackjax.mala(law.log_density, narrow * step),
        "NUTS, blackjax": nuts,
    }


def chain_row(law: Any, make: Callable, step: float, options: argparse.Namespace) -> dict[str, Any]:
    """Effective samples of one sampler at one step size, evaluations, seconds, and the bias."""
    sampler = make(step)
    starts = law.sample(jax.random.key(2), options.chains)
    states = jax.jit(jax.vmap(sampler.init))(starts)

    def run(states: Any) -> Any:
        def one(states: Any, key: jax.Array) -> Any:
            states, info = jax.vmap(sampler.step)(jax.random.split(key, options.chains), states)
            # Of a step of NUTS as many as it made leaps.
            evaluations = getattr(info, "num_integration_steps", jnp.ones(options.chains, int))
            return states, (states.position, evaluations)

        return jax.lax.scan(one, states, jax.random.split(jax.random.key(3), options.steps))[1]

    compiled = jax.jit(run).lower(states).compile()
    jax.block_until_ready(compiled(states))
    begun = time.perf_counter()
    positions, evaluations = jax.block_until_ready(compiled(states))
    seconds = time.perf_counter() - begun
    size, biased = mixing.judge(law, np.moveaxis(np.asarray(positions), 0, 1))
    return {"step": float(step), "ess": size, "biased": biased, "seconds": seconds} | {
        "evaluations": int(np.sum(evaluations))
    }


def compare_chains(rows: Rows, options: argparse.Namespace) -> None:
    """A row for each target and sampler, at its best step."""
    for target in TARGETS:
        law = mixing.TARGETS[target]()
        for name, make in samplers(law).items():
            if rows.find(part="chains", case=target, way=name) is None:
                tried = [chain_row(law, make, step, options) for step in GRID]
                allowed = [row for row in tried if not row["biased"]] or tried[:1]
                best = max(allowed, key=lambda row: row["ess"] / row["evaluations"])
                found = rows.add({"part": "chains", "case": target, "way": name, **best})
                print_row(found, ess_per_evaluation=best["ess"] / best["evaluations"])


def relative(found: Any, exact: Any) -> float:
    """Root mean square error over that of the exact values."""
    return float(np.sqrt(np.mean(np.square(found - exact)) / np.mean(np.square(exact))))


def compare_derivatives(rows: Rows, _: argparse.Namespace) -> None:
    """A row for each way to the diagonal and the trace of s2."""
    keys = jax.random.split(jax.random.key(0), 3)
    # Near enough to one another that the responsibilities, and with them s2, change from place to
    # place, and with correlations.
    means = 0.3 * jax.random.normal(keys[0], (4, DIM))
    parts = [distributions.random_correlated_gaussian(key, DIM, 30.0) for key in keys]
    covariances = jnp.stack([0.5 * part.covariance for part in [parts[0], *parts]])
    law = distributions.GaussianMixture(jnp.full(4, 0.25), means, covariances=covariances)
    smooth = law.smooth(SIGMA)
    points = smooth.sample(keys[1], POINTS)
    exact = np.stack([np.asarray(smooth.hessian(point).diagonal()) for point in points])
    network = functools.partial(models.MLP, features=128)
    model = models.HessianModel(network, models.SecondOrderHead("low_rank", rank=20))
    hessian_fn = fit.train_second_order(
        keys[2], smooth.score, model, law.sample, SIGMA, dim=DIM, steps=2000
    )

    def signs(count: int) -> Callable:
        """By matfree, of so many random signs."""
        sampler = stochtrace.sampler_signs(jnp.zeros(DIM), num=count)
        integrand = stochtrace.monte_carlo_trace_and_diagonal()
        estimate = stochtrace.estimator_monte_carlo(integrand, sampler)

        def one(point: jax.Array) -> jax.Array:
            product = jax.linearize(smooth.score, point)[1]
            return estimate(product, jax.random.key(4))["diagonal"]

        return one

    ways = {
        "head, one evaluation": lambda point: hessian_fn(point).diagonal(),
        "matfree, 10 signs": signs(10),
        "matfree, 100 signs": signs(100),
        "jax.jacfwd of the score": lambda point: jnp.diagonal(jax.jacfwd(smooth.score)(point)),
        "jax.hessian of the density": lambda p: jnp.diagonal(jax.hessian(smooth.log_density)(p)),
    }
    compiled = {name: Compiled(jax.vmap(way), points) for name, way in ways.items()}
    seconds = seconds_side_by_side({name: c.run for name, c in compiled.items()}, repeats=5)
    for name, spent in seconds.items():
        found = np.asarray(compiled[name].run())
        row = {"part": "derivatives", "case": f"mixture in {DIM} dimensions", "way": name}
        row |= {"diagonal": relative(found, exact), "seconds": min(spent) / POINTS}
        row |= {"trace": relative(found.sum(axis=1), exact.sum(axis=1))}
        print_row(rows.add(row))


def compare_schedules(rows: Rows, options: argparse.Namespace) -> None:
    """Ends of `diffusers` schedulers beside ours, from the same points, by exact scores."""
    if importlib.util.find_spec("diffusers") is None or importlib.util.find_spec("torch") is None:
        print("schedules: skipped, pip install diffusers torch")
        return
    import torch
    from diffusers import DDIMScheduler, DDPMScheduler

    law = mixing.TARGETS["two modes, 3 apart"]()
    score_fn = jax.jit(jax.vmap(lambda y, sigma: law.smooth(sigma).score(y), (0, None)))
    scheduler_of = {"DDIM": DDIMScheduler, "DDPM": DDPMScheduler}
    kernels = {"DDIM": diffusion.ddim(), "DDPM": diffusion.ancestral("small")}
    for name, steps in (("DDIM", 20), ("DDPM", 200)):
        clip = {"clip_sample": False, "timestep_spacing": "trailing"}
        scheduler = scheduler_of[name](num_train_timesteps=1000, **clip)
        scheduler.set_timesteps(steps)
        kept = scheduler.alphas_cumprod.numpy().astype(np.float64)[scheduler.timesteps.numpy()]
        sigmas = np.sqrt((1 - kept) / kept)
        noise = jax.random.normal(jax.random.key(6), (options.draws, law.dim))
        # Variance exploding: y = x + sigma z, which is the scheduler's sample over sqrt(alpha).
        start = sigmas[0] * noise
        sample = torch.tensor(np.asarray(start * np.sqrt(kept[0])))
        generator = torch.Generator().manual_seed(0)
        more = {"generator": generator} if name == "DDPM" else {}
        for t, alpha, sigma in zip(scheduler.timesteps, kept, sigmas, strict=True):
            score = score_fn(sample.numpy() / np.float32(np.sqrt(alpha)), jnp.float32(sigma))
            predicted = torch.tensor(-np.float32(sigma) * np.asarray(score))
            sample = scheduler.step(predicted, t, sample, **more).prev_sample
        theirs = sample.numpy()

        def derivatives_fn(y: jax.Array, sigma: jax.Array) -> Any:
            smooth = law.smooth(sigma)
            return smooth.score(y), smooth.hessian(y)

        levels = jnp.asarray(sigmas, jnp.float32)
        ends = diffusion.reverse_chains(
            jax.random.key(7), kernels[name], derivatives_fn, start, levels
        )
        ours = ends.states.position
        # Their last step goes on to the denoised point.
        score = score_fn(ours, levels[-1])
        ours = np.asarray(jax.vmap(tweedie.posterior_mean, (0, 0, None))(ours, score, levels[-1]))
        row = {"part": "schedules", "case": f"{name}, {steps} steps", "way": "two modes"}
        row |= {"mean": float(np.max(np.abs(ours.mean(axis=0) - theirs.mean(axis=0))))}
        row |= {"deviation": float(np.max(np.abs(ours.std(axis=0) / theirs.std(axis=0) - 1)))}
        row["standard_error"] = float(np.sqrt(2 / options.draws) * theirs.std(axis=0).max())
        if name == "DDIM":
            row["largest"] = float(np.max(np.abs(ours - theirs)) / theirs.std())
        print_row(rows.add(row))


def print_row(row: dict[str, Any], **more: float) -> None:
    """One line; numbers in four digits."""
    numbers = {k: v for k, v in {**row, **more}.items() if isinstance(v, float | int)}
    said = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
    print(f"{row['case']:<28}{row['way']:<28}{said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=2000, help="chains of the schedules")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("chains", "steps", "draws")}
    rows = Rows(options.json, ("part", "case", "way"), settings)
    made = {"chains": compare_chains, "derivatives": compare_derivatives}
    made["schedules"] = compare_schedules
    for part in options.parts:
        made[part](rows, options)


if __name__ == "__main__":
    main()
