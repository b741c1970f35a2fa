r"""Is a predicted posterior right? Measured on errors that were really made.

`bin_sums` sorts values by their predicted variance, and `reliability` says for each bin what was
predicted and what happened; by `captured_shares` the posterior's leading directions should beat
others. Variances are in units of sigma^2 and errors in units of sigma, so that noise levels
compare. ValueError for shapes that do not fit.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hos_jax.types import Array, as_positive, check_counts, check_unmasked, check_vectors
from hos_jax.uncertainty.posterior import Interval, Posterior

LEVELS = (0.5, 0.8, 0.9, 0.95)
# Four bins a decade; what lies outside counts in the first or last one.
VARIANCE_EDGES = np.geomspace(1e-4, 10.0, 21)
# A bin with fewer values says too little about its own quantiles.
LEAST_COUNT = 500


class BinSums(NamedTuple):
    """Sums over values, by bin of predicted variance, (bins,): their number, their predicted
    variances and squared errors, units of sigma^2; and how many errors lie inside the central
    interval at each of `LEVELS`, (bins, levels). Add those of batches up."""

    count: Array  # type: ignore[assignment]  # stands for the method `count` of tuples
    variance: Array
    squared_error: Array
    inside: Array


def inside_intervals(posterior: Posterior, clean: Array) -> Array:
    """Whether each value lies in its central interval at each of `LEVELS`, bool (D, levels)."""
    check_vectors(mean=posterior.mean, clean=clean)
    intervals = [posterior.marginal_interval(level) for level in LEVELS]
    return jnp.stack([(i.lower <= clean) & (clean <= i.upper) for i in intervals], axis=-1)


def bin_of(variance: Array | np.ndarray) -> Array:
    """The bin of each variance, in units of sigma^2; of any shape."""
    variance = jnp.asarray(variance)
    edges = jnp.asarray(VARIANCE_EDGES[1:-1], variance.dtype)
    return jnp.searchsorted(edges, variance, side="right")


def coverage_name(level: float) -> str:
    """The name of the share of errors inside the interval of a level: 0.9 -> "coverage_90"."""
    return f"coverage_{round(100 * level)}"


def bin_sums(variance: Array, error: Array, inside: Array) -> BinSums:
    """Sums of one example, from its predicted variances, (D,), units of sigma^2, the errors, clean
    value minus posterior mean, (D,), units of sigma, and what `inside_intervals` gave."""
    check_vectors(variance=variance, error=error)
    if inside.shape != (variance.shape[0], len(LEVELS)):
        raise ValueError(f"expected shape (D, {len(LEVELS)}), got {tuple(inside.shape)}")
    places, bins = bin_of(variance), len(VARIANCE_EDGES) - 1
    # In fewer bits counts would stop growing.
    dtype = jnp.float64 if variance.dtype == jnp.float64 else jnp.float32

    def total(values: Array) -> Array:
        zeros = jnp.zeros((bins, *values.shape[1:]), dtype)
        return zeros.at[places].add(values.astype(dtype))

    values = jnp.ones_like(variance), variance, jnp.square(error.astype(dtype)), inside
    return BinSums(*map(total, values))


def reliability(sums: BinSums) -> list[dict[str, float]]:
    """A row per bin that holds any value: its `share` of them all; `predicted` and `realised`, mean
    predicted variance and squared error, units of sigma^2; `coverage_50` ... `coverage_95`, the
    share of errors inside the interval of that level.
    """
    count, rows = np.asarray(sums.count, float), []
    names = "share", "predicted", "realised", *map(coverage_name, LEVELS)
    for index in np.flatnonzero(count):
        sizes = [sums.variance, sums.squared_error, *np.asarray(sums.inside).T]
        means = [float(size[index] / count[index]) for size in sizes]
        rows.append(dict(zip(names, [float(count[index] / count.sum()), *means], strict=True)))
    return rows


def interval_multipliers(variance: np.ndarray, error: np.ndarray) -> np.ndarray:
    """How many deviations wide an interval really has to be, by predicted variance and level.

    The errors of denoising are not Gaussian: many are nearly 0, some are large. In each bin of
    predicted variance the multiplier is, of the n values of |e| / sd in rising order, the one with
    number ceil((n + 1) level), for each of `LEVELS` (split conformal prediction within bins), so
    that new values from the same data are covered at the level or a little more, whatever their law
    and even where the variance is off. Bins with fewer than `LEAST_COUNT` values share the
    multiplier of their values together: these are covered as a whole. Where together they are fewer
    than that too, it is at least that of all values. Of too few values for a level, below 19 for
    0.95, it is the largest one, which covers n / (n + 1). ValueError if there are no values, or
    ones that are masked, not finite, or of no variance.

    From the predicted variances of values that training did not see, (N,), units of sigma^2, and
    their errors, (N,), units of sigma: (bins, levels), for `recalibrated_interval`. See Vovk,
    Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005.
    """
    check_vectors(variance=np.shape(variance), error=np.shape(error))
    check_unmasked(variance=variance, error=error)
    variance, error = np.asarray(variance), np.asarray(error)
    if not len(error):
        raise ValueError("there are no values")
    if not (np.isfinite(error) & np.isfinite(variance) & (variance > 0)).all():
        raise ValueError("expected finite errors and positive, finite variances: leave others out")
    ratio = np.abs(error) / np.sqrt(variance)
    places, bins = np.asarray(bin_of(variance)), len(VARIANCE_EDGES) - 1
    large = np.bincount(places, minlength=bins) >= LEAST_COUNT
    rest = ratio[~large[places]]
    shared = _conformal(rest) if len(rest) else np.zeros(len(LEVELS))
    if len(rest) < LEAST_COUNT:
        shared = np.maximum(shared, _conformal(ratio))
    table = np.tile(shared, (bins, 1))
    for index in np.flatnonzero(large):
        table[index] = _conformal(ratio[places == index])
    return table


def _conformal(ratio: np.ndarray) -> np.ndarray:
    """What a new value stays below with the probability of each of `LEVELS`, (levels,)."""
    # Less a rounding: (n + 1) level may be a whole number.
    numbers = np.ceil((len(ratio) + 1) * np.array(LEVELS) - 1e-9).astype(int)
    return np.sort(ratio)[np.minimum(numbers, len(ratio)) - 1]


def check_multipliers(multipliers: Array | np.ndarray) -> None:
    """Raise ValueError for another shape than that of `interval_multipliers`."""
    shape, found = (len(VARIANCE_EDGES) - 1, len(LEVELS)), np.shape(multipliers)
    if found != shape:
        raise ValueError(f"expected multipliers (bins, levels), {shape}, got {found}")


def recalibrated_interval(
    posterior: Posterior, sigma: Array | float, multipliers: Array, level: float
) -> Interval:
    """Central intervals, mean +- m sd, (D,), with the m of `interval_multipliers`, (bins, levels),
    at one of `LEVELS`; ValueError for another."""
    if level not in LEVELS:
        raise ValueError(f"level must be one of {LEVELS}, got {level}")
    check_multipliers(multipliers)
    places = bin_of(posterior.diagonal() / as_positive(sigma) ** 2)
    # NumPy's arrays cannot be indexed by what is traced.
    table = jnp.asarray(multipliers, posterior.mean.dtype)
    half = table[places, LEVELS.index(level)] * posterior.standard_deviation()
    return Interval(posterior.mean - half, posterior.mean + half)


def captured_shares(error: Array, directions: Array) -> Array:
    """Share of e^T e in the span of the first j directions, (k,), j = 1 ... k, for an error e of
    shape (D,), not zero, and orthonormal columns, (D, k)."""
    if directions.ndim != 2 or directions.shape[0] != error.shape[0] or error.ndim != 1:
        raise ValueError(
            f"expected shapes (D,) and (D, k), got {tuple(error.shape)}, {tuple(directions.shape)}"
        )
    return jnp.cumsum(jnp.square(directions.T @ error)) / jnp.sum(jnp.square(error))


def principal_directions(data: np.ndarray, count: int) -> np.ndarray:
    """The leading principal components of data (N, D) as orthonormal columns, (D, count), with
    1 <= count <= min(N - 1, D), else ValueError, as for another shape and values that are not
    finite."""
    check_counts(0, count=count)
    if data.ndim != 2:
        raise ValueError(f"expected data of shape (N, D), got {data.shape}")
    if not 1 <= count <= min(len(data) - 1, data.shape[1]):
        raise ValueError(f"expected 1 <= count <= min(N - 1, D) for {data.shape}, got {count}")
    if not np.isfinite(data).all():
        raise ValueError("the data are not finite: leave out or fill what is missing")
    data = np.asarray(data, np.float64)  # a mean of float32 is off where values are large
    centred = data - data.mean(axis=0)
    # The smaller of the two Gram matrices: N may be below D or far above it.
    few = len(data) <= data.shape[1]
    _, vectors = np.linalg.eigh(centred @ centred.T if few else centred.T @ centred)
    leading = vectors[:, ::-1][:, :count]
    return np.linalg.qr(centred.T @ leading)[0] if few else leading
