# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Score, Hessian and Ozaki sampling of a mixture in two dimensions
#
# This notebook does in two dimensions, where one can look at it, everything that `hos_jax` does for
# images. You will learn the score $s_1$ of noisy data, learn its Hessian $s_2$ directly, read off
# the posterior covariance of the clean point, and use $s_2$ to sample with longer steps.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from hos_jax import autodiff, distributions, fit, pointwise, uncertainty
from hos_jax.models import MLP, HessianModel, ScoreModel, SecondOrderHead
from hos_jax.samplers import langevin, ozaki, run_chains
from hos_jax.samplers.diagnostics import effective_sample_size

SIGMA, STEPS = 0.3, 2000

# %% [markdown]
# ## The data
# The data come from three Gaussians, one of them narrow. `smooth(sigma)` is the law of
# $y = x + \sigma z$, with exact scores of every order: the truth that the learned ones are compared
# with.

# %%
turn = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
narrow = turn @ np.diag([1.0, 0.01]) @ turn.T
law = distributions.GaussianMixture(
    jnp.array([0.4, 0.3, 0.3]),
    jnp.array([[0.0, 0.0], [-1.5, 1.2], [1.6, -1.0]]),
    jnp.asarray(np.stack([narrow, 0.1 * np.eye(2), 0.2 * np.eye(2)]), dtype=jnp.float32),
)
smooth = law.smooth(SIGMA)
clean = law.sample(jax.random.key(0), 2000)
noisy = clean + SIGMA * jax.random.normal(jax.random.key(1), clean.shape)

plot, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for axis, points, title in zip(axes, (clean, noisy), ("clean", "noisy"), strict=True):
    axis.scatter(*points.T, s=2, alpha=0.5)
    axis.set_title(title)
    axis.set_aspect("equal")

# %% [markdown]
# ## First order: denoising score matching
# A small network learns $s_1$ from pairs of clean and noisy points.

# %%
network = functools.partial(MLP, features=64)
score_model = ScoreModel(network, data_std=1.0)
train = jax.jit(lambda key: fit.fit_score(key, score_model, law.sample, SIGMA, dim=2, steps=STEPS))
score_fn = pointwise.score_fn(score_model, train(jax.random.key(2)), SIGMA)

# %% [markdown]
# ## Second order, learned directly
# The network for $s_2$ sees the noisy point, and $s_1$ at that point. The score itself is not
# changed, so that any score of yours will do. Below, the errors of the learned Hessian and of the
# derivative of the learned score.

# %%
hessian_model = HessianModel(network, SecondOrderHead("low_rank", rank=2, positive_definite=False))
hessian_fn = fit.train_second_order(
    jax.random.key(3), score_fn, hessian_model, law.sample, SIGMA, dim=2, steps=STEPS
)

autodiff_fn = autodiff.dense_hessian_fn(score_fn)


def relative_error(estimate):
    def parts(y):
        exact = smooth.hessian(y).to_dense()
        return jnp.sum((estimate(y).to_dense() - exact) ** 2), jnp.sum(exact**2)

    wrong, size = jax.jit(jax.vmap(parts))(noisy)
    return float(wrong.sum() / size.sum())


print(f"relative squared error of s2: learned {relative_error(hessian_fn):.4f}, ", end="")
print(f"autodiff of s1 {relative_error(autodiff_fn):.4f}")

# %% [markdown]
# ## What the noisy point says about the clean one
# The clean point has the mean $y + \sigma^2 s_1$ and the covariance $\sigma^4 s_2 + \sigma^2 I$.
# The ellipses have two standard deviations, which hold about 86% of a Gaussian posterior.


# %%
def ellipse(mean, covariance):
    values, vectors = np.linalg.eigh(np.asarray(covariance))
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return np.asarray(mean)[:, None] + 2 * (vectors * np.sqrt(values)) @ circle


plot, axis = plt.subplots(figsize=(6, 5), layout="constrained")
axis.scatter(*clean.T, s=1, alpha=0.3, color="gray")
for index, y in enumerate(noisy[:8]):
    learned = uncertainty.posterior(y, score_fn(y), hessian_fn(y), SIGMA)
    exact = uncertainty.posterior(y, smooth.score(y), smooth.hessian(y), SIGMA)
    axis.plot(*y, "x", color=f"C{index}")
    axis.plot(*ellipse(learned.mean, learned.covariance.to_dense()), color=f"C{index}")
    axis.plot(*ellipse(exact.mean, exact.covariance.to_dense()), ":", color=f"C{index}")
axis.set_title("posteriors of the crosses: learned (solid), exact (dotted)")
axis.set_aspect("equal")

# %% [markdown]
# ## Sampling
# Langevin's step has to be short where the density is narrow. Ozaki's follows the curvature, so
# that it can be longer. Both samplers are biased by their steps; with so few effective samples the
# standard deviations do not show it yet. The number of effective samples is that of 64 chains of
# 500 steps, for the worse of the two coordinates. The exact deviations are those of the law of the
# noisy points, which is a mixture too: the mean of its components' covariances, and the covariance
# of their means.

# %%
start = law.sample(jax.random.key(4), 64) + SIGMA * jax.random.normal(jax.random.key(5), (64, 2))
samplers = {
    "Langevin, eps 0.05": langevin.as_top_level_api(score_fn, 0.05),
    "Ozaki, eps 0.2": ozaki.as_top_level_api(ozaki.join(score_fn, hessian_fn), 0.2),
}
centred = smooth.means - smooth.weights @ smooth.means
between = jnp.einsum("k,ki,kj->ij", smooth.weights, centred, centred)
covariance = jnp.einsum("k,kij->ij", smooth.weights, smooth.covariances) + between
print(f"exact deviations {np.sqrt(np.diag(covariance)).round(2)}")
plot, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True, layout="constrained")
for axis, (name, sampler) in zip(axes, samplers.items(), strict=True):
    chains = run_chains(
        jax.random.key(6),
        sampler.step,
        jax.jit(jax.vmap(sampler.init))(start),
        500,
        collect=lambda state: state.position,
    )
    draws = jnp.moveaxis(jnp.asarray(chains.trajectory), 0, 1)[chains.is_finite]
    size = float(effective_sample_size(draws).min())
    spread = np.asarray(draws).reshape(-1, 2).std(axis=0).round(2)
    print(f"{name}: {size:.0f} effective samples, deviations {spread}")
    axis.scatter(*draws[:, -1].T, s=8)
    axis.plot(*draws[0, :60].T, color="C1", linewidth=0.8)
    axis.set_title(f"{name}: last states, one path")
    axis.set_aspect("equal")
