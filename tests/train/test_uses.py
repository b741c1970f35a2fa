"""Uses of scores that were learned, against what is known of the data."""

import functools

import jax
import jax.numpy as jnp

from hos_jax import distributions, fit, models
from hos_jax.uses import dimension


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
