"""The door to Winograd's filtering: 3x3 convolutions of many channels on a CPU, by fewer products.

XLA's convolutions run near the rate of a matrix product, with four times the products; no compiler
option or ordinary operation that was tried makes up for that (benchmarks/README.md). On other
devices, in float64, with fewer than 64 channels, of images too large for the cache, where a
precision is asked for, and with HOS_JAX_WINOGRAD=0 in the environment, convolutions are XLA's own.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from hos_jax.models.winograd import convolution
from hos_jax.models.winograd.convolution import pays
from hos_jax.types import Array

__all__ = ["conv_general_dilated", "convolve", "filters", "pays"]

ENABLED = os.environ.get("HOS_JAX_WINOGRAD", "1") != "0"


def filters(kernel: Array, dtype: Any) -> bool:
    """Whether convolutions with this kernel go by filtering, if `pays` says so of the pixels."""
    options: Any = jax.config  # to whose class some versions of JAX add these as they are imported
    return (
        ENABLED
        and jax.default_backend() == "cpu"
        and kernel.shape[:2] == (3, 3)
        and min(kernel.shape[2:]) >= convolution.CHANNELS
        and jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
        and options.jax_default_matmul_precision is None
    )


def convolve(images: Array, kernel: Array, dilation: int = 1) -> Array:
    """Convolution with zero padding that keeps the image size, (B, H, W, I) -> (B, H, W, O).

    The kernel is (k, k, I, O), k odd; `dilation` is the distance between its taps.
    """
    if filters(kernel, images.dtype):
        return convolution.convolve(images, kernel, dilation)
    return convolution.plain(images, kernel, dilation)


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any
) -> Array:
    """`lax.conv_general_dilated`, for `flax.linen.Conv`, by `convolve` where that is the same."""
    ones = (1, 1)
    same = padding == "SAME" and tuple(window_strides) == ones and lhs.dtype == rhs.dtype
    for name in ("lhs_dilation", "rhs_dilation"):
        same &= tuple(options.get(name) or ones) == ones
    same &= options.get("feature_group_count", 1) == options.get("batch_group_count", 1) == 1
    asked = options.get("precision"), options.get("preferred_element_type")
    if same and asked == (None, None) and filters(rhs, lhs.dtype):
        return convolve(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
