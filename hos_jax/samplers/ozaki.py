r"""Ozaki discretization of Langevin dynamics: exact for the linear diffusion that s1 and s2 define.

.. math:: x' = x + \varphi(\epsilon s_2) s_1 + G w, \qquad
    \varphi = (e^{\epsilon s_2} - I) s_2^{-1}, \quad G G^T = (e^{2 \epsilon s_2} - I) s_2^{-1}

Both as spectral functions, \mathrm{expm1}(\epsilon l) / l and \sqrt{\mathrm{expm1}(2 \epsilon l) /
l}, positive for every real eigenvalue l with the limits eps and 2 eps at 0: s2 is never inverted,
and may be indefinite. On a Gaussian density the step is exact in law for any eps.

The structure of s2 applies them (`SymmetricMatrix.function_product`): `Diagonal` elementwise,
`IsotropicPlusLowRank` and `Dense` through eigenvalues, `DiagonalPlusLowRank` by Lanczos. The kernel
follows blackjax's contract: `kernel(rng_key, state, derivatives_fn, step_size) -> (state, info)`.

See Ozaki, "A bridge between nonlinear time series models and nonlinear stochastic dynamical
systems", 1992; Meng et al. 2021.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import KRYLOV_VECTORS, HessianFn, SymmetricMatrix
from hos_jax.samplers.base import SamplingAlgorithm, all_finite
from hos_jax.types import (
    Array,
    PRNGKey,
    ScoreFn,
    as_precise_as,
    check_floating,
    check_floating_vectors,
    check_structured,
    derivatives_at,
)

# On mixtures: without a bound single chains leave the modes for good, and a bound of 0.1 makes the
# law of the chains visibly too narrow.
GROWTH_BOUND = 1.0

DerivativesFn = Callable[[Array], tuple[Array, SymmetricMatrix]]


class OzakiState(NamedTuple):
    """State of one chain: x, (D,), data units, with s1(x), (D,), and s2(x), structured (D, D)."""

    position: Array
    score: Array
    hessian: SymmetricMatrix


class OzakiInfo(NamedTuple):
    """What one step did: squared norm of x' - x, whether position, score and Hessian are numbers,
    and the larger of the estimated relative errors of drift and noise, 0 without Lanczos.
    """

    squared_jump: Array
    is_finite: Array
    lanczos_error: Array


def relative_expm1(t: Array) -> Array:
    """(e^t - 1) / t with its limit 1 at t = 0; positive for every real t.

    Near 0 by its series, whose derivatives are right where those of the quotient cancel.
    """
    small = jnp.abs(t) < 1e-2
    safe = jnp.where(small, 1.0, t)
    near, series = jnp.where(small, t, 0.0), jnp.ones_like(t)
    for order in (6, 5, 4, 3, 2):
        series = 1.0 + near / order * series
    return jnp.where(small, series, jnp.expm1(safe) / safe)


def join(score_fn: ScoreFn, hessian_fn: HessianFn) -> DerivativesFn:
    """The kernel's `x -> (s1(x), s2(x))` from two functions; a shared trunk gives both at once."""
    return lambda position: (score_fn(position), hessian_fn(position))


def init(position: Array, derivatives_fn: DerivativesFn) -> OzakiState:
    """The state of a chain at `position`, of the type of s1 or s2 where that has more digits;
    ValueError unless all three are floating and of one D, TypeError for a plain array as s2."""
    check_floating_vectors(position=position)
    score, hessian = derivatives_at(derivatives_fn, position)
    check_structured(hessian, "s2")
    check_floating(score=score)
    position = as_precise_as(hessian, as_precise_as(score, position))
    return OzakiState(position, score, hessian)


def build_kernel(
    *,
    krylov_vectors: int = KRYLOV_VECTORS,
    growth_bound: float | None = GROWTH_BOUND,
    dense: Literal["eigh", "lanczos"] = "eigh",
) -> Callable:
    """The kernel of one chain: `(rng_key, state, derivatives_fn, step_size) -> (state, info)`.

    ValueError for a negative growth bound; in a step, for another `dense`.

    Args:
      krylov_vectors: of Lanczos, for `DiagonalPlusLowRank`, and `Dense` with dense="lanczos".
      growth_bound: g. Where log q is convex, l > 0, the linear diffusion runs away as e^(eps l),
        farther than s2 at one point can be trusted; there it runs for the time
        (g / l) tanh(eps l / g) only (smooth, so that Lanczos stays accurate). 0 takes l as 0 there:
        the step is one of Langevin along these directions, for a learned s2 whose positive
        eigenvalues drive chains away. It is not the limit of small bounds, which hardly move there.
        None for no bound.
      dense: see `SymmetricMatrix.function_product`.
    """
    if growth_bound is not None and not growth_bound >= 0:
        raise ValueError(f"expected growth_bound >= 0, got {growth_bound}")
    bound = None if growth_bound is None else float(growth_bound)
    if bound is not None and bound < float(jnp.finfo(jnp.float32).tiny):
        bound = 0.0  # as JAX takes it
    return _kernel(krylov_vectors, bound, dense)


# Equal settings give the same function, for which loops are compiled once.
@functools.lru_cache(maxsize=32)
def _kernel(
    krylov_vectors: int, bound: float | None, dense: Literal["eigh", "lanczos"]
) -> Callable:
    # Compiled, as Lanczos has loops: a step by itself would have them compiled anew.
    @jax.jit
    def jump_of(
        hessian: SymmetricMatrix, score: Array, noise: Array, step_size: Array
    ) -> tuple[Array, Array]:
        """x' - x, and the larger of the two errors that Lanczos estimates."""

        def time(eigenvalues: Array) -> Array:
            if not bound:
                return jnp.full_like(eigenvalues, step_size)
            ratio = jnp.maximum(step_size * eigenvalues, 0.0) / bound
            small = ratio < 1e-2
            safe = jnp.where(small, 1.0, ratio)
            square = jnp.square(jnp.where(small, ratio, 0.0))
            series = 1.0 - square / 3 * (1.0 - square * 2 / 5 * (1.0 - square * 17 / 42))
            return step_size * jnp.where(small, series, jnp.tanh(safe) / safe)

        def growth(eigenvalues: Array) -> Array:
            if bound == 0:
                eigenvalues = jnp.minimum(eigenvalues, 0.0)
            return time(eigenvalues) * eigenvalues

        def drift(eigenvalues: Array) -> Array:
            return time(eigenvalues) * relative_expm1(growth(eigenvalues))

        def spread(eigenvalues: Array) -> Array:
            return jnp.sqrt(2.0 * time(eigenvalues) * relative_expm1(2.0 * growth(eigenvalues)))

        product = functools.partial(
            hessian.function_product, krylov_vectors=krylov_vectors, dense=dense
        )
        moved, drift_error = product(drift, score)
        shaken, noise_error = product(spread, noise)
        return moved + shaken, jnp.maximum(drift_error, noise_error)

    def kernel(
        rng_key: PRNGKey, state: OzakiState, derivatives_fn: DerivativesFn, step_size: Array | float
    ) -> tuple[OzakiState, OzakiInfo]:
        # A number of NumPy or JAX would lift the position to its type.
        step_size = jnp.asarray(step_size, state.position.dtype)
        noise = jax.random.normal(rng_key, state.position.shape, state.position.dtype)
        jump, error = jump_of(state.hessian, state.score, noise, step_size)
        new_state = init(state.position + jump, derivatives_fn)
        return new_state, OzakiInfo(jnp.sum(jnp.square(jump)), all_finite(new_state), error)

    return kernel


def as_top_level_api(
    derivatives_fn: DerivativesFn, step_size: Array | float, **settings: Any
) -> SamplingAlgorithm:
    """`init(position)` and `step(rng_key, state)` with everything else fixed, as blackjax has it.

    The settings are those of `build_kernel`; ValueError also for a step size that is not positive::

        sampler = ozaki.as_top_level_api(ozaki.join(law.score, law.hessian), 0.2, growth_bound=None)
    """
    return SamplingAlgorithm.of(init, build_kernel(**settings), derivatives_fn, step_size)
