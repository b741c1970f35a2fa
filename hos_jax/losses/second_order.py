r"""Second-order denoising losses: fits of the Hessian s2(y) of log q, on structured matrices.

Every loss takes network outputs at one example and returns one value; batch with `vmap`. `d2sm` and
`d2sm_vr` take scores (s1, s2), as published by Meng et al. 2021, in 1 / data units and its square;
the others dimensionless quantities: the residual r = z + sigma s1(y), a constant at which gradients
stop (see `hos_jax.losses.residual`), S = sigma^2 s2 and the covariance C = I + S.

Vectors are (D,), the noise z among them; matrices are structures of `hos_jax.linops`; sigma is a
scalar in data units. `plus`, `minus` and `clean` are the points y+ = x + sigma z, y- = x - sigma z
and x. ||.||_F is the Frobenius norm, <., .> its inner product. Numbers of 16 bits are taken as
float32, as powers of D are beyond them. ValueError for shapes that differ, integers, and plain
arrays in place of structures::

    minus_log_likelihoods = jax.vmap(losses.residual_nll)(residuals, covariances)  # (N,)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hos_jax.linops import Diagonal, SymmetricMatrix
from hos_jax.types import (
    Array,
    as_positive,
    at_least_float32,
    check_floating,
    check_floating_vectors,
)


def matrix_rows(matrix: SymmetricMatrix) -> tuple[int, ...]:
    """The shape of a structure's rows, (D,); ValueError for what is none, or one of integers."""
    if not isinstance(matrix, SymmetricMatrix):
        raise ValueError("expected a structured matrix, such as hos_jax.linops.Dense(array)")
    check_floating(matrix=matrix)
    return matrix.shape[:-1]


def widened(*values: Any) -> Any:
    """The same, of 32 bits where they are of 16."""
    return jax.tree.map(at_least_float32, values)


def _noise_contrast(matrix: SymmetricMatrix, noise: Array) -> Array:
    """<I - z z^T, A>, a scalar of mean zero over z."""
    return matrix.trace() - matrix.quadratic_form(noise)


def _psi_contrast(score1: Array, score2: SymmetricMatrix, noise: Array) -> Array:
    """<I - z z^T, s2 + s1 s1^T>."""
    outer = jnp.sum(jnp.square(score1)) - jnp.square(score1 @ noise)
    return _noise_contrast(score2, noise) + outer


def d2sm(score1: Array, score2: SymmetricMatrix, noise: Array, sigma: Array | float) -> Array:
    r"""Second-order denoising score matching, a scalar in 1 / data units^4.

    .. math:: \tfrac12 [ \|\psi(y)\|_F^2 + 2 \langle (I - z z^T)/\sigma^2, \psi(y) \rangle ],
        \qquad \psi = s_2 + s_1 s_1^T

    See Meng, Song, Li, Ermon, "Estimating High Order Gradients of the Data Distribution by
    Denoising", NeurIPS 2021, theorem 2.
    """
    check_floating_vectors(score1=score1, noise=noise, score2_rows=matrix_rows(score2))
    score1, score2, noise = widened(score1, score2, noise)
    # The norm of psi and its contrast, term by term: no copy of the factor with one more column.
    size = jnp.sum(jnp.square(score1))
    norm = score2.squared_norm() + 2.0 * score2.quadratic_form(score1) + size**2
    return 0.5 * norm + _psi_contrast(score1, score2, noise) / as_positive(sigma) ** 2


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

    See Meng et al. 2021, section 4 (variance reduction).
    """
    check_floating_vectors(
        score1_clean=score1_clean, noise=noise, score2_rows=matrix_rows(score2_clean)
    )
    pair = d2sm(score1_plus, score2_plus, noise, sigma)
    pair += d2sm(score1_minus, score2_minus, noise, sigma)
    score1_clean, score2_clean, noise = widened(score1_clean, score2_clean, noise)
    return pair - 2.0 * _psi_contrast(score1_clean, score2_clean, noise) / as_positive(sigma) ** 2


class ResidualTerms(NamedTuple):
    """The parts of the residual loss: fit - correlation + coefficients . controls, and for the
    regression of the coefficients on K controls <S(x), M_k>, with the loss's gradient noise G in S,
    the slopes <-G, M_k>, (K,), and gram, <M_j, M_k>, (K, K)."""

    fit: Array
    correlation: Array
    controls: Array
    slopes: Array
    gram: Array


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
        B_k = \langle S(x), M_k \rangle

    with two matrices of mean zero given x, for W = z z^T - I and S_x the value of S(x), held
    constant: M_1 = W and M_2 = S_x W + W S_x. Where s1 is nearly linear over the noise,
    r r^T is (I + S_x) z z^T (I + S_x) up to terms that the pair cancels: M_1 takes out its order 0
    and M_2 its order sigma^2.

    `residual_minus` is -z + sigma s1(y-), `scaled_hessian_...` is S. Without that at the clean
    point the controls are 0 (the plain residual form).
    """
    matrices = [scaled_hessian_plus, scaled_hessian_minus]
    matrices += [] if scaled_hessian_clean is None else [scaled_hessian_clean]
    rows = {f"scaled_hessian_{i}": matrix_rows(matrix) for i, matrix in enumerate(matrices)}
    check_floating_vectors(plus=residual_plus, minus=residual_minus, noise=noise, **rows)
    scaled_hessian_plus, scaled_hessian_minus, scaled_hessian_clean, noise = widened(
        scaled_hessian_plus, scaled_hessian_minus, scaled_hessian_clean, noise
    )
    plus, minus = jax.lax.stop_gradient(widened(residual_plus, residual_minus))
    correlation = -_noise_contrast(scaled_hessian_plus, plus)
    correlation -= _noise_contrast(scaled_hessian_minus, minus)
    fit = 0.5 * (scaled_hessian_plus.squared_norm() + scaled_hessian_minus.squared_norm())
    if scaled_hessian_clean is None:
        zeros = jnp.zeros_like(noise, shape=(2,))
        return ResidualTerms(fit, correlation, zeros, zeros, jnp.zeros_like(noise, shape=(2, 2)))
    frozen, frozen_plus, frozen_minus = jax.lax.stop_gradient(
        (scaled_hessian_clean, scaled_hessian_plus, scaled_hessian_minus)
    )
    turned = frozen.matvec(noise)
    power, form = noise @ noise, turned @ noise

    # <A, M_1> and <A, M_2> for a structure, for v v^T and for I.
    def products(matrix: SymmetricMatrix) -> Array:
        second = turned @ matrix.matvec(noise) - matrix.inner(frozen)
        return jnp.stack([-_noise_contrast(matrix, noise), 2.0 * second])

    def outer_products(vector: Array) -> Array:
        along = vector @ noise
        second = along * (vector @ turned) - frozen.quadratic_form(vector)
        return jnp.stack([along**2 - vector @ vector, 2.0 * second])

    traces = jnp.stack([power - noise.shape[0], 2.0 * (form - frozen.trace())])
    slopes = outer_products(plus) - products(frozen_plus) - 2.0 * traces
    slopes += outer_products(minus) - products(frozen_minus)
    mixed = 2.0 * (form * (power - 2.0) + frozen.trace())
    second = 2.0 * (turned @ turned) * (power - 4.0) + 2.0 * form**2
    first, second = power**2 - 2.0 * power + noise.shape[0], second + 4.0 * frozen.squared_norm()
    grams = jnp.array([[first, mixed], [mixed, second]])
    return ResidualTerms(fit, correlation, products(scaled_hessian_clean), slopes, grams)


def control_coefficients(
    terms: ResidualTerms, *, mean: Callable[[Array], Array] = jnp.mean
) -> Array:
    r"""The coefficients of the control variates that a regression over the batch picks, (2,).

    .. math:: \lambda = \mathrm{clip}(\mathrm{mean}(\text{gram})^{-1} \mathrm{mean}(\text{slopes}),
        0, 2)

    They minimize the variance of the loss's gradient in S, not of its value, which a few examples
    of large S would decide. No gradient flows through them. `mean` is the batch mean; over devices
    pass one that also averages over them.
    """
    slopes, gram = jax.lax.stop_gradient((terms.slopes, terms.gram))
    slopes = jnp.stack([mean(slopes[:, k]) for k in range(2)])
    first, mixed, second = mean(gram[:, 0, 0]), mean(gram[:, 0, 1]), mean(gram[:, 1, 1])
    # The second control is 0 where S is, and collinear with the first where S is a multiple of I:
    # what it has beyond the first must be more than rounding.
    beyond = first * second - mixed**2
    regular = beyond > 1e-3 * first * second
    both = [second * slopes[0] - mixed * slopes[1], first * slopes[1] - mixed * slopes[0]]
    top = jnp.where(regular, jnp.stack(both), jnp.stack([slopes[0], jnp.zeros_like(first)]))
    bottom = jnp.where(regular, beyond, first)
    return jnp.clip(jnp.where(bottom > 0, top / jnp.where(bottom > 0, bottom, 1.0), 0.0), 0.0, 2.0)


def d2sm_residual(terms: ResidualTerms, coefficients: Array | float = 0.0) -> Array:
    r"""Residual form of `d2sm` with control variates, dimensionless.

    .. math:: \text{loss} = \text{fit} - A + \lambda_1 B_1 + \lambda_2 B_2

    For an exact s1, E[r r^T - I | y] = S(y), so the minimizer is S = sigma^2 s2; an error of s1
    enters in second order, where in `d2sm` it enters in first order. `terms` are of one example or
    a batch; lambda is (2,) or one scalar for both, 0 the plain form. The adaptive form is::

        terms = vmap(d2sm_residual_terms)(...)
        loss = d2sm_residual(terms, control_coefficients(terms))

    Centring as in Lu et al. 2022, "Maximum Likelihood Training for Score-Based Diffusion ODEs by
    High-Order Denoising Score Matching", arXiv 2206.08265, theorem 3.2.
    """
    weights = jnp.broadcast_to(jnp.asarray(coefficients, terms.controls.dtype), (2,))
    return terms.fit - terms.correlation + terms.controls @ weights


def residual_nll(residual: Array, covariance: SymmetricMatrix) -> Array:
    r"""Gaussian negative log-likelihood of the residual under the predicted covariance, a scalar.

    .. math:: \tfrac12 ( r^T C^{-1} r + \log\det C ), \qquad C = I + \sigma^2 s_2

    A proper scoring rule for the posterior covariance in units of sigma^2 (constant D/2 log 2 pi
    left out), minimized by C(y) = E[r r^T | y]. `covariance` is C at y, positive definite.
    """
    check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
    residual, covariance = widened(residual, covariance)
    constant = jax.lax.stop_gradient(residual)
    form, logdet = covariance.inverse_quadratic_form_and_logdet(constant)
    return 0.5 * (form + logdet)


def residual_student_nll(residual: Array, covariance: SymmetricMatrix) -> Array:
    r"""Negative log-likelihood of the residual under heavy tails with the predicted covariance.

    .. math:: \tfrac12 \log\det C + \sum_i \Big( 2 \log(1 + w_i^2) - \log \tfrac2\pi \Big)
        - \tfrac D2 \log 2\pi, \qquad w = W r, \quad W^T W = C^{-1}

    The law of r = W^-1 w for independent w_i of Student's law with 3 degrees of freedom and unit
    variance, density 2 / (pi (1 + w^2)^2): its covariance is C, and a rare large error costs its
    logarithm, not its square. W is the structure's own (see `whiten`): with a diagonal C each value
    has tails of its own, with a local one what is new in each pixel. The constant of `residual_nll`
    is left out here too, so the two compare. Each is a proper scoring rule for its own law only:
    where r has other tails the minimizer is not the covariance but near to it.

    `covariance` is C at y, positive definite.
    """
    check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
    residual, covariance = widened(residual, covariance)
    constant = jax.lax.stop_gradient(residual)
    white, logdet = covariance.whiten_and_logdet(constant)
    constants = math.log(2.0 / math.pi) + 0.5 * math.log(2.0 * math.pi)
    tails = jnp.sum(2.0 * jnp.log1p(jnp.square(white)) - constants)
    return 0.5 * logdet + tails


def marginal_nll(residual: Array, covariance: SymmetricMatrix) -> Array:
    r"""Gaussian negative log-likelihoods of the single values of the residual, summed, a scalar.

    .. math:: \tfrac12 \sum_i ( r_i^2 / C_{ii} + \log C_{ii} )

    Each is minimized by C_ii = E[r_i^2 | y], whatever the law. `residual_nll` weighs all directions
    alike, and few of them have all of the error that far values share: a structure that cannot say
    how they go together may be likeliest with variances of single values that are several times too
    small. Beside it this is a composite likelihood, whose minimizer stays C where the structure can
    say it. The constant of `residual_nll` is left out here too.

    References:
      Varin, Reid, Firth, "An Overview of Composite Likelihood Methods", 2011.
    """
    check_floating_vectors(residual=residual, covariance_rows=matrix_rows(covariance))
    return residual_nll(residual, Diagonal(covariance.diagonal()))


def jacobian_regression(
    scaled_hessian: SymmetricMatrix, probe: Array, scaled_product: Array
) -> Array:
    r"""Regression of S on the Jacobian of a learned s1, by one product with it, dimensionless.

    .. math:: \tfrac12 \| S(y) v - \sigma^2 J(y) v \|^2, \qquad J = \nabla s_1

    For probes v of independent entries of mean 0 and variance 1, drawn apart from y, its mean is
    half of the squared Frobenius norm of S - sigma^2 J, so the minimizer in a family of structures
    is the one nearest to sigma^2 (J + J^T) / 2. It has none of the noise of the residual losses,
    and all errors of the derivative of s1, which they have not. Random signs have the least
    variance; for a diagonal S they make it "optimal covariance matching", v * (S v) against
    v * (sigma^2 J v).

    `scaled_product` is sigma^2 J(y) v, (D,), used as a constant.

    References:
      Ou, Zhang, Barber et al., "Diffusion Model with Optimal Covariance Matching", 2024,
      arXiv 2406.10808 (the diagonal case).
    """
    check_floating_vectors(
        probe=probe, scaled_product=scaled_product, scaled_hessian_rows=matrix_rows(scaled_hessian)
    )
    constant = jax.lax.stop_gradient(scaled_product)
    return 0.5 * jnp.sum(jnp.square(scaled_hessian.matvec(probe) - constant))
