r"""Likelihood by the flow of a score that is trained by first, second and third order.

    python benchmarks/third_order_likelihood.py [--json PATH]

The score of many noise levels of an anisotropic mixture of five Gaussians (as in few_steps.py), by
a small network, s1 alone. With the residual r = z + sigma s1 and C = I + sigma^2 J, J the network's
own derivative, each order adds a term (Lu, Zheng, Bao, Chen, Li, Zhu, "Maximum Likelihood Training
for Score-based Diffusion ODEs by High-order Denoising Score Matching", 2022), gradients stopped in
what is set against it:

    first   |r|^2 / D
    second  w2 (|C - r r^T|^2 + (tr C - |r|^2)^2) / D^2
    third   w3 |sigma^3 grad tr J + (|r|^2 - tr C) r - 2 C r|^2 / D^3

All have as many steps on the same batches; seconds a step are beside them. The gap is the mean of
log q - log p_ODE over draws of q, the data smoothed by the smallest noise, in nats a dimension: the
divergence of the flow's law from the truth, with the exact divergence of J. Two pairs of weights
are there to choose from, on a seed that is not reported.
"""

from __future__ import annotations

import argparse
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from few_steps import Mixture
from measure import Rows

from hos_jax import fit
from hos_jax.models import MLP
from hos_jax.uncertainty import likelihood

SMALLEST, LARGEST = 0.1, 10.0
NETWORK = MLP(out_channels=1, features=128, depth=3)
# Of the second and of the third order.
WEIGHTS = {"first": (0.0, 0.0), "second": (0.1, 0.0), "second, more": (1.0, 0.0)}
WEIGHTS |= {"third": (0.1, 0.01), "third, more": (1.0, 0.1)}
# What the flow's tolerances and the law at the largest noise leave.
EXACT = "exact score"
NAMES = [EXACT, *WEIGHTS]


def score(params, noisy, sigma):
    """s1 at one point, preconditioned for data of unit size (Karras et al. 2022)."""
    total = jnp.sqrt(1.0 + jnp.square(sigma))
    inputs = jnp.append(noisy / total, jnp.log(sigma) / 4.0)
    output = NETWORK.apply(params, inputs.reshape(1, -1, 1, 1)).ravel()[:-1]
    return output / (sigma * total) - noisy / jnp.square(total)


def terms(params, clean, noise, sigma, order):
    """The three terms of one example, without their weights; 0 above `order`."""
    noisy, dim = clean + sigma * noise, clean.shape[0]
    score_fn = functools.partial(score, params, sigma=sigma)
    residual = noise + sigma * score_fn(noisy)
    known = jax.lax.stop_gradient(residual)
    square = jnp.sum(jnp.square(known))
    found = [jnp.sum(jnp.square(residual)) / dim, jnp.zeros(()), jnp.zeros(())]
    if order == 1:
        return found

    def covariance_fn(point):
        return jnp.eye(dim) + jnp.square(sigma) * jax.jacfwd(score_fn)(point)

    covariance = covariance_fn(noisy)
    whole = jnp.sum(jnp.square(covariance - jnp.outer(known, known)))
    found[1] = (whole + jnp.square(jnp.trace(covariance) - square)) / dim**2
    if order == 3:
        fixed = jax.lax.stop_gradient(covariance)
        slope = sigma * jax.grad(lambda point: jnp.trace(covariance_fn(point)))(noisy)
        target = (square - jnp.trace(fixed)) * known - 2.0 * fixed @ known
        found[2] = jnp.sum(jnp.square(slope + target)) / dim**3
    return found


def train(key, law, dim, weights, steps, batch_size):
    """Parameters, and the seconds of one step."""
    order = 1 if not any(weights) else 2 if not weights[1] else 3

    def loss_fn(key, params):
        keys = jax.random.split(key, 3)
        clean = law.sample(keys[0], batch_size, 0.0)
        noise = jax.random.normal(keys[1], clean.shape)
        ends = np.log([SMALLEST, LARGEST])
        sigma = jnp.exp(jax.random.uniform(keys[2], (batch_size,), minval=ends[0], maxval=ends[1]))
        each = jax.vmap(functools.partial(terms, params, order=order))(clean, noise, sigma)
        return sum(w * jnp.mean(one) for w, one in zip((1.0, *weights), each, strict=True))

    init_key, loop_key = jax.random.split(key)
    params = NETWORK.init(init_key, jnp.zeros((1, dim + 1, 1, 1)))
    fitted = jax.jit(lambda key, params: fit.minimize(key, loss_fn, params, steps=steps))
    fitted = fitted.lower(loop_key, params).compile()
    begun = time.perf_counter()
    params = jax.block_until_ready(fitted(loop_key, params))
    return params, (time.perf_counter() - begun) / steps


def gap(key, law, dim, score_fn, count):
    """Mean of log q - log p_ODE, nats a dimension, and its standard error over draws."""
    draw_key, moment_key = jax.random.split(key)
    points = law.sample(draw_key, count, SMALLEST)
    # The law at the largest level is nearly the Gaussian of the data's moments, smoothed.
    many = law.sample(moment_key, 100_000, 0.0)
    end = likelihood.gaussian_log_density(many.mean(axis=0), LARGEST**2 + many.var(axis=0))
    trace_fn = likelihood.exact_trace_fn(score_fn, chunk_size=dim)

    def of_one(point):
        found = likelihood.log_likelihood(point, trace_fn, SMALLEST, LARGEST, end)
        return law.log_density(point, SMALLEST) - found.log_density

    found = np.asarray(jax.jit(jax.vmap(of_one))(points)) / dim
    return found.mean(), found.std(ddof=1) / count**0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dims", type=int, nargs="+", default=[2, 10])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--orders", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--points", type=int, default=1000)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "batch_size", "points")}
    rows = Rows(options.json, ("dim", "seed", "order"), settings)
    for dim in options.dims:
        for seed in options.seeds:
            law_key, train_key, test_key = jax.random.split(jax.random.key(seed), 3)
            law = Mixture.random(law_key, dim)
            for order in options.orders:
                key = {"dim": dim, "seed": seed, "order": order}
                if rows.find(**key):
                    continue
                seconds, score_fn = 0.0, lambda y, sigma, law=law: law.derivatives(y, sigma)[0]
                if order != EXACT:
                    size = options.steps, options.batch_size
                    params, seconds = train(train_key, law, dim, WEIGHTS[order], *size)
                    score_fn = functools.partial(score, params)
                found, error = gap(test_key, law, dim, score_fn, options.points)
                row = {"gap": float(found), "error": float(error), "seconds_per_step": seconds}
                print(rows.add({**key, **row}), flush=True)
    print("\n| dimensions | order | gap, nats a dimension | ms a step |\n|---|---|---|---|")
    for dim in options.dims:
        for order in options.orders:
            found = [rows.find(dim=dim, seed=seed, order=order) for seed in options.seeds]
            gaps = np.array([row["gap"] for row in found])
            spread = gaps.std(ddof=1) / len(gaps) ** 0.5 if len(gaps) > 1 else np.nan
            milliseconds = 1000 * np.mean([row["seconds_per_step"] for row in found])
            print(f"| {dim} | {order} | {gaps.mean():.4f} ({spread:.4f}) | {milliseconds:.1f} |")


if __name__ == "__main__":
    main()
