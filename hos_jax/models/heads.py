r"""Second-order heads: from raw network channels to structured posterior covariances.

A head turns the raw output of a network, k values per value of the image, into C(y), the posterior
covariance in units of sigma^2, or S(y) = C(y) - I = sigma^2 s2. Everything is dimensionless.
"""

import dataclasses
import math
import numbers
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from hos_jax.linops import Dense, Diagonal, DiagonalPlusLowRank, Local, SymmetricMatrix
from hos_jax.linops.local import ImageShape, count_taps
from hos_jax.types import Array, Tails, check_tails

Structure = Literal["diagonal", "low_rank", "local", "local_low_rank", "dense"]
STRUCTURES = get_args(Structure)
DIAGONAL_FLOOR = 1e-4
# Variances within one image span three orders of magnitude, seven units of the softplus' argument;
# the gain lets a network of unit-sized outputs get there in hundreds of steps.
SOFTPLUS_GAIN = 2.0
# The rows of V add up over the rank: at gain 1, what the network does not yet know to be zero there
# inflates the marginal variances (by a third on digits after 750 steps), which costs the likelihood
# little but widens every interval.
FACTOR_GAIN = 0.3
TAP_GAIN = 0.3


@dataclasses.dataclass(frozen=True)
class SecondOrderHead:
    r"""How raw channels become a second-order model.

    With `positive_definite` (the default) the family is restricted to valid covariances:

    * diagonal: C = diag(d), with d = floor + softplus(2 .)
    * low_rank: C = diag(d) + U U^T, with U = 0.3 diag(d)^(1/2) V and V of shape (D, rank) from
      the network: where a pixel is certain, its row of U is small without further learning
    * local: C = L L^T with L = diag(d)^(1/2) (I + 0.3 N), N from the network: each value depends on
      the earlier ones within `reach` pixels (`hos_jax.linops.local`); for images and signals
    * local_low_rank: C = L L^T + U U^T, the sum of both
    * dense: C = (I + M)(I + M)^T + floor I

    Without it, S is unconstrained, as published: diag(a), diag(a) + U U^T, or (M + M^T) / 2.

    Where sigma is small against the scale on which the density varies, S is small of order sigma^2
    and C close to I. `scale` puts the outputs into that unit: raw values of order 1 then mean S of
    order `scale`, so that a network need not learn tiny numbers.

    Attributes:
      structure: "diagonal", "low_rank", "local", "local_low_rank" or "dense".
      rank: columns of U, where there is one.
      positive_definite: see above.
      floor: smallest variance in units of sigma^2.
      scale: typical size of S, in (0, 1]; sigma^2 / (sigma^2 + data_std^2) for data of standard
        deviation data_std.
      reach: how many pixels away a neighbour may be, of the local structures.
      tails: of the law that has covariance C: "gaussian", or "student" as in
        `hos_jax.losses.residual_student_nll`. C itself is made alike.

    Raises:
      ValueError: for an unknown structure or tails, a rank or reach that is no whole number from 1,
        a negative floor, a scale outside (0, 1], a local structure that need not be positive
        definite, or such tails of one.
    """

    structure: Structure = "low_rank"
    rank: int = 16
    positive_definite: bool = True
    floor: float = DIAGONAL_FLOOR
    scale: float = 1.0
    reach: int = 2
    tails: Tails = "gaussian"

    def __post_init__(self):
        if self.structure not in STRUCTURES:
            raise ValueError(f"unknown structure {self.structure!r}: {', '.join(STRUCTURES)}")
        for name, used in (("rank", self.has_columns), ("reach", self.is_local)):
            value = getattr(self, name)
            if used and not (isinstance(value, numbers.Integral) and int(value) >= 1):
                raise ValueError(f"{name} must be at least 1, a whole number, got {value}")
        if not 0 <= self.floor < math.inf:
            raise ValueError(f"floor is a variance, 0 or more and finite, got {self.floor}")
        if self.is_local and not self.positive_definite:
            raise ValueError(f"the structure {self.structure!r} is positive definite by its form")
        if not 0 < self.scale <= 1:
            raise ValueError(f"scale must be in (0, 1], got {self.scale}")
        check_tails(self.tails)
        if self.tails == "student" and not self.positive_definite:
            raise ValueError("the tails 'student' need a positive definite structure")

    @property
    def has_columns(self) -> bool:
        """Whether C has a part U U^T."""
        return self.structure.endswith("low_rank")

    @property
    def is_local(self) -> bool:
        """Whether C has a part L L^T."""
        return self.structure.startswith("local")

    def blocks(self, image_shape: ImageShape | int) -> int:
        """k, the raw values that the head needs per value of the data.

        The data are images (H, W, C), or vectors of size D, which local structures take for a
        signal: the image (1, D, 1).
        """
        shape = _as_shape(image_shape)
        if self.structure == "dense":
            return math.prod(shape)
        taps = count_taps(shape, self.reach) if self.is_local else 0
        return 1 + taps + (self.rank if self.has_columns else 0)

    def covariance(self, raw: Array, image_shape: ImageShape | None = None) -> SymmetricMatrix:
        """C(y) of one example from raw values (k, D); see `blocks` for the shape."""
        if not self.positive_definite:
            return self.scaled_hessian(raw).add_identity(1.0)
        if self.structure == "dense":
            dim = raw.shape[-1]
            root = jnp.eye(dim, dtype=raw.dtype) + self.scale * raw.T
            return Dense(root @ root.T).add_identity(self.floor)
        # The softplus is log(2) at raw value 0 and scale 1, and nearly 1 there at a small scale.
        offset = math.log(math.expm1(1.0 - self.scale * (1.0 - math.log(2.0))))
        diag = self.floor + jax.nn.softplus(offset + SOFTPLUS_GAIN * self.scale * raw[0])
        matrix: SymmetricMatrix = Diagonal(diag)
        if self.is_local:
            shape = _as_shape(raw.shape[-1] if image_shape is None else image_shape)
            taps = TAP_GAIN * self.scale * raw[1 : 1 + count_taps(shape, self.reach)].T
            matrix = Local(jnp.sqrt(diag), taps, shape, self.reach)
        if not self.has_columns:
            return matrix
        gain = FACTOR_GAIN * math.sqrt(self.scale)
        return matrix.add_columns(gain * jnp.sqrt(diag)[:, None] * raw[-self.rank :].T)

    def scaled_hessian(self, raw: Array, image_shape: ImageShape | None = None) -> SymmetricMatrix:
        """S(y) = C(y) - I of one example from raw values (k, D)."""
        if self.positive_definite:
            return self.covariance(raw, image_shape).add_identity(-1.0)
        if self.structure == "dense":
            return Dense(0.5 * self.scale * (raw + raw.T))
        if self.structure == "diagonal":
            return Diagonal(self.scale * raw[0])
        return DiagonalPlusLowRank(self.scale * raw[0], math.sqrt(self.scale) * raw[1:].T)


def _as_shape(image_shape: ImageShape | int) -> ImageShape:
    return (1, image_shape, 1) if isinstance(image_shape, int) else image_shape
