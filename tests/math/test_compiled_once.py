"""What has loops of its own is not compiled again for the same functions and shapes, where nobody
compiled the call: JAX would keep every program."""

import gc

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from hos_jax import autodiff, distributions, uncertainty
from hos_jax.linops import DiagonalPlusLowRank, lanczos
from hos_jax.samplers import ozaki
from hos_jax.uncertainty import inverse
from hos_jax.uses import measure_next

LAW = distributions.random_correlated_gaussian(jax.random.key(11), 6, 30.0).smooth(0.5)
POINT = LAW.sample(jax.random.key(1), 1)[0]
DENSE = uncertainty.posterior(POINT, LAW.score(POINT), LAW.hessian(POINT), 0.5)
LOW_RANK = DiagonalPlusLowRank(
    jnp.full(6, 0.3), 0.1 * jax.random.normal(jax.random.key(12), (6, 2))
)
POSTERIOR = uncertainty.posterior_from_covariance(POINT, LOW_RANK, 0.5)
MANY = distributions.Empirical(jax.random.normal(jax.random.key(13), (30, 6)), chunk=7).smooth(0.5)
ROWS = np.eye(6)[:3]
LEVELS = jnp.array([3.0, 1.0])


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


LOOPS = {
    "conditional_mean": lambda f: inverse.conditional_mean(DENSE, observed(lambda x: f(x)[:3])),
    "sample_posterior": lambda f: inverse.sample_posterior(
        jax.random.key(3), lambda y, sigma: DENSE, observed(lambda x: f(x)[:3]), POINT, LEVELS
    ),
    "choose": lambda f: measure_next.choose(lambda v: f(DENSE.matvec(v)), 6, 0.1, count=2),
    "choose_groups": lambda f: measure_next.choose_groups(
        lambda v: f(DENSE.matvec(v)), jnp.arange(6).reshape(3, 2), jnp.eye(6).__getitem__, 0.1, 2
    ),
    "top_eigenpairs": lambda f: lanczos.top_eigenpairs(jax.random.key(3), f, 6, 2),
    "chunked_hessian_fn": lambda f: autodiff.chunked_hessian_fn(f, chunk_size=2)(POINT).to_dense(),
    "hutchinson_trace": lambda f: autodiff.hutchinson_trace(
        jax.random.key(3), f, POINT, probes=4, chunk_size=2
    ),
    "ozaki": lambda f: ozaki.as_top_level_api(lambda x: (f(x), derivatives_fn(x)[1]), 0.1).step(
        jax.random.key(3), ozaki.init(POINT, lambda x: (f(x), derivatives_fn(x)[1]))
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_what_a_function_closes_over_may_change_and_is_not_kept(name):
    """The same function object, which another time does something else."""
    factor = jnp.ones(6)

    def scaled(x):
        return factor * x

    results = []
    for number in (1.0, 3.0, 1.0):
        factor = jnp.arange(1.0, 7.0) ** (number - 1.0)
        results.append(np.concatenate([x.ravel() for x in jax.tree.leaves(LOOPS[name](scaled))]))
    assert np.abs(results[0] - results[1]).max() > 1e-3
    np.testing.assert_allclose(results[0], results[2], rtol=1e-9)
    gc.collect()
    before = len(jax.live_arrays())
    for _ in range(3):
        held = jnp.ones(6)
        jax.block_until_ready(LOOPS[name](lambda x, held=held: held * x))
    del held
    gc.collect()
    assert len(jax.live_arrays()) <= before


def test_where_jax_looks_for_faults_nothing_is_compiled():
    """So that it names the operation, and functions see numbers."""

    def concrete(vector):
        return float(vector[0]) * vector

    with jax.disable_jit():
        lanczos.top_eigenpairs(jax.random.key(5), concrete, 6, 2)
    with (
        jax.debug_nans(True),
        pytest.raises(FloatingPointError, match=r"encountered in (log|scan)"),
    ):
        measure_next.choose(lambda v: jnp.log(v - 2.0), 6, 0.1, count=2)


@pytest.mark.parametrize("transform", [jax.vmap, jax.jacfwd])
def test_nothing_stays_of_calls_that_are_mapped_or_differentiated(transform):
    def programs():
        gc.collect()
        return len(jax.extend.backend.get_backend().live_executables())

    def mean(values):
        observation = inverse.Observation(values, 0.1, first_three)
        return inverse.conditional_mean(DENSE, observation)

    def call():
        return jax.block_until_ready(transform(mean)(jnp.ones((3, 3)) if mapped else jnp.ones(3)))

    mapped = transform is jax.vmap
    call()
    before = programs()
    for _ in range(3):
        call()
    assert programs() <= before


def test_maps_are_mapped_and_differentiated():
    """Of a matrix that the map closes over, as of one that is bound to it."""
    values = jnp.array([0.3, -0.2, 0.1])

    def of_closure(matrix):
        return jnp.sum(inverse.conditional_mean(DENSE, observed(lambda x: matrix @ x)) ** 2)

    def of_partial(matrix):
        forward = Partial(times, matrix)
        return jnp.sum(inverse.conditional_mean(DENSE, observed(forward)) ** 2)

    def dense(matrix):
        gain = DENSE.covariance.to_dense() @ matrix.T
        solved = jnp.linalg.solve(matrix @ gain + 0.01 * jnp.eye(3), values - matrix @ DENSE.mean)
        return jnp.sum((DENSE.mean + gain @ solved) ** 2)

    matrices = jnp.stack([ROWS, 2.0 * ROWS])
    for function in (of_closure, of_partial):
        for of in (lambda f: f, jax.jit):
            found = jax.vmap(of(function))(matrices)
            np.testing.assert_allclose(found, jax.vmap(dense)(matrices), rtol=1e-5)
            found = jax.vmap(jax.grad(of(function)))(matrices)
            np.testing.assert_allclose(found, jax.vmap(jax.grad(dense))(matrices), atol=1e-4)
        np.testing.assert_allclose(
            jax.grad(function)(matrices[0]), jax.grad(dense)(matrices[0]), atol=1e-4
        )


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
