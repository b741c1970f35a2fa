"""Causal order, learned: conditional variances against exact ones, and a whole order."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.uses import causal

SIGMA = 1.0


def test_conditional_variances_are_those_of_a_gaussian():
    """C_j = v / (v + sigma^2), v the variance of x_j given what else is known, for every subset."""
    factor = np.array([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.2, 0.6, 0.8]])
    law = factor @ factor.T
    law /= np.sqrt(np.outer(np.diag(law), np.diag(law)))
    data = jnp.asarray(
        np.random.default_rng(0).multivariate_normal(np.zeros(3), law, 20_000), jnp.float32
    )
    model = causal.Conditionals(features=32)
    fit = jax.jit(
        lambda key: causal.fit_conditionals(key, model, data, SIGMA, steps=1500, jitter=0.0)
    )
    params = fit(jax.random.key(0))
    for known in ([1, 1, 1], [1, 1, 0], [0, 1, 1]):
        found = causal.conditional_variances(
            jax.random.key(1), model, params, data[:500], jnp.array(known), SIGMA
        )
        inside = np.flatnonzero(known)
        exact = 1.0 / np.diag(np.linalg.inv(law[np.ix_(inside, inside)]))
        exact = exact / (exact + SIGMA**2)
        np.testing.assert_allclose(np.mean(found[:, inside], axis=0), exact, rtol=0.1)
        assert (np.std(found[:, inside], axis=0) < 0.15 * exact).all()


def test_networks_are_trained_by_their_keys_alone():
    """Those of `fit_conditionals`, whatever others are trained beside them."""
    model = causal.Conditionals(features=4, depth=1)
    data = jax.random.normal(jax.random.key(1), (50, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    found = causal.fit_members(jax.random.clone(keys), model, data, steps=3)
    alone = causal.fit_conditionals(keys[1], model, data, steps=3)
    jax.tree.map(
        lambda many, one: np.testing.assert_allclose(many[1], one, rtol=1e-5, atol=1e-7),
        found,
        alone,
    )


@pytest.fixture(scope="module")
def chain():
    """x_1 -> x_2 -> x_0, in units that say nothing of the order."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal(3000)
    second = np.sin(2.0 * first) + 0.5 * rng.standard_normal(3000)
    third = np.cos(2.0 * second) + 0.5 * rng.standard_normal(3000)
    return np.stack([3e-3 * third, 50.0 + first, 1e3 * second], axis=1)


def test_the_order_of_a_chain_is_found(chain):
    found = causal.causal_order(jax.random.key(0), chain, steps=800, networks=2, features=64)
    assert found.order.tolist() == [1, 2, 0]
    leaf, causes = found.evidence[0, 0], found.evidence[0, 1:]
    assert 4 * leaf < causes.min()


def test_a_table_of_numpy_is_one_to_train_on():
    table = causal.standardized(np.random.default_rng(0).normal(size=(50, 3)))
    model = causal.Conditionals(8)
    found, same = (
        causal.fit_conditionals(jax.random.key(0), model, data, steps=2)
        for data in (table, jnp.asarray(table))
    )
    chex.assert_trees_all_equal(found, same)
