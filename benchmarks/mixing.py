r"""Mixing of Ozaki against Langevin on targets with exact scores, each at its own best step size.

    python benchmarks/mixing.py [--json PATH] [--targets NAME ...]

With `--json` rows are written as they finish, and what is there is not run again. "Soft" targets
are Gaussians in 100 dimensions that are narrow but along ten directions, with variances spread up
to the condition number: their Hessian has the isotropic plus low-rank form, the others' is dense,
and taken apart by `eigh`, or with "Lanczos" in the target's name by 20 Krylov vectors.

For every target and sampler the step size runs over a grid. A step size counts only if it is
unbiased enough: the mean and the standard deviation along every eigendirection of the target's
covariance are within 10% of the standard deviation of their true values (beyond three standard
errors). Of those the best has the largest effective sample size (the smallest over eigendirections
of x and of x^2, blackjax's estimate), per evaluation of the scores and per second. Chains start
from the target itself: what is measured is mixing, not burn-in. Seconds are those of the compiled
loop on this machine, compilation left out (the fastest 50 steps of all that a sampler ran); both
samplers run the same number of chains and steps.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from chain_timing import seconds_per_step
from measure import Rows

from hos_jax import distributions
from hos_jax.linops import IsotropicPlusLowRank
from hos_jax.samplers import diagnostics, langevin, ozaki, run_chains


def _gaussian(dim: int, condition: float):
    return distributions.random_correlated_gaussian(jax.random.key(dim), dim, condition)


class SoftGaussian(NamedTuple):
    """N(0, Sigma) with Sigma^-1 = c I - U U^T, U of orthogonal columns: stiff but along these."""

    stiffness: float
    factor: jax.Array

    def sample(self, key, count):
        values, vectors = jnp.linalg.eigh(-self.hessian(self.factor[:, 0]).to_dense())
        noise = jax.random.normal(key, (count, len(self.factor)))
        return noise / jnp.sqrt(values) @ vectors.T

    def score(self, point):
        return self.hessian(point).matvec(point)

    def hessian(self, point):
        del point
        return IsotropicPlusLowRank.from_multiple(-self.stiffness, self.factor)


def _soft(dim: int, condition: float, rank: int = 10) -> SoftGaussian:
    basis = jax.random.orthogonal(jax.random.key(dim), dim)[:, :rank]
    precisions = jnp.geomspace(1.0, condition, rank, endpoint=False)
    return SoftGaussian(condition, basis * jnp.sqrt(condition - precisions))


def _two_modes(distance: float):
    return distributions.GaussianMixture(
        jnp.array([0.5, 0.5]),
        jnp.array([[-distance / 2, 0.0], [distance / 2, 0.0]]),
        stds=jnp.array([1.0, 0.5]),
    )


TARGETS = {
    f"gaussian{dim}, condition {condition}": functools.partial(_gaussian, dim, condition)
    for dim in (2, 100)
    for condition in (1, 10, 100, 1000)
}
TARGETS |= {
    f"soft100, condition {condition}": functools.partial(_soft, 100, condition)
    for condition in (10, 100, 1000)
}
TARGETS |= {
    f"gaussian100, condition {condition}, Lanczos": functools.partial(_gaussian, 100, condition)
    for condition in (1, 10, 100, 1000)
}
TARGETS["two modes, 3 apart"] = functools.partial(_two_modes, 3.0)
TARGETS["two modes, 5 apart"] = functools.partial(_two_modes, 5.0)
# Of the smallest curvature radius squared for Langevin, of the largest for Ozaki.
GRID = np.geomspace(0.01, 10.0, 10)


def _moments(law, samples):
    """Eigendirections of the covariance, and mean and standard deviation along them."""
    covariance = np.cov(np.asarray(samples).T)
    _, vectors = np.linalg.eigh(covariance)
    along = np.asarray(samples) @ vectors
    return vectors, along.mean(axis=0), along.std(axis=0)


def judge(law, positions: np.ndarray) -> tuple[float, bool]:
    """Of chains (chains, steps, D) the effective sample size of the worst direction, and whether
    they are biased; what is not a number is."""
    if not np.isfinite(positions).all():
        return 0.0, True
    vectors, mean, deviation = _moments(law, law.sample(jax.random.key(1), 100_000))
    along = positions @ vectors
    size = np.minimum(
        diagnostics.effective_sample_size(jnp.asarray(along)),
        diagnostics.effective_sample_size(jnp.asarray((along - mean) ** 2)),
    )
    error = 1.0 / np.sqrt(np.maximum(size, 1.0))
    mean_bias = np.abs(along.mean(axis=(0, 1)) - mean) / deviation
    spread_bias = np.abs(along.std(axis=(0, 1)) / deviation - 1.0)
    biased = bool(np.any(np.maximum(mean_bias, spread_bias) > 0.1 + 3.0 * error))
    return float(np.min(size)), biased


def measure(law, name: str, step_size: float, dense: str, options) -> dict:
    """Effective sample size, bias and seconds of one sampler at one step size."""
    if name == "ozaki":
        derivatives_fn = ozaki.join(law.score, law.hessian)
        sampler = ozaki.as_top_level_api(derivatives_fn, step_size, dense=dense)
    else:
        sampler = langevin.as_top_level_api(law.score, step_size)
    states = jax.jit(jax.vmap(sampler.init))(law.sample(jax.random.key(2), options.chains))

    def run(key):
        return run_chains(
            key,
            sampler.step,
            states,
            options.steps,
            chunk=options.steps,
            collect=lambda state: state.position,
        )

    seconds = seconds_per_step(sampler, states, 50, repeats=3) * options.steps
    chains = run(jax.random.key(3))
    size, biased = judge(law, np.moveaxis(chains.trajectory, 0, 1))
    return {"step_size": float(step_size), "ess": size, "biased": biased, "seconds": seconds}


def compare(target: str, options) -> dict:
    """The best of each sampler on one target, and their ratios."""
    law = TARGETS[target]()
    eigenvalues = np.linalg.eigvalsh(np.cov(np.asarray(law.sample(jax.random.key(0), 20_000)).T))
    dense = "lanczos" if "Lanczos" in target else "eigh"
    found = {}
    for name, unit in (("langevin", eigenvalues[0]), ("ozaki", eigenvalues[-1])):
        rows = [measure(law, name, float(unit * factor), dense, options) for factor in GRID]
        allowed = [row for row in rows if not row["biased"]] or rows[:1]
        # What a step costs does not depend on its size: the fastest is the least disturbed.
        fastest = min(row["seconds"] for row in rows)
        found[name] = max(allowed, key=lambda row: row["ess"]) | {"seconds": fastest}
    evaluations = options.chains * options.steps
    result = {"target": target, "evaluations": evaluations}
    for name, row in found.items():
        result[name] = row | {
            "ess_per_evaluation": row["ess"] / evaluations,
            "ess_per_second": row["ess"] / row["seconds"],
        }
    for unit in ("evaluation", "second"):
        per = f"ess_per_{unit}"
        result[f"ratio_per_{unit}"] = result["ozaki"][per] / result["langevin"][per]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--chains", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    options = parser.parse_args()
    settings = {"chains": options.chains, "steps": options.steps}
    table = Rows(options.json, ("target",), settings)
    print(f"{'':<36}{'step size':>20}{'ESS per evaluation':>22}{'ratio Ozaki / Langevin':>26}")
    print(
        f"{'target':<36}{'Langevin':>10}{'Ozaki':>10}{'Langevin':>11}{'Ozaki':>11}"
        f"{'evaluation':>14}{'second':>12}"
    )
    for target in options.targets:
        if table.find(target=target) is not None:
            continue
        row = table.add(compare(target, options))
        first, second = row["langevin"], row["ozaki"]
        print(
            f"{target:<36}{first['step_size']:>10.3g}{second['step_size']:>10.3g}"
            f"{first['ess_per_evaluation']:>11.3g}{second['ess_per_evaluation']:>11.3g}"
            f"{row['ratio_per_evaluation']:>14.3g}{row['ratio_per_second']:>12.3g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
