"""Structured symmetric matrices: the algebra of second-order scores without a D x D array.

`Diagonal`, `DiagonalPlusLowRank` and `IsotropicPlusLowRank` for images, `Dense` for small D and as
the oracle of tests. All are pytrees with the methods, and batches, of `SymmetricMatrix`.
"""

from hos_jax.linops.base import HessianFn as HessianFn
from hos_jax.linops.base import QuadraticAndLogdet as QuadraticAndLogdet
from hos_jax.linops.base import Solvable as Solvable
from hos_jax.linops.base import SymmetricMatrix as SymmetricMatrix
from hos_jax.linops.base import Violations as Violations
from hos_jax.linops.dense import Dense as Dense
from hos_jax.linops.diagonal import Diagonal as Diagonal
from hos_jax.linops.diagonal import DiagonalPlusLowRank as DiagonalPlusLowRank
from hos_jax.linops.diagonal import IsotropicPlusLowRank as IsotropicPlusLowRank
from hos_jax.linops.lanczos import KRYLOV_VECTORS as KRYLOV_VECTORS
from hos_jax.linops.lanczos import Eigenpairs as Eigenpairs
from hos_jax.linops.local import Local as Local
from hos_jax.linops.local import LocalPlusLowRank as LocalPlusLowRank
from hos_jax.linops.low_rank import PlusLowRank as PlusLowRank
from hos_jax.linops.matrix_functions import MatrixFunctionProduct as MatrixFunctionProduct
