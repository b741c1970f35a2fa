"""Samplers driven by scores: kernels with blackjax's contract, and the loop that runs chains."""

from hos_jax.samplers import langevin
from hos_jax.samplers.base import run_chains

__all__ = ["langevin", "run_chains"]
