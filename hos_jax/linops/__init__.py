"""Structured symmetric matrices: the algebra of second-order scores without a D x D array.

`Diagonal`, `DiagonalPlusLowRank` and `IsotropicPlusLowRank` for images, `Dense` for small D and as
the oracle of tests. All are pytrees with the methods, and batches, of `SymmetricMatrix`.
"""

from hos_jax.linops.base import HessianFn, QuadraticAndLogdet, Solvable, SymmetricMatrix, Violations
from hos_jax.linops.dense import Dense
from hos_jax.linops.diagonal import Diagonal, DiagonalPlusLowRank, IsotropicPlusLowRank
from hos_jax.linops.lanczos import KRYLOV_VECTORS, Eigenpairs
from hos_jax.linops.low_rank import PlusLowRank
from hos_jax.linops.matrix_functions import MatrixFunctionProduct

__all__ = [
    "KRYLOV_VECTORS",
    "Dense",
    "Diagonal",
    "DiagonalPlusLowRank",
    "Eigenpairs",
    "HessianFn",
    "IsotropicPlusLowRank",
    "MatrixFunctionProduct",
    "PlusLowRank",
    "QuadraticAndLogdet",
    "Solvable",
    "SymmetricMatrix",
    "Violations",
]
