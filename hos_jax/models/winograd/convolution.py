r"""Convolutions that keep the image size, with the algorithms that are fast on CPU.

XLA's CPU back end computes a 3x3 convolution at the rate of a matrix product, but its gradient in
the kernel as a convolution with a window as large as the image, and a convolution of few pixels,
often at a half to a quarter of that rate. Here, on CPU, convolutions of many channels go by
Winograd's minimal filtering (`hos_jax.models.winograd.filtering`), those of few pixels are one matrix
product, and kernel gradients of few channels are matrix products, one image at a time. Other
devices keep XLA's own.

A convolution and its kernel gradient are two bilinear primitives, each the derivative of the other,
so that they can be differentiated and batched in every mode and to any order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from hos_jax.models.winograd import filtering as winograd
from hos_jax.types import Array

IMAGES = ("NHWC", "HWIO", "NHWC")

# With fewer channels the transforms of Winograd's filtering cost more than the products it saves,
# and with fewer pixels in a batch, or than one in 64 values of a tap, the transform of the kernel.
WINOGRAD_CHANNELS, WINOGRAD_PIXELS, VALUES_PER_PIXEL = 32, 128, 64
# Values of the transformed images that are worked on at a time, so that they stay in the cache.
CHUNK = 1_250_000


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


def winograd_pays(shape: tuple[int, ...], outputs: int, dtype: Any) -> bool:
    """Whether 3x3 convolutions of images (B, H, W, I) are computed by Winograd's filtering."""
    batch, height, width, inputs = shape
    pixels = max(WINOGRAD_PIXELS, inputs * outputs // VALUES_PER_PIXEL)
    enough = min(inputs, outputs) >= WINOGRAD_CHANNELS and batch * height * width >= pixels
    narrow = jnp.dtype(dtype) in (jnp.float32, jnp.bfloat16)
    return enough and narrow and jax.default_backend() == "cpu"


def _chunks(images: Array, limit: int) -> int:
    """Into how many parts a batch is cut, so that each has at most `limit` transformed values."""
    batch, *size = images.shape
    values = winograd.TAPS**2 * size[0] * size[1] * size[2] // winograd.TILE**2
    largest = max(1, limit // values)
    parts = [count for count in range(1, batch + 1) if batch % count == 0]
    return next(count for count in parts if batch // count <= largest)


def _by_winograd(images: Array, kernel: Array, dilation: int) -> Array:
    """Chunk by chunk, each in float32."""
    parts = _chunks(images, CHUNK)
    wide = kernel.astype(jnp.float32)

    def convolve_part(part: Array) -> Array:
        found = winograd.convolve(part.astype(jnp.float32), wide, dilation)
        return found.astype(images.dtype)

    if parts == 1:
        # Else the kernels of a whole network are transformed at once, before the first convolution.
        images, wide = lax.optimization_barrier((images, wide))
        return convolve_part(images)
    if kernel.shape[2] != kernel.shape[3]:
        whole = images.reshape(parts, -1, *images.shape[1:])
        return lax.map(convolve_part, whole).reshape(*images.shape[:3], -1)
    size = images.shape[0] // parts

    def replace(index: Array, array: Array) -> Array:
        part = convolve_part(lax.dynamic_slice_in_dim(array, index * size, size))
        return lax.dynamic_update_slice_in_dim(array, part, index * size, 0)

    # In place: an array of zeros to fill would be made for every convolution of a network at once,
    # before the first.
    return lax.fori_loop(0, parts, replace, images)


def _kernel_gradient_by_winograd(images: Array, cotangent: Array, dilation: int) -> Array:
    parts = _chunks(images, 2 * CHUNK)

    def of_part(part: tuple[Array, Array]) -> Array:
        values, gradient = (array.astype(jnp.float32) for array in part)
        return winograd.kernel_gradient(values, gradient, dilation)

    if parts == 1:
        return of_part((images, cotangent)).astype(images.dtype)
    first, second = (array.reshape(parts, -1, *array.shape[1:]) for array in (images, cotangent))
    zeros = jnp.zeros((3, 3, images.shape[-1], cotangent.shape[-1]), jnp.float32)
    total, _ = lax.scan(lambda total, part: (total + of_part(part), None), zeros, (first, second))
    return total.astype(images.dtype)


def _patches(padded: Array, dilation: int) -> Array:
    """What the nine taps see, side by side: (..., H + 2 d, W + 2 d, I) -> (..., H, W, 9 I)."""
    height, width = (size - 2 * dilation for size in padded.shape[-3:-1])
    shifted = [
        padded[..., i * dilation : i * dilation + height, j * dilation : j * dilation + width, :]
        for i in range(3)
        for j in range(3)
    ]
    return jnp.concatenate(shifted, axis=-1)


def _kernel_gradient_by_products(images: Array, cotangent: Array, dilation: int) -> Array:
    """One image at a time, so that its nine shifted copies stay in the cache.

    Sums are float32 at least.
    """
    _, height, width, inputs = images.shape
    outputs = cotangent.shape[-1]
    wide = jnp.promote_types(images.dtype, jnp.float32)
    margin = (dilation, dilation)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))

    def add(total, one):
        image, gradient = one
        patches = _patches(image, dilation).reshape(height * width, 9 * inputs)
        flat = gradient.reshape(height * width, outputs)
        return total + flat.astype(wide).T @ patches.astype(wide), None

    total, _ = lax.scan(add, jnp.zeros((outputs, 9 * inputs), wide), (padded, cotangent))
    kernel = total.reshape(outputs, 3, 3, inputs).transpose(1, 2, 3, 0)
    return kernel.astype(images.dtype)


def _by_product(images: Array, kernel: Array, dilation: int) -> Array:
    """As one product with the nine shifted copies of the images."""
    margin = (dilation, dilation)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
    return _patches(padded, dilation) @ kernel.reshape(-1, kernel.shape[3])


def _convolve(images: Array, kernel: Array, *, dilation: int) -> Array:
    if winograd_pays(images.shape, kernel.shape[3], images.dtype):
        return _by_winograd(images, kernel, dilation)
    if images.shape[0] * images.shape[1] * images.shape[2] < WINOGRAD_PIXELS:
        return _by_product(images, kernel, dilation)
    return _plain(images, kernel, dilation)


def _kernel_gradient(images: Array, cotangent: Array, *, dilation: int) -> Array:
    if winograd_pays(images.shape, cotangent.shape[3], images.dtype):
        return _kernel_gradient_by_winograd(images, cotangent, dilation)
    return _kernel_gradient_by_products(images, cotangent, dilation)


def _primitive(name: str, compute: Callable[..., Array], shape: Callable[..., tuple]) -> Primitive:
    """A primitive of two arrays that is computed by a JAX function and has the shape given."""
    primitive = Primitive(name)
    primitive.def_impl(jax.jit(compute, static_argnames="dilation"))
    primitive.def_abstract_eval(lambda x, y, *, dilation: x.update(shape=shape(x.shape, y.shape)))
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))
    return primitive


_convolve_p = _primitive(
    "same_size_convolution", _convolve, lambda images, kernel: (*images[:3], kernel[3])
)
_kernel_gradient_p = _primitive(
    "same_size_convolution_kernel_gradient",
    _kernel_gradient,
    lambda images, cotangent: (3, 3, images[3], cotangent[3]),
)


def _adjoint(kernel: Array) -> Array:
    """The kernel of the adjoint of a convolution."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve_batched(arguments, axes, *, dilation):
    images, kernel = arguments
    if axes[1] is not None:
        plain = functools.partial(_plain, dilation=dilation)
        return jax.vmap(plain, in_axes=tuple(axes))(images, kernel), 0
    images = jnp.moveaxis(images, axes[0], 0)
    found = _convolve_p.bind(images.reshape(-1, *images.shape[2:]), kernel, dilation=dilation)
    return found.reshape(*images.shape[:2], *found.shape[1:]), 0


def _kernel_gradient_batched(arguments, axes, *, dilation):
    products = functools.partial(_kernel_gradient_by_products, dilation=dilation)
    return jax.vmap(products, in_axes=tuple(axes))(*arguments), 0


def _bind(primitive: Primitive) -> Callable[..., Array]:
    return lambda x, y, dilation: primitive.bind(x, y, dilation=dilation)


_apply, _apply_gradient = _bind(_convolve_p), _bind(_kernel_gradient_p)
ad.defbilinear(
    _convolve_p,
    lambda cotangent, images, kernel, *, dilation: _apply(cotangent, _adjoint(kernel), dilation),
    lambda cotangent, images, kernel, *, dilation: _apply_gradient(images, cotangent, dilation),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda kernel, images, outputs, *, dilation: _apply(outputs, _adjoint(kernel), dilation),
    lambda kernel, images, outputs, *, dilation: _apply(images, kernel, dilation),
)
batching.primitive_batchers[_convolve_p] = _convolve_batched
batching.primitive_batchers[_kernel_gradient_p] = _kernel_gradient_batched


def kernel_gradient(images: Array, cotangent: Array, dilation: int = 1) -> Array:
    """The gradient of <cotangent, convolve(images, kernel, dilation)> in a 3x3 kernel.

    Args:
      images: (B, H, W, I).
      cotangent: (B, H, W, O).
      dilation: distance between the taps.

    Returns:
      Array (3, 3, I, O) of the dtype of `images`.
    """
    return _apply_gradient(images, cotangent, dilation)


def convolve(images: Array, kernel: Array, dilation: int = 1) -> Array:
    """Convolution that keeps the image size, for odd kernels.

    Args:
      images: (B, H, W, I).
      kernel: (k, k, I, O), k odd.
      dilation: distance between the taps of the kernel.

    Returns:
      Array (B, H, W, O).
    """
    if kernel.shape[:2] == (3, 3) and jax.default_backend() == "cpu":
        return _apply(images, kernel, dilation)
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
