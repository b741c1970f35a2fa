"""Causal order: the criterion against exact densities, the bookkeeping, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.errors import UserError
from hos_jax.uses import causal

# x_2 -> x_0 -> x_1, and x_2 -> x_1: the order is 2, 0, 1.
VARIANCES = np.array([0.3, 0.5, 0.8])
ORDER = [2, 0, 1]


def log_density(point, known):
    """Of the variables that are known; a leaf leaves the density with its factor."""
    x0, x1, x2 = point
    residuals = jnp.array([x0 - jnp.sin(2.0 * x2), x1 - jnp.cos(x0) * x2, x2])
    return jnp.sum(jnp.where(known, -0.5 * residuals**2 / VARIANCES, 0.0))


def draw(count):
    noise = np.sqrt(VARIANCES) * np.random.default_rng(0).standard_normal((count, 3))
    x2 = noise[:, 2]
    x0 = np.sin(2.0 * x2) + noise[:, 0]
    return np.stack([x0, np.cos(x0) * x2 + noise[:, 1], x2], axis=1)


def test_exact_second_derivatives_give_the_exact_order():
    points, asked = jnp.asarray(draw(200)), []

    def statistics(known):
        asked.append(known.tolist())
        hessians = jax.vmap(lambda x: jax.hessian(log_density)(x, jnp.asarray(known)))(points)
        diagonals = jnp.where(jnp.asarray(known), jnp.diagonal(hessians, axis1=1, axis2=2), 1.0)
        return causal.dispersion(diagonals)

    found = causal.peel(statistics, 3)
    assert found.order.tolist() == ORDER
    assert asked == [[True, True, True], [True, False, True], [False, False, True]]
    leaves = found.evidence[[0, 1, 2], [1, 0, 2]]
    np.testing.assert_allclose(leaves, 0.0, atol=1e-20)
    assert np.nanmin(np.where(found.evidence > 1e-20, found.evidence, np.nan)) > 0.01
    assert np.isnan(found.evidence).tolist() == np.logical_not(asked).tolist()


@pytest.mark.parametrize("sigma", [0.2, 2.0])
def test_with_noise_on_one_variable_alone_a_leaf_is_constant_at_every_level(sigma):
    """By quadrature: C of the leaf is v / (v + sigma^2) at every point, that of a cause is not."""
    grid = np.linspace(-12.0, 12.0, 4001)

    def variance(point, variable, noisy):
        on_grid = jnp.tile(jnp.asarray(point), (len(grid), 1)).at[:, variable].set(grid)
        logs = jax.vmap(lambda x: log_density(x, jnp.ones(3, bool)))(on_grid)
        weights = np.exp(np.asarray(logs) - 0.5 * (noisy - grid) ** 2 / sigma**2)
        mean = np.sum(weights * grid) / np.sum(weights)
        return np.sum(weights * (grid - mean) ** 2) / np.sum(weights) / sigma**2

    points = draw(20)
    noise = sigma * np.random.default_rng(1).standard_normal(20)
    found = np.array(
        [[variance(x, j, x[j] + z) for j in range(3)] for x, z in zip(points, noise, strict=True)]
    )
    leaf = VARIANCES[1] / (VARIANCES[1] + sigma**2)
    np.testing.assert_allclose(found[:, 1], leaf, rtol=1e-6)
    precisions = causal.conditional_precisions(jnp.asarray(found), sigma)
    dispersions = np.asarray(causal.dispersion(precisions))
    assert dispersions[1] < 1e-9 and (dispersions[[0, 2]] > 1e-2).all()


class Recorder:
    """In place of a network: C is what it was shown of each variable, or 0."""

    def apply(self, params, points, known, noisy, sigma):
        return points, jnp.where(known > 0, points, 0.0) + 100.0 * noisy


def test_each_variable_is_asked_with_noise_on_itself_alone():
    data, known = jnp.asarray(draw(2000)), jnp.array([True, False, True])
    found = causal.conditional_variances(jax.random.key(0), Recorder(), None, data, known, 0.5)
    noise = np.asarray(found) - 100.0 - np.where(known, data, 0.0)
    np.testing.assert_allclose(noise[:, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(noise[:, [0, 2]].std(axis=0), 0.5, rtol=4 / np.sqrt(2 * 2000))
    assert abs(np.corrcoef(noise[:, 0], noise[:, 2])[0, 1]) < 4 / np.sqrt(2000)


@pytest.mark.parametrize("sigma", [0.2, 2.0])
def test_the_noise_is_taken_out_of_a_gaussian_variance(sigma):
    exact = jnp.asarray(1.0 / VARIANCES)
    found = causal.conditional_precisions(VARIANCES / (VARIANCES + sigma**2), sigma)
    np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_a_variance_that_noise_cannot_reduce_gives_a_small_precision():
    found = causal.conditional_precisions(jnp.array([0.99, 1.0, 5.0]), 0.5)
    np.testing.assert_allclose(found, (1.0 / 0.99 - 1.0) / 0.25, rtol=1e-9)


class Varying:
    """In place of a network: precisions 2 and 1 on average, with deviations 0.2 and 0.15 in steps
    of sign, at sigma 1, and `params` times a step of its own; what is hidden changes nothing."""

    def apply(self, params, points, known, noisy, sigma):
        rows = jnp.arange(len(points))
        signs = jnp.where(rows % 2 == 0, 1.0, -1.0)[:, None]
        own = jnp.where(rows % 4 < 2, 1.0, -1.0)[:, None] * params
        precisions = jnp.array([[2.0, 1.0]]) + signs * jnp.array([[0.2, 0.15]]) + own
        return points, 1.0 / (1.0 + precisions)


def test_precisions_are_compared_by_their_means_or_in_the_units_of_the_noises():
    def found(variances):
        points, members = jnp.zeros((12, 2)), jnp.zeros(1)
        key = jax.random.key(0)
        return causal.order_by(key, Varying(), members, points, 1.0, variances=variances)

    np.testing.assert_allclose(found(None).evidence[0], [0.2**2 / 2.0, 0.15**2], rtol=1e-9)
    assert found(None).order.tolist() == [1, 0]
    in_units = found(np.array([1.0, 4.0]))
    np.testing.assert_allclose(in_units.evidence[0], [0.2**2, 0.15**2 / 16.0], rtol=1e-9)
    assert in_units.order.tolist() == [0, 1]


def test_what_networks_have_wrong_each_in_its_way_is_averaged_out():
    members = jnp.array([0.3, -0.3])

    def evidence(some):
        return causal.order_by(jax.random.key(0), Varying(), some, jnp.zeros((12, 2)), 1.0).evidence

    np.testing.assert_allclose(evidence(members)[0], [0.2**2 / 2.0, 0.15**2], rtol=1e-9)
    one = evidence(members[:1])[0]
    np.testing.assert_allclose(one, [(0.2**2 + 0.3**2) / 2.0, 0.15**2 + 0.3**2], rtol=1e-9)


def test_the_dispersion_of_sums_does_not_depend_on_the_number_of_terms():
    """Variance and mean of n independent terms grow alike."""
    terms = np.random.default_rng(0).gamma(2.0, 3.0, (4000, 2, 16))
    sums = jnp.asarray(np.stack([terms[:, 0, 0], terms[:, 1].sum(axis=1)], axis=1))
    np.testing.assert_allclose(causal.dispersion(sums), 3.0, rtol=0.15)
    np.testing.assert_allclose(causal.dispersion(-sums), causal.dispersion(sums), rtol=1e-12)


def test_the_table_names_the_leaf_of_each_step():
    found = causal.CausalOrder(np.array([1, 0]), np.array([[0.25, 4.0], [np.nan, 2.0]]))
    assert found.table(["a", "b"]) == [
        ["step", "leaf", "a", "b"],
        ["1", "a", "0.25", "4"],
        ["2", "b", "", "2"],
    ]
    assert found.table()[0] == ["step", "leaf", "0", "1"]
    for names in (["a"], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="expected 2 names, got"):
            found.table(names)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.zeros(5), "at least 3 rows and 2 columns"),
        (np.zeros((5, 1)), "at least 3 rows and 2 columns"),
        ([[1.0, 2.0], [3.0, 5.0]], "at least 3 rows and 2 columns"),
        ([[1.0, 2.0], [1.0, np.nan], [0.0, 1.0]], "row 2 has a value that is not finite"),
        ([[1.0, 2.0], [0.0, 2.0], [1.0, 2.0]], "column 1 has one value alone"),
        ([[1.0, 1e14], [0.0, 1e14 + 1], [1.0, 1e14]], "column 1 varies by less than 1e-12 of"),
        ([["a", "b"], ["c", "d"]], "no number"),
        ([[1.0, 5.0, 0.0], [0.0, 2.0, 1.0], [2.0, 8.0, 0.0]], "columns 0 and 1 are one"),
        (np.eye(3) + 1j, "no number"),
    ],
)
def test_what_is_no_table_is_refused(table, message):
    with pytest.raises(UserError, match=message):
        causal.causal_order(jax.random.key(0), table, steps=1)


def test_one_row_has_no_variance():
    with pytest.raises(ValueError, match="rows >= 2, got 1"):
        causal.causal_order(jax.random.key(0), draw(10), steps=1, rows=1)


def test_masked_values_are_refused():
    table = np.ma.masked_array(draw(10), mask=False)
    causal.standardized(table)
    table[3, 0] = np.ma.masked
    with pytest.raises(ValueError, match="table has masked values"):
        causal.causal_order(jax.random.key(0), table, steps=1)


def test_precisions_are_compared_at_rows_at_random(monkeypatch):
    """A sorted table is as good as any."""
    monkeypatch.setattr(causal, "fit_members", lambda *_, **__: None)
    monkeypatch.setattr(causal, "order_by", lambda *arguments, **_: np.asarray(arguments[3]))
    table = np.sort(draw(300), axis=0)
    rows = [tuple(row) for row in causal.standardized(table)]
    for count in (100, 1000):
        found = causal.causal_order(jax.random.key(0), table, rows=count)
        places = [rows.index(tuple(row)) for row in found]
        assert len(set(places)) == len(places) == min(count, 300)
        assert abs(np.mean(places) - 149.5) < 4.0 * 300 / 12**0.5 / count**0.5


def test_standardized_columns_have_mean_0_and_variance_1():
    table = causal.standardized(1e6 + 1e-3 * draw(500))
    assert table.dtype == np.float32
    np.testing.assert_allclose(table.mean(axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(table.std(axis=0), 1.0, rtol=1e-4)


def test_units_of_any_size_are_in_range():
    table = draw(50)
    units = np.geomspace(1e-200, 1e200, table.shape[1])
    np.testing.assert_allclose(
        causal.standardized(table * units), causal.standardized(table), atol=1e-5
    )
    for unit in (1e-12, 1e10):
        np.testing.assert_allclose(
            causal._relative_units(table * unit), causal._relative_units(table), rtol=1e-9
        )
    variances = table.var(axis=0)
    ratios = causal._relative_units(table) / variances
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-9)
    with pytest.raises(UserError, match="too far apart"):
        causal._relative_units(table * units)


@pytest.mark.parametrize("options", [{"steps": 0}, {"features": 0}, {"rows": 0}, {"sigma": -1.0}])
def test_settings_must_be_positive(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        causal.causal_order(jax.random.key(0), draw(10), **options)


@pytest.mark.parametrize(
    ("points", "sigma", "variances", "message"),
    [
        (np.zeros((1, 2)), 1.0, None, "two points or more"),
        (np.zeros((3, 2), int), 1.0, None, "points"),
        (np.zeros((3, 2)), -1.0, None, "sigma"),
        (np.zeros((3, 2)), 1.0, np.ones(3), "2 positive variances"),
        (np.zeros((3, 2)), 1.0, np.array(2.0), "2 positive variances"),
        (np.zeros((3, 2)), 1.0, np.array([-1.0, 1.0]), "2 positive variances"),
        (np.zeros((3, 2)), 1.0, np.array([np.inf, 1.0]), "2 positive variances"),
    ],
)
def test_what_gives_no_order_is_refused(points, sigma, variances, message):
    with pytest.raises(ValueError, match=message):
        causal.order_by(
            jax.random.key(0), Varying(), jnp.zeros(1), points, sigma, variances=variances
        )


def test_a_statistic_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="expected 2 finite statistics"):
        causal.peel(lambda known: np.array([1.0, np.nan]), 2)


def test_networks_work_in_single_precision_beside_double():
    data = jnp.asarray(causal.standardized(draw(50)))
    model = causal.Conditionals(features=4, depth=1)
    params = causal.fit_conditionals(jax.random.key(0), model, data, steps=1, batch_size=4)
    known = jnp.ones(3, bool)
    found = causal.conditional_variances(jax.random.key(1), model, params, data, known, 1.0)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, found))} == {np.dtype("float32")}


@pytest.mark.parametrize(
    ("sigma", "word"), [(0.24, "small"), (4.1, "large"), (0.26, None), (3.9, None)]
)
def test_noise_far_from_what_was_measured_is_said(caplog, sigma, word):
    rows = np.random.default_rng(0).standard_normal((20, 2))
    causal.causal_order(jax.random.key(0), rows, sigma=sigma, steps=2, networks=1, features=4)
    said = f"so {word} beside the data" if word else ""
    assert said in caplog.text and bool(caplog.text) == bool(word)
