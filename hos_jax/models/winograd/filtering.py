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
    """A^T (4, 6), G (6, 3), B^T (6, 6), float64: y = A^T [(G k) * (B^T x)] is the correlation
    y_i = sum_j k_j x_(i+j)."""
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


def combine(matrix: np.ndarray, arrays: Sequence[Array], axis: int) -> Array:
    """The linear combinations that the rows of a small matrix give, along a new axis, in one loop
    that multiplies by every coefficient, zeros too."""
    shape = [1] * (arrays[0].ndim + 1)
    shape[axis] = len(matrix)
    terms = [
        jnp.expand_dims(array, axis) * jnp.asarray(column.reshape(shape), array.dtype)
        for column, array in zip(matrix.T, arrays, strict=True)
    ]
    return sum(terms[1:], terms[0])


def combine_in_pairs(matrix: np.ndarray, arrays: Sequence[Array]) -> Array:
    """The same along a new first axis, for the rows of `POINTS` and infinity: those of a point and
    its opposite share their even and odd parts, and zeros are left out."""

    def along(row: np.ndarray) -> Array:
        used = [(c, array) for c, array in zip(row.tolist(), arrays, strict=True) if c]
        terms = [array if c == 1.0 else array * c for c, array in used]
        return sum(terms[1:], terms[0])

    rows = [along(matrix[0])]
    for plus, minus in (matrix[1:3], matrix[3:5]):
        even, odd = along((plus + minus) / 2), along((plus - minus) / 2)
        rows += [even + odd, even - odd]
    return jnp.stack([*rows, along(matrix[5])])


class Tiling:
    """How F(4 x 4, 3 x 3) cuts images (B, H, W, C) into squares, on `dilation` grids per axis."""

    def __init__(self, shape: tuple[int, ...], dilation: int):
        self.size = shape[1:3]
        self.dilation = dilation
        self.counts = [-(-n // (TILE * dilation)) for n in self.size]

    def split(self, matrix: np.ndarray, images: Array, before: int) -> Array:
        """M S M^T of every square S of images: (B, H, W, C) -> (36, squares, C).

        M, (6, t), is for squares of t x t values that lie 4 apart; of the first square, so many
        values as `before` lie outside the image, in the zeros around it.
        """
        d, taps = self.dilation, matrix.shape[1]
        ends = [
            (before * d, (TILE * count + taps - 1 - before) * d - n)
            for count, n in zip(self.counts, self.size, strict=True)
        ]
        # The barriers keep XLA from padding and combining rows anew for every value of a square.
        x = lax.optimization_barrier(jnp.pad(images, ((0, 0), *ends, (0, 0))))
        # Either form is the faster one where it is used, and one loop is the less to compile.
        x = combine_in_pairs(matrix, self._values(x, taps, 0, axis=1))
        x = lax.optimization_barrier(x)
        x = combine(matrix, self._values(x, taps, 1, axis=4), axis=1)
        return x.reshape(TAPS * TAPS, -1, images.shape[-1])

    def _values(self, x: Array, taps: int, along: int, axis: int) -> list[Array]:
        """The values of every square along an axis, which becomes (squares, dilation)."""
        x = x.reshape(*x.shape[:axis], -1, self.dilation, *x.shape[axis + 1 :])
        last = TILE * (self.counts[along] - 1) + 1
        return [lax.slice_in_dim(x, tap, tap + last, TILE, axis) for tap in range(taps)]

    def join(self, values: Array) -> Array:
        """The images of squares A^T M A: (36, squares, C) -> (B, H, W, C)."""
        d, (rows, columns) = self.dilation, self.counts
        channels = values.shape[-1]
        values = values.reshape(TAPS, TAPS, -1, rows, d, columns, d, channels)
        x = combine(OUTPUT, [values[:, tap] for tap in range(TAPS)], axis=5)
        x = lax.optimization_barrier(x)
        x = combine(OUTPUT, [x[tap] for tap in range(TAPS)], axis=2)
        x = x.reshape(-1, rows * TILE * d, columns * TILE * d, channels)
        return x[:, : self.size[0], : self.size[1]]


def transform_kernel(kernel: Array) -> Array:
    """G K G^T: (3, 3, I, O) -> (36, I, O)."""
    matrix = jnp.asarray(np.kron(FILTER, FILTER), kernel.dtype)
    return (matrix @ kernel.reshape(9, -1)).reshape(-1, *kernel.shape[2:])


def convolve(images: Array, kernel: Array, dilation: int = 1) -> Array:
    """`hos_jax.models.winograd.convolve` of images (B, H, W, I) with a kernel (3, 3, I, O)."""
    tiling = Tiling(images.shape, dilation)
    inputs = tiling.split(INPUT, images, before=1)
    return tiling.join(jnp.einsum("nti,nio->nto", inputs, transform_kernel(kernel)))


def kernel_gradient(images: Array, cotangent: Array, dilation: int = 1) -> Array:
    """The gradient of <cotangent, convolve(images, kernel, dilation)> in the kernel, (3, 3, I, O).

    Images are (B, H, W, I), the cotangent is (B, H, W, O).
    """
    tiling = Tiling(images.shape, dilation)
    inputs = tiling.split(INPUT, images, before=1)
    outputs = tiling.split(OUTPUT.T, cotangent, before=0)
    squares = jnp.einsum("nto,nti->noi", outputs, inputs).swapaxes(1, 2)
    matrix = jnp.asarray(np.kron(FILTER, FILTER).T, images.dtype)
    return (matrix @ squares.reshape(TAPS * TAPS, -1)).reshape(3, 3, *squares.shape[1:])
