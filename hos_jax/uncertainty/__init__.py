"""The posterior of a clean point given a noisy one: as an operator, measured, and put to use."""

from hos_jax.uncertainty import calibration, inverse, metrics
from hos_jax.uncertainty.posterior import (
    DEFAULT_FLOOR,
    LARGEST_SKEWNESS,
    Interval,
    Posterior,
    Violations,
    posterior,
    posterior_from_covariance,
)

__all__ = [
    "DEFAULT_FLOOR",
    "LARGEST_SKEWNESS",
    "Interval",
    "Posterior",
    "Violations",
    "calibration",
    "inverse",
    "metrics",
    "posterior",
    "posterior_from_covariance",
]
