"""The posterior of a clean point given a noisy one: as an operator, measured, and put to use."""

from hos_jax.uncertainty import bound as bound
from hos_jax.uncertainty import calibration as calibration
from hos_jax.uncertainty import inverse as inverse
from hos_jax.uncertainty import likelihood as likelihood
from hos_jax.uncertainty import metrics as metrics
from hos_jax.uncertainty.posterior import DEFAULT_FLOOR as DEFAULT_FLOOR
from hos_jax.uncertainty.posterior import LARGEST_SKEWNESS as LARGEST_SKEWNESS
from hos_jax.uncertainty.posterior import Interval as Interval
from hos_jax.uncertainty.posterior import Posterior as Posterior
from hos_jax.uncertainty.posterior import Violations as Violations
from hos_jax.uncertainty.posterior import posterior as posterior
from hos_jax.uncertainty.posterior import posterior_from_covariance as posterior_from_covariance
