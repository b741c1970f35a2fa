r"""3x3 convolutions of many channels by Winograd's minimal filtering, F(4 x 4, 3 x 3).

A 4 x 4 square of outputs takes 36 products per pair of channels in place of 144:

.. math:: Y = A^\top \big[ (G K G^\top) \odot (B^\top X B) \big] A

with the 6 x 6 square X of inputs around it. The matrices evaluate polynomials at 0, a, -a, b, -b
and infinity (Lavin & Gray 2015, arXiv 1509.09308). With a = 5/8 and b = 3/2, chosen here by search,
the rounding error in float32 is half of that with the usual points 1 and 2, and about three times
that of the plain sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from hos_jax.types import Array

POINTS = (0.0, 0.625, -0.625, 1.5, -1.5)
TILE = 4
TAPS = TILE + 2


def minimal_filter() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""The matrices of y = A^T [(G k) * (B^T x)], the correlation y_i = sum_j k_j x_(i+j).

    Returns:
      A^T (4, 6), G (6, 3), B^T (6, 6), float64.
    """
    points = np.array(POINTS)
    infinity = np.eye(TAPS)[-1:]
    values = np.vander(points, TILE, increasing=True)
    output = np.concatenate([values, infinity[:, -TILE:]]).T
    filters, inputs = np.zeros((TAPS, 3)), np.zeros((TAPS, TAPS))
    for row, point in enumerate(points):
        others = np.delete(points, row)
        inputs[row, :-1] = np.poly(others)[::-1]
        filters[row] = point ** np.arange(3) / np.prod(point - others)
    inputs[-1] = np.poly(points)[::-1]
    filters[-1, -1] = 1.0
    return output, filters, inputs


OUTPUT, FILTER, INPUT = minimal_filter()


def combine(matrix: np.ndarray, arrays: Sequence[Array]) -> list[Array]:
    """The linear combinations of arrays that the rows of a small constant matrix give."""
    combined = []
    for row in matrix:
        used = [(c, array) for c, array in zip(row.tolist(), arrays, strict=True) if c]
        terms = [array if c == 1.0 else array * c for c, array in used]
        combined.append(sum(terms[1:], terms[0]))
    return combined


class Tiling:
    """How F(4 x 4, 3 x 3) cuts images into squares, on `dilation` interleaved grids per axis.

    Args:
      shape: of the images, (B, H, W, C).
      dilation: distance between the taps of the kernel.
    """

    def __init__(self, shape: tuple[int, ...], dilation: int):
        self.size = shape[1:3]
        self.dilation = dilation
        self.counts = [-(-n // (TILE * dilation)) for n in self.size]

    def split(self, matrix: np.ndarray, images: Array, before: int) -> Array:
        """M S M^T of every square S of images.

        Args:
          matrix: M, (6, t), for squares of t x t values that lie 4 apart.
          images: (B, H, W, C).
          before: how many values of the first square lie outside the image, in the zeros around it.

        Returns:
          Array (36, squares, C).
        """
        d, taps = self.dilation, matrix.shape[1]
        ends = [
            (before * d, (TILE * count + taps - 1 - before) * d - n)
            for count, n in zip(self.counts, self.size, strict=True)
        ]
        # The barriers keep XLA from padding and combining rows anew for every value of a square.
        x = lax.optimization_barrier(jnp.pad(images, ((0, 0), *ends, (0, 0))))
        rows = combine(matrix, [self._pick(x, tap, 0, axis=1) for tap in range(taps)])
        x = lax.optimization_barrier(jnp.stack(rows))
        columns = combine(matrix, [self._pick(x, tap, 1, axis=4) for tap in range(taps)])
        return jnp.stack(columns, axis=1).reshape(TAPS * TAPS, -1, images.shape[-1])

    def _pick(self, x: Array, tap: int, along: int, axis: int) -> Array:
        """One value of every square along an axis, which becomes (squares, dilation)."""
        d, count = self.dilation, self.counts[along]
        x = lax.slice_in_dim(x, tap * d, (tap + TILE * count) * d, axis=axis)
        x = x.reshape(*x.shape[:axis], count, TILE, d, *x.shape[axis + 1 :])
        return lax.index_in_dim(x, 0, axis + 1, keepdims=False)

    def join(self, values: Array) -> Array:
        """The images of squares A^T M A: (36, squares, C) -> (B, H, W, C)."""
        d, (rows, columns) = self.dilation, self.counts
        channels = values.shape[-1]
        values = values.reshape(TAPS, TAPS, -1, rows, d, columns, d, channels)
        x = jnp.stack(combine(OUTPUT, [values[:, tap] for tap in range(TAPS)]), axis=5)
        x = lax.optimization_barrier(x)
        x = jnp.stack(combine(OUTPUT, [x[tap] for tap in range(TAPS)]), axis=2)
        x = x.reshape(-1, rows * TILE * d, columns * TILE * d, channels)
        return x[:, : self.size[0], : self.size[1]]


def transform_kernel(kernel: Array) -> Array:
    """G K G^T: (3, 3, I, O) -> (36, I, O)."""
    matrix = jnp.asarray(np.kron(FILTER, FILTER), kernel.dtype)
    return (matrix @ kernel.reshape(9, -1)).reshape(-1, *kernel.shape[2:])


def convolve(images: Array, kernel: Array, dilation: int = 1) -> Array:
    """Convolution with a 3 x 3 kernel and zero padding that keeps the image size.

    Args:
      images: (B, H, W, I).
      kernel: (3, 3, I, O).
      dilation: distance between the taps.

    Returns:
      Array (B, H, W, O).
    """
    tiling = Tiling(images.shape, dilation)
    inputs = tiling.split(INPUT, images, before=1)
    return tiling.join(jnp.einsum("nti,nio->nto", inputs, transform_kernel(kernel)))


def kernel_gradient(images: Array, cotangent: Array, dilation: int = 1) -> Array:
    """The gradient of <cotangent, convolve(images, kernel, dilation)> in the kernel.

    Args:
      images: (B, H, W, I).
      cotangent: (B, H, W, O).
      dilation: distance between the taps.

    Returns:
      Array (3, 3, I, O).
    """
    tiling = Tiling(images.shape, dilation)
    inputs = tiling.split(INPUT, images, before=1)
    outputs = tiling.split(OUTPUT.T, cotangent, before=0)
    squares = jnp.einsum("nto,nti->noi", outputs, inputs).swapaxes(1, 2)
    matrix = jnp.asarray(np.kron(FILTER, FILTER).T, images.dtype)
    return (matrix @ squares.reshape(TAPS * TAPS, -1)).reshape(3, 3, *squares.shape[1:])
