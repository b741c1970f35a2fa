r"""Variance of the gradient of each second-order loss at the exact scores, by noise level.

    python benchmarks/gradient_variance.py [--json PATH] [--figure PATH] [--law mixture10]

The model is S(y) = S_exact(y) + Theta with a symmetric matrix Theta of parameters, at Theta = 0 and
with the exact s1: what is left is the noise of the loss itself. Losses of different curvature
compare by their Newton step: the gradient divided by the number of terms ||S||_F^2 / 2 in the loss,
and for the likelihood 2 C G C. The table shows the total variance of one example's step (the trace
of its covariance), times the number of points per example that the loss evaluates, so that equal
numbers of network evaluations compare; and the largest deviation of the mean step from zero, in
standard errors, over all entries of Theta.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from hos_jax import losses
from hos_jax.evaluation import figures
from hos_jax.linops import Dense
from hos_jax.noise import perturb

SIGMAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
POINTS = {"d2sm": 1, "d2sm_vr": 3, "d2sm_residual_plain": 2, "d2sm_residual": 3, "residual_nll": 1}


def gradients(name: str, smooth, sigma: float, clean, noise, coefficients):
    """The Newton step in Theta of one example, (D, D), dimensionless."""
    pair = perturb(clean, noise, sigma)

    def model(y, theta):
        scaled = Dense(smooth.hessian(y).to_dense() * sigma**2 + theta)
        return smooth.score(y), scaled

    def loss(theta):
        points = [model(y, theta) for y in (pair.plus, pair.minus, clean)]
        (score, scaled), (score_minus, scaled_minus), (_, scaled_clean) = points
        if name in ("d2sm", "d2sm_vr"):
            flat = [item for s1, s in points for item in (s1, s.scale(sigma**-2))]
            if name == "d2sm":
                return losses.d2sm(*flat[:2], noise, sigma) * sigma**4
            return losses.d2sm_vr(*flat, noise, sigma) * sigma**4
        residual = losses.residual(score, noise, sigma)
        if name == "residual_nll":
            return losses.residual_nll(residual, scaled.add_identity())
        residual_minus = losses.residual(score_minus, -noise, sigma)
        control = scaled_clean if name == "d2sm_residual" else None
        terms = losses.d2sm_residual_terms(
            residual, scaled, residual_minus, scaled_minus, noise, control
        )
        return losses.d2sm_residual(terms, coefficients)

    dim = clean.shape[0]
    gradient = jax.grad(loss)(jnp.zeros((dim, dim)))
    gradient = 0.5 * (gradient + gradient.T)
    if name == "residual_nll":
        covariance = model(pair.plus, jnp.eye(dim))[1].to_dense()
        return 2.0 * covariance @ gradient @ covariance
    return gradient / (1 if name == "d2sm" else 2)


def coefficients_of(smooth, sigma, clean, noise):
    """The control variates' coefficients at the exact scores, (2,)."""

    def terms(x, z):
        pair = perturb(x, z, sigma)
        scaled = [smooth.hessian(y).scale(sigma**2) for y in (pair.plus, pair.minus, x)]
        plus = losses.residual(smooth.score(pair.plus), z, sigma)
        minus = losses.residual(smooth.score(pair.minus), -z, sigma)
        return losses.d2sm_residual_terms(plus, scaled[0], minus, scaled[1], z, scaled[2])

    return losses.control_coefficients(jax.vmap(terms)(clean, noise))


def measure(law, name: str, sigma: float, count: int) -> dict:
    smooth = law.smooth(sigma)
    clean_key, noise_key = jax.random.split(jax.random.key(7))
    clean = law.sample(clean_key, count)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)

    @jax.jit
    def run(clean, noise):
        coefficients = coefficients_of(smooth, sigma, clean, noise)
        found = jax.vmap(lambda x, z: gradients(name, smooth, sigma, x, z, coefficients))(
            clean, noise
        )
        mean, deviation = jnp.mean(found, axis=0), jnp.std(found, axis=0)
        worst = jnp.max(jnp.abs(mean) / deviation) * np.sqrt(count)
        return jnp.sum(jnp.square(deviation)), worst, coefficients

    variance, worst, coefficients = jax.device_get(run(clean, noise))
    return {
        "loss": name,
        "sigma": sigma,
        "variance": float(variance) * POINTS[name],
        "largest_deviation": float(worst),
        "coefficients": coefficients.tolist() if name == "d2sm_residual" else None,
    }


def figure(rows: list[dict], path: Path) -> None:
    """The variances by noise level, one line per loss."""
    plot, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    for name in POINTS:
        chosen = [row for row in rows if row["loss"] == name]
        axes.loglog(
            [row["sigma"] for row in chosen],
            [row["variance"] for row in chosen],
            marker="o",
            label=name,
        )
    axes.set_xlabel("sigma (data units)")
    axes.set_ylabel("variance of the step x points per example")
    axes.legend()
    axes.grid(alpha=0.3)
    figures.save(plot, path)


def main() -> None:
    from accuracy import LAWS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--law", default="mixture10", choices=list(LAWS))
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    law = LAWS[options.law][0]()
    rows = []
    print(f"{'loss':<20}{'sigma':>7}{'variance':>12}{'mean / s.e.':>13}{'coefficients':>14}")
    for name in POINTS:
        for sigma in SIGMAS:
            row = measure(law, name, sigma, options.count)
            rows.append({"law": options.law, **row})
            shown = " ".join(f"{value:.2f}" for value in row["coefficients"] or ())
            print(
                f"{name:<20}{sigma:>7}{row['variance']:>12.4g}"
                f"{row['largest_deviation']:>13.1f}{shown:>14}",
                flush=True,
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if options.figure:
        figure(rows, options.figure)


if __name__ == "__main__":
    main()
