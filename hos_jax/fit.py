r"""Fit scores in one compiled loop: for vectors, for small problems, for a score of your own.

`fit_score` learns s1 from samples. `train_second_order` learns s2 for any given s1, which stays as
it is: a network trained elsewhere, an exact score, a simulator's. Both are functions of arrays, so
that seeds and noise levels run under `vmap`. Image runs with checkpoints are `hos_jax.training`.

Example, on a score that was not trained here::

    law = distributions.GaussianMixture(weights, means, covariances)
    smooth = law.smooth(sigma)
    model = HessianModel(functools.partial(MLP, features=64), SecondOrderHead("low_rank", 4))
    hessian_fn = train_second_order(
        smooth.score, model, law.sample, sigma, jax.random.key(0), dim=law.dim, steps=2000
    )
    hessian_fn(noisy)  # a DiagonalPlusLowRank: s2 at one point

With data in an array, draw from its rows::

    sample = fit.rows(np.load("measurements.npy"))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hos_jax import pointwise
from hos_jax.linops import HessianFn
from hos_jax.losses.objective import Objective
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.score_model import ModelOutputs, ScoreModel, outputs_of
from hos_jax.types import Array, PRNGKey, ScoreFn

Sampler = Callable[[PRNGKey, int], Array]


def rows(data: Any) -> Sampler:
    """`sample(key, count)`, random rows of an array (N, D), with replacement, for data in memory.

    Raises:
      ValueError: for another shape, no rows, or values that are not finite.
    """
    data = jnp.asarray(data)
    if data.ndim != 2 or not data.size:
        raise ValueError(f"expected data of shape (N, D) with N > 0, got {tuple(data.shape)}")
    if not jnp.issubdtype(data.dtype, jnp.floating):
        data = data.astype(float)
    if not jnp.isfinite(data).all():
        raise ValueError("data has values that are not finite: leave their rows out")
    return lambda key, count: data[jax.random.randint(key, (count,), 0, len(data))]


def _draw(sample: Sampler, key: PRNGKey, count: int) -> Array:
    """What a user's sampler gives while JAX traces it.

    Raises:
      TypeError: if it works with NumPy, which would give the same examples at every step.
    """
    remedy = (
        "take fit.rows(data), or jnp.asarray(data) before indexing, and draw with the given key"
    )
    try:
        clean = sample(key, count)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(f"sample indexes a NumPy array with JAX's indices: {remedy}") from error
    if isinstance(clean, np.ndarray):
        raise TypeError(f"sample returns a NumPy array, the same at every step: {remedy}")
    return clean


def minimize(
    loss_fn: Callable[[Any, PRNGKey], Array],
    params: Any,
    key: PRNGKey,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    clip: float = 1.0,
) -> Any:
    """Minimize a stochastic loss by Adam with a cosine schedule down to 0, in one `lax.scan`.

    Gradients of a larger norm than `clip` are scaled down to it. The losses have gradients of
    norm 0.1 to 0.5, but for single batches early on, where a likelihood meets a nearly singular
    covariance and a gradient a thousand times that: one such step can ruin a fit.

    Args:
      loss_fn: `loss_fn(params, key)`, a scalar.
      params: where to start.
      key: the draws of step i use `fold_in(key, i)`.
      steps: number of steps.
      learning_rate: at the start.
      clip: largest norm of a gradient.

    Returns:
      The final parameters.

    Raises:
      ValueError: if `steps` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    optimizer = optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adam(optax.cosine_decay_schedule(learning_rate, steps)),
    )

    def step(carry, index):
        params, state = carry
        gradients = jax.grad(loss_fn)(params, jax.random.fold_in(key, index))
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    return params


def _fit(
    objective: Objective,
    evaluate: Callable[[Any, Array, Array | float], ModelOutputs],
    params: Any,
    sample: Sampler,
    sigma: Array | float,
    key: PRNGKey,
    *,
    batch_size: int,
    steps: int,
    learning_rate: float,
) -> Any:
    """Minimize an objective over fresh samples; `evaluate(params, points, sigma)` is the model."""

    def loss_fn(params, step_key):
        clean_key, noise_key = jax.random.split(step_key)
        clean = _draw(sample, clean_key, batch_size)
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        values = objective.per_example(
            lambda points, s: evaluate(params, points, s), clean, noise, sigma
        )
        return jnp.mean(values["loss"])

    return minimize(loss_fn, params, key, steps=steps, learning_rate=learning_rate)


def fit_score(
    model: ScoreModel,
    sample: Sampler,
    sigma: Array | float,
    key: PRNGKey,
    *,
    dim: int,
    steps: int,
    batch_size: int = 128,
    loss: str = "dsm_vr",
    learning_rate: float = 2e-3,
) -> Any:
    """Parameters of a first-order model, fitted to noisy samples.

    Args:
      model: a `ScoreModel` without a head.
      sample: `sample(key, count)` draws clean points, (count, D).
      sigma: scalar, data units.
      key: decides the initialization and every draw.
      dim: D.
      steps, batch_size, learning_rate: see `minimize`.
      loss: "dsm" or "dsm_vr".
    """
    init_key, loop_key = jax.random.split(key)
    return _fit(
        Objective(loss),
        functools.partial(outputs_of, model),
        model.init(init_key, jnp.zeros((1, dim)), sigma),
        sample,
        sigma,
        loop_key,
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
    )


def score_fn_of(model: ScoreModel, params: Any, sigma: Array | float) -> ScoreFn:
    """s1 of a fitted model at one point: `pointwise.score_fn` by its name of version 0.1."""
    return pointwise.score_fn(model, params, sigma)


def second_order_params(
    score_fn: ScoreFn,
    model: HessianModel,
    sample: Sampler,
    sigma: Array | float,
    key: PRNGKey,
    *,
    dim: int,
    steps: int,
    batch_size: int = 128,
    loss: str = "d2sm_residual",
    learning_rate: float = 2e-3,
) -> Any:
    """Parameters of a second-order model for a given score; see `train_second_order`."""
    if loss == "none":
        raise ValueError("a second-order loss is needed, got 'none'")
    init_key, loop_key = jax.random.split(key)
    score_batch, zero = jax.vmap(score_fn), jnp.zeros((1, dim))
    return _fit(
        Objective("dsm", loss, first_order_weight=0.0),
        lambda params, points, s: outputs_of(model, params, points, s, score_batch(points)),
        model.init(init_key, zero, sigma, zero),
        sample,
        sigma,
        loop_key,
        batch_size=batch_size,
        steps=steps,
        learning_rate=learning_rate,
    )


def hessian_fn_of(
    score_fn: ScoreFn, model: HessianModel, params: Any, sigma: Array | float
) -> HessianFn:
    """s2 of a fitted model at one point: `pointwise.hessian_fn` by its name of version 0.1."""
    return pointwise.hessian_fn(model, params, sigma, score_fn=score_fn)


def train_second_order(
    score_fn: ScoreFn,
    model: HessianModel,
    sample: Sampler,
    sigma: Array | float,
    key: PRNGKey,
    *,
    dim: int,
    steps: int,
    batch_size: int = 128,
    loss: str = "d2sm_residual",
    learning_rate: float = 2e-3,
) -> HessianFn:
    """Learn s2 for a score that stays as it is; returns s2 at one point, compiled once.

    Args:
      score_fn: s1 of the smoothed density at one point, (D,) -> (D,), 1 / data units.
      model: the second-order model; its head decides the structure of s2.
      sample: `sample(key, count)` draws clean points, (count, D).
      sigma: noise level of `score_fn`, scalar, data units.
      key: decides the initialization and every draw.
      dim: D.
      steps, batch_size, learning_rate: see `minimize`.
      loss: a second-order loss of `hos_jax.losses.objective.SECOND_ORDER`.

    Raises:
      ValueError: for an unknown loss or steps < 1.
    """
    train = jax.jit(
        lambda k: second_order_params(
            score_fn,
            model,
            sample,
            sigma,
            k,
            dim=dim,
            steps=steps,
            batch_size=batch_size,
            loss=loss,
            learning_rate=learning_rate,
        )
    )
    return pointwise.hessian_fn(model, train(key), sigma, score_fn=score_fn)
