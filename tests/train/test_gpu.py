"""What must hold on an accelerator too; `make test-gpu` runs these on a machine that has one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import losses
from hos_jax.data import batch_at, to_float
from hos_jax.linops import DiagonalPlusLowRank
from hos_jax.training import parallel
from hos_jax.training.loop import Batch, make_train_step
from hos_jax.training.problem import Problem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs an accelerator"),
]


def unet_config(small_config, **overrides):
    return small_config(model__name="unet", model__multipliers=(1, 2), **overrides)


def test_losses_are_those_of_the_cpu(small_config):
    config = unet_config(small_config)
    problem = Problem.from_config(config)
    params = jax.device_get(problem.init().params)
    images = batch_at(problem.data.train, 0, seed=config.seed, batch_size=8)
    clean = np.asarray(to_float(images, problem.data.value_range))
    noise = np.asarray(jax.random.normal(jax.random.key(0), clean.shape))

    def loss_on(device):
        arguments = jax.device_put((params, clean, noise), device)
        values = jax.jit(lambda p, x, z: problem.losses(p, x, z, config.noise, jnp.mean))
        return jax.device_get(values(*arguments))

    here, there = loss_on(jax.devices()[0]), loss_on(jax.devices("cpu")[0])
    for name, expected in there.items():
        # Convolutions may use TF32, with 10 bits of mantissa.
        np.testing.assert_allclose(here[name], expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_lowers_the_loss(small_config, dtype):
    config = unet_config(small_config, model__dtype=dtype, training__batch_size=64)
    problem = Problem.from_config(config)
    state, step, found = parallel.replicate(problem.init()), make_train_step(problem), []
    for index in range(60):
        images = batch_at(problem.data.train, index, seed=config.seed, batch_size=64)
        state, metrics = step(state, parallel.shard(Batch(images)))
        found.append(float(parallel.unreplicate(metrics)["loss"]))
    assert np.isfinite(found).all()
    assert np.mean(found[-10:]) < np.mean(found[:10])


def test_the_likelihood_keeps_its_digits():
    dim, rank = 784, 50
    keys = jax.random.split(jax.random.key(1), 3)
    diag = 0.01 + jax.random.uniform(keys[0], (dim,))
    factor = jax.random.normal(keys[1], (dim, rank))
    residual = jax.random.normal(keys[2], (dim,))
    found = jax.jit(losses.residual_nll)(residual, DiagonalPlusLowRank(diag, factor))
    d, u, r = (np.asarray(a, np.float64) for a in (diag, factor, residual))
    covariance = np.diag(d) + u @ u.T
    expected = 0.5 * (r @ np.linalg.solve(covariance, r) + np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(found, expected, rtol=1e-2)
