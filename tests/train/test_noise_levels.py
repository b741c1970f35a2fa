"""One model for a range of noise levels: its networks, its losses, its training, its samples."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from drawn_parameters import drawn

from hos_jax import pointwise
from hos_jax.config import validate
from hos_jax.config.networks import make_model
from hos_jax.errors import UserError
from hos_jax.evaluation import generate
from hos_jax.evaluation.generate import (
    _noisy_start,
    course_curves,
    draw_samples,
    reverse_kernel,
)
from hos_jax.losses.objective import Objective
from hos_jax.samplers import diffusion
from hos_jax.training import loop, parallel
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


@pytest.mark.parametrize("name", ["unet", "mlp"])
def test_the_network_sees_the_noise_level_of_each_image(small_config, name):
    settings = {**RANGE, "model__name": name}
    model = make_model(small_config(**settings).model)
    noisy = jnp.tile(jax.random.normal(jax.random.key(0), (1, 8, 8, 1)), (3, 1, 1, 1))
    # The condition starts at zero: every parameter is another, as after training.
    params = drawn(model, noisy, 0.5, mean=0.1, std=0.1)
    apply = jax.jit(model.apply)
    sigma = jnp.array([0.1, 0.1, 2.0])
    images = noisy / jnp.sqrt(sigma**2 + 0.25)[:, None, None, None] ** -1
    trunk = apply(params, images, sigma).raw_second_order
    np.testing.assert_allclose(trunk[0], trunk[1], rtol=1e-5)
    single = [apply(params, images[i : i + 1], sigma[i]).score1[0] for i in range(3)]
    np.testing.assert_allclose(
        apply(params, images, sigma).score1, jnp.stack(single), rtol=1e-3, atol=1e-4
    )
    assert not np.allclose(trunk[0], trunk[2], rtol=1e-2)
    fixed = make_model(small_config(**{**settings, "model__smallest_noise": None}).model)
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


def test_churn_asks_the_model_of_none_but_its_levels(small_config, monkeypatch):
    settings = {"sampling__sampler": "heun", "sampling__churn": 0.4, **FIRST_ORDER}
    config = small_config(**{**RANGE, "model__multipliers": (1,), **settings})
    asked = []

    def derivatives_fn(noisy, sigma, condition=None):
        jax.debug.callback(lambda level: asked.extend(np.atleast_1d(level).tolist()), sigma)
        return -noisy / (1.0 + sigma**2), None

    monkeypatch.setattr(generate, "_reverse_derivatives_fn", lambda *_: derivatives_fn)
    problem = Problem.from_config(config)
    draw_samples(problem, problem.init().params)
    jax.effects_barrier()
    assert max(asked) == pytest.approx(5.0) and min(asked) == pytest.approx(0.05)
    config.model.largest_noise, config.noise = 0.06, 0.05
    problem = Problem.from_config(config)
    with pytest.raises(UserError, match=r"churn=0\.4 raises levels .* below 0\.2"):
        draw_samples(problem, None)


@pytest.mark.parametrize(
    ("settings", "kernel"),
    [
        ({"sampler": "ancestral"}, diffusion.ancestral("full")),
        ({"sampler": "ancestral", "covariance": "scalar"}, diffusion.ancestral("scalar")),
        ({"sampler": "ddim"}, diffusion.ddim("small")),
        ({"sampler": "ddim", "covariance": "full"}, diffusion.ddim("full")),
        (
            {"sampler": "ddim", "covariance": "full", "covariance_below": 2.0},
            diffusion.ddim("full", below=2.0),
        ),
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


def test_chains_of_a_class_start_with_its_moments(small_config):
    config = small_config(**CLASSES, sampling__chains=4000, sampling__sampler="heun")
    problem = Problem.from_config(config)
    data = problem.data
    start = np.asarray(_noisy_start(problem, jax.random.key(0), jnp.float32(0.5)), np.float64)
    images = np.asarray(data.to_float(data.train), np.float64).reshape(len(data.train), -1)
    for label in (0, 7):
        own = images[data.train_labels == label]
        drawn, variance = start[label::10], own.var(axis=0) + 0.25
        assert np.all(np.abs(drawn.mean(0) - own.mean(0)) < 5 * np.sqrt(variance / 400))
        assert np.all(np.abs(drawn.var(axis=0) / variance - 1) < 5 * np.sqrt(2 / 400))


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


def test_levels_gather_where_the_config_says(small_config):
    law = {"level_law": "log_normal", "level_mean": -1.0, "level_std": 0.5}
    config = small_config(**RANGE, **{f"training__{key}": value for key, value in law.items()})
    levels = np.sort(loop._noise_levels(config, 16, jax.random.key(3), 0))
    assert levels.dtype == np.float32 and levels[0] >= 0.05 and levels[-1] <= 5.0
    quantiles = scipy.stats.norm(-1.0, 0.5).cdf(np.log(levels))
    np.testing.assert_allclose(np.diff(quantiles), 1 / 16, rtol=1e-2)


def test_a_narrow_law_within_the_range_is_allowed(small_config):
    narrow = {"training__level_law": "log_normal", "training__level_std": 0.1}
    validate(small_config(**RANGE, **narrow, training__level_mean=-1.0))


CLASSES = {**RANGE, "model__multipliers": (1,), "model__classes": 10}


def test_the_network_is_told_the_class(small_config):
    model = make_model(small_config(**CLASSES).model)
    noisy = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))
    params = drawn(model, noisy, 0.5, mean=0.1, std=0.1)
    apply = jax.jit(model.apply)
    told, unknown = (apply(params, noisy, 0.5, jnp.array(labels)) for labels in ([3] * 3, [10] * 3))
    assert np.abs(told.score1 - unknown.score1).max() > 1e-3
    np.testing.assert_array_equal(apply(params, noisy, 0.5).score1, unknown.score1)
    mixed = apply(params, noisy, 0.5, jnp.array([10, 3, 10]))
    np.testing.assert_allclose(mixed.score1[1], told.score1[1], rtol=1e-4, atol=1e-5)
    score_fn = pointwise.score_fn(model, params, None, (8, 8, 1))
    np.testing.assert_allclose(score_fn(noisy[0], 0.5, 3), told.score1[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(score_fn(noisy[0], 0.5), unknown.score1[0], rtol=1e-4, atol=1e-5)
    plain = make_model(small_config(**RANGE).model)
    with pytest.raises(ValueError, match="leave the labels out"):
        jax.eval_shape(plain.init, jax.random.key(1), noisy, 0.5, jnp.zeros(3, jnp.int32))
    with pytest.raises(ValueError, match="expected a class, none"):
        pointwise.score_fn(plain, {}, 0.5, (8, 8, 1))(noisy[0], 0.5, 3)
    for wrong in (0.3, 11, -1, jnp.zeros(2, jnp.int32)):
        with pytest.raises(ValueError, match="a whole number up to 10"):
            score_fn(noisy[0], 0.5, wrong)
    outside = apply(params, noisy, 0.5, jnp.array([11, -1, 3]))
    np.testing.assert_array_equal(np.isnan(outside.score1).all(axis=1), [True, True, False])
    for wrong in (jnp.zeros(2, jnp.int32), jnp.zeros(3)):
        with pytest.raises(ValueError, match="a whole number up to 10 for each of 3"):
            jax.eval_shape(model.apply, params, noisy, 0.5, wrong)
    with pytest.raises(ValueError, match="need noise_conditional"):
        jax.eval_shape(model.clone(noise_conditional=False).init, jax.random.key(1), noisy, 0.5)


@pytest.mark.parametrize("networks", [pytest.param("cascade", marks=pytest.mark.slow), "shared"])
def test_the_jacobian_is_of_the_score_of_the_class(small_config, networks):
    """Losses as of the whole model, which is told the class wherever it is asked."""
    told = {**CLASSES, "model__head": "low_rank", "model__networks": networks}
    loss = {"loss__second_order": "residual_nll", "loss__jacobian_weight": 0.3}
    problem = Problem.from_config(small_config(**told, **loss, loss__jacobian_probe="residual"))
    params = jax.tree.map(lambda leaf: leaf + 0.1, problem.init().params)
    labels, sigma = jnp.array([3, 0, 10, 9]), jnp.array([0.1, 0.5, 0.5, 1.0])
    clean, noise = jax.random.normal(jax.random.key(0), (2, 4, 8, 8, 1))

    def whole(params, labels):
        def model(points, sigma):
            return problem.model.apply(params, points, sigma, labels)

        return jnp.mean(problem.objective.per_example(model, clean, noise, sigma)["loss"])

    def ours(params, labels):
        return jnp.mean(problem.losses(params, clean, noise, sigma, labels=labels)["loss"])

    expected, got = (jax.jit(jax.value_and_grad(f))(params, labels) for f in (whole, ours))
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)
    assert abs(jax.jit(ours)(params, labels[::-1]) - got[0]) > 1e-4


def test_some_classes_are_hidden_in_training_and_none_held_out(small_config):
    config = small_config(**CLASSES, training__label_dropout=0.3)
    problem = Problem.from_config(config)
    clean, labels = jnp.zeros((4000, 8, 8, 1)), jnp.arange(4000) % 10
    draw = jax.vmap(
        lambda step: loop._draw(problem, clean, "training", step, 0, labels)["labels"],
        axis_name=parallel.AXIS,
    )
    hidden = np.asarray(draw(jnp.arange(2))) == 10
    assert abs(hidden.mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 8000)
    assert np.any(hidden[0] != hidden[1])
    held_out = jax.vmap(
        lambda step: loop._draw(problem, clean, "held-out", step, 0, labels)["labels"],
        axis_name=parallel.AXIS,
    )(jnp.zeros(1, int))
    np.testing.assert_array_equal(held_out[0], labels)
    batch = loop._batches(problem, 3, 2)
    images, labels = (np.concatenate(leaf[0]) for leaf in batch)
    for image, label in zip(images, labels, strict=True):
        found = np.flatnonzero((problem.data.train == image).all(axis=(1, 2, 3)))
        assert label in problem.data.train_labels[found]


@pytest.mark.slow
def test_what_a_model_learns_of_classes_is_drawn_by_class(small_config, tmp_path):
    """Of two classes, black and white images, each is drawn as asked, and a run resumed bit for
    bit."""
    rng = np.random.default_rng(0)
    labels = np.arange(64, dtype=np.int32) % 2
    images = (labels[:, None, None, None] + 0.05 * rng.normal(size=(64, 8, 8, 1))).astype("f4")
    parts = {"train": images[:48], "held_out": images[48:]}
    names = {"train_labels": labels[:48], "held_out_labels": labels[48:]}
    np.savez(tmp_path / "two.npz", **parts, **names)
    config = small_config(
        **{**CLASSES, "model__classes": 2, "data__name": "arrays"},
        data__root=str(tmp_path / "two.npz"),
        training__steps=150,
        training__evaluate_every=150,
        training__checkpoint_every=75,
        training__label_dropout=0.2,
        optim__lr=5e-3,
        sampling__sampler="ancestral",
        sampling__evaluations=8,
        sampling__chains=12,
    )
    state = loop.train_and_evaluate(config, tmp_path / "whole")
    config.training.steps = 75
    loop.train_and_evaluate(config, tmp_path / "parts")
    config.training.steps = 150
    swapped = {name: 1 - array for name, array in names.items()}
    np.savez(tmp_path / "swapped.npz", **parts, **swapped)
    with config.unlocked():
        config.data.root = str(tmp_path / "swapped.npz")
    with pytest.raises(UserError, match="images are not those that this run was trained on"):
        loop.train_and_evaluate(config, tmp_path / "parts", resume=True)
    config.data.root = str(tmp_path / "two.npz")
    resumed = loop.train_and_evaluate(config, tmp_path / "parts", resume=True)
    for one, other in zip(*map(jax.tree.leaves, (state, resumed)), strict=True):
        np.testing.assert_array_equal(one, other)
    for label, guidance in ((None, 1.0), (1, 1.0), (0, 2.0)):
        config.sampling.update(label=label, guidance=guidance)
        problem = Problem.from_config(config)
        samples = draw_samples(problem, state.best_params)
        expected = np.arange(12) % 2 if label is None else np.full(12, label)
        np.testing.assert_array_equal(samples.labels, expected)
        np.testing.assert_array_equal(samples.images.mean(axis=(1, 2, 3)) > 0.5, expected == 1)
        # Training images of these classes, and not of both, are what samples are compared with.
        curves = course_curves(problem, state.best_params, samples)
        assert curves["distance"][-1] < 0.3
        # With guidance, half as many steps.
        assert samples.steps[-1] == (7 if guidance == 1.0 else 3)


def test_a_preconditioned_covariance_is_that_of_gaussian_data(small_config):
    """At every level, of a network that has not learned anything, up to the softplus at 0."""
    config = small_config(
        **{**RANGE, "model__multipliers": (1,), "model__precondition_covariance": True}
    )
    model, std = make_model(config.model), config.model.data_std
    noisy, sigma = jnp.zeros((3, 8, 8, 1)), jnp.array([0.05, 0.5, 5.0])
    params = drawn(model, noisy, sigma)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0.0 * leaf if "end_conv" in str(path) else leaf, params
    )
    outputs = jax.jit(model.apply)(params, noisy, sigma)
    expected = (config.model.floor + np.log(2.0)) * std**2 / (std**2 + np.asarray(sigma) ** 2)
    found = np.asarray(outputs.covariance.diagonal())
    np.testing.assert_allclose(found, np.tile(expected[:, None], (1, 64)), rtol=1e-4)
    hessian = np.asarray(outputs.scaled_hessian.diagonal())
    np.testing.assert_allclose(hessian, found - 1.0, rtol=1e-5)
    at_largest = pointwise.posterior_fn(model, params, 5.0, (8, 8, 1))(noisy[0])
    assert int(at_largest.violations.count) == 0
    np.testing.assert_allclose(at_largest.diagonal(), 25.0 * found[2], rtol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__largest_noise": None}, "go together"),
        ({"model__name": "refinenet"}, "refinenet takes no noise level; choose unet or mlp"),
        ({"model__name": "mlp", "model__classes": 10}, "mlp takes no class; choose unet"),
        ({"training__level_law": "uniform"}, "choose one of log_uniform, log_normal"),
        ({"training__level_std": 0.0}, "training.level_std must be positive"),
        ({"training__level_mean": float("nan")}, "training.level_mean must be finite"),
        (
            {"training__level_law": "log_normal", "training__level_mean": -15.0},
            "level_mean=-15.0 with training.level_std=1.2 is too far",
        ),
        ({"model__classes": 10, "training__label_dropout": 0.0}, "label_dropout must be positive"),
        ({"training__label_dropout": 1.0}, "training.label_dropout must be in"),
        ({"sampling__label": 3}, "sampling.label=3 needs model.classes"),
        ({"sampling__guidance": 2.0}, "sampling.guidance=2.0 needs model.classes"),
        ({"model__classes": 0}, "model.classes must be at least 1"),
        ({"model__classes": 10, "sampling__label": 10}, "from 0 to 9"),
        ({"model__classes": 10, "sampling__label": 1}, "need a sampler of reverse diffusion"),
        (
            {
                "model__classes": 10,
                "sampling__sampler": "heun",
                "sampling__guidance": 2.0,
                "sampling__evaluations": 5,
            },
            "evaluations must be at least 6, for a step and the denoising, twice each",
        ),
        (
            {
                "model__smallest_noise": None,
                "model__largest_noise": None,
                "model__classes": 10,
            },
            "classes=10 needs a model of many noise levels",
        ),
        (
            {
                "model__precondition_covariance": True,
                "model__positive_definite": False,
                "loss__second_order": "d2sm",
            },
            "precondition_covariance needs model.positive_definite=True",
        ),
        ({"model__smallest_noise": 0.7}, "smallest_noise <= noise"),
        ({"model__smallest_noise": 0.0}, "0 < model.smallest_noise"),
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
            "needs a second-order model for sampling.covariance=full: set it to small or large",
        ),
        (
            {**FIRST_ORDER, "sampling__sampler": "second_order"},
            "sampler=second_order needs a second-order model",
        ),
        ({"sampling__covariance": "whole"}, "choose one of small, large, scalar"),
        ({"sampling__sampler": "heun", "sampling__evaluations": 2}, "at least 3"),
        ({"sampling__churn": 0.5}, "from 0 to 0.414"),
        ({"sampling__churn": 0.1}, "churn=0.1 needs sampling.sampler=heun"),
        (
            {"sampling__sampler": "heun", "sampling__covariance": "full"},
            "covariance=full needs sampling.sampler=ancestral or ddim",
        ),
        (
            {"model__smallest_noise": 0.5, "noise": 0.5, "model__largest_noise": 0.5},
            "are both 0.5: for one noise level leave both out and set noise",
        ),
        (
            {"sampling__sampler": "heun", "sampling__covariance_below": 1.0},
            "covariance_below=1.0 must be positive, and needs sampling.sampler=ancestral or ddim",
        ),
        (
            {"sampling__sampler": "ddim", "sampling__covariance_below": 1.0},
            "a sampling.covariance other than small",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(small_config, changes, message):
    with pytest.raises(UserError, match=message):
        validate(small_config(**{**RANGE, **changes}))


def test_classes_that_the_data_does_not_have_are_refused(small_config):
    for classes in (4, 11):
        with pytest.raises(
            UserError, match=f"classes={classes}, but the labels of digits are 0 to"
        ):
            Problem.from_config(small_config(**{**CLASSES, "model__classes": classes}))
    photos = {"data__name": "photos", "data__image_size": 8}
    with pytest.raises(UserError, match="classes=10, but photos has no labels"):
        Problem.from_config(small_config(**{**CLASSES, **photos}))
