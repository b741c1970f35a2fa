"""Uses of scores that were learned, against what is known of the data."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hos_jax import distributions, fit, models
from hos_jax.linops import Diagonal
from hos_jax.uncertainty import bound
from hos_jax.uses import dimension, unusual


def test_points_of_numpy_are_taken_in_jaxs_own_type():
    """They are of 64 bits, of which JAX would warn; a warning is an error here."""
    key, point, levels = jax.random.key(0), np.ones(2), np.array([0.5, 1.0])

    def derivatives_fn(noisy, sigma):
        return -noisy, Diagonal(-0.5 * jnp.ones(2))

    for found in (
        dimension.local_dimension(key, point, derivatives_fn, 0.5),
        dimension.confirmed_and_stated(jax.random.clone(key), point, derivatives_fn, 0.5),
        dimension.noise_level(point, derivatives_fn, levels),
        unusual.features(jax.random.clone(key), point, derivatives_fn, levels),
        unusual.unusual_map(jax.random.clone(key), point, derivatives_fn, levels),
        bound.encode(jax.random.clone(key), point, derivatives_fn, 0.5),
    ):
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


def test_a_learned_head_counts_the_dimensions_of_a_plane():
    d, dim, sigma = 2, 6, 0.2
    span = jax.random.orthogonal(jax.random.key(0), dim)[:, :d]
    law = distributions.Gaussian(jnp.zeros(dim), span @ span.T + 1e-5 * jnp.eye(dim))
    smooth = law.smooth(sigma)
    model = models.HessianModel(
        functools.partial(models.MLP, features=32, depth=2),
        models.SecondOrderHead("low_rank", rank=3, positive_definite=False),
    )
    hessian_fn = fit.train_second_order(
        jax.random.key(1), smooth.score, model, law.sample, sigma, dim=dim, steps=600
    )
    expected = dim - sigma**2 * jnp.trace(jnp.linalg.inv(smooth.covariance))

    def derivatives_fn(noisy, _):
        return smooth.score(noisy), hessian_fn(noisy)

    find = functools.partial(dimension.local_dimension, derivatives_fn=derivatives_fn, draws=1)
    clean = law.sample(jax.random.key(2), 200)
    found = jax.vmap(lambda k, x: find(k, x, sigma=sigma).total)(
        jax.random.split(jax.random.key(3), 200), clean
    )
    assert abs(float(jnp.mean(found) / expected) - 1) < 0.05
    assert float(jnp.std(found)) < 0.2
