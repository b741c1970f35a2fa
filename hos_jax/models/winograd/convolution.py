"""A convolution and its kernel gradient by Winograd's filtering, as two bilinear primitives.

Each is the derivative of the other, so that they can be differentiated and batched in every mode
and to any order.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from hos_jax.models.winograd import filtering
from hos_jax.types import Array

IMAGES = ("NHWC", "HWIO", "NHWC")

# With fewer channels the transforms of Winograd's filtering cost more than the products it saves,
# and with fewer pixels in a batch, or than one in 64 values of a tap, the transform of the kernel.
CHANNELS, PIXELS, VALUES_PER_PIXEL = 64, 128, 64
# Values of the transformed images that are worked on at a time, so that they stay in the cache.
CHUNK = 1_250_000


def plain(images: Array, kernel: Array, dilation: int) -> Array:
    """The same convolution as XLA computes it."""
    # The barrier keeps what makes the images out of the transposed copy that the kernel's gradient
    # takes of them on a CPU: in that order its reads are scattered over memory.
    return lax.conv_general_dilated(
        lax.optimization_barrier(images),
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        rhs_dilation=(dilation, dilation),
        dimension_numbers=IMAGES,
    )


def _kernel_shape(images: tuple[int, ...], outputs: tuple[int, ...]) -> tuple[int, ...]:
    return 3, 3, images[-1], outputs[-1]


def _plain_kernel_gradient(images: Array, cotangent: Array, dilation: int) -> Array:
    kernel = jax.ShapeDtypeStruct(_kernel_shape(images.shape, cotangent.shape), images.dtype)
    return jax.linear_transpose(lambda k: plain(images, k, dilation), kernel)(cotangent)[0]


def _has_enough(shape: tuple[int, ...], outputs: int) -> bool:
    """Whether images (B, H, W, I) and a kernel (3, 3, I, O) have channels and pixels enough."""
    batch, height, width, inputs = shape
    pixels = max(PIXELS, inputs * outputs // VALUES_PER_PIXEL)
    return min(inputs, outputs) >= CHANNELS and batch * height * width >= pixels


def _transformed_values(shape: tuple[int, ...]) -> int:
    """How many values one image of a batch is transformed to."""
    return filtering.TAPS**2 * math.prod(shape[1:]) // filtering.TILE**2


def pays(shape: tuple[int, ...], outputs: int) -> bool:
    """Whether filtering is the faster way for images (B, H, W, I) and a kernel (3, 3, I, O).

    Not where each image is transformed to more than stays in the cache: of one image in float32 at
    128 x 128 with 64 channels it takes 1.3 times as long as XLA's own, at 256 x 256 2.8 times. The
    gradient of the kernel is no slower there, and with 128 channels faster.
    """
    return _has_enough(shape, outputs) and _transformed_values(shape) <= CHUNK


def _chunks(images: Array, limit: int) -> int:
    """Into how many parts a batch is cut, so that each has at most `limit` transformed values."""
    batch = len(images)
    largest = max(1, limit // _transformed_values(images.shape))
    parts = [count for count in range(1, batch + 1) if batch % count == 0]
    return next(count for count in parts if batch // count <= largest)


def _by_winograd(images: Array, kernel: Array, dilation: int) -> Array:
    """Chunk by chunk, each in float32."""
    parts = _chunks(images, CHUNK)
    wide = kernel.astype(jnp.float32)

    def convolve_part(part: Array) -> Array:
        found = filtering.convolve(part.astype(jnp.float32), wide, dilation)
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
        return filtering.kernel_gradient(values, gradient, dilation)

    if parts == 1:
        return of_part((images, cotangent)).astype(images.dtype)
    first, second = (array.reshape(parts, -1, *array.shape[1:]) for array in (images, cotangent))
    zeros = jnp.zeros(_kernel_shape(images.shape, cotangent.shape), jnp.float32)
    zeros, _ = _varying_alike(zeros, images)
    total, _ = lax.scan(lambda total, part: (total + of_part(part), None), zeros, (first, second))
    return total.astype(images.dtype)


def _convolve(images: Array, kernel: Array, *, dilation: int) -> Array:
    compute = _by_winograd if pays(images.shape, kernel.shape[3]) else plain
    return compute(images, kernel, dilation)


def _kernel_gradient(images: Array, cotangent: Array, *, dilation: int) -> Array:
    by_winograd = _has_enough(images.shape, cotangent.shape[3])
    compute = _kernel_gradient_by_winograd if by_winograd else _plain_kernel_gradient
    return compute(images, cotangent, dilation)


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
    "same_size_convolution_kernel_gradient", _kernel_gradient, _kernel_shape
)


def _adjoint(kernel: Array) -> Array:
    """The kernel of the adjoint of a convolution."""
    return kernel[::-1, ::-1].swapaxes(2, 3)


def _convolve_batched(arguments, axes, *, dilation):
    images, kernel = arguments
    if axes[1] is not None:
        each = functools.partial(plain, dilation=dilation)
        return jax.vmap(each, in_axes=tuple(axes))(images, kernel), 0
    images = jnp.moveaxis(images, axes[0], 0)
    found = _convolve_p.bind(images.reshape(-1, *images.shape[2:]), kernel, dilation=dilation)
    return found.reshape(*images.shape[:2], *found.shape[1:]), 0


def _kernel_gradient_batched(arguments, axes, *, dilation):
    products = functools.partial(_plain_kernel_gradient, dilation=dilation)
    return jax.vmap(products, in_axes=tuple(axes))(*arguments), 0


def _varying_alike(x: Array, y: Array) -> tuple[Array, Array]:
    """Arrays of four axes made to vary over the same axes of a mesh, inside `jax.shard_map`.

    As JAX's own operations do; the transpose is the sum of a gradient over the devices.
    """
    # Elsewhere types differ where one array is sharded and the other is not, and a kernel made to
    # vary as a batch of images does would be a kernel for each of them.
    mapped = bool(jax.sharding.get_abstract_mesh().manual_axes)
    if not mapped or jax.typeof(x).update(shape=(1,) * 4) == jax.typeof(y).update(shape=(1,) * 4):
        return x, y

    def like(array, other):
        never = (other[0, 0, 0, 0] != 0) & False
        return lax.select(jnp.broadcast_to(never, array.shape), array, array)

    return like(x, y), like(y, x)


def convolve(images: Array, kernel: Array, dilation: int) -> Array:
    """See `hos_jax.models.winograd.convolve`; for 3x3 kernels, float32 and bfloat16, on a CPU."""
    return _convolve_p.bind(*_varying_alike(images, kernel), dilation=dilation)


def kernel_gradient(images: Array, cotangent: Array, dilation: int) -> Array:
    """See `filtering.kernel_gradient`."""
    return _kernel_gradient_p.bind(*_varying_alike(images, cotangent), dilation=dilation)


ad.defbilinear(
    _convolve_p,
    lambda cotangent, images, kernel, *, dilation: convolve(cotangent, _adjoint(kernel), dilation),
    lambda cotangent, images, kernel, *, dilation: kernel_gradient(images, cotangent, dilation),
)
ad.defbilinear(
    _kernel_gradient_p,
    lambda kernel, images, outputs, *, dilation: convolve(outputs, _adjoint(kernel), dilation),
    lambda kernel, images, outputs, *, dilation: convolve(images, kernel, dilation),
)
batching.primitive_batchers[_convolve_p] = _convolve_batched
batching.primitive_batchers[_kernel_gradient_p] = _kernel_gradient_batched
