"""One model for a range of noise levels: its networks, its losses, its training, its samples."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax.config import validate
from hos_jax.config.networks import make_model
from hos_jax.errors import UserError
from hos_jax.evaluation.generate import (
    _noisy_start,
    course_curves,
    draw_samples,
    reverse_kernel,
)
from hos_jax.losses.objective import Objective
from hos_jax.samplers import diffusion
from hos_jax.training import loop
from hos_jax.training.problem import Problem

RANGE = {
    "model__name": "unet",
    "model__ngf": 8,
    "model__multipliers": (1, 2),
    "model__networks": "shared",
    "model__smallest_noise": 0.05,
    "model__largest_noise": 5.0,
    "training__batch_size": 16,
}


def test_the_network_sees_the_noise_level_of_each_image(small_config):
    model = make_model(small_config(**RANGE).model)
    noisy = jnp.tile(jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), (3, 1, 1, 1))
    params = jax.jit(model.init)(jax.random.key(1), noisy, 0.5)
    apply = jax.jit(model.apply)
    # The condition starts at zero: move every parameter, as training does.
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    sigma = jnp.array([0.1, 0.1, 2.0])
    images = noisy / jnp.sqrt(sigma**2 + 0.25)[:, None, None, None] ** -1
    trunk = apply(params, images, sigma).raw_second_order
    np.testing.assert_allclose(trunk[0], trunk[1], rtol=1e-5)
    single = [apply(params, images[i : i + 1], sigma[i]).score1[0] for i in range(3)]
    np.testing.assert_allclose(
        apply(params, images, sigma).score1, jnp.stack(single), rtol=1e-3, atol=1e-4
    )
    fixed = make_model(small_config(**{**RANGE, "model__smallest_noise": None}).model)
    without = jax.eval_shape(fixed.init, jax.random.key(1), noisy, 0.5)
    assert len(jax.tree.leaves(params)) > len(jax.tree.leaves(without))


def test_balanced_losses_weigh_each_example_by_its_level():
    def model(points, sigma):
        class Outputs:
            score1 = -points.reshape(len(points), -1) / (sigma**2 + 1.0)[:, None]

            @staticmethod
            def at(start, stop):
                part = Outputs()
                part.score1 = Outputs.score1[start:stop]
                return part

        return Outputs()

    clean, noise = (jax.random.normal(jax.random.key(k), (4, 3)) for k in range(2))
    sigma = jnp.array([0.1, 0.5, 2.0, 8.0])
    plain = Objective("dsm").per_example(model, clean, noise, sigma)["loss"]
    balanced = Objective("dsm", balance_std=0.5).per_example(model, clean, noise, sigma)["loss"]
    np.testing.assert_allclose(balanced / plain, 1 + (sigma / 0.5) ** 2, rtol=1e-5)
    single = [
        Objective("dsm").per_example(model, clean[i : i + 1], noise[i : i + 1], sigma[i])["loss"][0]
        for i in range(4)
    ]
    np.testing.assert_allclose(plain, single, rtol=1e-5)


def test_noise_levels_of_a_batch_cover_the_range_evenly(small_config):
    config = small_config(**RANGE)
    levels = np.sort(loop._noise_levels(config, 16, jax.random.key(3), 0))
    assert levels[0] >= 0.05 and levels[-1] <= 5.0
    np.testing.assert_allclose(np.diff(np.log(levels)), np.log(100) / 16, rtol=1e-3)
    other = np.sort(loop._noise_levels(config, 16, jax.random.key(4), 0))
    assert not np.allclose(levels, other)
    halves = [loop._noise_levels(config, 8, jax.random.key(3), first) for first in (0, 8)]
    np.testing.assert_allclose(np.sort(np.concatenate(halves)), levels, rtol=1e-6)
    single = loop._noise_levels(small_config(), 5, jax.random.key(0), 0)
    np.testing.assert_array_equal(single, np.full(5, 0.5, np.float32))


def test_training_and_annealed_samples(small_config, tmp_path):
    config = small_config(
        **RANGE,
        sampling__levels=4,
        sampling__steps_per_level=2,
        sampling__krylov_vectors=4,
    )
    state = loop.train_and_evaluate(config, tmp_path / "run")
    assert int(state.step) == config.training.steps
    for sampler in ("annealed_langevin", "annealed_ozaki"):
        config.sampling.sampler = sampler
        problem = Problem.from_config(config)
        samples = draw_samples(problem, state.best_params)
        assert samples.images.shape == (4, 8, 8, 1) and np.isfinite(samples.course).all()
        np.testing.assert_array_equal(samples.course[-1], samples.images)
        np.testing.assert_array_equal(samples.steps, [2, 4, 6, 8])
        np.testing.assert_allclose(samples.sigmas[[0, -1]], [5.0, 0.05], rtol=1e-5)
    curves = course_curves(problem, state.best_params, samples)
    assert curves["correlation"][0] == pytest.approx(1.0, abs=1e-5)
    assert len(curves["distance"]) == 4 and np.isfinite(curves["distance"]).all()


FIRST_ORDER = {"model__head": "none", "loss__second_order": "none"}


def test_samples_by_reverse_diffusion_within_their_evaluations(small_config):
    small = {**RANGE, "model__multipliers": (1,), "sampling__evaluations": 5}
    for settings, steps in (
        ({"sampling__sampler": "ancestral"}, 4),
        ({"sampling__sampler": "heun", "sampling__churn": 0.1, **FIRST_ORDER}, 2),
    ):
        config = small_config(**{**small, **settings})
        validate(config)
        problem = Problem.from_config(config)
        params = problem.init().params
        samples = draw_samples(problem, params)
        assert samples.images.shape == (4, 8, 8, 1) and np.isfinite(samples.course).all()
        np.testing.assert_array_equal(samples.course[-1], samples.images)
        np.testing.assert_array_equal(samples.steps, np.arange(1, steps + 1))
        assert samples.sigmas[0] < 5.0 and samples.sigmas[-1] == pytest.approx(0.05)
    np.testing.assert_array_equal(draw_samples(problem, params).images, samples.images)
    config.seed += 1
    other = draw_samples(Problem.from_config(config), params)
    assert np.abs(other.images - samples.images).max() > 1e-3


@pytest.mark.parametrize(
    ("settings", "kernel"),
    [
        ({"sampler": "ancestral"}, diffusion.ancestral("full")),
        ({"sampler": "ancestral", "covariance": "scalar"}, diffusion.ancestral("scalar")),
        ({"sampler": "ddim"}, diffusion.ddim("small")),
        ({"sampler": "ddim", "covariance": "full"}, diffusion.ddim("full")),
        ({"sampler": "heun", "churn": 0.2}, diffusion.heun(0.2)),
        ({"sampler": "second_order"}, diffusion.second_order(krylov_vectors=20)),
    ],
)
def test_the_step_is_the_one_of_the_config(small_config, settings, kernel):
    config = small_config(**RANGE, **{f"sampling__{key}": value for key, value in settings.items()})
    validate(config)
    assert reverse_kernel(Problem.from_config(config)) is kernel


def test_reverse_chains_start_with_the_moments_of_noisy_images(small_config):
    config = small_config(**RANGE, sampling__chains=4000)
    problem = Problem.from_config(config)
    start = np.asarray(_noisy_start(problem, jax.random.key(0), jnp.float32(0.5)), np.float64)
    images = problem.data.to_float(problem.data.train[:2000]).reshape(-1, 64).astype(np.float64)
    covariance = np.cov(np.asarray(images).T, bias=True) + 0.25 * np.eye(64)
    variance = np.diag(covariance)
    assert np.all(np.abs(start.mean(0) - images.mean(0)) < 5 * np.sqrt(variance / 4000))
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / 4000)
    assert np.all(np.abs(np.cov(start.T) - covariance) < 5 * error)


def test_ozaki_samples_at_one_level(small_config, caplog):
    config = small_config(sampling__sampler="ozaki", sampling__krylov_vectors=4)
    problem = Problem.from_config(config)
    with caplog.at_level(logging.WARNING):
        samples = draw_samples(problem, problem.init().params)
        assert not caplog.records
        config.sampling.krylov_vectors = 2
        draw_samples(Problem.from_config(config), problem.init().params)
    assert "choose a larger sampling.krylov_vectors than 2" in caplog.text
    assert samples.course.shape == (5, 4, 8, 8, 1) and np.isfinite(samples.course).all()
    np.testing.assert_array_equal(samples.steps, [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__largest_noise": None}, "go together"),
        ({"model__smallest_noise": 0.7}, "smallest_noise <= noise"),
        ({"model__smallest_noise": 0.0}, "0 < model.smallest_noise"),
        ({"model__name": "mlp"}, "choose unet"),
        ({"model__data_std": 0.0}, "data_std > 0"),
        (
            {
                "model__smallest_noise": None,
                "model__largest_noise": None,
                "sampling__sampler": "annealed_langevin",
            },
            "many noise levels",
        ),
        (
            {
                "model__head": "none",
                "loss__second_order": "none",
                "sampling__sampler": "ozaki",
            },
            "second-order model",
        ),
        ({"sampling__sampler": "mala"}, "choose one of langevin, ozaki"),
        ({"sampling__krylov_vectors": 1}, "at least 2"),
        (
            {
                "model__smallest_noise": None,
                "model__largest_noise": None,
                "sampling__sampler": "ancestral",
            },
            "sampler=ancestral needs a model of many noise levels",
        ),
        (
            {**FIRST_ORDER, "sampling__sampler": "ancestral"},
            "covariance=full needs a second-order model: choose small or large",
        ),
        (
            {**FIRST_ORDER, "sampling__sampler": "second_order"},
            "sampler=second_order needs a second-order model",
        ),
        ({"sampling__covariance": "whole"}, "choose one of small, large, scalar"),
        ({"sampling__sampler": "heun", "sampling__evaluations": 2}, "at least 3"),
        ({"sampling__churn": 0.5}, "from 0 to 0.414"),
    ],
)
def test_settings_that_cannot_work_are_refused(small_config, changes, message):
    with pytest.raises(UserError, match=message):
        validate(small_config(**{**RANGE, **changes}))
