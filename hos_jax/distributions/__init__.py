"""Synthetic laws whose scores, smoothed by a Gaussian or not, are exact at every order."""

from hos_jax.distributions.base import FactorizedLaw, Law
from hos_jax.distributions.empirical import Empirical, SmoothedEmpirical
from hos_jax.distributions.gaussian import Gaussian, GaussianMixture, random_correlated_gaussian
from hos_jax.distributions.logistic import LogisticMixture, SmoothedLogisticMixture
from hos_jax.distributions.pictures import checkerboard, swiss_roll, two_moons

__all__ = [
    "Empirical",
    "FactorizedLaw",
    "Gaussian",
    "GaussianMixture",
    "Law",
    "LogisticMixture",
    "SmoothedEmpirical",
    "SmoothedLogisticMixture",
    "checkerboard",
    "random_correlated_gaussian",
    "swiss_roll",
    "two_moons",
]
