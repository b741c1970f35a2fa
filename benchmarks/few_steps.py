r"""Reverse diffusion in few steps: what the covariance of a step is worth, and other samplers.

    python benchmarks/few_steps.py exact [--json PATH]
    python benchmarks/few_steps.py mixtures [--json PATH]
    python benchmarks/few_steps.py learned --run RUN [RUN ...] [--json PATH] [--figure PATH]

With `--json` rows are written as they finish, and what is there is not run again.

`exact`: exact scores of an anisotropic mixture of five Gaussians in 8 dimensions (means standard
normal, variances 0.01 to 1 in a random basis each), Karras levels from 10 to 0.05, chains that
start right. Two measures by number of steps. The path KL, of ancestral steps: the sum over steps of
E log q(y_s | y_t) / N(y_s; m, Q), by exact densities, in nats; it is the gap of the bound on the
likelihood. And the sliced 2-Wasserstein distance of the chains' ends from draws of the law smoothed
by 0.05, whose components have their exact shares; "floor" is that of as many independent draws.

`mixtures`: the two figures by which samplers are compared, of eight such mixtures: the distances
after 5 steps and the path KL of 10.

`learned`: samples of trained models, see `learned_steps.py`.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import learned_steps
import numpy as np
from measure import Rows

from hos_jax.linops import Dense
from hos_jax.noise import karras_sigmas
from hos_jax.samplers import diagnostics, diffusion, reverse_chains

LARGEST, SMALLEST = 10.0, 0.05
# The last for ancestral steps alone: by then the distances are at their floor.
STEPS = (5, 10, 20, 80)
SAMPLERS = {f"ancestral, {name}": diffusion.ancestral(name) for name in diffusion.COVARIANCES}
SAMPLERS |= {
    "ddim": diffusion.ddim(),
    "ddim, full": diffusion.ddim("full"),
    "heun": diffusion.heun(),
    "second order": diffusion.second_order(),
    "second order, gradient": diffusion.second_order(gradient=True),
}


class Mixture(NamedTuple):
    """Gaussians of equal weight by means (K, D), variances (K, D) and bases (K, D, D), so that a
    noise level of its own for each chain costs no factorization."""

    means: jax.Array
    variances: jax.Array
    bases: jax.Array

    @classmethod
    def random(cls, key, dim: int = 8, count: int = 5) -> Mixture:
        mean_key, *keys = jax.random.split(key, count + 1)
        bases = jnp.stack([jax.random.orthogonal(one, dim) for one in keys])
        variances = jnp.tile(jnp.geomspace(0.01, 1.0, dim), (count, 1))
        return cls(jax.random.normal(mean_key, (count, dim)), variances, bases)

    def log_terms(self, noisy, sigma):
        """log w_k + log N_k of the smoothed components, (K,), and their gradients, (K, D)."""
        variances = self.variances + sigma**2
        offsets = jnp.einsum("kdi,kd->ki", self.bases, noisy - self.means)
        logs = -0.5 * jnp.sum(offsets**2 / variances + jnp.log(2 * jnp.pi * variances), axis=1)
        gradients = -jnp.einsum("kdi,ki->kd", self.bases, offsets / variances)
        return logs - np.log(len(self.means)), gradients

    def log_density(self, noisy, sigma):
        return jax.scipy.special.logsumexp(self.log_terms(noisy, sigma)[0])

    def derivatives(self, noisy, sigma):
        """s1 and s2 of the smoothed law, as in `distributions.GaussianMixture`."""
        logs, gradients = self.log_terms(noisy, sigma)
        weights = jax.nn.softmax(logs)
        score = weights @ gradients
        deviations = gradients - score
        scaled = self.bases * (weights[:, None] / (self.variances + sigma**2))[:, None, :]
        precision = jnp.einsum("kdi,kei->de", scaled, self.bases)
        return score, Dense(deviations.T @ (weights[:, None] * deviations) - precision)

    def sample(self, key, count: int, sigma, *, exact_shares: bool = False):
        """Draws of the smoothed law, (count, D)."""
        label_key, noise_key = jax.random.split(key)
        labels = jax.random.randint(label_key, (count,), 0, len(self.means))
        if exact_shares:
            labels = jnp.arange(count) % len(self.means)
        noise = jax.random.normal(noise_key, (count, self.means.shape[1]))
        scaled = noise * jnp.sqrt(self.variances[labels] + sigma**2)
        return self.means[labels] + jnp.einsum("ndi,ni->nd", self.bases[labels], scaled)


@functools.partial(jax.jit, static_argnames=("covariance", "count"))
def step_kl(law: Mixture, key, start, end, *, covariance: str, count: int):
    """Mean and squared standard error of log q(y_s | y_t) / N(y_s; m, Q) of one ancestral step."""
    end_key, noise_key = jax.random.split(key)
    after = law.sample(end_key, count, end)
    step, ratio = (start - end) * (start + end), (end / start) ** 2
    before = after + jnp.sqrt(step) * jax.random.normal(noise_key, after.shape)

    def log_ratio(before, after):
        score, hessian = law.derivatives(before, start)
        matrix = diffusion.step_covariance(hessian, start, covariance, before)
        drawn = matrix.scale(step * (1 - ratio)).add_identity(step * ratio)
        error = after - before - step * score
        guessed = drawn.inverse_quadratic_form_and_logdet(error)
        known = jnp.sum((before - after) ** 2) / step + len(after) * jnp.log(step)
        exact = law.log_density(after, end) - law.log_density(before, start)
        return exact + 0.5 * (sum(guessed) - known)

    values = jax.vmap(log_ratio)(before, after)
    return jnp.mean(values), jnp.var(values) / count


def path_kl(law: Mixture, covariance: str, sigmas, count: int) -> tuple[float, float]:
    """The sum over the steps, in nats, and its standard error."""
    keys = jax.random.split(jax.random.key(1), len(sigmas) - 1)
    found = [
        jax.device_get(step_kl(law, *step, covariance=covariance, count=count))
        for step in zip(keys, sigmas[:-1], sigmas[1:], strict=True)
    ]
    mean, variance = np.sum(found, axis=0)
    return float(mean), float(variance**0.5)


def distances(law: Mixture, kernel, sigmas, chains: int, seeds: int) -> list[float]:
    """Sliced Wasserstein distance of the chains' ends from the law, for each seed; of independent
    draws instead of chains where there is no kernel."""
    wasserstein = jax.jit(functools.partial(diagnostics.sliced_wasserstein, projections=200))
    found = []
    for seed in range(seeds):
        keys = jax.random.split(jax.random.key(100 + seed), 4)
        known = law.sample(keys[0], chains, SMALLEST, exact_shares=True)
        if kernel is None:
            ends = law.sample(keys[1], chains, SMALLEST)
        else:
            start = law.sample(keys[1], chains, LARGEST)
            ran = reverse_chains(keys[2], kernel, law.derivatives, start, sigmas)
            assert ran.is_finite.all()
            ends = ran.states.position
        found.append(float(wasserstein(keys[3], ends, known)))
    return found


def exact(options) -> None:
    """Exact scores: rows by sampler and number of steps, then both tables."""
    settings = {"chains": options.chains, "seeds": options.seeds}
    rows = Rows(options.json, ("part", "sampler", "steps"), settings)
    law = Mixture.random(jax.random.key(0))
    for name, kernel in {"floor": None, **SAMPLERS}.items():
        ancestral = name.startswith("ancestral")
        for steps in (STEPS if ancestral else STEPS[:-1]) if kernel else (0,):
            if rows.find(part="exact", sampler=name, steps=steps):
                continue
            sigmas = karras_sigmas(LARGEST, SMALLEST, steps + 1)
            apart = distances(law, kernel, sigmas, options.chains, options.seeds)
            row = {"part": "exact", "sampler": name, "steps": steps}
            row |= {"evaluations": steps * (1 + (name == "heun"))}
            row |= {"wasserstein": float(np.mean(apart))}
            row |= {"wasserstein_error": float(np.std(apart, ddof=1) / np.sqrt(len(apart)))}
            if ancestral:
                covariance = name.partition(", ")[2]
                kl = path_kl(law, covariance, sigmas, options.chains)
                row |= {"path_kl": kl[0], "path_kl_error": kl[1]}
            rows.add(row)
            print(row, flush=True)
    for column, title in (("path_kl", "path KL"), ("wasserstein", "sliced W2")):
        print(f"\n| {title} by steps | " + " | ".join(map(str, STEPS)) + " |")
        print("|---" * (1 + len(STEPS)) + "|")
        for name in SAMPLERS:
            found = [rows.find(part="exact", sampler=name, steps=steps) for steps in STEPS]
            cells = [
                f"{row[column]:.3f} ({row[f'{column}_error']:.3f})" if row and column in row else ""
                for row in found
            ]
            if any(cells):
                print(f"| {name} | " + " | ".join(cells) + " |")
    floor = rows.find(part="exact", sampler="floor", steps=0)
    if floor is not None:
        print(f"\nfloor of sliced W2: {floor['wasserstein']:.3f}")


def mixtures(options) -> None:
    """Rows by mixture, and the ratios to the whole covariance over all of them."""
    settings = {"chains": options.chains, "seeds": options.seeds}
    rows = Rows(options.json, ("mixture",), settings)
    five, ten = (karras_sigmas(LARGEST, SMALLEST, steps + 1) for steps in (5, 10))
    shown = ("ancestral, diagonal", "ancestral, full", "ddim", "ddim, full", "heun")
    for number in range(8):
        if rows.find(mixture=number):
            continue
        law = Mixture.random(jax.random.key(number))
        row: dict = {"mixture": number}
        for name, kernel in {"floor": None, **{name: SAMPLERS[name] for name in shown}}.items():
            apart = distances(law, kernel, five, options.chains, options.seeds)
            row[name] = float(np.mean(apart))
        for covariance in ("diagonal", "full"):
            row[f"path_kl, {covariance}"] = path_kl(law, covariance, ten, options.chains)[0]
        print(rows.add(row), flush=True)
    print("\n| ratio | mean | smallest | largest |\n|---|---|---|---|")
    whole = "ancestral, full"
    pairs = [(name, whole) for name in shown if name != whole]
    for above, below in [*pairs, ("path_kl, diagonal", "path_kl, full")]:
        ratios = [row[above] / row[below] for row in rows.rows]
        error = np.std(ratios, ddof=1) / np.sqrt(len(ratios))
        cells = f"{np.mean(ratios):.2f} ({error:.2f}) | {min(ratios):.2f} | {max(ratios):.2f}"
        print(f"| {above} / {below} | {cells} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = parser.add_subparsers(dest="part", required=True)
    for run_part, what in ((exact, "of a mixture"), (mixtures, "of eight of them")):
        part = parts.add_parser(run_part.__name__, help=f"exact scores {what}")
        part.add_argument("--json", type=Path)
        part.add_argument("--chains", type=int, default=10_000)
        part.add_argument("--seeds", type=int, default=3)
        part.set_defaults(run_part=run_part)
    learned_steps.add_arguments(parts.add_parser("learned", help="samples of trained models"))
    options = parser.parse_args()
    options.run_part(options)


if __name__ == "__main__":
    main()
