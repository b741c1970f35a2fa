"""Streams of randomness share no key; noise levels and perturbations are what is asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from hos_jax.noise import (
    STREAMS,
    example_keys,
    geometric_sigmas,
    log_normal_sigmas,
    log_uniform_sigmas,
    perturb,
    stream_key,
)


def test_no_two_uses_of_randomness_share_a_key():
    keys = [jax.random.key(seed) for seed in (0, 1, 1234)]
    for name in STREAMS:
        for seed in (0, 1, 1234):
            for step in (0, 1, 7, 2**31 - 1):
                root = stream_key(name, seed, step)
                keys.append(root)
                if "noise" in name:
                    keys += list(example_keys(root, 0, 5))
                else:  # the parts of one use, and the steps of chains
                    parts = jax.random.split(root, 3)
                    keys += [*parts, *example_keys(jax.random.fold_in(parts[2], 3), 0, 3)]
    found = np.array([jax.random.key_data(key) for key in keys])
    assert len(np.unique(found, axis=0)) == len(found) > 400


def test_a_stream_is_a_function_of_its_name_seed_and_step():
    first, second = (stream_key("chains", 3, step) for step in (np.int32(5), jnp.int32(5)))
    np.testing.assert_array_equal(jax.random.key_data(first), jax.random.key_data(second))
    keys = jax.jit(lambda step: stream_key("chains", 3, step))(5)
    np.testing.assert_array_equal(jax.random.key_data(first), jax.random.key_data(keys))
    with pytest.raises(ValueError, match="unknown stream 'chain'; choose one of parameters, "):
        stream_key("chain", 0)


def test_examples_have_the_same_keys_however_they_are_split():
    key = stream_key("training noise", 0, 3)
    parts = [example_keys(key, first, 2) for first in (0, 2, 4)]
    whole = jax.random.key_data(example_keys(key, 0, 6))
    np.testing.assert_array_equal(whole, np.concatenate([jax.random.key_data(p) for p in parts]))


def test_noise_levels_and_pairs():
    sigmas = geometric_sigmas(1e6, 1e-6, 13)
    np.testing.assert_allclose(sigmas, 10.0 ** np.arange(6, -7, -1), rtol=1e-12)
    for arguments in ((1.0, 2.0, 3), (1.0, 0.0, 3), (np.inf, 1.0, 3), (np.nan, 1.0, 3), (1, 1, 0)):
        with pytest.raises(ValueError, match="need finite largest >= smallest > 0 and count >= 1"):
            geometric_sigmas(*arguments)
    with pytest.raises(ValueError, match="expected a whole number count"):
        geometric_sigmas(2.0, 1.0, 2.5)
    clean, noise = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
    pair = perturb(clean, noise, 2.0)
    np.testing.assert_array_equal(pair.plus, [2.0, 4.0])
    np.testing.assert_array_equal(pair.minus, [0.0, -8.0])
    with pytest.raises(ValueError, match="floating-point numbers, got noise of int64"):
        perturb(clean, jnp.array([1, 2]), 1.0)
    with pytest.raises(ValueError, match="one shape"):
        perturb(clean[None], noise[None], 1.0)


def test_levels_of_quantiles_are_those_of_their_laws():
    quantiles = jnp.linspace(0.0, 1.0, 11)
    expected = scipy.stats.loguniform(0.02, 5.0).ppf(quantiles)
    np.testing.assert_allclose(log_uniform_sigmas(quantiles, 5.0, 0.02), expected, rtol=1e-12)
    ends = (np.log([0.02, 5.0]) + 1.2) / 0.9
    expected = np.exp(scipy.stats.truncnorm(*ends, loc=-1.2, scale=0.9).ppf(quantiles))
    found = log_normal_sigmas(quantiles, 5.0, 0.02, -1.2, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Ranges in the tails of the law, in float32.
    for mean in (-6.0, 6.0):
        found = log_normal_sigmas(quantiles.astype(jnp.float32), 2.0, 0.5, mean, 1.0)
        law = scipy.stats.truncnorm(np.log(0.5) - mean, np.log(2.0) - mean, loc=mean)
        np.testing.assert_allclose(found, np.exp(law.ppf(quantiles)), rtol=1e-3)
        assert found.dtype == jnp.float32
    for mean in (-9.0, 9.0):
        with pytest.raises(ValueError, match="too far from"):
            log_normal_sigmas(quantiles, 2.0, 0.5, mean, 1.0)
    for law, more in ((log_uniform_sigmas, ()), (log_normal_sigmas, (0.0, 1.0))):
        few = law([0.5, 1.0], 5.0, 0.02, *more)
        np.testing.assert_array_equal(few, law(jnp.array([0.5, 1.0]), 5.0, 0.02, *more))
    with pytest.raises(ValueError, match="expected std > 0"):
        log_normal_sigmas(quantiles, 5.0, 0.02, 0.0, 0.0)
    for function, law in ((log_uniform_sigmas, ()), (log_normal_sigmas, (0.0, 1.0))):
        with pytest.raises(ValueError, match="largest >= smallest"):
            function(quantiles, 0.02, 5.0, *law)
