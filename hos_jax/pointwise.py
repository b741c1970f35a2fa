r"""What a trained model says at one point: scores, covariance, posterior.

Networks take batches of images; the mathematics takes one point. This is the one place where the
one becomes the other::

    run = hos_jax.load_run("runs/demo")
    posterior_fn = pointwise.posterior_fn(run)
    posterior = posterior_fn(noisy)  # noisy: (H, W, C), or flat, (D,)
    posterior.mean, posterior.standard_deviation(), posterior.sample(key, 10)

Without a run it is ``pointwise.posterior_fn(model, params, sigma, image_shape)``; the other
functions take the same arguments:

- model: a `ScoreModel`, a `HessianModel`, or what `hos_jax.load_run` returned, which has the other
  three too.
- params: the parameters of the model.
- sigma: the noise level, a positive scalar, data units; None if every call gives it.
- image_shape: (H, W, C) of a model of images; None for a model of vectors.
- score_fn: the score beside which a `HessianModel` was trained.

Each returns a function of `noisy`. For models of many noise levels it also takes `sigma`, and for
models that are told the class, the class: ``fn(noisy)``, ``fn(noisy, sigma)``, ``fn(noisy, sigma,
label)``. `noisy` is one image or one vector, floating-point numbers in data units. Results are of
the D values flattened, in (H, W, C) order. The function is compiled when it is first called, so
make it once; batch it with `jax.vmap`. Points of 16 bits are taken as float32, because otherwise
the covariance would have their rounding too.

A call raises ValueError for a point of another shape, for a class that the model does not take, for
parameters of another model, and for an order that the model does not have. It also raises
ValueError for a level that a run was not trained at, and, for a model without `noise_conditional`,
for a level other than `sigma`. Within a trace, where the level is not known, all results are NaN
instead.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path

from hos_jax import tweedie
from hos_jax.linops import SymmetricMatrix
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.score_model import ModelOutputs, ScoreModel, outputs_of
from hos_jax.noise import is_within
from hos_jax.types import (
    Array,
    ScoreFn,
    as_positive,
    at_least_float32,
    is_number,
    nan_unless,
    native,
)
from hos_jax.uncertainty.posterior import DEFAULT_FLOOR, Posterior, posterior_from_covariance

Sigma = Array | float
Level = Sigma | None
Shape = tuple[int, int, int] | None
Score = ScoreFn | None


def score_fn(
    model: Any, params: Any = None, sigma: Level = None, image_shape: Shape = None
) -> Callable[..., Array]:
    """s1 at one point: noisy -> (D,), 1 / data units."""
    return _at_a_point(lambda _, out, s: out.score1, model, params, sigma, image_shape)


def hessian_fn(
    model, params=None, sigma: Level = None, image_shape: Shape = None, *, score_fn: Score = None
) -> Callable[..., SymmetricMatrix]:
    """s2 at one point: noisy -> structured (D, D), 1 / data units^2."""
    return _at_a_point(lambda _, out, s: out.score2, model, params, sigma, image_shape, score_fn)


def derivatives_fn(
    model, params=None, sigma: Level = None, image_shape: Shape = None, *, score_fn: Score = None
) -> Callable[..., tuple[Array, SymmetricMatrix]]:
    """(s1, s2) at one point from one evaluation of the networks, as `samplers.ozaki` takes it."""
    return _at_a_point(
        lambda _, out, s: (out.score1, out.score2), model, params, sigma, image_shape, score_fn
    )


def covariance_fn(
    model, params=None, sigma: Level = None, image_shape: Shape = None, *, score_fn: Score = None
) -> Callable[..., SymmetricMatrix]:
    """C = I + sigma^2 s2 at one point, as the model gives it: structured (D, D), dimensionless. It
    need not be positive definite; `posterior_fn` mends that."""
    return _at_a_point(
        lambda _, out, s: out.covariance, model, params, sigma, image_shape, score_fn
    )


def posterior_fn(
    model, params=None, sigma: Level = None, image_shape: Shape = None, *, score_fn: Score = None
) -> Callable[..., Posterior]:
    """The law of the clean point given the noisy one: noisy -> `Posterior`."""
    return _at_a_point(posteriors, model, params, sigma, image_shape, score_fn)


def posteriors(noisy: Array, outputs: ModelOutputs, sigma: Sigma) -> Posterior:
    """The posteriors at a batch of points y, (N, D), data units, from what a model says there.

    Their floor is `DEFAULT_FLOOR`, or the head's own where that is lower, in the model's unit of C.
    ValueError for the outputs of a first-order model.
    """
    covariances = outputs.covariance
    assert outputs.head is not None
    lowest = min(DEFAULT_FLOOR, outputs.head.floor)

    def posterior_of(noisy, score1, covariance, third, unit):
        floor = lowest if unit is None else lowest * unit
        mean = tweedie.posterior_mean(noisy, score1, sigma)
        return posterior_from_covariance(
            mean, covariance, sigma, scaled_third_diagonal=third, floor=floor, tails=outputs.tails
        )

    third = None if outputs.raw_third_order is None else outputs.scaled_third_diagonal
    unit = outputs.covariance_unit
    return jax.vmap(posterior_of)(noisy, outputs.score1, covariances, third, unit)


def _at_a_point(
    read: Callable[[Array, ModelOutputs, Sigma], Any],
    model: Any,
    params: Any,
    sigma: Level,
    image_shape: Shape,
    score_fn: Score = None,
) -> Callable[..., Any]:
    """`fn(noisy, sigma, label)`: `read(points, outputs, sigma)` at a batch of one, without it."""
    known, of_run = None, not hasattr(model, "apply")
    if of_run:
        model, params, sigma, image_shape, known = _of_run(model, params, sigma, image_shape)

    if params is not None and not hasattr(params, "keys"):
        raise TypeError(f"params are a {type(params).__name__}: a noise level is given as sigma=")

    levels = f"the run was trained at {_shown(known)}" if known else ""
    if known is None and is_number(sigma) and not getattr(model, "noise_conditional", True):
        # A network that is not told the level knows none but the one that it was fitted at.
        level, rounding = float(sigma), _rounding_of(as_positive(sigma))
        known = level * (1.0 - rounding), level * (1.0 + rounding)
        levels = f"the model is told no noise level, and its sigma here is {level:.4g}"

    if isinstance(model, HessianModel) and score_fn is None:
        raise TypeError("a HessianModel needs the score that it was trained beside: score_fn=")
    if isinstance(model, ScoreModel) and score_fn is not None:
        raise TypeError("score_fn= is for a HessianModel: this model gives s1 itself")

    # Parameters are an argument, or the compiler would take them for constants. Inline, so that
    # within a larger program there is no trace of this one.
    @functools.partial(jax.jit, inline=True)
    def evaluate(params: Any, noisy: Array, sigma: Sigma, *label: Array) -> Any:
        points = noisy.reshape(1, -1)
        inputs = noisy[None] if image_shape is None else noisy.reshape(1, *image_shape)
        others = [value[None] for value in label]
        if score_fn is not None:
            others.append(score_fn(points[0])[None])
        if not of_run and inputs.shape not in checked:
            _check_all_are_used(params, model, inputs, sigma, *others)
            checked.add(inputs.shape)
        outputs = outputs_of(model, params, inputs, sigma, *others)
        return jax.tree.map(lambda leaf: leaf[0], read(points, outputs, sigma))

    default, checked = sigma, set[tuple[int, ...]]()

    def at_a_point(noisy: Array, sigma: Level = None, label: Array | int | None = None) -> Any:
        sigma = default if sigma is None else sigma
        if sigma is None and known is not None:
            raise ValueError(f"{levels}: say which sigma it is")
        if params is None or sigma is None:
            raise ValueError("a model needs its params, and sigma here or at every call")
        sigma = as_positive(sigma)
        if known is not None:
            sigma = _checked_level(sigma, known, levels)
        noisy = jnp.asarray(native(noisy) if isinstance(noisy, np.ndarray) else noisy)
        _check_point(noisy, image_shape)
        return evaluate(params, at_least_float32(noisy), sigma, *_checked_label(label, model))

    return at_a_point


def _of_run(run: Any, params: Any, sigma: Level, image_shape: Shape) -> tuple:
    """The model of a run, what it has of the other three where they are not given, and its levels;
    TypeError for what is no run."""
    if not hasattr(run, "params"):
        kind = type(run).__name__
        raise TypeError(f"expected a model or a run, got a {kind}: hos_jax.load_run loads one")
    known = run.sigma_range
    params = run.params if params is None else params
    # Of several levels none is the usual one.
    sigma = run.sigma if sigma is None and known[0] == known[1] else sigma
    image_shape = run.image_shape if image_shape is None else image_shape
    return run.model, params, sigma, image_shape, known


def _check_all_are_used(params: Any, model: Any, *inputs: Array | float) -> None:
    """ValueError for parameters of which the model has some that it does not use: they are those of
    another one, and it would say something all the same."""
    if not isinstance(model, (ScoreModel, HessianModel)):
        return
    own: Any = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    # Other collections than that of the parameters may lie beside it.
    trees = own.get("params", {}), params.get("params", params)
    used, given = ({path for path, _ in tree_leaves_with_path(tree)} for tree in trees)
    if left := sorted(keystr(path, simple=True, separator="/") for path in given - used):
        raise ValueError(
            f"these are not the parameters of this model: of {len(given)} it has no use for "
            f"{len(left)}, {left[0]} say; give it the settings that they were fitted with"
        )


def _rounding_of(sigma: Sigma) -> float:
    return float(jnp.finfo(jnp.result_type(sigma)).eps)


def _checked_level(sigma: Sigma, known: tuple[float, float], levels: str) -> Sigma:
    """The level; ValueError for one that is not known, NaN if it is traced."""
    # In fewer bits the level itself is rounded by more than a thousandth.
    tolerance = max(1e-3, _rounding_of(sigma))
    if isinstance(sigma, jax.core.Tracer):
        return nan_unless(is_within(sigma, known, tolerance), sigma)
    # Of NumPy: within a trace all that JAX computes is traced, of constants too.
    level = float(np.asarray(sigma))
    if not is_within(level, known, tolerance):
        raise ValueError(f"{levels}, in data units, not {level:.4g}")
    return sigma


def _shown(levels: tuple[float, float]) -> str:
    low, high = levels
    return f"sigma {low:.4g}" if low == high else f"sigma {low:.4g} to {high:.4g}"


def _checked_label(label: Array | int | None, model: Any) -> tuple[Array, ...]:
    """The class as an argument of the model, if there is one."""
    if label is None:
        return ()
    classes = getattr(model, "classes", 0)
    label = jnp.asarray(label)
    fits = bool(classes) and not label.ndim and jnp.issubdtype(label.dtype, jnp.integer)
    if fits and not isinstance(label, jax.core.Tracer):
        fits = 0 <= int(label) <= classes
    if not fits:
        wanted = f"a whole number up to {classes}" if classes else "none, as the model takes none"
        raise ValueError(f"expected a class, {wanted}, got {label.dtype} {label.shape}: {label}")
    return (label,)


def _check_point(noisy: Array, image_shape: Shape) -> None:
    if image_shape is None:
        fits, expected = noisy.ndim in (1, 3), "(D,) or (H, W, C)"
    else:
        flat = (math.prod(image_shape),)
        fits, expected = noisy.shape in (flat, tuple(image_shape)), f"{flat} or {image_shape}"
    if not fits:
        raise ValueError(
            f"expected one point of shape {expected}, got {noisy.shape}; use vmap for batches"
        )
    if not jnp.issubdtype(noisy.dtype, jnp.floating):
        raise ValueError(
            f"expected floating-point numbers in data units, got {noisy.dtype}; `data.to_float` "
            "converts images, and .astype(float) what is in data units already"
        )
