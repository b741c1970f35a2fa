r"""3x3 convolutions whose kernel gradient is fast on CPU.

XLA's CPU back end computes the gradient in the kernel as a convolution with a window as large as
the image: at 28 x 28 pixels and 64 channels it reaches a quarter to a sixth of the rate of the
convolution itself. As one matrix product per image, summed over the batch, it reaches the same
rate. Other devices keep their own.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, linear_call

from hos_jax.types import Array

IMAGES = ("NHWC", "HWIO", "NHWC")


def _plain(images: Array, kernel: Array, dilation: int) -> Array:
    reach = dilation * (kernel.shape[0] // 2)
    return lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding=((reach, reach), (reach, reach)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=IMAGES,
    )


def kernel_gradient(images: Array, cotangent: Array, dilation: int) -> Array:
    """The gradient of <cotangent, convolve(images, kernel, dilation)> in a 3x3 kernel.

    One image at a time, so that its nine shifted copies stay in the cache; sums are float32 at
    least.

    Args:
      images: (B, H, W, I).
      cotangent: (B, H, W, O).
      dilation: distance between the taps.

    Returns:
      Array (3, 3, I, O) of the dtype of `images`.
    """
    _, height, width, inputs = images.shape
    outputs = cotangent.shape[-1]
    wide = jnp.promote_types(images.dtype, jnp.float32)
    margin = (dilation, dilation)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))

    def add(total, one):
        image, gradient = one
        shifted = [
            image[i * dilation : i * dilation + height, j * dilation : j * dilation + width]
            for i in range(3)
            for j in range(3)
        ]
        patches = jnp.concatenate(shifted, axis=-1).reshape(height * width, 9 * inputs)
        flat = gradient.reshape(height * width, outputs)
        return total + flat.astype(wide).T @ patches.astype(wide), None

    total, _ = lax.scan(add, jnp.zeros((outputs, 9 * inputs), wide), (padded, cotangent))
    kernel = total.reshape(outputs, 3, 3, inputs).transpose(1, 2, 3, 0)
    return kernel.astype(images.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _convolve(images: Array, kernel: Array, dilation: int) -> Array:
    return _plain(images, kernel, dilation)


def _convolve_jvp(dilation: int, primals, tangents):
    # A JVP rule, not a VJP one: scores are differentiated in forward mode too.
    (images, kernel), (images_dot, kernel_dot) = primals, tangents
    out = _convolve(images, kernel, dilation)
    parts = []
    if not isinstance(images_dot, SymbolicZero):
        parts.append(_convolve(images_dot, kernel, dilation))
    if not isinstance(kernel_dot, SymbolicZero):
        part = linear_call(
            lambda x, direction: _plain(x, direction, dilation),
            lambda x, cotangent: kernel_gradient(x, cotangent, dilation),
            images,
            kernel_dot,
        )
        parts.append(part)
    return out, sum(parts[1:], parts[0]) if parts else jnp.zeros_like(out)


_convolve.defjvp(_convolve_jvp, symbolic_zeros=True)


def convolve(images: Array, kernel: Array, dilation: int = 1) -> Array:
    """Convolution that keeps the image size, for odd kernels.

    On CPU a gradient in a 3x3 kernel cannot be batched with `vmap` nor differentiated again.

    Args:
      images: (B, H, W, I).
      kernel: (k, k, I, O), k odd.
      dilation: distance between the taps of the kernel.

    Returns:
      Array (B, H, W, O).
    """
    if kernel.shape[:2] == (3, 3) and jax.default_backend() == "cpu":
        return _convolve(images, kernel, dilation)
    return _plain(images, kernel, dilation)


def conv_general_dilated(
    lhs: Array, rhs: Array, window_strides: Any, padding: Any, **options: Any
) -> Array:
    """`lax.conv_general_dilated`, for `flax.linen.Conv`, by `convolve` where that is the same."""
    ones = (1, 1)
    same = padding == "SAME" and rhs.shape[:2] == (3, 3) and tuple(window_strides) == ones
    dilated = tuple(options.get("lhs_dilation") or ones) != ones
    dilated |= tuple(options.get("rhs_dilation") or ones) != ones
    if same and not dilated and options.get("feature_group_count", 1) == 1:
        return convolve(lhs, rhs)
    return lax.conv_general_dilated(lhs, rhs, window_strides, padding, **options)
