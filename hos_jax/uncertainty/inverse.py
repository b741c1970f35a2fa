r"""Linear inverse problems: draw the clean point x given a few noisy measurements of it.

Observed is b = A x + c + t n with n standard normal and A any linear map. At noise level sigma,
y = x + sigma z, Tweedie's formula gives the mean m(y) and the covariance K(y) of x given y. With
the Gaussian of these moments in place of the law of x given y, b given y is Gaussian too:

.. math:: b \mid y \approx N(A m, S), \qquad S = t^2 I + A K A^T

.. math:: \nabla_y \log p(b \mid y) \approx C A^T S^{-1} (b - A m), \qquad
    C = \partial m / \partial y = K / \sigma^2

.. math:: E[x \mid y, b] \approx m + K A^T S^{-1} (b - A m), \qquad
    \mathrm{Cov}[x \mid y, b] \approx K - K A^T S^{-1} A K

All of it is exact where the law of x is Gaussian (Boys et al., "Tweedie Moment Projected Diffusions
for Inverse Problems", 2023, arXiv 2310.06721). The usual heuristic has K = r^2 I, whatever y is
(Song, Vahdat, Mardani, Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023);
`isotropic` gives that posterior. An offset c, of a dark frame say, is taken out of b.

Nothing is a D x D array: A is a function, A^T its transpose by JAX, and S^-1 is applied by
conjugate gradients, which needs products with K alone; `condition` says whether they converged. A
number that is not finite among the measured ones makes the result NaN. All functions act on one
point; batch with `vmap`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jax.typing import DTypeLike

from hos_jax.errors import reason
from hos_jax.linops import Diagonal
from hos_jax.types import (
    Array,
    PRNGKey,
    as_positive,
    at_least_float32,
    check_floating,
    check_function,
    check_real,
    check_unmasked,
    check_vectors,
    compiled_for_one_call,
    nan_unless,
)
from hos_jax.uncertainty.posterior import Posterior

PosteriorFn = Callable[[Array, Array | float], Posterior]

_AFFINE = "forward has to be linear, or linear with an offset, in operations of jax.numpy"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Observation:
    """What was measured: b = A x + c + t n, with n standard normal.

    Attributes:
      values: b, (M,), units of A x.
      noise_std: t, positive, units of A x: a scalar, or one of each value, (M,).
      forward: x -> A x + c, (D,) -> (M,), a function that JAX can transpose.
    """

    values: Array
    noise_std: Array | float
    forward: Callable[[Array], Array] = dataclasses.field(metadata={"static": True})

    def adjoint(self, vector: Array, like: Array) -> Array:
        """A^T v, (D,), for v of shape (M,); `like` is any array of shape (D,)."""
        return jax.linear_transpose(self.forward, like)(vector)[0]

    def linear(self, vector: Array) -> Array:
        """A v, (M,), for v of shape (D,): without the offset."""
        return self.forward(vector) - self.forward(jnp.zeros_like(vector))

    def check(self, like: Array) -> None:
        """ValueError unless it is a measurement of points like this one, (D,): b finite, t positive
        (unless traced), and the map affine, real and of the shape of b; TypeError for a map that is
        no function."""
        check_vectors(like=like)
        if not hasattr(self.values, "dtype"):
            kind = type(self.values).__name__
            raise ValueError(f"values are a {kind}; make an array of them: jnp.asarray(values)")
        check_function(self.forward, "forward is the function x -> A x", "lambda x: A @ x")
        try:
            predicted = jax.eval_shape(self.forward, like)
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(f"{_AFFINE}, not of numpy") from error
        check_unmasked(values=self.values)
        check_vectors(values=self.values, predicted=predicted)
        check_real(values=self.values)
        if not jnp.issubdtype(predicted.dtype, jnp.floating):
            raise ValueError(
                f"forward has to give real floating numbers, got {predicted.dtype}; "
                "stack the real and the imaginary part of complex ones"
            )
        known = np.zeros(1) if _is_traced(self.values) else np.asarray(self.values)
        wrong = np.flatnonzero(~np.isfinite(known))
        if len(wrong):
            raise ValueError(
                f"{len(wrong)} of {len(known)} values are not finite, the first at "
                f"{wrong[0]}; leave them out of the values and of what forward gives"
            )
        if np.shape(self.noise_std) not in ((), (1,), predicted.shape):
            got = np.shape(self.noise_std)
            raise ValueError(f"expected one noise_std, or one of each value, (M,), got {got}")
        std = 1.0 if _is_traced(self.noise_std) else np.asarray(self.noise_std, float)
        if not np.all((std > 0) & np.isfinite(std)):
            raise ValueError(f"noise_std has to be positive and finite, got {self.noise_std}")
        self._check_affine(like, predicted)

    def _check_affine(self, like: Array, predicted: jax.ShapeDtypeStruct) -> None:
        try:
            jax.eval_shape(lambda v: self.adjoint(v, like), predicted)
        # What JAX raises depends on the operation that cannot be transposed.
        except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
            raise ValueError(f"{_AFFINE}: {reason(error)}") from error
        # Some operations (rounding to integers) have a transpose without being linear. A power of
        # two goes through whatever is, exactly and in any precision.
        with jax.ensure_compile_time_eval():
            point = jax.random.normal(jax.random.key(0), like.shape, like.dtype)
            once, twice = self.linear(point), self.linear(2.0 * point)
            offset = self.forward(jnp.zeros_like(point))
            if any(map(_is_traced, (once, twice, offset))):
                return
            size = jnp.max(jnp.abs(twice), initial=0.0) + jnp.max(jnp.abs(offset), initial=0.0)
            rounding = 100.0 * jnp.finfo(predicted.dtype).eps * size
            if jnp.any(jnp.abs(twice - 2.0 * once) > rounding):
                raise ValueError(f"{_AFFINE}: at twice the point it does not give twice as much")


def _is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def isotropic(mean: Array, sigma: Array | float, data_std: Array | float) -> Posterior:
    r"""The heuristic posterior N(m, r^2 I) of x given y, whatever y is.

    .. math:: r^2 = \frac{\sigma^2 s^2}{\sigma^2 + s^2}

    which is right for independent Gaussian values of standard deviation s = `data_std`, data units.
    ValueError for a mean of integers, or a sigma or `data_std` that is no positive scalar.
    """
    check_floating(mean=mean)
    mean = at_least_float32(mean)
    sigma, data_std = as_positive(sigma), as_positive(data_std, "data_std")
    variance = sigma**2 * data_std**2 / (sigma**2 + data_std**2)
    return Posterior(mean, Diagonal(jnp.full_like(mean, variance)))


class Conditioned(NamedTuple):
    """What a measurement says about x given y, and how well the solve behind it went.

    Attributes:
      mean: E[x | y, b] = m + K A^T S^-1 (b - A m), (D,), data units.
      guidance: A^T S^-1 (b - A m), (D,): where the observation pulls the mean, before K.
      relative_residual: |S w - (b - A m)| / |b - A m| of the solve for w, a scalar.
      converged: whether that is at most ten times the tolerance, which allows for rounding.
    """

    mean: Array
    guidance: Array
    relative_residual: Array
    converged: Array


class _Solver(TypedDict, total=False):
    """The options of `condition`."""

    tolerance: float
    max_iterations: int


def condition(
    posterior: Posterior,
    observation: Observation,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 100,
) -> Conditioned:
    """The posterior mean given the observation too, with what the solver says of itself.

    Conjugate gradients stop at a residual of `tolerance`, relative to the norm of b - A m, or after
    `max_iterations` products with S. Raises as `Observation.check`.
    """
    observation.check(posterior.mean)
    predicted = observation.forward(posterior.mean)
    residual = jnp.asarray(observation.values, predicted.dtype) - predicted

    variance = jnp.asarray(observation.noise_std, residual.dtype) ** 2

    def product(vector: Array) -> Array:
        spread = posterior.matvec(observation.adjoint(vector, posterior.mean))
        return variance * vector + observation.linear(spread)

    # The rounding of float32 ends the iteration above any tighter bound.
    tolerance = max(tolerance, 4.0 * float(jnp.finfo(residual.dtype).eps))
    # The solver's products, of the residual's size squared times S, would leave float32's range.
    size = jnp.max(jnp.abs(jax.lax.stop_gradient(residual)), initial=0.0)
    unit = jnp.where(size > 0, size, 1.0)
    scaled = residual / unit
    solve = functools.partial(cg, product, tol=tolerance, maxiter=max_iterations)
    solution, _ = compiled_for_one_call(solve, scaled)
    # The solver leaves its loop at once where a number is not finite, as if nothing were measured.
    solution = nan_unless(jnp.isfinite(size), solution)
    unsolved, whole = jax.lax.stop_gradient((product(solution) - scaled, scaled))
    left = jnp.linalg.norm(unsolved) / jnp.where(size > 0, jnp.linalg.norm(whole), 1.0)
    guidance = observation.adjoint(unit * solution, posterior.mean)
    mean = posterior.mean + posterior.matvec(guidance)
    return Conditioned(mean, guidance, left, left <= 10.0 * tolerance)


def guidance(posterior: Posterior, observation: Observation, **solver: Unpack[_Solver]) -> Array:
    """A^T S^-1 (b - A m), (D,), as in `condition`, with its arguments and errors."""
    return condition(posterior, observation, **solver).guidance


def conditional_mean(
    posterior: Posterior, observation: Observation, **solver: Unpack[_Solver]
) -> Array:
    """E[x | y, b], (D,), data units, as in `condition`."""
    return condition(posterior, observation, **solver).mean


def conditional_score(
    score1: Array,
    posterior: Posterior,
    observation: Observation,
    sigma: Array | float,
    **solver: Unpack[_Solver],
) -> Array:
    r"""The score of y given b, (D,), 1 / data units, for any sampler that takes a score.

    .. math:: s_1(y) + \frac{1}{\sigma^2} K A^T S^{-1} (b - A m)
    """
    pull = posterior.matvec(guidance(posterior, observation, **solver))
    return score1 + pull / as_positive(sigma) ** 2


def conditional_sample(
    key: PRNGKey,
    posterior: Posterior,
    observation: Observation,
    *,
    return_converged: bool = False,
    **solver: Unpack[_Solver],
) -> Any:
    """One draw of x given y and b, (D,), data units, exact for Gaussian posteriors.

    Matheron's rule: for x' ~ N(m, K) and b' = A x' + t n the point x' + K A^T S^-1 (b - b') has the
    conditional mean and covariance (Wilson et al., "Pathwise Conditioning of Gaussian Processes",
    2021). One solve, and no root of the conditional covariance. With `return_converged` it is
    (draw, whether the solve converged, as `condition` tells it).
    """
    # Before the values are shaken: then they may be traced.
    observation.check(posterior.mean)
    draw_key, noise_key = jax.random.split(key)
    draw = posterior.sample(draw_key, 1)[0]
    values = jnp.asarray(observation.values, draw.dtype)
    std = jnp.asarray(observation.noise_std, values.dtype)
    noise = std * jax.random.normal(noise_key, values.shape, values.dtype)
    shaken = dataclasses.replace(observation, values=values - noise)
    found = condition(dataclasses.replace(posterior, mean=draw), shaken, **solver)
    return (found.mean, found.converged) if return_converged else found.mean


def bridge(
    key: PRNGKey, clean: Array, noisy: Array, sigma: Array | float, following: Array | float
) -> Array:
    """One draw of y' at the level `following` < sigma given x and y at sigma, (D,), as `descend`
    has it."""
    noise = jax.random.normal(key, noisy.shape, noisy.dtype)
    kept = (following / as_positive(sigma)) ** 2
    return clean + kept * (noisy - clean) + following * jnp.sqrt(1.0 - kept) * noise


def falling_levels(sigmas: Array, dtype: DTypeLike) -> Array:
    """The levels of `descend`, (levels,), of this type; ValueError as it says."""
    sigmas = jnp.asarray(sigmas)
    if sigmas.ndim != 1 or not len(sigmas):
        raise ValueError(f"expected noise levels of shape (levels,), got {tuple(sigmas.shape)}")
    known = np.ones(1) if _is_traced(sigmas) else np.asarray(sigmas)
    if not (np.all((known > 0) & (known < np.inf)) and np.all(np.diff(known) < 0)):
        raise ValueError("expected positive noise levels in falling order; sort them")
    return sigmas.astype(dtype)


def descend(
    key: PRNGKey,
    draw_fn: Callable[[PRNGKey, Array, Array], Any],
    start: Array,
    sigmas: Array,
    *,
    has_aux: bool = False,
) -> Any:
    r"""One draw of x, (D,), data units, down a ladder of noise levels.

    At each level x is drawn given y, then y at the next level :math:`\sigma' < \sigma` given both,

    .. math:: y' = x + \rho (y - x) + \sigma' \sqrt{1 - \rho} \, w, \qquad
        \rho = \sigma'^2 / \sigma^2

    as the law of a Brownian path asks for. The last x is the result. Where x is drawn from its
    exact law the result is exact too, however far apart the levels are, but for the start.
    ValueError for no level, ones that are not positive and falling (unless traced), or a draw of
    another shape.

    Args:
      key: of all draws.
      draw_fn: `(key, y, sigma) -> x`; sigma is traced.
      start: y at sigmas[0], (D,): sigmas[0] times standard normal noise around the data's centre.
      sigmas: the levels in falling order, (levels,), data units; the first is large against the
        data's standard deviation.
      has_aux: `draw_fn` gives (x, more), and the result is x with `more` of every level.
    """
    sigmas = falling_levels(sigmas, jnp.asarray(start).dtype)
    draw = draw_fn if has_aux else lambda *arguments: (draw_fn(*arguments), None)

    def step(noisy: Array, level: tuple[Array, Array, Array]) -> tuple[Array, Any]:
        index, sigma, following = level
        draw_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        clean, more = draw(draw_key, noisy, sigma)
        if jnp.shape(clean) != noisy.shape:  # it would be broadcast
            raise ValueError(f"draw_fn gives {jnp.shape(clean)} of a noisy point {noisy.shape}")
        return bridge(noise_key, clean, noisy, sigma, following), more

    # With a level 0 at the end, of which the draw is the last x itself, one loop traces `draw_fn`
    # once.
    levels = jnp.arange(len(sigmas), dtype=jnp.int32), sigmas, jnp.append(sigmas[1:], 0.0)
    down = functools.partial(jax.lax.scan, step)
    clean, more = compiled_for_one_call(down, start, levels)
    return (clean, more) if has_aux else clean


def sample_posterior(
    key: PRNGKey,
    posterior_fn: PosteriorFn,
    observation: Observation,
    start: Array,
    sigmas: Array,
    *,
    return_converged: bool = False,
    **solver: Unpack[_Solver],
) -> Any:
    """One draw of x given b, (D,), data units: `descend` with `conditional_sample` at each level.

    Exact in law on a Gaussian for any number of levels, if its posteriors are (see `posterior` for
    levels far above the deviation of the data); elsewhere they have to be close enough that
    N(m, K) is a fair law of x over one step. `posterior_fn` is `(y, sigma) -> Posterior` at one
    point, and sigma is traced. With `return_converged` it is (draw, bool (levels,)).
    """

    def draw_fn(draw_key: PRNGKey, noisy: Array, sigma: Array) -> Any:
        found = posterior_fn(noisy, sigma)
        return conditional_sample(
            draw_key, found, observation, return_converged=return_converged, **solver
        )

    return descend(key, draw_fn, start, sigmas, has_aux=return_converged)
