"""Samplers driven by scores: kernels with blackjax's contract, and the loop that runs chains."""

from hos_jax.samplers import langevin, ozaki
from hos_jax.samplers.base import Chains, SamplingAlgorithm, run_chains

__all__ = ["Chains", "SamplingAlgorithm", "langevin", "ozaki", "run_chains"]
