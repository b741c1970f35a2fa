"""Synthetic laws whose scores, smoothed by a Gaussian or not, are exact at every order."""

from hos_jax.distributions.base import FactorizedLaw as FactorizedLaw
from hos_jax.distributions.base import Law as Law
from hos_jax.distributions.empirical import Empirical as Empirical
from hos_jax.distributions.empirical import SmoothedEmpirical as SmoothedEmpirical
from hos_jax.distributions.gaussian import Gaussian as Gaussian
from hos_jax.distributions.gaussian import GaussianMixture as GaussianMixture
from hos_jax.distributions.gaussian import random_correlated_gaussian as random_correlated_gaussian
from hos_jax.distributions.logistic import LogisticMixture as LogisticMixture
from hos_jax.distributions.logistic import SmoothedLogisticMixture as SmoothedLogisticMixture
from hos_jax.distributions.pictures import checkerboard as checkerboard
from hos_jax.distributions.pictures import swiss_roll as swiss_roll
from hos_jax.distributions.pictures import two_moons as two_moons
