"""What has loops of its own is not compiled again for the same functions and shapes, where nobody
compiled the call: JAX would keep every program."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hos_jax import distributions, uncertainty
from hos_jax.linops import DiagonalPlusLowRank
from hos_jax.samplers import ozaki
from hos_jax.uncertainty import inverse

LAW = distributions.random_correlated_gaussian(jax.random.key(11), 6, 30.0).smooth(0.5)
POINT = LAW.sample(jax.random.key(1), 1)[0]
DENSE = uncertainty.posterior(POINT, LAW.score(POINT), LAW.hessian(POINT), 0.5)
LOW_RANK = DiagonalPlusLowRank(
    jnp.full(6, 0.3), 0.1 * jax.random.normal(jax.random.key(12), (6, 2))
)
POSTERIOR = uncertainty.posterior_from_covariance(POINT, LOW_RANK, 0.5)
MANY = distributions.Empirical(jax.random.normal(jax.random.key(13), (30, 6)), chunk=7).smooth(0.5)
ROWS = np.eye(6)[:3]


def first_three(point):
    return point[:3]


def times(matrix, point):
    return matrix @ point


def observed(forward):
    return inverse.Observation(jnp.array([0.3, -0.2, 0.1]), 0.1, forward)


def derivatives_fn(position):
    return LAW.score(position), LOW_RANK.add_identity(-1.0)


CASES = {
    "top_eigenpairs": lambda x: POSTERIOR.top_eigenpairs(2),
    "conditional_mean": lambda x: inverse.conditional_mean(DENSE, observed(first_three)),
    "conditional_sample": lambda x: inverse.conditional_sample(
        jax.random.key(14), DENSE, observed(first_three)
    ),
    "bound arrays": lambda x: inverse.guidance(
        POSTERIOR, observed(Partial(times, jnp.asarray(ROWS)))
    ),
    "Empirical.score": MANY.score,
    "Empirical.hessian": MANY.hessian,
    "Empirical.log_density": MANY.log_density,
    "Empirical.hessian_matvec": lambda x: MANY.hessian_matvec(x, x),
    "ozaki": lambda x: ozaki.as_top_level_api(derivatives_fn, 0.1).step(
        jax.random.key(15), ozaki.init(x, derivatives_fn)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_compiled_again(name, caplog):
    CASES[name](POINT)
    CASES[name](2.0 * POINT)
    with jax.log_compiles():
        CASES[name](3.0 * POINT)
        assert "XLA compilation" not in caplog.text
        # What is looked for is what JAX says.
        jax.jit(lambda x: jnp.sin(x) + 0.123)(POINT)
        assert "XLA compilation" in caplog.text


def test_what_is_bound_to_a_map_may_change():
    for matrix in (ROWS, 2.0 * ROWS, ROWS[[2, 1, 0]]):
        bound = observed(Partial(times, jnp.asarray(matrix)))
        other = observed(partial(times, jnp.asarray(matrix)))
        found, wanted = (inverse.conditional_mean(DENSE, each) for each in (bound, other))
        gain = DENSE.covariance.to_dense() @ matrix.T
        exact = DENSE.mean + gain @ np.linalg.solve(
            matrix @ gain + 0.01 * np.eye(3), bound.values - matrix @ DENSE.mean
        )
        np.testing.assert_allclose(found, exact, rtol=1e-6)
        np.testing.assert_allclose(wanted, exact, rtol=1e-6)


def test_a_map_that_cannot_be_told_from_another_one_is_taken_too():
    @dataclasses.dataclass
    class Rows:
        matrix: jax.Array

        def __call__(self, point):
            return self.matrix @ point

    with pytest.raises(TypeError):
        hash(Rows(jnp.asarray(ROWS)))
    found = inverse.conditional_mean(DENSE, observed(Rows(jnp.asarray(ROWS))))
    wanted = inverse.conditional_mean(DENSE, observed(first_three))
    np.testing.assert_allclose(found, wanted, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16, jnp.int32])
def test_points_of_another_type_than_the_data(dtype):
    """In several chunks as in one."""
    points = jnp.asarray(np.random.default_rng(0).standard_normal((30, 2)))
    with jax.numpy_dtype_promotion("standard"):
        point = jnp.array([1, 2], dtype)
        found, whole = (
            distributions.Empirical(points, chunk=chunk).smooth(0.5) for chunk in (7, 4096)
        )
        assert found.score(point).dtype == jnp.float64
        np.testing.assert_allclose(found.score(point), whole.score(point), rtol=1e-9)
        for name in ("hessian", "log_density"):
            one, other = (jax.tree.leaves(getattr(law, name)(point)) for law in (found, whole))
            np.testing.assert_allclose(one[0], other[0], rtol=1e-9)
        matvecs = [law.hessian_matvec(point, point) for law in (found, whole)]
        np.testing.assert_allclose(*matvecs, rtol=1e-9)


def test_the_hessian_far_from_the_data():
    points = np.random.default_rng(0).standard_normal((5000, 3)).astype(np.float32)
    law = distributions.Empirical(jnp.asarray(points)).smooth(jnp.float32(0.3))
    found = law.hessian(jnp.array([3e4, 0.0, 0.0], jnp.float32)).to_dense()
    np.testing.assert_allclose(found, -np.eye(3) / 0.09, rtol=0, atol=1e-3)


def test_a_bound_that_float32_does_not_have_is_0():
    bounds = (1e-40, 0.0)
    one, other = (
        ozaki.as_top_level_api(derivatives_fn, 0.1, growth_bound=bound) for bound in bounds
    )
    assert jax.tree.structure(one.step) == jax.tree.structure(other.step)
