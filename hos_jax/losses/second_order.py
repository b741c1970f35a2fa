r"""Second-order denoising losses: fits of the Hessian s2(y) of log q, on structured matrices.

Every loss takes network outputs at one example and returns one value; batch with `vmap`. No loss
builds a D x D array unless it is handed a `Dense` one. Two families:

* `d2sm`, `d2sm_vr` take scores (s1, s2), as published by Meng et al. 2021.
* `d2sm_residual`, `residual_nll` take dimensionless quantities: the residual r = z + sigma s1(y)
  (see `hos_jax.losses.residual`), S = sigma^2 s2 and the covariance C = I + S.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import SymmetricMatrix
from hos_jax.types import Array, check_vectors


def _noise_contrast(matrix: SymmetricMatrix, noise: Array) -> Array:
    """<I - z z^T, A>, a scalar of mean zero over z."""
    return matrix.trace() - matrix.quadratic_form(noise)


def d2sm(score1: Array, score2: SymmetricMatrix, noise: Array, sigma: Array | float) -> Array:
    r"""Second-order denoising score matching, a scalar in 1 / data units^4.

    .. math:: \tfrac12 [ \|\psi(y)\|_F^2 + 2 \langle (I - z z^T)/\sigma^2, \psi(y) \rangle ],
        \qquad \psi = s_2 + s_1 s_1^T

    Args:
      score1: s1 at y = x + sigma z, (D,).
      score2: s2 at y, a structured (D, D) matrix.
      noise: z, (D,).
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ.

    References:
      Meng, Song, Li, Ermon, "Estimating High Order Gradients of the Data Distribution by
      Denoising", NeurIPS 2021, theorem 2.
    """
    check_vectors(score1=score1, noise=noise, score2_diagonal=score2.diagonal())
    psi = score2.add_outer(score1)
    return 0.5 * psi.squared_norm() + _noise_contrast(psi, noise) / sigma**2


def d2sm_vr(
    score1_plus: Array,
    score2_plus: SymmetricMatrix,
    score1_minus: Array,
    score2_minus: SymmetricMatrix,
    score1_clean: Array,
    score2_clean: SymmetricMatrix,
    noise: Array,
    sigma: Array | float,
) -> Array:
    r"""`d2sm` on the antithetic pair with a control variate at the clean point, a scalar.

    .. math:: \tfrac12 [ \|\psi(y_+)\|_F^2 + \|\psi(y_-)\|_F^2
        + 2 \langle (I - z z^T)/\sigma^2, \psi(y_+) + \psi(y_-) - 2 \psi(x) \rangle ]

    Args:
      score1_plus, score2_plus: s1 (D,) and structured s2 at y+ = x + sigma z.
      score1_minus, score2_minus: at y- = x - sigma z.
      score1_clean, score2_clean: at x.
      noise: z, (D,).
      sigma: scalar, data units.

    Raises:
      ValueError: if the shapes differ.

    References:
      Meng et al. 2021, section 4 (variance reduction).
    """
    check_vectors(score1_clean=score1_clean, noise=noise, diagonal=score2_clean.diagonal())
    pair = d2sm(score1_plus, score2_plus, noise, sigma)
    pair += d2sm(score1_minus, score2_minus, noise, sigma)
    psi_clean = score2_clean.add_outer(score1_clean)
    return pair - 2.0 * _noise_contrast(psi_clean, noise) / sigma**2


class ResidualTerms(NamedTuple):
    """The three parts of the residual loss: fit - correlation + coefficient * control."""

    fit: Array
    correlation: Array
    control: Array


def d2sm_residual_terms(
    residual_plus: Array,
    scaled_hessian_plus: SymmetricMatrix,
    residual_minus: Array,
    scaled_hessian_minus: SymmetricMatrix,
    noise: Array,
    scaled_hessian_clean: SymmetricMatrix | None = None,
) -> ResidualTerms:
    r"""The parts of `d2sm_residual` at one example, scalars.

    .. math::
        \text{fit} = \tfrac12 (\|S(y_+)\|_F^2 + \|S(y_-)\|_F^2), \quad
        A = \sum_\pm \langle S(y_\pm), r_\pm r_\pm^T - I \rangle, \quad
        B = \langle S(x), z z^T - I \rangle

    B has mean zero given x. Without `scaled_hessian_clean` it is 0 (the plain residual form).
    The residuals are used as constants: gradients stop at them.

    Args:
      residual_plus, residual_minus: r at y+ and y-, (D,): z + sigma s1(y+), -z + sigma s1(y-).
      scaled_hessian_plus, scaled_hessian_minus, scaled_hessian_clean: S = sigma^2 s2 at y+, y-
        and x, structured.
      noise: z, (D,).

    Raises:
      ValueError: if the shapes differ.
    """
    check_vectors(
        plus=residual_plus, minus=residual_minus, noise=noise, s=scaled_hessian_plus.diagonal()
    )
    correlation = -_noise_contrast(scaled_hessian_plus, jax.lax.stop_gradient(residual_plus))
    correlation -= _noise_contrast(scaled_hessian_minus, jax.lax.stop_gradient(residual_minus))
    fit = 0.5 * (scaled_hessian_plus.squared_norm() + scaled_hessian_minus.squared_norm())
    if scaled_hessian_clean is None:
        return ResidualTerms(fit, correlation, jnp.zeros_like(fit))
    return ResidualTerms(fit, correlation, -_noise_contrast(scaled_hessian_clean, noise))


def control_coefficient(
    correlation: Array, control: Array, *, mean: Callable[[Array], Array] = jnp.mean
) -> Array:
    r"""The coefficient of the control variate that a regression over the batch picks, a scalar.

    .. math:: \lambda = \mathrm{clip}(\mathrm{cov}(A, B) / \mathrm{mean}(B^2), 0, 2)

    0 is the plain residual form, 2 full variance reduction. No gradient flows through it.

    Args:
      correlation: A of `ResidualTerms`, (N,).
      control: B, (N,).
      mean: the batch mean; over devices pass one that also averages over them.
    """
    covariance = mean(correlation * control) - mean(correlation) * mean(control)
    power = mean(jnp.square(control))
    safe_power = jnp.where(power > 0, power, 1.0)
    coefficient = jnp.where(power > 0, covariance / safe_power, 0.0)
    return jax.lax.stop_gradient(jnp.clip(coefficient, 0.0, 2.0))


def d2sm_residual(terms: ResidualTerms, coefficient: Array | float = 0.0) -> Array:
    r"""Residual form of `d2sm` with a control variate, dimensionless.

    .. math:: \text{loss} = \text{fit} - A + \lambda B

    For an exact s1, E[r r^T - I | y] = S(y), so the minimizer is S = sigma^2 s2; an error of s1
    enters in second order, where in `d2sm` it enters in first order. The adaptive form is::

        terms = vmap(d2sm_residual_terms)(...)
        coefficient = control_coefficient(terms.correlation, terms.control)
        loss = d2sm_residual(terms, coefficient)

    Args:
      terms: from `d2sm_residual_terms`, scalars or a batch of them.
      coefficient: lambda, a scalar; 0 is the plain form.

    References:
      Centring as in Lu et al. 2022, "Maximum Likelihood Training for Score-Based Diffusion ODEs by
      High-Order Denoising Score Matching", arXiv 2206.08265, theorem 3.2.
    """
    return terms.fit - terms.correlation + coefficient * terms.control


def residual_nll(residual: Array, covariance: SymmetricMatrix) -> Array:
    r"""Gaussian negative log-likelihood of the residual under the predicted covariance, a scalar.

    .. math:: \tfrac12 ( r^T C^{-1} r + \log\det C ), \qquad C = I + \sigma^2 s_2

    A proper scoring rule for the posterior covariance in units of sigma^2 (constant D/2 log 2 pi
    left out), minimized by C(y) = E[r r^T | y]. For `DiagonalPlusLowRank` both terms go through
    the r x r Woodbury matrix. The residual is used as a constant: gradients stop at it.

    Args:
      residual: r = z + sigma s1(y), (D,).
      covariance: C at y, structured and positive definite.

    Raises:
      ValueError: if the shapes differ.
    """
    check_vectors(residual=residual, covariance_diagonal=covariance.diagonal())
    constant = jax.lax.stop_gradient(residual)
    form, logdet = covariance.inverse_quadratic_form_and_logdet(constant)
    return 0.5 * (form + logdet)
