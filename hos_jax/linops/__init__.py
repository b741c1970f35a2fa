"""Structured symmetric matrices and what one computes with them: no D x D array."""

from hos_jax.linops.structures import (
    Dense,
    Diagonal,
    DiagonalPlusLowRank,
    HessianFn,
    IsotropicPlusLowRank,
    QuadraticAndLogdet,
    SymmetricMatrix,
)

__all__ = [
    "Dense",
    "Diagonal",
    "DiagonalPlusLowRank",
    "HessianFn",
    "IsotropicPlusLowRank",
    "QuadraticAndLogdet",
    "SymmetricMatrix",
]
