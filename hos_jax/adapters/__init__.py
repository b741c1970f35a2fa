"""Denoisers and scores of others, in their own conventions, as `score_fn(noisy, sigma)`."""

from hos_jax.adapters.black_box import BlackBox, from_numpy, from_onnx, from_torch
from hos_jax.adapters.prediction import (
    LAYOUTS,
    LEVELS,
    PREDICTIONS,
    AdaptedScore,
    normalization,
    score_fn,
)
from hos_jax.adapters.processes import (
    Process,
    cosine_betas,
    ddpm,
    edm,
    flow_matching,
    linear_betas,
    variance_exploding,
    variance_preserving,
)

__all__ = [
    "LAYOUTS",
    "LEVELS",
    "PREDICTIONS",
    "AdaptedScore",
    "BlackBox",
    "Process",
    "cosine_betas",
    "ddpm",
    "edm",
    "flow_matching",
    "from_numpy",
    "from_onnx",
    "from_torch",
    "linear_betas",
    "normalization",
    "score_fn",
    "variance_exploding",
    "variance_preserving",
]
