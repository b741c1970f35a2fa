r"""Third-order denoising losses: least-squares fits of T(y) = sigma^3 s3(y), dimensionless.

With the residual r = z + sigma s1(y) and the posterior covariance C in units of sigma^2,

.. math:: E[r \otimes r \otimes r - 3\,\mathrm{sym}(C \otimes r) \mid y] = -T(y)

for the exact s1, whatever C: E[r | y] = 0. The subtracted term makes an error b of s1 harmless:
alone, r r r is off by 3 sym(C (x) b), with it by 3 sym((C - C_model) (x) b) + b b b. It also takes
most of the variance away where the posterior is nearly Gaussian. C may be left out (0).

Three forms of one loss, all for one example, and all valid at y- with the residual there
(-z + sigma s1(y-)): an antithetic pair is a sum of two calls, in which the control variate at the
clean point cancels. `residual` is r at y, (D,), and `covariance` a model of C there, a structure of
`hos_jax.linops`; gradients stop at both. ||.|| is the Euclidean norm of all entries. Numbers of 16
bits are taken as float32. ValueError for shapes that differ and for integers::

    loss = losses.d3sm_diagonal(third, residual, covariance)  # one example, third: (D,)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.losses.second_order import matrix_rows, widened
from hos_jax.types import Array, check_floating, check_floating_vectors


def _least_squares(tensor: Array, target: Array) -> Array:
    """1/2 ||T||^2 + <T, target>, whose mean is least at T = -E[target]."""
    return 0.5 * jnp.sum(jnp.square(tensor)) + jnp.sum(tensor * jax.lax.stop_gradient(target))


def d3sm(scaled_third: Array, residual: Array, covariance: SymmetricMatrix | None = None) -> Array:
    r"""Third-order residual loss on the whole tensor, a scalar; O(D^3), for small D.

    .. math:: \tfrac12 \|T\|_F^2 + \langle T, r r r - 3\,\mathrm{sym}(C \otimes r) \rangle

    `scaled_third` is T = sigma^3 s3 at y, (D, D, D); only its symmetric part is fitted. See Meng et
    al. 2021, theorem 1 at order 3, centred as in Lu et al. 2022, arXiv 2206.08265.
    """
    check_floating_vectors(residual=residual)
    check_floating(scaled_third=scaled_third)
    dim = residual.shape[0]
    if scaled_third.shape != (dim, dim, dim):
        raise ValueError(
            f"expected scaled_third of shape {(dim,) * 3}, got {tuple(scaled_third.shape)}"
        )
    scaled_third, residual = widened(scaled_third, residual)
    target = jnp.einsum("i,j,k->ijk", residual, residual, residual)
    if covariance is not None:
        check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
        (covariance,) = widened(covariance)
        outer = jnp.einsum("ij,k->ijk", covariance.to_dense(), residual)
        target -= outer + outer.transpose(0, 2, 1) + outer.transpose(2, 1, 0)
    return _least_squares(scaled_third, target)


def d3sm_diagonal(
    scaled_third_diagonal: Array, residual: Array, covariance: SymmetricMatrix | None = None
) -> Array:
    r"""Third-order residual loss on the diagonal T_iii alone, a scalar; O(D).

    .. math:: \sum_i \tfrac12 T_{iii}^2 + T_{iii} (r_i^3 - 3 C_{ii} r_i)

    `scaled_third_diagonal` is T_iii = sigma^3 s3_iii at y, (D,).
    """
    check_floating_vectors(scaled_third_diagonal=scaled_third_diagonal, residual=residual)
    scaled_third_diagonal, residual = widened(scaled_third_diagonal, residual)
    target = residual**3
    if covariance is not None:
        check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
        (covariance,) = widened(covariance)
        target -= 3.0 * covariance.diagonal() * residual
    return _least_squares(scaled_third_diagonal, target)


def d3sm_contraction(
    scaled_contraction: Array,
    residual: Array,
    probe: Array,
    covariance: SymmetricMatrix | None = None,
) -> Array:
    r"""Third-order residual loss on the contraction T[v, v, .] with a probe, a scalar; O(D r).

    .. math:: \tfrac12 \|T[v,v,\cdot]\|^2
        + \langle T[v,v,\cdot], (v \cdot r)^2 r - (v^T C v)\, r - 2 (v \cdot r)\, C v \rangle

    `scaled_contraction` is T[v, v, .] = sigma^3 s3[v, v, .] at y, (D,), and `probe` v, (D,), drawn
    independently of the noise.
    """
    check_floating_vectors(scaled_contraction=scaled_contraction, residual=residual, probe=probe)
    scaled_contraction, residual, probe = widened(scaled_contraction, residual, probe)
    along = jnp.sum(probe * residual)
    target = along**2 * residual
    if covariance is not None:
        check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
        (covariance,) = widened(covariance)
        product = covariance.matvec(probe)
        target -= jnp.sum(probe * product) * residual + 2.0 * along * product
    return _least_squares(scaled_contraction, target)
