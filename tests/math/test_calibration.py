"""Calibration of predicted posteriors, on errors of known law."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hos_jax.linops import Diagonal, DiagonalPlusLowRank
from hos_jax.uncertainty import calibration, posterior_from_covariance

D, COUNT = 200, 500


def summed(inflation):
    """Bin sums of errors whose variance is `inflation` times the predicted one."""

    def one(key):
        variance_key, noise_key = jax.random.split(key)
        variance = 10.0 ** jax.random.uniform(variance_key, (D,), minval=-3.5, maxval=0.5)
        error = jnp.sqrt(inflation * variance) * jax.random.normal(noise_key, (D,))
        found = posterior_from_covariance(jnp.zeros(D), Diagonal(variance), 1.0)
        return calibration.bin_sums(variance, error, calibration.inside_intervals(found, error))

    sums = jax.vmap(one)(jax.random.split(jax.random.key(0), COUNT))
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), sums)


@pytest.mark.parametrize("inflation", [1.0, 2.0])
def test_reliability_finds_what_was_put_in(inflation):
    rows = calibration.reliability(summed(inflation))
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)
    assert len(rows) == 16  # four decades, four bins each
    for row in rows:
        size = row["share"] * D * COUNT
        spread = row["realised"] / row["predicted"] / inflation
        assert abs(spread - 1) < 6 * np.sqrt(2 / size)
        for level in calibration.LEVELS:
            half = jax.scipy.stats.norm.ppf(0.5 + level / 2) / np.sqrt(inflation)
            expected = 2 * float(jax.scipy.stats.norm.cdf(half)) - 1
            error = np.sqrt(expected * (1 - expected) / size)
            assert abs(row[f"coverage_{round(100 * level)}"] - expected) < 4.5 * error


@pytest.mark.parametrize("wrong_by", [1.0, 3.0])
def test_recalibrated_intervals_hold_their_level_whatever_the_law(wrong_by):
    # Laplace errors, of which Gaussian intervals at 50% would cover 63%, and a wrong variance.
    def draw(key):
        keys = jax.random.split(key)
        variance = 10.0 ** jax.random.uniform(keys[0], (200_000,), minval=-2.0, maxval=0.0)
        error = jnp.sqrt(variance / 2) * jax.random.laplace(keys[1], (200_000,))
        return variance * wrong_by, error

    variance, error = draw(jax.random.key(0))
    table = calibration.interval_multipliers(np.asarray(variance), np.asarray(error))
    variance, error = draw(jax.random.key(1))
    found = posterior_from_covariance(jnp.zeros(len(error)), Diagonal(variance), 1.0)
    for level in calibration.LEVELS:
        interval = calibration.recalibrated_interval(found, 1.0, table, level)
        inside = np.asarray((interval.lower <= error) & (error <= interval.upper))
        for low in (-2.0, -1.0):
            chosen = np.asarray(
                (variance > wrong_by * 10**low) & (variance < wrong_by * 10 ** (low + 1))
            )
            size = chosen.sum()
            spread = np.sqrt(level * (1 - level) / size)
            # Both the quantiles and the check are estimates.
            assert abs(inside[chosen].mean() - level) < 4.5 * np.sqrt(2) * spread
    traced = jax.jit(lambda one: calibration.recalibrated_interval(one, 1.0, table, 0.5))(found)
    whole = calibration.recalibrated_interval(found, 1.0, table, 0.5)
    np.testing.assert_allclose(traced.lower, whole.lower)
    gaussian = found.marginal_interval(0.5)
    inside = np.mean((gaussian.lower <= error) & (error <= gaussian.upper))
    assert inside > 0.6


def test_an_empty_bin_takes_the_quantiles_of_all_values():
    error = np.random.default_rng(0).normal(size=1999)
    table = calibration.interval_multipliers(np.full(1999, 1.0), error)
    chosen = np.sort(np.abs(error))[[999, 1599, 1799, 1899]]
    np.testing.assert_array_equal(table, np.tile(chosen, (20, 1)))
    found = posterior_from_covariance(jnp.zeros(3), Diagonal(jnp.ones(3)), 1.0)
    with pytest.raises(ValueError, match="one of"):
        calibration.recalibrated_interval(found, 1.0, jnp.asarray(table), 0.7)
    with pytest.raises(ValueError, match="bins, levels"):
        calibration.recalibrated_interval(found, 1.0, jnp.ones((3, 4)), 0.9)
    with pytest.raises(ValueError, match="one shape"):
        calibration.interval_multipliers(np.ones(3), np.ones(4))


@pytest.mark.parametrize("counts", [(400, 300), (300, 0)])
def test_values_of_small_bins_are_covered_together(counts):
    """Where their errors are other than those of all: the mean coverage of 200 tables."""
    variances, wrong = np.repeat([0.1, 0.001, 0.5], (4500, *counts)), (1.0, 10.0, 3.0)
    deviations = np.sqrt(variances) * np.repeat(wrong, (4500, *counts))
    rng, few, trials = np.random.default_rng(0), variances != 0.1, 200
    covered = []
    for _ in range(trials):
        table = calibration.interval_multipliers(variances, deviations * rng.normal(size=len(few)))
        widths = table[np.asarray(calibration.bin_of(jnp.asarray(variances)))]
        fresh = np.abs(deviations * rng.normal(size=len(few))) / np.sqrt(variances)
        covered.append((fresh[:, None] <= widths)[few].mean(0))
    for level, found in zip(calibration.LEVELS, np.transpose(covered), strict=True):
        spread = 4.0 * found.std() / np.sqrt(trials)
        assert level - spread < found.mean() < level + 1 / few.sum() + spread


@pytest.mark.parametrize("count", [5, 20, 99])
def test_few_values_cover_new_ones_as_often_as_they_can(count):
    # Of Student's law with 3 degrees of freedom; the mean coverage of 500 tables.
    rng, trials = np.random.default_rng(count), 500
    covered = []
    for _ in range(trials):
        table = calibration.interval_multipliers(np.ones(count), rng.standard_t(3, size=count))[0]
        covered.append(scipy.stats.t(3).cdf(table) * 2 - 1)
    for level, found, spread in zip(
        calibration.LEVELS, np.mean(covered, 0), np.std(covered, 0), strict=True
    ):
        expected = min(np.ceil((count + 1) * level - 1e-9), count) / (count + 1)
        assert abs(found - expected) < 4.5 * spread / trials**0.5
        assert expected >= level or count < 19


def test_errors_of_16_bits_are_squared_in_32():
    variance, error = jnp.ones(3, jnp.float16), jnp.full(3, 300.0, jnp.float16)
    sums = calibration.bin_sums(variance, error, jnp.zeros((3, 4), bool))
    assert sums.squared_error.sum() == 3 * 300.0**2


def test_variances_outside_the_bins_count_in_the_last_ones():
    variance = jnp.array([1e-9, 1e-4, 50.0])
    inside = jnp.zeros((3, 4), bool)
    sums = calibration.bin_sums(variance, jnp.zeros(3), inside)
    assert sums.count[0] == 2 and sums.count[-1] == 1 and sums.count.sum() == 3
    coarse = jnp.full(1000, 0.5, jnp.bfloat16)
    sums = calibration.bin_sums(coarse, coarse, jnp.ones((1000, 4), bool))
    assert sums.count.sum() == 1000 and (sums.inside.sum(axis=0) == 1000).all()


def test_leading_directions_capture_their_share_of_the_error():
    keys = jax.random.split(jax.random.key(1), 3)
    covariance = DiagonalPlusLowRank(
        jnp.full(40, 0.1), jax.random.normal(keys[0], (40, 2)) * jnp.array([1.0, 0.5])[None]
    )
    found = posterior_from_covariance(jnp.zeros(40), covariance, 1.0)
    pairs = found.top_eigenpairs(3)
    errors = found.sample(keys[1], 4000)
    shares = jax.vmap(calibration.captured_shares, (0, None))(errors, pairs.eigenvectors)
    powers = jnp.square(errors @ pairs.eigenvectors)
    total = jnp.sum(jnp.square(errors), axis=1)
    np.testing.assert_allclose(shares[:, 0], powers[:, 0] / total, rtol=1e-10)
    np.testing.assert_allclose(shares[:, -1], powers.sum(axis=1) / total, rtol=1e-10)
    ratio = float(jnp.sum(powers[:, :2]) / jnp.sum(total))
    assert ratio == pytest.approx(float(pairs.eigenvalues[:2].sum() / covariance.trace()), abs=0.02)
    random = jnp.linalg.qr(jax.random.normal(keys[2], (40, 3)))[0]
    assert jax.vmap(calibration.captured_shares, (0, None))(errors, random)[:, -1].mean() < 0.2


@pytest.mark.parametrize("count", [30, 300])
def test_principal_directions_are_those_of_the_sample_covariance(count):
    data = np.random.default_rng(0).normal(size=(count, 50)) * np.geomspace(5, 0.1, 50)
    found = calibration.principal_directions(data, 4)
    values, vectors = np.linalg.eigh(np.cov(data.T))
    np.testing.assert_allclose(found.T @ found, np.eye(4), atol=1e-10)
    np.testing.assert_allclose(np.abs(np.sum(found * vectors[:, ::-1][:, :4], axis=0)), 1.0)
    assert values[-1] > values[-2]


def test_principal_directions_of_float32_far_from_zero():
    rows = np.random.default_rng(1).normal(size=(20_000, 3)) * [3.0, 2.0, 1.0] + 1e5
    found = calibration.principal_directions(rows.astype(np.float32), 2)
    np.testing.assert_allclose(np.abs(found), np.eye(3)[:, :2], atol=0.05)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="expected shape"):
        calibration.bin_sums(jnp.ones(3), jnp.ones(3), jnp.ones((3, 2), bool))
    with pytest.raises(ValueError, match="one shape"):
        calibration.bin_sums(jnp.ones(3), jnp.ones(4), jnp.ones((3, 4), bool))
    with pytest.raises(ValueError, match="expected shapes"):
        calibration.captured_shares(jnp.ones(3), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"expected data of shape \(N, D\), got \(5, 3, 3\)"):
        calibration.principal_directions(np.ones((5, 3, 3)), 2)
    with pytest.raises(ValueError, match="1 <= count"):
        calibration.principal_directions(np.ones((5, 9)), 5)
    with pytest.raises(ValueError, match="not finite"):
        calibration.principal_directions(np.full((5, 9), np.nan), 2)
    for variance, error in ((0.0, 1.0), (1.0, np.nan), (np.inf, 1.0), (-1.0, 1.0)):
        with pytest.raises(ValueError, match="finite errors and positive, finite variances"):
            calibration.interval_multipliers(np.array([1.0, variance]), np.array([1.0, error]))
