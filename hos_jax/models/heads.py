r"""Second-order heads: from raw network channels to structured posterior covariances.

A head turns the raw output of a network, k values per value of the image, into C(y), the posterior
covariance in units of sigma^2, or S(y) = C(y) - I = sigma^2 s2. Everything is dimensionless.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp

from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, SymmetricMatrix
from hos_jax.types import Array

Structure = Literal["diagonal", "low_rank", "dense"]
DIAGONAL_FLOOR = 1e-4
# Variances within one image span three orders of magnitude, seven units of the softplus' argument;
# the gain lets a network of unit-sized outputs get there in hundreds of steps.
SOFTPLUS_GAIN = 2.0
# The rows of V add up over the rank: at gain 1, what the network does not yet know to be zero there
# inflates the marginal variances (by a third on digits after 750 steps), which costs the likelihood
# little but widens every interval.
FACTOR_GAIN = 0.3


@dataclasses.dataclass(frozen=True)
class SecondOrderHead:
    r"""How raw channels become a second-order model.

    With `positive_definite` (the default) the family is restricted to valid covariances:

    * diagonal: C = diag(d), with d = floor + softplus(2 .)
    * low_rank: C = diag(d) + U U^T, with U = 0.3 diag(d)^(1/2) V and V of shape (D, rank) from
      the network: where a pixel is certain, its row of U is small without further learning
    * dense: C = (I + M)(I + M)^T + floor I

    Without it, S is unconstrained, as published: diag(a), diag(a) + U U^T, or (M + M^T) / 2.

    Where sigma is small against the scale on which the density varies, S is small of order sigma^2
    and C close to I. `scale` puts the outputs into that unit: raw values of order 1 then mean S of
    order `scale`, so that a network need not learn tiny numbers.

    Attributes:
      structure: "diagonal", "low_rank" or "dense".
      rank: columns of U; used by "low_rank" only.
      positive_definite: see above.
      floor: smallest variance in units of sigma^2.
      scale: typical size of S, in (0, 1]; sigma^2 / (sigma^2 + data_std^2) for data of standard
        deviation data_std.

    Raises:
      ValueError: for an unknown structure, rank < 1 or a scale outside (0, 1].
    """

    structure: Structure = "low_rank"
    rank: int = 16
    positive_definite: bool = True
    floor: float = DIAGONAL_FLOOR
    scale: float = 1.0

    def __post_init__(self):
        if self.structure not in ("diagonal", "low_rank", "dense"):
            raise ValueError(f"unknown structure {self.structure!r}: diagonal, low_rank or dense")
        if self.structure == "low_rank" and self.rank < 1:
            raise ValueError(f"rank must be at least 1, got {self.rank}")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {self.scale}")

    def blocks(self, dim: int) -> int:
        """k, the raw values that the head needs per value of data of size D."""
        return {"diagonal": 1, "low_rank": 1 + self.rank, "dense": dim}[self.structure]

    def covariance(self, raw: Array) -> SymmetricMatrix:
        """C(y) of one example from raw values (k, D)."""
        if not self.positive_definite:
            return self.scaled_hessian(raw).add_identity(1.0)
        if self.structure == "dense":
            dim = raw.shape[-1]
            root = jnp.eye(dim, dtype=raw.dtype) + self.scale * raw.T
            return Dense(root @ root.T).add_identity(self.floor)
        # The softplus is log(2) at raw value 0 and scale 1, and nearly 1 there at a small scale.
        offset = math.log(math.expm1(1.0 - self.scale * (1.0 - math.log(2.0))))
        diag = self.floor + jax.nn.softplus(offset + SOFTPLUS_GAIN * self.scale * raw[0])
        if self.structure == "diagonal":
            return Diagonal(diag)
        gain = FACTOR_GAIN * math.sqrt(self.scale)
        return DiagonalPlusLowRank(diag, gain * jnp.sqrt(diag)[:, None] * raw[1:].T)

    def scaled_hessian(self, raw: Array) -> SymmetricMatrix:
        """S(y) = C(y) - I of one example from raw values (k, D)."""
        if self.positive_definite:
            return self.covariance(raw).add_identity(-1.0)
        if self.structure == "dense":
            return Dense(0.5 * self.scale * (raw + raw.T))
        if self.structure == "diagonal":
            return Diagonal(self.scale * raw[0])
        return DiagonalPlusLowRank(self.scale * raw[0], math.sqrt(self.scale) * raw[1:].T)
