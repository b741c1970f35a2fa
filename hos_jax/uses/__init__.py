"""What the second-order score is good for beyond denoising: one file for each use.

Functions take arrays and callables, most of them `derivatives_fn(noisy, sigma)`, which gives s1 and
a structured s2 at one point, as `hos_jax.pointwise.derivatives_fn` does.
"""

from hos_jax import _names

__getattr__, __dir__ = _names.lazily(
    __name__,
    causal="",
    dimension="",
    greedy="",
    measure_next="",
    unusual="",
)
