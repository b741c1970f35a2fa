r"""The posterior of a clean point given a noisy one, as an operator that one can compute with.

By Tweedie's formula x given y has mean y + sigma^2 s1(y) and covariance K = sigma^2 C, with
C = I + sigma^2 s2(y). `Posterior` holds both; none of its methods makes a D x D array unless the
covariance itself is `Dense`. The functions that make one take one point, batch with `vmap`; the
posteriors that come out work as a batch too, each of their arrays with its leading axes. What an
unconstrained model or an autodiff Jacobian gives need not be positive definite: it is repaired.
"""

import dataclasses
import math
import operator
import statistics
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from hos_jax import tweedie
from hos_jax.linops import Eigenpairs, SymmetricMatrix, Violations
from hos_jax.types import (
    Array,
    PRNGKey,
    as_positive,
    at_least_float32,
    check_counts,
    check_positive,
    check_structured,
    check_tails,
    check_vectors,
    is_number,
    nan_unless,
    short_repr,
)
from hos_jax.uncertainty import student

# Of a model's C, in units of sigma^2.
DEFAULT_FLOOR = 1e-4
# That of an exponential law. Beyond it the formula for quantiles is no longer accurate.
LARGEST_SKEWNESS = 2.0


class Interval(NamedTuple):
    """Central marginal intervals: lower and upper ends, (D,), data units."""

    lower: Array
    upper: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """The law of x given y at one point, to second order, with skewness where it is known.

    Attributes:
      mean: E[x | y], (D,), data units.
      covariance: K = Cov[x | y], positive definite, structured (D, D), data units^2.
      violations: what was repaired to make K positive definite, in units of sigma^2, or None.
      third_cumulant: the third central moment of each value, (D,), data units^3, or None.
      tails: "gaussian", or "student" for the law of `hos_jax.losses.residual_student_nll`: draws
        and intervals are its own, all else is of the mean and the covariance alone. Intervals of
        B + U U^T with D > 256 are as if each column of U were spread over many values: see
        `root_third_powers` of the structures. ValueError for others.
    """

    mean: Array
    covariance: SymmetricMatrix
    violations: Violations | None = None
    third_cumulant: Array | None = None
    tails: str = dataclasses.field(default="gaussian", metadata={"static": True})

    def __post_init__(self) -> None:
        check_tails(self.tails)

    __repr__ = short_repr

    @property
    def dim(self) -> int:
        """D."""
        return self.covariance.dim

    def diagonal(self) -> Array:
        """The variance of each value, (D,), data units^2."""
        return self.covariance.diagonal()

    def standard_deviation(self) -> Array:
        """The posterior standard deviation of each value, (D,), data units."""
        return jnp.sqrt(self.diagonal())

    def matvec(self, vector: Array) -> Array:
        """K v, (D,) or (D, k)."""
        return self.covariance.matvec(vector)

    def row(self, index: Array | int) -> Array:
        """The covariances of the value at `index` with all others, (D,), data units^2.

        A negative index counts from the end. One that is out of range raises IndexError, or gives
        NaN if it is traced; TypeError unless it is one integer.
        """
        kind = jnp.asarray(index)
        if kind.ndim or not jnp.issubdtype(kind.dtype, jnp.integer):
            raise TypeError(
                f"expected one integer, got {kind.dtype} of shape {kind.shape}; use vmap for more"
            )
        traced, dim = isinstance(index, jax.core.Tracer), self.dim
        place = kind.astype(jnp.int32) if traced else operator.index(index)
        if not traced and not -dim <= place < dim:
            raise IndexError(f"index {place} is out of range for {dim} values")
        unit = jax.nn.one_hot(place % dim, dim, dtype=self.mean.dtype)
        row = self.matvec(jnp.broadcast_to(unit, self.mean.shape))
        return nan_unless((-dim <= place) & (place < dim), row)

    def solve(self, vector: Array) -> Array:
        """K^-1 v, (D,) or (D, k)."""
        return self.covariance.solve(vector)

    def logdet(self) -> Array:
        """log det K, a scalar."""
        return self.covariance.logdet()

    def sample(self, key: PRNGKey, count: int) -> Array:
        """Draws of x, (count, D), data units: of the Gaussian N(mean, K), or of `tails`."""
        check_counts(0, count=count)
        if self.tails == "student":
            white = student.draw(key, (*self.mean.shape, count), self.mean.dtype)
            return self.mean[..., None, :] + self.covariance.color(white).mT
        return self.mean[..., None, :] + self.covariance.sample(key, count)

    def top_eigenpairs(self, count: int, *, krylov_vectors: int | None = None) -> Eigenpairs:
        """The directions of largest variance, data units^2, as `SymmetricMatrix` gives them."""
        return self.covariance.top_eigenpairs(count, krylov_vectors=krylov_vectors)

    def skewness(self) -> Array:
        """kappa_3 / sd^3 of each value, (D,), dimensionless, cut off at -2 and 2: a model's third
        moment over a small variance means little. ValueError without a third-order model."""
        if self.third_cumulant is None:
            raise ValueError("this posterior has no third cumulant: it needs a third-order model")
        skewness = self.third_cumulant / self.standard_deviation() ** 3
        return jnp.clip(skewness, -LARGEST_SKEWNESS, LARGEST_SKEWNESS)

    def marginal_interval(self, level: float) -> Interval:
        r"""The central interval of every value at a level such as 0.9.

        Gaussian, mean +- z sd, where no third cumulant is known; else the quantiles of the gamma
        law of that mean, variance and skewness g (Pearson's type III), by Wilson and Hilferty's
        cube, with h = g / 6:

        .. math:: m + \mathrm{sd} \, \frac{(1 + h (z - h))^3 - 1}{3 h}
            = m + \mathrm{sd} \, (z - h) \Big( 1 + u + \frac{u^2}{3} \Big), \qquad u = h (z - h)

        which grows with z for every g (Wilson, Hilferty, "The Distribution of Chi-Square", 1931).
        An approximation: at g = 2, the largest, intervals of 90% and 99% hold 91.0% and 99.5%.
        Of Student's tails by `student.interval_multiplier`. ValueError unless the level is one
        known number and 0 < level < 1.
        """
        # Of NumPy: within a trace what JAX compares is traced.
        known = float(np.asarray(level)) if is_number(level) else math.nan
        if not 0 < known < 1:
            raise ValueError(f"level must be one number between 0 and 1, got {level}")
        deviation = self.standard_deviation()
        if self.tails == "student":
            third_powers = self.covariance.root_third_powers() / deviation**3
            half = deviation * student.interval_multiplier(known, third_powers)
            return Interval(self.mean - half, self.mean + half)
        skewness = jnp.zeros_like(deviation) if self.third_cumulant is None else self.skewness()

        def end(quantile: float) -> Array:
            shifted = quantile - skewness / 6.0
            bent = shifted * skewness / 6.0
            return self.mean + deviation * shifted * (1.0 + bent + jnp.square(bent) / 3.0)

        # Of Python's numbers: in float32 a level near 1 leaves nothing beside it.
        low = statistics.NormalDist().inv_cdf(0.5 - known / 2)
        return Interval(end(low), end(-low))


def posterior_from_covariance(
    mean: Array,
    covariance: SymmetricMatrix,
    sigma: Array | float,
    *,
    scaled_third_diagonal: Array | None = None,
    floor: float | Array | None = None,
    tails: str = "gaussian",
) -> Posterior:
    """The posterior from C in units of sigma^2, as second-order models give it.

    C is repaired where it is not positive definite: eigenvalues of `Dense`, variances of `Diagonal`
    are raised to the floor; of low rank see `DiagonalPlusLowRank.floor`, of local factors with a
    diagonal that is more than rounding `Local.floor`. What has 16 bits is taken as float32.
    TypeError for a plain array in place of a structured C; ValueError if the shapes differ, for a
    sigma or a floor that is not positive, or for skewness beside Student's tails.

    Args:
      mean: E[x | y], (D,), data units.
      covariance: C = K / sigma^2, structured (D, D), dimensionless (Meng et al. 2021, theorem 1).
      sigma: scalar, data units.
      scaled_third_diagonal: T_iii = sigma^3 s3_iii, (D,), dimensionless, of a third-order model.
      floor: smallest eigenvalue of C, positive; more where the floating type cannot resolve it
        beside the largest one. Unless given it is what the type resolves beside 1: a learned C
        that is not positive definite may want more, `DEFAULT_FLOOR` say, an exact one is less where
        sigma^2 exceeds the variance of the data by as much.
      tails: see `Posterior`.
    """
    if tails == "student" and scaled_third_diagonal is not None:
        raise ValueError("Student's tails are symmetric: leave the third-order model out")
    sigma = as_positive(sigma)
    if floor is not None:
        check_positive(floor=floor)
    check_structured(covariance, "covariance")
    check_vectors(mean=mean, covariance_rows=covariance.shape[:-1])
    given = mean, covariance, scaled_third_diagonal
    mean, covariance, scaled_third_diagonal = jax.tree.map(at_least_float32, given)
    third = None
    if scaled_third_diagonal is not None:
        check_vectors(mean=mean, scaled_third_diagonal=scaled_third_diagonal)
        third = sigma**3 * scaled_third_diagonal
    floor = _resolved(covariance.dtype) if floor is None else floor
    repaired, violations = covariance.floor(floor)
    return Posterior(mean, repaired.scale(sigma**2), violations, third, tails)


def _resolved(dtype: DTypeLike) -> float:
    """What rounding leaves of a variance beside 1."""
    return 8.0 * float(jnp.finfo(dtype).eps)


def posterior(
    noisy: Array,
    score1: Array,
    score2: SymmetricMatrix,
    sigma: Array | float,
    *,
    score3_diagonal: Array | None = None,
    floor: float | Array | None = None,
) -> Posterior:
    """The posterior at one point y from its scores, by `posterior_from_covariance`.

    y and s1(y) are (D,), s2(y) is structured (D, D), and s3(y)_iii, (D,), comes of a third-order
    model; scores of order n are in 1 / data units^n. In C = I + sigma^2 s2 rounding hides variances
    below 1e-6 sigma^2 in float32, 0.008 in float16; they are raised to that, and counted.
    """
    covariance, sigma = tweedie.scaled_covariance(score2, sigma), as_positive(sigma)
    return posterior_from_covariance(
        tweedie.posterior_mean(noisy, score1, sigma),
        covariance,
        sigma,
        scaled_third_diagonal=None if score3_diagonal is None else sigma**3 * score3_diagonal,
        floor=_resolved(score2.dtype) if floor is None else floor,
    )
