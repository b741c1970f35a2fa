r"""Reverse diffusion: from noise to data in few steps, one step from each noise level to the next.

With y_t = x + sigma_t z, a step goes from sigma = sigma_t down to sigma_s, with the scores at y_t.
Each of `ancestral`, `ddim`, `heun` and `second_order` makes the kernel of one chain, `(rng_key,
state, derivatives_fn, sigma_s) -> (state, info)`; `reverse_chains` runs many chains through all
levels. `derivatives_fn(y, sigma)` gives s1, (D,), and s2, structured (D, D), at one point; s2 may
be None where it is not used.

The posterior covariance C(y) = I + sigma^2 s2(y), in units of sigma^2, is what a long step lacks
that knows s1 alone. `covariance` says what stands for it:

* "small": 0, as if the clean point were known; "large": I, as if nothing were (Ho, Jain, Abbeel,
  "Denoising Diffusion Probabilistic Models", 2020)
* "scalar": (tr C(y) / D) I; or c I for a number c, or c(sigma) I for a function of the level. The
  mean of tr C / D over data at each level is Analytic-DPM (Bao, Li, Zhu, Zhang 2022)
* "diagonal": diag C(y) (SN-DPM, Bao et al. 2022; OCM-DPM, Ou et al. 2024)
* "full": C(y) itself, drawn by its structure; on a Gaussian the step is exact in law

Above the noise level `below` it is "small" whatever the name: where a posterior is of many separate
modes, as that of an image under much noise, a draw of the Gaussian with its covariance lies between
them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from hos_jax.linops import KRYLOV_VECTORS, Diagonal, SymmetricMatrix
from hos_jax.linops.lanczos import safe_sqrt
from hos_jax.samplers.base import Chains, SamplingAlgorithm, all_finite, as_partial, run_chains
from hos_jax.types import (
    Array,
    PRNGKey,
    as_positive,
    at_least_float32,
    check_falling_levels,
    check_floating_vectors,
    check_structured,
    derivatives_at,
)

CovarianceName = Literal["small", "large", "scalar", "diagonal", "full"]
COVARIANCES = get_args(CovarianceName)
Covariance = CovarianceName | float | Callable[[Array], Array]
_CONSTANTS = {"small": 0.0, "large": 1.0}
# Noise that is added stays below sigma.
LARGEST_CHURN = math.sqrt(2.0) - 1.0
DerivativesFn = Callable[..., tuple[Array, SymmetricMatrix | None]]


class ReverseState(NamedTuple):
    """State of one chain: the position y, (D,), and its noise level, a scalar, both data units; and
    what `derivatives_fn` gets as a third argument, such as a class, unless it is None."""

    position: Array
    sigma: Array
    condition: Any = None


class ReverseInfo(NamedTuple):
    """What one step did: squared norm of y_s - y_t, whether y_s is finite, and the estimated
    relative error of a function of s2, 0 without Lanczos."""

    squared_jump: Array
    is_finite: Array
    lanczos_error: Array


def init(position: Array, sigma: Array | float, condition: Any = None) -> ReverseState:
    """The state of a chain at y, (D,), of noise level sigma, and perhaps of a condition, in float32
    at least; ValueError for positions that are integers or of another shape."""
    check_floating_vectors(position=position)
    position = at_least_float32(position)
    return ReverseState(position, jnp.asarray(sigma, position.dtype), condition)


def guided(derivatives_fn: DerivativesFn, weight: float, unknown: Any) -> DerivativesFn:
    r"""Scores that overstate a condition c: with those of `unknown`, the condition that says
    nothing,

    .. math:: s_1(y) + w \, (s_1(y | c) - s_1(y)),

    that of the density in proportion to q(y) (q(y | c) / q(y))^w, and s2 of c itself, so that C
    stays a covariance. As it is no longer the derivative of s1, `second_order` is of order 1 with
    it. Two evaluations in place of one. See Ho, Salimans, "Classifier-Free
    Diffusion Guidance", 2022; w here is 1 + w there.
    """

    def overstated(y: Array, sigma: Array, condition: Any) -> tuple[Array, SymmetricMatrix | None]:
        known, hessian = derivatives_fn(y, sigma, condition)
        plain, _ = derivatives_fn(y, sigma, unknown)
        return plain + jnp.asarray(weight, plain.dtype) * (known - plain), hessian

    return overstated


def simplified(covariance: SymmetricMatrix, name: str) -> SymmetricMatrix:
    """What one of `COVARIANCES` puts in the place of C, (D, D)."""
    if name == "full":
        return covariance
    diagonal = covariance.diagonal()
    if name != "diagonal":
        diagonal = jnp.full_like(diagonal, _CONSTANTS.get(name, jnp.mean(diagonal)))
    return Diagonal(diagonal)


def step_covariance(
    hessian: SymmetricMatrix | None, sigma: Array | float, covariance: Covariance, like: Array
) -> SymmetricMatrix:
    """What stands for C, (D, D), dimensionless and positive semi-definite.

    C itself is floored at what the floating type resolves beside 1. ValueError for a missing s2,
    TypeError for one that is a plain array, where the name asks for it.

    Args:
      hessian: s2(y), structured (D, D), 1 / data units^2, or None.
      sigma: the noise level of y, a scalar, data units.
      covariance: see the head of this module.
      like: an array (D,), whose size and type the result has.
    """
    if callable(covariance):
        return Diagonal(jnp.full_like(like, covariance(jnp.asarray(sigma))))
    if not isinstance(covariance, str):
        return Diagonal(jnp.full_like(like, covariance))
    if covariance in _CONSTANTS:
        return Diagonal(jnp.full_like(like, _CONSTANTS[covariance]))
    if hessian is None:
        raise ValueError(f"covariance {covariance!r} needs s2, and derivatives_fn gives none")
    check_structured(hessian, "s2")
    posterior = hessian.scale(as_positive(sigma) ** 2).add_identity(1.0)
    if covariance == "full":
        return posterior.floor(float(jnp.finfo(like.dtype).eps))[0]
    return Diagonal(jnp.maximum(simplified(posterior, covariance).diagonal(), 0.0))


def _checked_covariance(covariance: Covariance, below: float) -> tuple[Covariance, float]:
    """Both, numbers of NumPy and JAX as Python's: what is cached by them has to be hashable."""
    if isinstance(covariance, int | np.number | jax.Array) and not jnp.ndim(covariance):
        covariance = float(covariance)
    named = isinstance(covariance, str) and covariance in COVARIANCES
    number = isinstance(covariance, float) and 0 <= covariance < np.inf
    if not (named or number or callable(covariance)):
        raise ValueError(
            f"expected a covariance of {', '.join(COVARIANCES)}, a number >= 0 or a function of "
            f"sigma, got {covariance!r}"
        )
    if not below > 0:
        raise ValueError(f"expected below > 0, got {below}")
    return covariance, float(below)


def _posterior_noise(
    key: PRNGKey,
    hessian: SymmetricMatrix | None,
    level: Array,
    covariance: Covariance,
    below: float,
    like: Array,
) -> Array:
    """A draw of N(0, C), (D,), dimensionless, or 0 above the level `below`."""
    noise = step_covariance(hessian, level, covariance, like).sample(key, 1)[0]
    return noise if below == math.inf else jnp.where(level <= below, noise, 0.0)


def _moved(state: ReverseState, jump: Array, sigma: Array, error: Array | float = 0.0):
    new_state = init(state.position + jump, sigma, state.condition)
    squared = jnp.sum(jnp.square(jump))
    return new_state, ReverseInfo(
        squared, all_finite((new_state.position, new_state.sigma)), jnp.asarray(error, jump.dtype)
    )


def ancestral(covariance: Covariance = "full", *, below: float = math.inf) -> Callable:
    r"""A draw of the Gaussian with the mean, and with C the covariance, of y_s given y_t.

    .. math:: y_s = y + \Delta s_1 + \sqrt{\Delta} \big( \sqrt{\rho} w_1 + \sqrt{1 - \rho} \,
        C^{1/2} w_2 \big), \quad \Delta = \sigma_t^2 - \sigma_s^2, \ \rho = \sigma_s^2 / \sigma_t^2

    One evaluation. C is used at levels up to `below`, data units. ValueError for a covariance that
    is none of those of the module's head, or unless below > 0.
    """
    return _ancestral(*_checked_covariance(covariance, below))


# Equal settings give the same function, for which loops are compiled once.
@functools.lru_cache(maxsize=32)
def _ancestral(covariance: Covariance, below: float) -> Callable:
    def kernel(
        rng_key: PRNGKey, state: ReverseState, derivatives_fn: DerivativesFn, sigma: Array
    ) -> tuple[ReverseState, ReverseInfo]:
        y, level = state.position, state.sigma
        score, hessian = derivatives_at(derivatives_fn, y, level)
        step, ratio = (level - sigma) * (level + sigma), jnp.square(sigma / level)
        noise_key, posterior_key = jax.random.split(rng_key)
        noise = jnp.sqrt(ratio) * jax.random.normal(noise_key, y.shape, y.dtype)
        drawn = _posterior_noise(posterior_key, hessian, level, covariance, below, y)
        noise += jnp.sqrt(1.0 - ratio) * drawn
        return _moved(state, step * score + jnp.sqrt(step) * noise, sigma)

    return kernel


def ddim(covariance: Covariance = "small", *, below: float = math.inf) -> Callable:
    r"""The straight line to the posterior mean ("small"), or to a draw x of the posterior.

    .. math:: y_s = y + (\sigma_t - \sigma_s) (\sigma_t s_1 + C^{1/2} w), \qquad
        \text{which is } x + \sigma_s (y - x) / \sigma_t

    Without C it is deterministic and of order 1. One evaluation. See Song, Meng, Ermon, "Denoising
    Diffusion Implicit Models", 2021. `below` and ValueError as of `ancestral`.
    """
    return _ddim(*_checked_covariance(covariance, below))


@functools.lru_cache(maxsize=32)
def _ddim(covariance: Covariance, below: float) -> Callable:
    def kernel(
        rng_key: PRNGKey, state: ReverseState, derivatives_fn: DerivativesFn, sigma: Array
    ) -> tuple[ReverseState, ReverseInfo]:
        y, level = state.position, state.sigma
        score, hessian = derivatives_at(derivatives_fn, y, level)
        noise = _posterior_noise(rng_key, hessian, level, covariance, below, y)
        return _moved(state, (level - sigma) * (level * score + noise), sigma)

    return kernel


def heun(churn: float = 0.0, between: tuple[float, float] = (0.0, np.inf)) -> Callable:
    r"""Heun's step of the probability flow dy / dsigma = -sigma s1, of order 2.

    Two evaluations, of s1 alone. With churn the level is raised to (1 + churn) sigma first, by
    noise that is added to y: a little of the freedom of `ancestral`. See Karras, Aittala, Aila,
    Laine, "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, algorithms 1
    and 2. ValueError unless 0 <= churn <= sqrt(2) - 1, which keeps the added noise below sigma.

    Args:
      churn: S_churn over the number of steps there.
      between: the lowest and the highest level with churn, data units. A run knows no level above
        its largest, so a chain that begins there needs a lower end: beyond it all is NaN.
    """
    if not 0 <= churn <= LARGEST_CHURN:
        raise ValueError(f"expected churn from 0 to sqrt(2) - 1, got {churn}")
    low, high = between
    return _heun(float(churn), float(low), float(high))


# Equal settings give the same function, for which loops are compiled once.
@functools.lru_cache(maxsize=32)
def _heun(churn: float, low: float, high: float) -> Callable:
    def kernel(
        rng_key: PRNGKey, state: ReverseState, derivatives_fn: DerivativesFn, sigma: Array
    ) -> tuple[ReverseState, ReverseInfo]:
        y, level = state.position, state.sigma
        if churn:
            # A step to the level where it is goes nowhere.
            inside = (level >= low) & (level <= high) & (sigma < level)
            raised = jnp.where(inside, 1.0 + churn, 1.0) * level
            noise = jax.random.normal(rng_key, y.shape, y.dtype)
            y = y + jnp.sqrt((raised - level) * (raised + level)) * noise
            level = raised
        slope = -level * derivatives_at(derivatives_fn, y, level)[0]
        change = sigma - level
        ahead = -sigma * derivatives_at(derivatives_fn, y + change * slope, sigma)[0]
        return _moved(state, y - state.position + 0.5 * change * (slope + ahead), sigma)

    return kernel


@functools.lru_cache(maxsize=32)
def second_order(*, gradient: bool = False, krylov_vectors: int = KRYLOV_VECTORS) -> Callable:
    r"""A step of the probability flow that knows how s1 changes along it: from s2, at one point.

    .. math:: y_s = y + \Delta \big( I + (I + \Delta s_2)^{1/2} \big)^{-1} s_1
        - \tfrac12 (\sigma_t - \sigma_s)^2 \sigma_t^2 \nabla \mathrm{tr}\, s_2,
        \qquad \Delta = \sigma_t^2 - \sigma_s^2

    The first term is the flow of the Gaussian that has these s1 and s2, whatever the step, as
    Ozaki's step is for Langevin's diffusion; for short steps it is -(sigma_t - sigma_s)^2 C s1 / 2
    beyond `ddim`. As d^2 y / dsigma^2 = -C s1 - sigma^2 grad tr s2, the order is 2 with the last
    term, which is 0 on a Gaussian, and 1 without.

    One evaluation, with `gradient` also one derivative in reverse mode.

    Args:
      gradient: whether to have the last term; `derivatives_fn` must be differentiable.
      krylov_vectors: of Lanczos, see `SymmetricMatrix.function_product`.
    """

    def kernel(
        rng_key: PRNGKey, state: ReverseState, derivatives_fn: DerivativesFn, sigma: Array
    ) -> tuple[ReverseState, ReverseInfo]:
        y, level = state.position, state.sigma

        def trace(point: Array) -> tuple[Array, tuple[Array, SymmetricMatrix]]:
            score, hessian = derivatives_at(derivatives_fn, point, level)
            if hessian is None:
                raise ValueError("a second-order step needs s2, and derivatives_fn gives none")
            check_structured(hessian, "s2")
            return hessian.trace(), (score, hessian)

        bend = jnp.zeros_like(y)
        if gradient:
            bend, (score, hessian) = jax.grad(trace, has_aux=True)(y)
        else:
            _, (score, hessian) = trace(y)
        step = (level - sigma) * (level + sigma)
        moved, error = hessian.function_product(
            lambda value: step / (1.0 + safe_sqrt(jnp.maximum(1.0 + step * value, 0.0))),
            score,
            krylov_vectors=krylov_vectors,
        )
        jump = moved - 0.5 * jnp.square((level - sigma) * level) * bend
        return _moved(state, jump, sigma, error)

    return kernel


def _start(sigmas: Array, position: Array, rng_key: Any = None) -> ReverseState:
    return init(position, sigmas[0])


def _step(kernel: Callable, derivatives_fn: Callable, sigmas: Array, rng_key, state) -> Any:
    levels = sigmas.astype(state.sigma.dtype)
    below = jnp.max(levels, where=levels < state.sigma, initial=levels[-1])
    if state.condition is None:
        return kernel(rng_key, state, derivatives_fn, below)

    def conditional_fn(y: Array, sigma: Array) -> tuple[Array, SymmetricMatrix | None]:
        return derivatives_fn(y, sigma, state.condition)

    return kernel(rng_key, state, conditional_fn, below)


def as_top_level_api(
    kernel: Callable, derivatives_fn: DerivativesFn, sigmas: Array
) -> SamplingAlgorithm:
    """`init(position)` at the first level, and `step(rng_key, state)` to the next one below, as
    blackjax has it; at the last level a step goes nowhere.

    ValueError unless the levels, (levels,), data units, are two or more, positive and falling.
    """
    sigmas = jnp.asarray(sigmas)
    check_falling_levels(sigmas)
    return SamplingAlgorithm(
        Partial(_start, sigmas),
        Partial(_step, as_partial(kernel), as_partial(derivatives_fn), sigmas),
    )


def reverse_chains(
    key: PRNGKey,
    kernel: Callable,
    derivatives_fn: DerivativesFn,
    positions: Array,
    sigmas: Array,
    *,
    conditions: Any = None,
    collect: Callable[[ReverseState], Any] | None = None,
    devices: list[Any] | None = None,
    progress: str | None = None,
) -> Chains:
    """Run chains from the first noise level to the last, a step from each to the next.

    The end is a draw of the data smoothed by the last level; one Tweedie step denoises it::

        sigmas = noise.karras_sigmas(10.0, 0.05, 20)
        start = mean + sigmas[0] * jax.random.normal(start_key, (chains, dim))
        chains = reverse_chains(key, ancestral("full"), derivatives_fn, start, sigmas)
        clean = tweedie.posterior_mean(y, derivatives_fn(y, sigmas[-1])[0], sigmas[-1])

    Chain i at step t uses the key fold_in(fold_in(key, t), i). ValueError as `as_top_level_api`,
    for positions of another shape or integers, s1 or s2 of another D, or devices that do not divide
    the chains; TypeError for a function that gives no pair.

    Args:
      key: one key for all chains.
      kernel: what `ancestral`, `ddim`, `heun` or `second_order` gives.
      derivatives_fn: `(y, sigma) -> (s1, s2)` at one point; sigma is traced.
      positions: where the chains start, (chains, D), data units, of the law of the data smoothed by
        sigmas[0], or nearly so: the Gaussian with the mean and the covariance of the data plus
        sigmas[0]^2 I. Nothing later mends a wrong mean.
      sigmas: the levels, falling, (levels,), data units.
      conditions: one a chain, leaves (chains, ...): the third argument of `derivatives_fn`.
      collect, devices, progress: see `run_chains`; something is kept after each step.
    """
    positions = jnp.asarray(positions)
    if positions.ndim != 2:
        raise ValueError(f"expected positions of shape (chains, D), got {positions.shape}")
    sampler = as_top_level_api(kernel, derivatives_fn, sigmas)
    return run_chains(
        key,
        sampler.step,
        jax.vmap(sampler.init)(positions)._replace(condition=conditions),
        len(sigmas) - 1,
        collect=collect,
        chunk=1,
        devices=devices,
        progress=progress,
    )
