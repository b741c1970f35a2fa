r"""Fit scores in one compiled loop: for vectors, for small problems, for a score of your own.

`fit_score` learns s1 from samples. `fit_hessian` learns s2 for any given s1: that of a network
trained elsewhere, of a known distribution, of a simulator. `fit_scores` learns both together for a
whole range of noise levels, as diffusion, likelihoods and inverse problems need them. They return
parameters and are functions of arrays, so that seeds and single noise levels run under `vmap`;
`pointwise` turns parameters into functions. `train_second_order` does both steps for s2. For image
runs with checkpoints, see `hos_jax.training`.

Example, on a score that was not trained here::

    law = distributions.GaussianMixture(weights, means, covariances)
    smooth = law.smooth(sigma)
    model = HessianModel(functools.partial(MLP, features=64), SecondOrderHead("low_rank", 4))
    hessian_fn = train_second_order(
        jax.random.key(0), smooth.score, model, law.sample, sigma, dim=law.dim, steps=2000
    )
    hessian_fn(noisy)  # a DiagonalPlusLowRank: s2 at one point

With data in an array, `sample = fit.rows(np.load("measurements.npy"))` draws from its rows. Keep
some rows back: what is fitted to few of them is judged too well by the same.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from hos_jax import losses, pointwise
from hos_jax._names import key_first
from hos_jax.errors import NonFiniteError, reason
from hos_jax.linops import HessianFn
from hos_jax.losses.objective import Objective
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.score_model import ModelOutputs, ScoreModel, outputs_of
from hos_jax.noise import log_uniform_sigmas, perturb
from hos_jax.types import (
    Array,
    PRNGKey,
    ScoreFn,
    as_positive,
    at_least_float32,
    check_counts,
    check_floating,
    check_function,
    check_positive,
    check_structured,
    check_unmasked,
    checked_score_fn,
    native,
)

logger = logging.getLogger(__name__)

Sampler = Callable[[PRNGKey, int], Array]
# One noise level, or the smallest and the largest of a range.
Level = Array | float | tuple[float, float]
_REMEDY = "take fit.rows(data), or jnp.asarray(data) before indexing; draw with the given key"
# Shares of the Jacobian in the target among which "auto" chooses: none, half, nothing else.
JACOBIAN_WEIGHTS = (0.0, 0.5, 1.0)


class Settings(TypedDict, total=False):
    """What every fit takes by name: D, a batch size (128 unless given), and those of `minimize`."""

    dim: Required[int]
    steps: Required[int]
    batch_size: int
    learning_rate: float
    clip: float


def rows(data: Any) -> Sampler:
    """`sample(key, count)`, random rows of an array (N, D), with replacement, for data in memory.

    A warning names the first column whose mean exceeds ten times the largest deviation of all
    columns, or 1e5 times its own.

    Raises:
      ValueError: for another shape, no rows, complex values, what is no number, or values that are
        masked, not finite or beyond JAX's usual floating type.
    """
    check_unmasked(data=data)
    try:
        data = data if isinstance(data, jax.Array) else np.asarray(data)
        if data.dtype.kind in "mM":
            raise TypeError(f"{data.dtype} are dates or times")
        if not jnp.issubdtype(data.dtype, jnp.number):
            data = data.astype(float)
        if isinstance(data, np.ndarray):
            wide = data.dtype.kind == "f" and data.dtype.itemsize > 8
            with np.errstate(over="ignore"):  # of more digits than JAX has
                data = data.astype(float) if wide else native(data)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"data has what is no number: {reason(error)}") from error
    if data.ndim != 2 or not data.size:
        raise ValueError(f"expected data of shape (N, D) with N > 0, got {tuple(data.shape)}")
    if jnp.issubdtype(data.dtype, jnp.complexfloating):
        raise ValueError(f"data is {data.dtype}: stack its real and its imaginary part")
    # Large integers of 64 bits would wrap in JAX's integers of 32 bits.
    floating = jnp.issubdtype(data.dtype, jnp.floating)
    given = data
    with np.errstate(over="ignore"):
        data = at_least_float32(jnp.asarray(data if floating else data.astype(float)))
    # Of NumPy: within a trace all that JAX computes is traced, of constants too.
    if not isinstance(given, jax.core.Tracer):
        known = np.asarray(given)
        with np.errstate(over="ignore"):
            finite = np.isfinite(known.astype(data.dtype, copy=False)).all()
        if not finite and np.isfinite(known).all():
            raise ValueError(f"data has values beyond {data.dtype}: choose another unit")
        if not finite:
            raise ValueError("data has values that are not finite: leave their rows out")
        _name_what_is_far_from_zero(known)
    return lambda key, count: data[jax.random.randint(key, (count,), 0, len(data))]


def _name_what_is_far_from_zero(data: np.ndarray) -> None:
    """A warning for the first column that a network, which is given multiples of the values, or
    float32, with its 7 digits, could hardly tell from a constant."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, spread = np.mean(data, axis=0, dtype=float), np.std(data, axis=0, dtype=float)
    of_all, of_digits = 10.0 * np.max(spread), 1e5 * spread
    far = np.flatnonzero((spread > 0) & (np.abs(mean) > np.minimum(of_all, of_digits)))
    if len(far):
        logger.warning(
            "column %d varies by %.2g about %.2g, far from 0, where networks learn badly: subtract "
            "its mean before",
            *(far[0], spread[far[0]], mean[far[0]]),
        )


def _check_draws(key: PRNGKey, sample: Sampler, count: int, dim: int) -> None:
    """As `_draw`, and TypeError for samples that do not depend on the key, however they are made:
    they are traced once, so that they would be the same at every step."""
    traced = jax.make_jaxpr(lambda key: _draw(key, sample, count, dim))(key).jaxpr
    used = {id(value) for equation in traced.eqns for value in equation.invars}
    if not used & set(map(id, traced.invars)):
        raise TypeError(f"sample does not use its key, and is the same at every step: {_REMEDY}")


def _draw(key: PRNGKey, sample: Sampler, count: int, dim: int) -> Array:
    """What a user's sampler gives while JAX traces it, (count, dim); see `fit_score`."""
    check_function(sample, "expected sample(key, count)", _REMEDY)
    try:
        clean = sample(key, count)
    except jax.errors.TracerArrayConversionError as error:
        raise TypeError(f"sample indexes a NumPy array with JAX's indices: {_REMEDY}") from error
    if isinstance(clean, np.ndarray):
        raise TypeError(f"sample returns a NumPy array, the same at every step: {_REMEDY}")
    check_floating(sample=clean)
    if clean.shape != (count, dim):
        raise ValueError(f"expected samples of shape {(count, dim)}, got {clean.shape}")
    return at_least_float32(clean)


def minimize(
    key: PRNGKey,
    loss_fn: Callable[[PRNGKey, Any], Array],
    params: Any,
    *,
    steps: int,
    learning_rate: float = 2e-3,
    clip: float = 1.0,
) -> Any:
    """The parameters that minimize a stochastic loss: Adam, a cosine schedule, one `lax.scan`.

    Args:
      key: step i gives `fold_in(key, i)` to the loss.
      loss_fn: `loss_fn(key, params)`, a scalar.
      params: where to start.
      steps: number of steps; ValueError unless positive.
      learning_rate: at the start; it falls to 0. ValueError unless it and clip are positive.
      clip: gradients of a larger norm are scaled down to it. The losses have gradients of norm 0.1
        to 0.5, but for single batches early on, where a likelihood meets a nearly singular
        covariance and a gradient a thousand times that: one such step can ruin a fit.
    """
    check_counts(steps=steps)
    check_positive(learning_rate=learning_rate, clip=clip)
    adam = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))
    optimizer = optax.chain(optax.clip_by_global_norm(clip), adam)

    def step(carry, index):
        params, state = carry
        gradients = jax.grad(loss_fn, argnums=1)(jax.random.fold_in(key, index), params)
        # Strict promotion is for the loss: optax itself adds integers to Python's floats.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    (params, _), _ = jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.int32))
    return params


def _fit(
    key: PRNGKey,
    objective: Objective,
    evaluate: Callable[..., ModelOutputs],
    init: Callable[[PRNGKey, Array], Any],
    sample: Sampler,
    sigma: Level,
    *,
    dim: int | None = None,
    batch_size: int = 128,
    apart: bool = False,
    **settings: Any,
) -> Any:
    """Minimize an objective over fresh samples; `evaluate(params, points, sigma)` is the model.
    `apart` is of `Objective.per_example`; NonFiniteError where the fit, not traced, diverged."""
    if dim is None:
        raise TypeError("dim= is missing: how many values a point has")
    check_counts(dim=dim, batch_size=batch_size)
    if not isinstance(sigma, tuple):
        check_positive(sigma=sigma)
    _check_draws(key, sample, batch_size, dim)

    def loss_fn(key, params):
        clean_key, noise_key, probe_key, level_key = jax.random.split(key, 4)
        clean = _draw(clean_key, sample, batch_size, dim)
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        probes = None
        if objective.needs_probes:
            probes = jax.random.rademacher(probe_key, clean.shape, clean.dtype)
        model = functools.partial(evaluate, params)
        level: Any = sigma
        if isinstance(sigma, tuple):
            level = _levels(level_key, *sigma, batch_size).astype(clean.dtype)
        values = objective.per_example(model, clean, noise, level, probes=probes, apart=apart)
        return jnp.mean(values["loss"])

    init_key, loop_key = jax.random.split(key)
    params = minimize(loop_key, loss_fn, init(init_key, jnp.zeros((1, dim))), **settings)
    _check_finite(params, "the fit")
    return params


def _check_finite(params: Any, what: str) -> None:
    known = [a for a in jax.tree.leaves(params) if not isinstance(a, jax.core.Tracer)]
    if not all(np.isfinite(np.asarray(array)).all() for array in known):
        raise NonFiniteError(f"{what} diverged: take a smaller learning_rate")


def _levels(key: PRNGKey, smallest: float, largest: float, count: int) -> Array:
    """Noise levels of a batch, (count,), of the law whose logarithm is uniform, spread evenly over
    it in random order: rows of a batch need not be of one law."""
    offset_key, order_key = jax.random.split(key)
    offset = jax.random.uniform(offset_key)
    quantiles = (jnp.arange(count, dtype=offset.dtype) + offset) / count
    return log_uniform_sigmas(jax.random.permutation(order_key, quantiles), largest, smallest)


def _level_of(model: Any, sigma: Level) -> Level:
    """One noise level as it is, or the two numbers of a range; ValueError for what is neither, and
    for a range of a model that cannot tell the levels apart; TypeError for no `ScoreModel`."""
    if not isinstance(model, ScoreModel):
        kind = type(model).__name__
        raise TypeError(f"expected a ScoreModel with the network in it, got a {kind}")
    if model.classes:
        raise ValueError(f"fits draw no labels: take classes=0 in place of {model.classes}")
    traced = any(isinstance(end, jax.core.Tracer) for end in jax.tree.leaves(sigma))
    if traced and jax.tree.map(jnp.shape, sigma) != ():
        raise ValueError("a range of noise levels is two known numbers, none of them traced")
    if traced or np.ndim(sigma) == 0:
        return sigma
    if np.shape(sigma) != (2,):
        either = "a positive and finite scalar sigma, or (smallest, largest)"
        raise ValueError(f"expected {either}, got {sigma}")
    smallest, largest = map(float, np.asarray(sigma))
    check_positive(smallest=smallest, largest=largest)
    if not smallest < largest:
        raise ValueError(f"expected smallest < largest, got {smallest} and {largest}")
    if not model.noise_conditional or model.data_std is None:
        raise ValueError("a range of noise levels needs a model with noise_conditional, data_std")
    return smallest, largest


def _objective_of(model: ScoreModel, level: Level, **choices: Any) -> Objective:
    balance = model.data_std if isinstance(level, tuple) else None
    return Objective(**choices, balance_std=balance)


@key_first
def fit_score(
    key: PRNGKey,
    model: ScoreModel,
    sample: Sampler,
    sigma: Level,
    *,
    loss: str = "dsm_vr",
    **settings: Unpack[Settings],
) -> Any:
    """Parameters of a first-order model, fitted to noisy samples.

    Args:
      key: decides the initialization and every draw.
      model: a `ScoreModel` without a head.
      sample: `sample(key, count)` draws clean points, (count, D).
      sigma: scalar, data units; or (smallest, largest) of a model with `noise_conditional`, for a
        range of levels whose logarithms are drawn evenly.
      loss: "dsm" or "dsm_vr".
      **settings: see `Settings`.

    Raises:
      ValueError: for an unknown loss, steps < 1, a sigma that is not positive and finite, samples
        of another shape or of integers, a range of levels of a model that is not told them, or a
        model of higher orders, which would stay as they were initialized.
      TypeError: for samples that do not depend on the key, as those drawn by NumPy, which would be
        the same at every step; for data in place of a function; without `dim`; for a network that
        is in no `ScoreModel`.
      NonFiniteError: where the fit diverged, unless it is traced.
    """
    level = _level_of(model, sigma)
    objective = _objective_of(model, level, first_order=loss)
    if model.head is not None or model.third_order:
        raise ValueError("fit_score trains s1 alone: take a model without a head, or fit_scores")
    return _fit_model(key, objective, model, sample, level, settings)


@key_first
def fit_scores(
    key: PRNGKey,
    model: ScoreModel,
    sample: Sampler,
    sigma: Level,
    *,
    loss: str = "dsm_vr",
    second_order: str = "d2sm_residual",
    jacobian_weight: float = 0.0,
    **settings: Unpack[Settings],
) -> Any:
    """Parameters of a model of s1 and s2, and of s3 if it has it, fitted together.

    Of a range of noise levels `pointwise` makes of them what samplers of reverse diffusion,
    likelihoods and inverse problems take::

        head = SecondOrderHead("dense")
        model = ScoreModel(MLP, head, data_std=float(rows.std()), noise_conditional=True)
        params = fit_scores(key, model, fit.rows(rows), (0.05, 10.0), dim=3, steps=20_000)
        derivatives_fn = pointwise.derivatives_fn(model, params)  # (noisy, sigma) -> s1, s2

    The largest level is to be large against the deviations of the data, and the smallest small
    against what matters in them.

    Args:
      model: a `ScoreModel` with a head.
      second_order, jacobian_weight: see `Objective`.
      key, sample, sigma, loss, settings: see `fit_score`.

    Raises:
      ValueError, TypeError, NonFiniteError: as `fit_score`; ValueError for a model without a head.
    """
    level = _level_of(model, sigma)
    objective = _objective_of(
        model,
        level,
        first_order=loss,
        second_order=second_order,
        third_order="d3sm_diagonal" if model.third_order else "none",
        jacobian_weight=jacobian_weight,
    )
    if model.head is None or second_order == "none":
        raise ValueError("fit_scores trains s2 too: take a model with a head, or fit_score")
    return _fit_model(key, objective, model, sample, level, settings)


def _fit_model(
    key: PRNGKey,
    objective: Objective,
    model: ScoreModel,
    sample: Sampler,
    level: Level,
    settings: Settings,
) -> Any:
    """All that a `ScoreModel` gives, fitted at one level or a range."""
    one = level[0] if isinstance(level, tuple) else level
    evaluate, init = functools.partial(outputs_of, model), functools.partial(model.init, sigma=one)
    apart = model.has_score1_apart and objective.second_order != "none"
    return _fit(key, objective, evaluate, init, sample, level, apart=apart, **settings)


def fit_hessian(
    key: PRNGKey,
    score_fn: ScoreFn,
    model: HessianModel,
    sample: Sampler,
    sigma: Array | float,
    *,
    loss: str = "d2sm_residual",
    jacobian_weight: float = 0.0,
    start_from: Any = None,
    **settings: Unpack[Settings],
) -> Any:
    """Parameters of a second-order model, fitted for a score that stays as it is.

    Args:
      score_fn: s1 of the smoothed density at one point, (D,) -> (D,), 1 / data units.
      model: the second-order model; its head decides the structure of s2.
      loss: a second-order loss of `hos_jax.losses.objective.SECOND_ORDER`.
      jacobian_weight: how much of the target the derivative of `score_fn` is, see `Objective`.
      start_from: parameters of s1 by a network of the same kind, what `fit_score` returned: layers
        of equal name and shape begin as they are there, and inputs that only s2 has with weight 0.
      key, sample, sigma, settings: see `fit_score`; sigma is the noise level of `score_fn`.

    Raises:
      ValueError, TypeError: as `fit_score`; ValueError for a `ScoreModel`, or no layer in common
        with `start_from`.
    """
    if isinstance(model, ScoreModel):
        raise ValueError("s2 for a score that stays as it is: take a HessianModel, no ScoreModel")
    if loss == "none":
        raise ValueError("a second-order loss is needed, got 'none'")
    check_positive(sigma=sigma)
    scores = jax.vmap(checked_score_fn(score_fn))

    def init(key: PRNGKey, zero: Array) -> Any:
        params = model.init(key, zero, sigma, zero)
        return params if start_from is None else _with_layers_of(params, start_from)

    return _fit(
        key,
        Objective("dsm", loss, first_order_weight=0.0, jacobian_weight=jacobian_weight),
        lambda params, points, s: outputs_of(model, params, points, s, scores(points)),
        init,
        sample,
        sigma,
        **settings,
    )


def _with_layers_of(params: Any, trained: Any) -> Any:
    """`params` with the layers of another network, found by their names below the network's."""
    if not isinstance(trained, Mapping):
        kind = type(trained).__name__
        raise TypeError(f"start_from are parameters, as fit_score returns them, got a {kind}")
    trained = trained if "params" in trained else {"params": trained}
    known = {path[2:]: leaf for path, leaf in traverse_util.flatten_dict(trained).items()}
    found, common = traverse_util.flatten_dict(params), 0
    for path, leaf in found.items():
        other = known.get(path[2:])
        if other is None or other.ndim != leaf.ndim or other.shape[-1:] != leaf.shape[-1:]:
            continue
        # A kernel is (..., inputs, outputs).
        inputs = leaf.shape[-2] - other.shape[-2] if leaf.ndim > 1 else 0
        if inputs >= 0 and other.shape[:-2] == leaf.shape[:-2]:
            pads = [(0, inputs if axis == leaf.ndim - 2 else 0) for axis in range(leaf.ndim)]
            found[path] = jnp.pad(jnp.asarray(other, leaf.dtype), pads)
            common += 1
    if not common:
        raise ValueError("start_from has no layer in common with the network of s2")
    return traverse_util.unflatten_dict(found)


def held_out_losses(
    key: PRNGKey,
    score_fn: ScoreFn,
    hessian_fn: HessianFn,
    sample: Sampler,
    sigma: Array | float,
    *,
    dim: int,
    count: int = 4096,
) -> Array:
    r"""How good an s2 is without knowing the truth: `losses.d2sm_residual` at fresh points, (N,).

    For the covariance C(y) = E[r r^T | y] of the residuals of s1 the mean is that of
    tr (I + sigma^2 s2 - C)^2, half of it for either point of the pair y+ and y-, up to a constant
    that is the same for every s2. With one key the points are the same for all, so that the
    difference of two has a small standard error.

    Args:
      score_fn, hessian_fn: s1 and s2 at one point, whoever they come from.
      sample: of data that neither was trained on, see `fit_score`.
      count: N.
      key, sigma, dim: see `fit_score`.
    """
    check_counts(dim=dim, count=count)
    sigma = as_positive(sigma)

    def terms(key: PRNGKey) -> losses.ResidualTerms:
        clean_key, noise_key = jax.random.split(key)
        clean = _draw(clean_key, sample, 1, dim)[0]
        noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
        plus, minus = perturb(clean, noise, sigma)
        hessians = [hessian_fn(point) for point in (plus, minus, clean)]
        check_structured(hessians[0], "s2")
        scaled = [hessian.scale(sigma**2) for hessian in hessians]
        ahead = losses.residual(score_fn(plus), noise, sigma)
        behind = losses.residual(score_fn(minus), -noise, sigma)
        return losses.d2sm_residual_terms(ahead, scaled[0], behind, scaled[1], noise, scaled[2])

    found = jax.jit(lambda keys: jax.lax.map(terms, keys, batch_size=min(count, 256)))(
        jax.random.split(key, count)
    )
    return losses.d2sm_residual(found, losses.control_coefficients(found))


@key_first
def train_second_order(
    key: PRNGKey,
    score_fn: ScoreFn,
    model: HessianModel,
    sample: Sampler,
    sigma: Array | float,
    *,
    loss: str = "d2sm_residual",
    jacobian_weight: float | Literal["auto"] = 0.0,
    held_out: Sampler | None = None,
    start_from: Any = None,
    **settings: Unpack[Settings],
) -> HessianFn:
    """Learn s2 for a score that stays as it is: `fit_hessian`, then s2 at one point, compiled.

    Args:
      jacobian_weight: from 0 to 1, else ValueError. "auto" fits one s2 for each of
        `JACOBIAN_WEIGHTS` and keeps the best by `held_out_losses`: so many times the work.
      held_out: draws the data of that comparison; `sample` unless given, which is right for a law
        or a simulator: of a table give rows that are not in `sample`, or the fit that follows its
        rows too closely is not told from the best.
      key, score_fn, model, sample, sigma, loss, start_from, settings: see `fit_hessian`.

    What is returned has the attributes `params`, of `model`, and `jacobian_weight`, which was
    chosen: with `pointwise.hessian_fn(model, params, sigma, score_fn=score_fn)` it is made again.

    NonFiniteError where the fit, or every one of them, diverged.
    """
    options: Any = {**settings, "start_from": start_from}
    # The fit itself splits its key, and what a split gives is `fold_in` of 0 and 1.
    fit_key, held_out_key = key, jax.random.fold_in(jax.random.clone(key), 2)

    def learn(weight: float) -> tuple[HessianFn, Any]:
        chosen = {"loss": "jacobian"} if weight == 1 else {"loss": loss, "jacobian_weight": weight}
        train = jax.jit(
            lambda key: fit_hessian(key, score_fn, model, sample, sigma, **chosen, **options)
        )
        params = train(jax.random.clone(fit_key))
        return pointwise.hessian_fn(model, params, sigma, score_fn=score_fn), params

    if jacobian_weight != "auto":
        number = None if isinstance(jacobian_weight, str) else jacobian_weight
        if number is None or not 0 <= number <= 1:
            raise ValueError(
                f'expected jacobian_weight "auto" or a number from 0 to 1, got {jacobian_weight!r}'
            )
        learned, params = learn(number)
        _check_finite(params, "the fit of s2")
        return _to_be_kept(learned, params, number)

    draw = sample if held_out is None else held_out
    if "dim" in settings:  # else the fit says so
        _check_draws(jax.random.clone(held_out_key), draw, 1, settings["dim"])

    def judge(hessian_fn: HessianFn) -> float:
        at = jax.random.clone(held_out_key)
        values = held_out_losses(at, score_fn, hessian_fn, draw, sigma, dim=settings["dim"])
        found = float(jnp.mean(values))
        return found if math.isfinite(found) else math.inf

    fits = [learn(weight) for weight in JACOBIAN_WEIGHTS]
    judged = [judge(hessian_fn) for hessian_fn, _ in fits]
    if min(judged) == math.inf:
        raise NonFiniteError("every fit of s2 diverged: take a smaller learning_rate")
    best = judged.index(min(judged))
    return _to_be_kept(*fits[best], JACOBIAN_WEIGHTS[best])


def _to_be_kept(hessian_fn: Any, params: Any, jacobian_weight: float) -> HessianFn:
    """The function with what it is made of, which can be saved."""
    hessian_fn.params, hessian_fn.jacobian_weight = params, jacobian_weight
    return hessian_fn
