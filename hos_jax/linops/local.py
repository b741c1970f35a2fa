r"""Covariances of images whose values depend on their neighbours: a local Cholesky factor.

.. math:: A = L L^T + \mathrm{diag}(b), \qquad L = \mathrm{diag}(l) (I + N)

with N strictly lower triangular in raster order, N_ij != 0 only where j is one of the k earlier
neighbours of i: the causal half of a square of (2 m + 1)^2 pixels, and in a pixel of several
channels the earlier ones. A batch of images is (..., D) with D = H W C values each; a signal of T
values is an image (1, T, C), whose neighbours are the m values before.

Products, the diagonal and draws cost O(D k) and are all parallel; inner products O(D k^2).
Without b (None), A is positive definite, log det A = 2 sum_i log l_i, and (I + N)^-1 v is found by
forward substitution over anti-diagonals of slope s = m + 1, along which no pixel is another's
neighbour: O(D k) work in H s + W steps. A diagonal b, such as that of S = C - I, leaves products
and norms, and takes solves, determinants and draws away.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax.linops.base import OTHER_BATCHES, Solvable, SymmetricMatrix, Violations, over_batch
from hos_jax.linops.diagonal import Diagonal
from hos_jax.linops.lanczos import safe_sqrt
from hos_jax.linops.low_rank import PlusLowRank
from hos_jax.types import Array

ImageShape = tuple[int, int, int]
# Of an earlier pixel: rows up, columns to the right.
Offset = tuple[int, int]


def earlier_pixels(image_shape: ImageShape, reach: int) -> list[Offset]:
    """The pixels before (0, 0) in raster order, in a square of (2 m + 1)^2 around it; none that is
    further away than the image is large."""
    height, width, _ = image_shape
    rows, columns = min(reach, height - 1), min(reach, width - 1)
    square = itertools.product(range(rows + 1), range(-columns, columns + 1))
    return [(up, right) for up, right in square if up > 0 or right < 0]


def count_taps(image_shape: ImageShape, reach: int) -> int:
    """k, the neighbours that a value of the image has: all channels of the earlier pixels, and all
    but one of its own, of which those that come later count as zero.

    Raises:
      ValueError: for what is no (H, W, C), or a reach below 1.
    """
    if len(image_shape) != 3 or min(image_shape) < 1 or reach < 1:
        raise ValueError(f"expected an image (H, W, C) and reach >= 1, got {image_shape}, {reach}")
    channels = image_shape[2]
    return len(earlier_pixels(image_shape, reach)) * channels + channels - 1


def _shifted(image: Array, up: int, right: int) -> Array:
    """The value of the pixel so many rows up and columns to the right, 0 outside: (H, W, ...)."""
    pads = [(up, -up, 0), (-right, right, 0)] + [(0, 0, 0)] * (image.ndim - 2)
    return jax.lax.pad(image, jnp.zeros((), image.dtype), pads)


def _times(matrices: Array, columns: Array) -> Array:
    """Small matrices (H, W, C, C) times columns (H, W, C, k), as sums that XLA fuses."""
    channels = matrices.shape[-1]
    if channels == 1:
        # In JAX 0.10 the sum in the derivative by the matrices is slow beside axes of length 1.
        return (matrices[..., 0, :] * columns[..., 0, :])[..., None, :]
    terms = (matrices[..., c, None] * columns[..., c, None, :] for c in range(channels))
    return functools.reduce(operator.add, terms)


@dataclasses.dataclass(frozen=True)
class _Stencil:
    """N of one matrix: what each earlier pixel contributes, (H, W, C, C) by offset, and the earlier
    channels of the same pixel, strictly lower triangular."""

    earlier: dict[Offset, Array]
    same: Array

    def apply(self, columns: Array) -> Array:
        """N V for V of shape (H, W, C, k)."""
        total = _times(self.same, columns)
        for offset, matrices in self.earlier.items():
            total = total + _times(matrices, _shifted(columns, *offset))
        return total

    def transposed(self) -> _Stencil:
        """N^T, of the image turned by 180 degrees with its channels in reverse order: what comes
        later comes earlier there."""
        earlier = {
            (up, right): _turned(_shifted(matrices, -up, -right).mT)
            for (up, right), matrices in self.earlier.items()
        }
        return _Stencil(earlier, _turned(self.same.mT))

    def solve(self, columns: Array) -> Array:
        """(I + N)^-1 V, with the derivative of a linear solve."""

        def transposed_solve(_: Callable, right: Array) -> Array:
            return _flipped(self.transposed()._substitute, right)

        return jax.lax.custom_linear_solve(
            lambda solved: solved + self.apply(solved),
            columns,
            lambda _, right: self._substitute(right),
            transposed_solve,
        )

    def _substitute(self, columns: Array) -> Array:
        """(I + N)^-1 V, one anti-diagonal after the other.

        Pixel (i, j) comes in step t = s i + j. Row i keeps the place i modulo the number of rows
        that one anti-diagonal meets; what the last steps gave is carried along.
        """
        height, width, channels, count = columns.shape
        offsets = list(self.earlier)
        slope = 1 + max((right for _, right in offsets if right > 0), default=0)
        order, places = _anti_diagonals(height, width, slope)
        delays = [slope * up - right for up, right in offsets]

        def arrange(image: Array) -> Array:
            flat = image.reshape(height * width, *image.shape[2:])
            return jnp.take(flat, order, axis=0, mode="fill", fill_value=0)

        # What lies outside of the image would be another row's value.
        inside = jnp.asarray(_inside(height, width, tuple(offsets)), columns.dtype)
        pairs = zip(self.earlier.values(), inside, strict=True)
        taps = [arrange(matrices * seen) for matrices, seen in pairs]

        def step(before: list[Array], now: tuple) -> tuple[list[Array], Array]:
            matrices, same, value = now
            for delay, (up, _), matrix in zip(delays, offsets, matrices, strict=True):
                value = value - _times(matrix, jnp.roll(before[delay - 1], up, axis=0))
            solved: list[Array] = []
            for c in range(channels):
                known = (same[:, c, d, None] * solved[d] for d in range(c))
                solved.append(value[:, c] - sum(known))
            stacked = jnp.stack(solved, axis=1) if channels > 1 else value
            return [stacked, *before[:-1]], stacked

        start = [jnp.zeros((order.shape[1], channels, count), columns.dtype)] * max(
            delays, default=1
        )
        _, found = jax.lax.scan(step, start, (taps, arrange(self.same), arrange(columns)))
        flat = found.reshape(order.size, channels, count)
        return jnp.take(flat, places, axis=0).reshape(columns.shape)


def _turned(matrices: Array) -> Array:
    return jax.lax.rev(matrices, range(4))


def _flipped(function: Callable[[Array], Array], columns: Array) -> Array:
    """A function of columns (H, W, C, k) of the image that `_Stencil.transposed` is of."""
    return function(columns[::-1, ::-1, ::-1])[::-1, ::-1, ::-1]


@functools.lru_cache(maxsize=32)
def _inside(height: int, width: int, offsets: tuple[Offset, ...]) -> np.ndarray:
    """Where each of K earlier pixels lies in the image, (K, H, W, 1, 1)."""
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    seen = [
        (rows >= up) & (columns + right >= 0) & (columns + right < width) for up, right in offsets
    ]
    return np.reshape(seen, (len(offsets), height, width, 1, 1))


@functools.lru_cache(maxsize=32)
def _anti_diagonals(height: int, width: int, slope: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel of each step and place, (steps, places), H W where there is none, and the step and
    place of each pixel as one number, (H W,)."""
    rows, columns = np.divmod(np.arange(height * width), width)
    places = min(height, -(-width // slope))
    order = np.full((slope * (height - 1) + width, places), height * width)
    step, place = slope * rows + columns, rows % places
    order[step, place] = np.arange(height * width)
    return order, step * places + place


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Local(Solvable):
    """L L^T + diag(b) with L = diag(l) (I + N).

    Attributes:
      scales: l, (..., D), positive.
      taps: the entries of N by neighbour, (..., D, k): for each of `earlier_pixels` its C channels,
        then the first C - 1 channels of the same pixel. What lies outside of the image, or does not
        come earlier, counts as zero whatever is there.
      image_shape: (H, W, C); (1, T, C) of a signal.
      reach: m.
      shift: b, (..., D), of any sign, or None.
    """

    scales: Array
    taps: Array
    image_shape: ImageShape = dataclasses.field(metadata={"static": True})
    reach: int = dataclasses.field(metadata={"static": True})
    shift: Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        dim, k = math.prod(self.image_shape), count_taps(self.image_shape, self.reach)
        rows, taps = tuple(self.scales.shape), tuple(self.taps.shape)
        shift = rows if self.shift is None else tuple(self.shift.shape)
        if rows[-1:] != (dim,) or taps != (*rows, k) or shift != rows:
            raise ValueError(
                f"expected scales (..., {dim}) and taps (..., {dim}, {k}) for images "
                f"{self.image_shape} and reach {self.reach}, got {rows} and {taps}, shift {shift}; "
                f"{OTHER_BATCHES}"
            )
        return (*rows, dim)

    def diagonal(self) -> Array:
        return self._shifted(self._row_sums(jnp.square), lambda shift: shift)

    def _row_sums(self, power: Callable[[Array], Array]) -> Array:
        """The sum of a power of the entries of L in each row, (..., D)."""

        def one(matrix: Local) -> Array:
            powers = dataclasses.replace(matrix, taps=power(matrix.taps))
            ones = jnp.ones((*self.image_shape, 1), self.dtype)
            return power(matrix.scales) * (1.0 + powers._stencil().apply(ones).ravel())

        return self._each(one)

    def to_dense(self) -> Array:
        return self._each(lambda matrix: matrix._matmul(jnp.eye(self.dim, dtype=self.dtype)))

    def scale(self, factor: Array | float) -> Local:
        """c A for c >= 0; see `PlusLowRank.scale`."""
        root = self._root(factor, 1)
        shift = None if self.shift is None else self.shift * self._per_matrix(factor, 1)
        return dataclasses.replace(self, scales=self.scales * root, shift=shift)

    def add_diagonal(self, diag: Array) -> Local:
        self._check_vector(diag)
        return dataclasses.replace(self, shift=self._shifted(diag, lambda shift: shift))

    def add_identity(self, multiple: Array | float = 1.0) -> Local:
        return self.add_diagonal(jnp.zeros_like(self.scales) + self._per_matrix(multiple, 1))

    def add_columns(self, factor: Array) -> LocalPlusLowRank:
        return LocalPlusLowRank(self, self._columns(factor))

    def logdet(self) -> Array:
        self._check_no_shift()
        return 2.0 * jnp.sum(jnp.log(self.scales), axis=-1)

    def _whiten(self, columns: Array) -> Array:
        self._check_no_shift()
        return self._on_maps(lambda n, v: n.solve(v), columns / self.scales[..., None])

    def _whiten_transposed(self, columns: Array) -> Array:
        self._check_no_shift()
        solved = self._on_maps(lambda n, v: _flipped(n.transposed().solve, v), columns)
        return solved / self.scales[..., None]

    def _color(self, columns: Array) -> Array:
        self._check_no_shift()
        return self._factor(columns)

    def root_third_powers(self) -> Array:
        self._check_no_shift()
        return self._row_sums(lambda entries: jnp.abs(entries) ** 3)

    def floor(self, smallest: float | Array) -> tuple[Local, Violations]:
        """See `SymmetricMatrix.floor`; what is held against the floor and raised to it is l^2, the
        variance of each value given the earlier ones. A negative l counts as -l^2.

        A diagonal b goes into l: each row of L is scaled to the variance A_ii. That is exact where
        b is zero up to rounding, as that of a C = I + sigma^2 s2 is, and else keeps the variances
        alone: such rows, with |b| above 64 eps + sqrt(eps) A_ii, count as violations of size |b|.
        """
        return self._raised(self._per_matrix(smallest, 1))

    def _raised(self, smallest: float | Array) -> tuple[Local, Violations]:
        """The same with a floor that is a scalar or (..., 1)."""
        scales, values = self.scales, self.scales * jnp.abs(self.scales)
        if self.shift is not None:
            variances = dataclasses.replace(self, shift=None).diagonal()
            own = 1.0 + self.shift / variances
            scales, values = scales * safe_sqrt(jnp.maximum(own, 0.0)), values * own
            size, rounding = jnp.abs(self.shift), float(jnp.finfo(self.dtype).eps)
            changed = size > 64.0 * rounding + rounding**0.5 * jnp.maximum(own * variances, 0.0)
            values = jnp.where(changed, jnp.minimum(values, smallest - size), values)
        repaired = jnp.maximum(scales, jnp.sqrt(jnp.asarray(smallest, self.dtype)))
        matrix = dataclasses.replace(self, scales=repaired, shift=None)
        return matrix, Violations.of(values, smallest)

    def _plus(self, other: SymmetricMatrix) -> SymmetricMatrix:
        if isinstance(other, Local):
            raise ValueError("the sum of two local structures has no such form; use to_dense")
        return self.add_diagonal(other.diag) if isinstance(other, Diagonal) else other + self

    def _matmul(self, columns: Array) -> Array:
        product = self._factor(self._factor_transposed(columns))
        return self._shifted(product, lambda shift: shift[..., None] * columns)

    def _form(self, columns: Array) -> Array:
        form = jnp.sum(jnp.square(self._factor_transposed(columns)), axis=(-2, -1))
        return self._shifted(
            form, lambda shift: jnp.sum(shift[..., None] * jnp.square(columns), axis=(-2, -1))
        )

    def _of_each(self, function: Callable[[Array], Array], *columns: Array) -> Sequence[Array]:
        # A solve is a loop over anti-diagonals, of as many steps whatever the number of columns.
        ends = np.cumsum([each.shape[-1] for each in columns])[:-1]
        return jnp.split(function(jnp.concatenate(columns, axis=-1)), ends.tolist(), axis=-1)

    def _inner(self, other: SymmetricMatrix) -> Array:
        if not isinstance(other, Local):
            return other._inner(self)
        if self.image_shape != other.image_shape:
            raise ValueError(f"images differ: {self.image_shape} and {other.image_shape}")
        bands = over_batch(_inner_of_bands, len(self.batch_shape))(self, other)
        # Those of the diagonals: with the other's own, and with what was added to it.
        own = dataclasses.replace(self, shift=None).diagonal()
        found = other._shifted(bands, lambda shift: jnp.sum(shift * own, axis=-1))
        return self._shifted(found, lambda shift: jnp.sum(shift * other.diagonal(), axis=-1))

    def _shifted(self, value: Array, term: Callable[[Array], Array]) -> Array:
        """A value of L L^T, and what the diagonal b adds to it."""
        return value if self.shift is None else value + term(self.shift)

    def _is_solvable(self) -> bool:
        return self.shift is None

    def _check_no_shift(self) -> None:
        if not self._is_solvable():
            raise ValueError(
                "a local factor plus a diagonal has no solve, determinant or draws; `floor` gives "
                "the covariance without it"
            )

    def _stencil(self) -> _Stencil:
        """N of a single matrix."""
        height, width, channels = self.image_shape
        taps = self.taps.reshape(height, width, channels, -1)
        offsets = earlier_pixels(self.image_shape, self.reach)
        earlier = {
            offset: jax.lax.slice_in_dim(taps, channels * i, channels * (i + 1), axis=3)
            for i, offset in enumerate(offsets)
        }
        same = jnp.pad(taps[..., channels * len(offsets) :], [(0, 0)] * 3 + [(0, 1)])
        return _Stencil(earlier, same * np.tri(channels, k=-1, dtype=self.dtype)[None, None])

    def _on_maps(self, function: Callable[[_Stencil, Array], Array], columns: Array) -> Array:
        """A function of N and columns (H, W, C, k), for columns (..., D, k)."""

        def one(matrix: Local, v: Array) -> Array:
            maps = v.reshape(*self.image_shape, v.shape[-1])
            return function(matrix._stencil(), maps).reshape(v.shape)

        return self._each(one, columns)

    def _factor(self, columns: Array) -> Array:
        """L V."""
        return self.scales[..., None] * self._on_maps(lambda n, v: v + n.apply(v), columns)

    def _factor_transposed(self, columns: Array) -> Array:
        """L^T V."""
        scaled = self.scales[..., None] * columns
        return self._on_maps(lambda n, v: v + _flipped(n.transposed().apply, v), scaled)


def _bands(matrix: Local) -> dict[Offset, Array]:
    """The entries of L L^T of a single matrix: between each pixel and the one at an offset,
    (H, W, C, C), each pair of pixels once."""
    stencil, shape = matrix._stencil(), matrix.image_shape
    # What lies outside of the image is no entry of L.
    inside = jnp.asarray(_inside(*shape[:2], tuple(stencil.earlier)), matrix.dtype)
    taps = [m * seen for m, seen in zip(stencil.earlier.values(), inside, strict=True)]
    own = jnp.eye(shape[2], dtype=matrix.dtype)[None, None] + stencil.same
    factor = matrix.scales.reshape(*shape, 1, 1) * jnp.stack([own, *taps], axis=-2)
    pairs: dict[Offset, list[tuple[int, int]]] = {}
    for pair in itertools.product(enumerate([(0, 0), *stencil.earlier]), repeat=2):
        (left, (up, right)), (other, (other_up, other_right)) = pair
        offset = up - other_up, right - other_right
        if offset[0] > 0 or (offset[0] == 0 and offset[1] <= 0):
            pairs.setdefault(offset, []).append((left, other))

    def band(offset: Offset, left: np.ndarray, right: np.ndarray) -> Array:
        other = _shifted(factor[..., right, :], *offset).reshape(*shape, -1)
        rows = factor[..., left, :].reshape(*shape, -1)
        return jnp.sum(rows[..., :, None, :] * other[..., None, :, :], axis=-1)

    return {offset: band(offset, *np.transpose(found)) for offset, found in pairs.items()}


def _inner_of_bands(first: Local, second: Local) -> Array:
    """<L L^T, L' L'^T> of single matrices."""
    bands, others = _bands(first), _bands(second)
    sums = {o: jnp.sum(bands[o] * others[o]) for o in bands.keys() & others.keys()}
    return 2.0 * functools.reduce(operator.add, sums.values()) - sums[0, 0]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LocalPlusLowRank(PlusLowRank):
    """L L^T + diag(b) + U U^T, with `local` a `Local` and `factor` U of shape (..., D, r)."""

    local: Local
    factor: Array

    @property
    def base(self) -> Local:
        """L L^T + diag(b); ValueError if U does not belong to it."""
        self._check_base(self.local)
        return self.local

    def _rebuild(self, base: Any, factor: Array) -> SymmetricMatrix:
        return type(self)(base, factor)

    def add_diagonal(self, diag: Array) -> LocalPlusLowRank:
        return LocalPlusLowRank(self.base.add_diagonal(diag), self.factor)

    def floor(self, smallest: float | Array) -> tuple[LocalPlusLowRank, Violations]:
        """See `Local.floor`."""
        base, violations = self.base._raised(self._resolved(smallest))
        return LocalPlusLowRank(base, self.factor), violations
