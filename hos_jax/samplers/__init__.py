"""Samplers driven by scores: kernels with blackjax's contract, and the loops that run chains."""

from hos_jax._names import lazily
from hos_jax.samplers import diffusion, langevin, ozaki
from hos_jax.samplers.annealing import anneal_chains
from hos_jax.samplers.base import Chains, SamplingAlgorithm, run_chains
from hos_jax.samplers.diffusion import reverse_chains

__all__ = [
    "Chains",
    "SamplingAlgorithm",
    "anneal_chains",
    "diagnostics",
    "diffusion",
    "langevin",
    "ozaki",
    "reverse_chains",
    "run_chains",
]

# Not before it is used: blackjax takes as long to load as JAX.
__getattr__, __dir__ = lazily(__name__, diagnostics="")
