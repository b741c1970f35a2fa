"""How good a posterior mean and covariance are, from the error that was really made."""

from typing import NamedTuple

from hos_jax.linops import Diagonal, SymmetricMatrix
from hos_jax.losses import d3sm_diagonal, residual_student_nll
from hos_jax.types import Array, check_structured, check_tails, check_vectors


class CovarianceScores(NamedTuple):
    """(e^T C^-1 e + log det C) / (2 D), the Gaussian NLL without its constant, or that of Student's
    tails without the same constant; e^T C^-1 e / D, which is 1 on average when the covariance is
    right; and (tr C^2 / 2 - e^T C e) / D, whose mean is half of tr (C - E[e e^T])^2 / D up to a
    constant: the covariance that is nearest in Frobenius norm has the lowest, whatever it was
    trained for, and need not be positive definite for that."""

    nll_per_dim: Array
    calibration: Array
    residual_loss: Array


def third_order_score(scaled_third_diagonal: Array, error: Array, variance: Array) -> Array:
    r"""Least-squares score of predicted third moments, per dimension, a scalar; lower is better.

    .. math:: \frac1D \sum_i \tfrac12 T_i^2 + T_i (r_i^3 - 3 C_{ii} r_i), \qquad r = -e

    0 for the prediction of no skewness; negative on average where T says something true.

    `scaled_third_diagonal` is T_iii = sigma^3 s3_iii, `error` e = (x - posterior mean) / sigma, and
    `variance` the predicted C_ii, zeros without a second-order model; all (D,), dimensionless.
    """
    loss = d3sm_diagonal(scaled_third_diagonal, -error, Diagonal(variance))
    return loss / error.shape[0]


def covariance_scores(
    error: Array, covariance: SymmetricMatrix, tails: str = "gaussian"
) -> CovarianceScores:
    """Scores of a positive definite C, (D, D), against e = x - posterior mean, (D,), in any unit,
    with the `tails` of a `Posterior`; ValueError if the shapes differ, or for other tails,
    TypeError for a plain array as C."""
    check_structured(covariance, "covariance")
    check_vectors(error=error, covariance_rows=covariance.shape[:-1])
    check_tails(tails)
    form, logdet = covariance.inverse_quadratic_form_and_logdet(error)
    dim = error.shape[0]
    nll = 0.5 * (form + logdet)
    if tails == "student":
        nll = residual_student_nll(error, covariance)
    square = 0.5 * covariance.squared_norm() - error @ covariance.matvec(error)
    return CovarianceScores(nll / dim, form / dim, square / dim)
