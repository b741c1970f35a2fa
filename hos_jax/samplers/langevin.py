r"""Unadjusted Langevin dynamics.

.. math:: x' = x + \epsilon s_1(x) + \sqrt{2 \epsilon} \, w, \qquad w \sim N(0, I)

The Euler-Maruyama step of dx = s1 dt + sqrt(2) dW, whose stationary law is the density with score
s1 up to a bias of order epsilon. The kernel follows blackjax's contract:
`kernel(rng_key, state, score_fn, step_size) -> (state, info)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.samplers.base import SamplingAlgorithm, all_finite
from hos_jax.types import Array, PRNGKey, ScoreFn, as_precise_as, check_floating_vectors


class LangevinState(NamedTuple):
    """State of one chain: the position x, (D,), data units, and s1(x), (D,)."""

    position: Array
    score: Array


class LangevinInfo(NamedTuple):
    """What one step did: squared norm of x' - x, and whether position and score are numbers."""

    squared_jump: Array
    is_finite: Array


def init(position: Array, score_fn: ScoreFn) -> LangevinState:
    """The state of a chain at `position`, of the type of its score where that has more digits;
    ValueError unless both are floating, (D,)."""
    check_floating_vectors(position=position)
    score = score_fn(position)
    check_floating_vectors(position=position, score=score)
    return LangevinState(as_precise_as(score, position), score)


def _kernel(
    rng_key: PRNGKey, state: LangevinState, score_fn: ScoreFn, step_size: Array | float
) -> tuple[LangevinState, LangevinInfo]:
    noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
    # A number of NumPy or JAX would lift the position to its type.
    step_size = jnp.asarray(step_size, state.position.dtype)
    jump = step_size * state.score + jnp.sqrt(2.0 * step_size) * noise
    new_state = init(state.position + jump, score_fn)
    return new_state, LangevinInfo(jnp.sum(jnp.square(jump)), all_finite(new_state))


def build_kernel() -> Callable:
    """The kernel of one chain: `(rng_key, state, score_fn, step_size) -> (state, info)`."""
    return _kernel


def as_top_level_api(score_fn: ScoreFn, step_size: Array | float) -> SamplingAlgorithm:
    """`init(position)` and `step(rng_key, state)` with everything else fixed, as blackjax has it;
    ValueError for a step size that is not positive."""
    return SamplingAlgorithm.of(init, _kernel, score_fn, step_size)


def stability_limit(eigenvalues: Array) -> Array:
    """The step size beyond which Langevin diverges where s2 has these eigenvalues, a scalar.

    On a Gaussian x' = (I + eps s2) x + ... is stable for eps < 2 / max(-l); infinite if no
    eigenvalue l is negative. At the limit its variance is infinite: take half of it or less.
    ValueError for another shape than (D,) and for integers.
    """
    check_floating_vectors(eigenvalues=eigenvalues)
    steepest = jnp.max(-eigenvalues)
    flat = steepest <= 0
    return jnp.where(flat, jnp.inf, 2.0 / jnp.where(flat, 1.0, steepest))
