r"""The posterior of a clean point given a noisy one, as an operator that one can compute with.

By Tweedie's formula x given y has mean y + sigma^2 s1(y) and covariance K = sigma^2 C, with
C = I + sigma^2 s2(y). `Posterior` holds both at one point: products, variances, solves, the
log-determinant, samples, the leading directions and marginal intervals, none of them with a D x D
array unless the covariance itself is `Dense`. Batch with `vmap`.

A covariance has to be positive definite, which an unconstrained second-order model or an autodiff
Jacobian need not be. `posterior_from_covariance` repairs it and says what it repaired.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri

from hos_jax import tweedie
from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, SymmetricMatrix, lanczos
from hos_jax.types import Array, PRNGKey, check_vectors

DEFAULT_FLOOR = 1e-4
# That of an exponential law. Beyond it the formula for quantiles is no longer accurate.
LARGEST_SKEWNESS = 2.0


class Violations(NamedTuple):
    """Where a predicted covariance was not one.

    Attributes:
      count: how many eigenvalues (`Dense`), or values of the diagonal part, lay below the floor.
      largest: the largest distance below the floor, in units of sigma^2; 0 without violations.
    """

    count: Array  # type: ignore[assignment]  # stands for the method `count` of tuples
    largest: Array


class Interval(NamedTuple):
    """Central marginal intervals: lower and upper ends, (D,), data units."""

    lower: Array
    upper: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Posterior:
    """The law of x given y at one point, to second order, with skewness where it is known.

    Attributes:
      mean: E[x | y], (D,), data units.
      covariance: K = Cov[x | y], positive definite, structured (D, D), data units^2.
      violations: what had to be repaired to make K positive definite.
      third_cumulant: the third central moment of each value, (D,), data units^3, or None.
    """

    mean: Array
    covariance: SymmetricMatrix
    violations: Violations
    third_cumulant: Array | None = None

    @property
    def dim(self) -> int:
        """D."""
        return self.mean.shape[0]

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
        """The covariances of the value at `index` with all others, (D,), data units^2."""
        return self.matvec(jax.nn.one_hot(index, self.dim, dtype=self.mean.dtype))

    def solve(self, vector: Array) -> Array:
        """K^-1 v, (D,) or (D, k)."""
        return self.covariance.solve(vector)

    def logdet(self) -> Array:
        """log det K, a scalar."""
        return self.covariance.logdet()

    def sample(self, key: PRNGKey, count: int) -> Array:
        """Draws of the Gaussian N(mean, K), (count, D), data units.

        A `DiagonalPlusLowRank` diag(a) + U U^T gives sqrt(a) z + U w: O(D r) for each draw.
        """
        covariance, (key, low_rank_key) = self.covariance, jax.random.split(key)
        noise = jax.random.normal(key, (count, self.dim), self.mean.dtype)
        if isinstance(covariance, Dense):
            return self.mean[None] + noise @ jnp.linalg.cholesky(covariance.matrix).T
        draws = self.mean[None] + noise * jnp.sqrt(covariance.diag)[None]
        if isinstance(covariance, DiagonalPlusLowRank):
            weights = jax.random.normal(low_rank_key, (count, covariance.rank), noise.dtype)
            draws += weights @ covariance.factor.T
        return draws

    def top_eigenpairs(
        self, count: int, *, krylov_vectors: int | None = None
    ) -> lanczos.Eigenpairs:
        """The directions in which x is least certain, by descending variance.

        `Diagonal` and `Dense` exactly, `DiagonalPlusLowRank` by Lanczos: `residual_norms` tells
        how far an eigenvalue may be off, in data units^2.

        Args:
          count: k.
          krylov_vectors: for Lanczos, from k to D; min(D, max(4 k, r + k) + 30) unless given.

        Raises:
          ValueError: unless 1 <= count <= D; see `lanczos.top_eigenpairs`.
        """
        covariance, dtype = self.covariance, self.mean.dtype
        if not 1 <= count <= self.dim:
            raise ValueError(f"expected 1 <= count <= {self.dim}, got {count}")
        exact = jnp.zeros(count, dtype)
        if isinstance(covariance, Dense):
            values, vectors = jnp.linalg.eigh(covariance.matrix)
            return lanczos.Eigenpairs(values[::-1][:count], vectors[:, ::-1][:, :count], exact)
        if isinstance(covariance, Diagonal):
            values, places = jax.lax.top_k(covariance.diag, count)
            return lanczos.Eigenpairs(
                values, jax.nn.one_hot(places, self.dim, dtype=dtype).T, exact
            )
        if krylov_vectors is None:
            krylov_vectors = min(self.dim, max(4 * count, covariance.rank + count) + 30)
        # Which random start it is does not matter; a fixed one gives the same answer each time.
        return lanczos.top_eigenpairs(
            covariance.matvec,
            jax.random.key(0),
            self.dim,
            count,
            krylov_vectors=krylov_vectors,
            dtype=dtype,
        )

    def skewness(self) -> Array:
        """kappa_3 / sd^3 of each value, (D,), dimensionless, between -2 and 2.

        Larger values are cut off: a model's third moment over a small variance means little.

        Raises:
          ValueError: without a third-order model.
        """
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

        which grows with z for every g.

        Raises:
          ValueError: unless 0 < level < 1.

        References:
          Wilson, Hilferty, "The Distribution of Chi-Square", 1931.
        """
        if not 0 < level < 1:
            raise ValueError(f"level must be between 0 and 1, got {level}")
        deviation = self.standard_deviation()
        skewness = jnp.zeros_like(deviation) if self.third_cumulant is None else self.skewness()

        def end(probability: float) -> Array:
            shifted = ndtri(jnp.asarray(probability, deviation.dtype)) - skewness / 6.0
            bent = shifted * skewness / 6.0
            return self.mean + deviation * shifted * (1.0 + bent + jnp.square(bent) / 3.0)

        return Interval(end(0.5 - level / 2), end(0.5 + level / 2))


def _floored(matrix: SymmetricMatrix, floor: float) -> tuple[SymmetricMatrix, Violations]:
    """The matrix with no eigenvalue below `floor`, in its structure, and what was below."""
    repaired: SymmetricMatrix
    if isinstance(matrix, Dense):
        values, vectors = jnp.linalg.eigh(matrix.matrix)
        raised = (vectors * jnp.maximum(values, floor)[None]) @ vectors.T
        # Untouched where nothing is wrong, bit for bit.
        fine = values[0] >= floor
        repaired = Dense(jnp.where(fine, matrix.matrix, 0.5 * (raised + raised.T)))
    elif isinstance(matrix, DiagonalPlusLowRank):
        values = matrix.diag
        low = values < floor
        correlated = jnp.sum(jnp.square(matrix.factor), axis=1)
        room = jnp.maximum(values + correlated - floor, 0.0)
        shrink = jnp.sqrt(room / jnp.where(low, correlated, 1.0))
        shrink = jnp.where(low, jnp.where(correlated > 0, shrink, 1.0), 1.0)
        repaired = DiagonalPlusLowRank(jnp.maximum(values, floor), matrix.factor * shrink[:, None])
    else:
        values = matrix.diag
        repaired = Diagonal(jnp.maximum(values, floor))
    # A model that is built with this floor reaches it up to rounding.
    missing = jnp.maximum(floor - values, 0.0)
    missing = jnp.where(missing > 0.01 * floor, missing, 0.0)
    return repaired, Violations(jnp.sum(missing > 0), jnp.max(missing))


def posterior_from_covariance(
    mean: Array,
    covariance: SymmetricMatrix,
    sigma: Array | float,
    *,
    scaled_third_diagonal: Array | None = None,
    floor: float = DEFAULT_FLOOR,
) -> Posterior:
    """The posterior from C in units of sigma^2, as second-order models give it.

    C is repaired where it is not positive definite. `Dense`: eigenvalues are raised to the floor.
    `Diagonal`: variances are. `DiagonalPlusLowRank`: where the diagonal part lies below the floor
    it is raised to it, and that row of the factor shrinks so that the variance of the value stays
    what was predicted, unless that lies below the floor itself.

    Args:
      mean: E[x | y], (D,), data units.
      covariance: C = K / sigma^2, structured (D, D), dimensionless.
      sigma: scalar, data units.
      scaled_third_diagonal: T_iii = sigma^3 s3_iii, (D,), dimensionless, of a third-order model.
      floor: smallest eigenvalue of C, positive.

    Raises:
      ValueError: if the shapes differ, or for a floor that is not positive.

    References:
      Meng et al. 2021, theorem 1 and section 5.
    """
    if not floor > 0:
        raise ValueError(f"expected floor > 0, got {floor}")
    check_vectors(mean=mean, covariance_diagonal=covariance.diagonal())
    third = None
    if scaled_third_diagonal is not None:
        check_vectors(mean=mean, scaled_third_diagonal=scaled_third_diagonal)
        third = sigma**3 * scaled_third_diagonal
    repaired, violations = _floored(covariance, floor)
    return Posterior(mean, repaired.scale(sigma**2), violations, third)


def posterior(
    noisy: Array,
    score1: Array,
    score2: SymmetricMatrix,
    sigma: Array | float,
    *,
    score3_diagonal: Array | None = None,
    floor: float = DEFAULT_FLOOR,
) -> Posterior:
    """The posterior at one point from its scores; see `posterior_from_covariance`.

    Args:
      noisy: y, (D,), data units.
      score1: s1(y), (D,), 1 / data units.
      score2: s2(y), structured (D, D), 1 / data units^2.
      sigma: scalar, data units.
      score3_diagonal: s3(y)_iii, (D,), 1 / data units^3, of a third-order model.
      floor: smallest eigenvalue of K in units of sigma^2, positive.

    Raises:
      ValueError: if the shapes differ, or for a floor that is not positive.
    """
    return posterior_from_covariance(
        tweedie.posterior_mean(noisy, score1, sigma),
        score2.scale(sigma**2).add_identity(1.0),
        sigma,
        scaled_third_diagonal=None if score3_diagonal is None else sigma**3 * score3_diagonal,
        floor=floor,
    )
