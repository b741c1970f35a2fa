"""Losses that learn scores by denoising: pure functions of network outputs, one value each."""

from hos_jax.losses.first_order import dsm as dsm
from hos_jax.losses.first_order import dsm_vr as dsm_vr
from hos_jax.losses.first_order import residual as residual
from hos_jax.losses.objective import Objective as Objective
from hos_jax.losses.second_order import ResidualTerms as ResidualTerms
from hos_jax.losses.second_order import control_coefficients as control_coefficients
from hos_jax.losses.second_order import d2sm as d2sm
from hos_jax.losses.second_order import d2sm_residual as d2sm_residual
from hos_jax.losses.second_order import d2sm_residual_terms as d2sm_residual_terms
from hos_jax.losses.second_order import d2sm_vr as d2sm_vr
from hos_jax.losses.second_order import jacobian_regression as jacobian_regression
from hos_jax.losses.second_order import marginal_nll as marginal_nll
from hos_jax.losses.second_order import residual_nll as residual_nll
from hos_jax.losses.second_order import residual_student_nll as residual_student_nll
from hos_jax.losses.third_order import d3sm as d3sm
from hos_jax.losses.third_order import d3sm_contraction as d3sm_contraction
from hos_jax.losses.third_order import d3sm_diagonal as d3sm_diagonal
