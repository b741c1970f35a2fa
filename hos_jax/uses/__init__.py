"""What the second-order score is good for beyond denoising: one file for each use."""

from hos_jax import _names

__getattr__, __dir__ = _names.lazily(__name__, causal="")
