"""Losses that learn scores by denoising: pure functions of network outputs, one value each."""

from hos_jax.losses.first_order import dsm, dsm_vr, residual
from hos_jax.losses.objective import Objective
from hos_jax.losses.second_order import (
    ResidualTerms,
    control_coefficients,
    d2sm,
    d2sm_residual,
    d2sm_residual_terms,
    d2sm_vr,
    jacobian_regression,
    residual_nll,
)
from hos_jax.losses.third_order import d3sm, d3sm_contraction, d3sm_diagonal

__all__ = [
    "Objective",
    "ResidualTerms",
    "control_coefficients",
    "d2sm",
    "d2sm_residual",
    "d2sm_residual_terms",
    "d2sm_vr",
    "d3sm",
    "d3sm_contraction",
    "d3sm_diagonal",
    "dsm",
    "dsm_vr",
    "jacobian_regression",
    "residual",
    "residual_nll",
]
