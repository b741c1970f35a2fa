r"""Leading posterior directions in 100 dimensions, where the exact posterior is known.

    python benchmarks/posterior_directions.py [--json PATH]

A mixture of five Gaussians in 100-D, each with eight directions of its own of variance 0.1 to 1 and
0.01 elsewhere; sigma 0.5. s1 is learned by dsm_vr, s2 with that s1 by heads of several structures
(of rank 20 where they have columns) and losses; autodiff differentiates an s1 of twice the
training. "jacobian" has that s1 too, and half as many steps for s2, whose network begins as that of
s1. "refined" corrects a model's directions by 12 products with its s1. At fresh noisy points, for
the k leading directions V of each estimate of K = Cov[x | y], with eigenvalues l:

* captured: tr(V^T K V) / tr(K) with the exact K; exact PCA has the largest possible.
* W2: the 2-Wasserstein distance, data units, between N(mean, V diag(l) V^T) of the estimate and
  that of the exact posterior: mean, directions and sizes together.

Averages over the points, which have standard errors below 2% of them.
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

from hos_jax import autodiff, distributions, fit, pointwise, tweedie
from hos_jax.files import write_atomically
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel

DIM, SIGMA, COUNTS = 100, 0.5, (3, 6, 9, 12)
# Structure, loss, and the evaluations of a network that it takes per example.
KINDS = (
    ("diagonal", "d2sm_residual", 3),
    ("low_rank", "d2sm_residual", 3),
    ("low_rank", "residual_nll", 1),
    ("low_rank", "jacobian", 3),
    ("dense", "d2sm_residual", 3),
)


def make_law() -> distributions.GaussianMixture:
    rng = np.random.default_rng(100)
    covariances = []
    for _ in range(5):
        directions, _ = np.linalg.qr(rng.normal(size=(DIM, 8)))
        sizes = rng.uniform(0.1, 1.0, size=8)
        covariances.append((directions * sizes) @ directions.T + 0.01 * np.eye(DIM))
    return distributions.GaussianMixture(
        jnp.full(5, 0.2), jnp.asarray(0.3 * rng.normal(size=(5, DIM))), jnp.asarray(covariances)
    )


def estimates(options, law, smooth) -> dict:
    """Name -> function from noisy points to means (N, D) and covariances (N, D, D)."""
    network = functools.partial(MLP, features=options.width, depth=3)
    score_model = ScoreModel(network, data_std=0.5)
    keys = jax.random.split(jax.random.key(0), 2)

    def covariance_of(hessian_fn):
        def one(noisy):
            return tweedie.posterior_covariance(hessian_fn(noisy), SIGMA).to_dense()

        return one

    def learn_score(steps):
        train = functools.partial(
            fit.fit_score,
            model=score_model,
            sample=law.sample,
            sigma=SIGMA,
            dim=DIM,
            steps=steps,
            batch_size=options.evaluations // 3,
            loss="dsm_vr",
            learning_rate=options.learning_rate,
        )
        params = jax.jit(train)(keys[0])
        return params, pointwise.score_fn(score_model, params, SIGMA)

    def refined(score_fn, hessian_fn):
        def one(noisy):
            known = tweedie.posterior_covariance(hessian_fn(noisy), SIGMA)
            pairs = autodiff.refine_eigenpairs(score_fn, noisy, SIGMA, known, max(COUNTS))
            return (pairs.eigenvectors * pairs.eigenvalues) @ pairs.eigenvectors.T

        return one

    found = {"exact": (smooth.score, covariance_of(smooth.hessian))}
    longer_params, longer = learn_score(2 * options.steps)
    found["autodiff"] = (longer, covariance_of(autodiff.dense_hessian_fn(longer)))
    _, shorter = learn_score(options.steps)
    for structure, loss, points in KINDS:
        head = SecondOrderHead(structure, rank=20, positive_definite=loss == "residual_nll")
        jacobian = loss == "jacobian"
        score_fn = longer if jacobian else shorter
        hessian_fn = fit.train_second_order(
            keys[1],
            score_fn,
            HessianModel(network, head, data_std=0.5),
            law.sample,
            SIGMA,
            dim=DIM,
            steps=options.steps // 2 if jacobian else options.steps,
            batch_size=options.evaluations // points,
            loss=loss,
            start_from=longer_params if jacobian else None,
            learning_rate=options.learning_rate,
        )
        name = f"{structure}, {loss}"
        found[name] = (score_fn, covariance_of(hessian_fn))
        if structure != "diagonal":
            found[f"{name}, refined"] = (score_fn, refined(score_fn, hessian_fn))
    return found


def leading(covariance, count):
    """Eigenvalues (k,), none negative, and eigenvectors (D, k), of a batch."""
    values, vectors = jnp.linalg.eigh(covariance)
    return jnp.maximum(values[:, ::-1][:, :count], 0.0), vectors[:, :, ::-1][:, :, :count]


def compare(found: dict, noisy) -> list[dict]:
    def moments(functions):
        score_fn, covariance_fn = functions
        mean = noisy + SIGMA**2 * jax.vmap(score_fn)(noisy)
        return mean, jax.lax.map(covariance_fn, noisy)

    exact_mean, exact = jax.jit(lambda: moments(found["exact"]))()
    rows = []
    for name, functions in found.items():
        mean, covariance = jax.jit(functools.partial(moments, functions))()
        for count in COUNTS:
            sizes, vectors = leading(covariance, count)
            true_sizes, true_vectors = leading(exact, count)
            captured = jnp.einsum("ndk,nde,nek->n", vectors, exact, vectors)
            captured /= jnp.trace(exact, axis1=1, axis2=2)
            overlap = jnp.einsum("ndk,ndl->nkl", vectors, true_vectors)
            overlap *= jnp.sqrt(sizes)[:, :, None] * jnp.sqrt(true_sizes)[:, None]
            common = jnp.sum(jnp.linalg.svd(overlap, compute_uv=False), axis=1)
            squared = jnp.sum(jnp.square(mean - exact_mean), axis=1)
            squared += jnp.sum(sizes, axis=1) + jnp.sum(true_sizes, axis=1) - 2 * common
            distance = jnp.sqrt(jnp.maximum(squared, 0.0))
            row = {"method": name, "k": count}
            for label, values in (("captured", captured), ("w2", distance)):
                row[label] = float(values.mean())
                row[f"{label}_error"] = float(values.std() / np.sqrt(len(values)))
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--evaluations", type=int, default=384)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    options = parser.parse_args()
    begun = time.perf_counter()
    law = make_law()
    smooth = law.smooth(SIGMA)
    found = estimates(options, law, smooth)
    keys = jax.random.split(jax.random.key(9))
    clean = law.sample(keys[0], options.points)
    noisy = clean + SIGMA * jax.random.normal(keys[1], clean.shape, clean.dtype)
    rows = compare(found, noisy)
    print(f"{'method':<32}" + "".join(f"{f'captured, k={k}':>16}" for k in COUNTS), end="")
    print("".join(f"{f'W2, k={k}':>12}" for k in COUNTS))
    for name in found:
        mine = [row for row in rows if row["method"] == name]
        print(f"{name:<32}" + "".join(f"{row['captured']:>16.4f}" for row in mine), end="")
        print("".join(f"{row['w2']:>12.4f}" for row in mine))
    print(f"{time.perf_counter() - begun:.0f} s")
    if options.json:
        write_atomically(options.json, json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
