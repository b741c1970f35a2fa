"""One point from models of batches: the same numbers, for vectors, images and runs."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import pointwise, tweedie
from hos_jax.errors import UserError
from hos_jax.linops import DiagonalPlusLowRank
from hos_jax.models.heads import SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.score_model import ScoreModel
from hos_jax.training.loop import train_and_evaluate
from hos_jax.training.runs import load_run
from hos_jax.uncertainty import posterior_from_covariance

SIGMA, SHAPE, DIM = 0.4, (4, 3, 2), 24
MLP_8 = functools.partial(MLP, features=8, depth=1)


class Convolutions(nn.Module):
    """Two of them, with the noise level in between where it is given."""

    out_channels: int

    @nn.compact
    def __call__(self, images, sigma=None):
        hidden = nn.tanh(nn.Conv(4, (3, 3))(images))
        if sigma is not None:
            hidden = hidden * sigma[:, None, None, None]
        return nn.Conv(self.out_channels, (3, 3))(hidden)


@functools.cache
def image_model(**options):
    """A low-rank model of images, which tells noise levels apart if asked to, and parameters."""
    head = SecondOrderHead("low_rank", 2, positive_definite=True)
    model = ScoreModel(Convolutions, head, networks="shared", third_order=True, **options)
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)), SIGMA)
    leaves, structure = jax.tree.flatten(start)
    drawn = [0.2 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
    return model, jax.tree.unflatten(structure, drawn)


@pytest.fixture(scope="module")
def images():
    return 0.5 * jax.random.normal(jax.random.key(1), (3, *SHAPE))


def close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_a_point_has_the_numbers_that_it_has_in_a_batch(images):
    model, params = image_model()
    outputs = jax.jit(model.apply)(params, images, SIGMA)
    given = model, params, SIGMA, SHAPE
    score_fn, hessian_fn = pointwise.score_fn(*given), pointwise.hessian_fn(*given)
    derivatives_fn = pointwise.derivatives_fn(*given)
    covariance_fn = pointwise.covariance_fn(*given)
    posterior_fn = pointwise.posterior_fn(*given)
    for index, image in enumerate(images):
        score1, score2 = at(outputs.score1, index), at(outputs.score2, index)
        covariance = at(outputs.covariance, index)
        expected = posterior_from_covariance(
            tweedie.posterior_mean(image.ravel(), score1, SIGMA),
            covariance,
            SIGMA,
            scaled_third_diagonal=outputs.scaled_third_diagonal[index],
        )
        for point in (image, image.ravel(), np.asarray(image)):
            assert score_fn(point).shape == (DIM,)
            close(score_fn(point), score1)
            assert isinstance(hessian_fn(point), DiagonalPlusLowRank)
            close(hessian_fn(point), score2)
            close(derivatives_fn(point), (score1, score2))
            close(covariance_fn(point), covariance)
            close(posterior_fn(point), expected)
    close(jax.vmap(posterior_fn)(images), jax.vmap(posterior_fn)(images.reshape(3, DIM)))


def test_sigma_is_given_at_the_call_or_before(images):
    model, params = image_model(noise_conditional=True)
    given = pointwise.score_fn(model, params, 0.9, SHAPE)
    later = pointwise.score_fn(model, params, image_shape=SHAPE)
    close(later(images[0], 0.9), given(images[0]))
    close(given(images[0], 0.3), later(images[0], jnp.float32(0.3)))
    assert not np.allclose(given(images[0], 0.3), given(images[0]), rtol=0.1)
    close(given(images[0], 0.3), model.apply(params, images[:1], 0.3).score1[0])
    with pytest.raises(ValueError, match="sigma here or at every call"):
        later(images[0])


def test_a_function_is_compiled_once(images):
    model, params = image_model(noise_conditional=True)
    traces = []

    class Counted:
        def apply(self, *arguments):
            traces.append(1)
            return model.apply(*arguments)

    posterior_fn = pointwise.posterior_fn(Counted(), params, SIGMA, SHAPE)
    for image in images:
        for sigma in (None, 0.2, 0.7):
            posterior_fn(image, sigma)
    assert len(traces) == 1


def test_it_works_inside_of_larger_programs(images):
    model, params = image_model()

    def mean_of(params, noisy):
        return pointwise.posterior_fn(model, params, SIGMA, SHAPE)(noisy).mean

    close(jax.jit(mean_of)(params, images[0]), mean_of(params, images[0]))
    # Inline: the larger program has no part of its own for it.
    score_fn = pointwise.score_fn(model, params, SIGMA, SHAPE)
    lowered = jax.jit(lambda noisy: 2.0 * score_fn(noisy)).lower(images[0]).as_text()
    assert "@main" in lowered and "@evaluate" not in lowered
    flat, step = images[0].ravel(), 1e-2 * jax.random.normal(jax.random.key(7), (DIM,))
    moved = score_fn(flat + step) - score_fn(flat - step)
    _, derivative = jax.jvp(score_fn, (flat,), (2.0 * step,))
    np.testing.assert_allclose(derivative, moved, atol=0.02 * float(jnp.max(jnp.abs(moved))))


def test_vectors_and_a_score_from_elsewhere():
    model = HessianModel(MLP_8, SecondOrderHead("dense"))
    points = jax.random.normal(jax.random.key(2), (2, 3))
    scores = -points / (1.0 + SIGMA**2)
    params = model.init(jax.random.key(3), points, SIGMA, scores)
    outputs = model.apply(params, points, SIGMA, scores)
    options = {"score_fn": lambda noisy: -noisy / (1.0 + SIGMA**2)}
    found = pointwise.derivatives_fn(model, params, SIGMA, **options)(points[1])
    close(found, (scores[1], at(outputs.score2, 1)))
    posterior = pointwise.posterior_fn(model, params, SIGMA, **options)(points[0])
    close(posterior.mean, tweedie.posterior_mean(points[0], scores[0], SIGMA))
    close(pointwise.hessian_fn(model, params, SIGMA, **options)(points[0]), at(outputs.score2, 0))
    with pytest.raises(ValueError, match=r"not of points of the shape \(4,\)"):
        pointwise.hessian_fn(model, params, SIGMA, **options)(jnp.zeros(4))
    with pytest.raises(TypeError, match=r"trained beside: score_fn="):
        pointwise.posterior_fn(model, params, SIGMA)
    with pytest.raises(TypeError, match="this model gives s1 itself"):
        pointwise.posterior_fn(ScoreModel(MLP_8), params, SIGMA, **options)


def test_what_is_no_point_or_has_no_second_order_is_refused(images):
    model, params = image_model()
    score_fn = pointwise.score_fn(model, params, SIGMA, SHAPE)
    for wrong in (images, images[0, :, :, 0], jnp.zeros(DIM - 1), jnp.zeros(())):
        with pytest.raises(ValueError, match=r"one point of shape \(24,\) or \(4, 3, 2\), got"):
            score_fn(wrong)
    with pytest.raises(ValueError, match="use vmap for batches"):
        pointwise.score_fn(model, params, SIGMA)(images)
    with pytest.raises(ValueError, match=r"got uint8; `data.to_float`"):
        score_fn(np.zeros(SHAPE, np.uint8))
    for sigma in (0.0, -SIGMA, jnp.asarray(jnp.nan), jnp.ones(2)):
        with pytest.raises(ValueError, match="positive and finite scalar sigma"):
            score_fn(images[0], sigma)
    with pytest.raises(ValueError, match="needs its params"):
        pointwise.score_fn(model)(images[0])
    first_order = ScoreModel(MLP_8)
    params = first_order.init(jax.random.key(0), jnp.zeros((1, 3)), SIGMA)
    assert pointwise.score_fn(first_order, params, SIGMA)(jnp.zeros(3)).shape == (3,)
    for make in (pointwise.hessian_fn, pointwise.covariance_fn, pointwise.posterior_fn):
        with pytest.raises(ValueError, match="no second order"):
            make(first_order, params, SIGMA)(jnp.zeros(3))


def test_a_run_needs_no_more_than_its_folder(small_config, tmp_path):
    config = small_config(training__steps=2, training__log_every=2, model__networks="shared")
    train_and_evaluate(config, tmp_path / "run")
    run = load_run(str(tmp_path / "run"))
    assert run.step == 2 and run.sigma == config.noise and run.image_shape == (8, 8, 1)
    noisy = jax.random.normal(jax.random.key(4), run.image_shape)
    given = run.problem.model, run.params, config.noise, run.problem.data.image_shape
    close(pointwise.posterior_fn(run)(noisy), pointwise.posterior_fn(*given)(noisy))
    zero = jax.tree.map(jnp.zeros_like, run.params)
    other = pointwise.score_fn(given[0], zero, *given[2:])
    close(pointwise.score_fn(run, zero)(noisy), other(noisy))
    same = 0.5 * (1 + 1e-4)
    close(pointwise.score_fn(run, sigma=same)(noisy), pointwise.score_fn(run)(noisy, same))


@pytest.mark.parametrize(
    ("levels", "known", "unknown"),
    [
        ({}, [0.5, None, jnp.float32(0.5)], [0.1, 0.6]),
        (
            {"model__smallest_noise": 0.1, "model__largest_noise": 2.0},
            [0.1, 2.0, jnp.float32(1.0)],
            [0.05, 2.1, None],
        ),
    ],
)
def test_a_run_knows_the_noise_levels_that_it_was_trained_at(
    small_config, tmp_path, levels, known, unknown
):
    config = small_config(training__steps=1, model__networks="shared", **levels)
    if levels:
        config.model.update(name="unet", ngf=8, multipliers=(1,), attention_size=0)
    train_and_evaluate(config, tmp_path / "run")
    fn = pointwise.score_fn(load_run(tmp_path / "run"))
    noisy = jnp.zeros(64)
    for sigma in known:
        assert np.isfinite(fn(noisy, sigma)).all()
        # A constant within what is traced.
        assert np.isfinite(jax.jit(lambda y, sigma=sigma: fn(y, sigma))(noisy)).all()
    for sigma in unknown:
        with pytest.raises(ValueError, match="the run was trained at sigma"):
            fn(noisy, sigma)
        if sigma is not None:
            assert np.isnan(jax.jit(fn)(noisy, sigma)).all()


def test_a_run_may_lie_in_the_home_of_the_user(small_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train_and_evaluate(small_config(training__steps=1), "~/run")
    assert load_run("~/run").step == 1 and (tmp_path / "run").is_dir()
    with pytest.raises(UserError, match="no run in ~nobody-here/run"):
        load_run("~nobody-here/run")


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_points_of_16_bits_have_the_posterior_of_float32(images, dtype):
    model, params = image_model()
    fn = pointwise.posterior_fn(model, params, SIGMA, SHAPE)
    rounded = images[0].astype(dtype)
    close(fn(rounded), fn(rounded.astype(jnp.float32)))
    outputs = model.apply(params, rounded[None], SIGMA)
    assert outputs.score1.dtype == outputs.raw_second_order.dtype == jnp.float32


def test_parameters_of_another_model_are_told():
    def model(depth=3, **settings):
        network = functools.partial(MLP, features=8, depth=depth)
        return ScoreModel(network, SecondOrderHead("diagonal"), data_std=1.0, **settings)

    point = jnp.ones(3)
    params, conditional = (
        one.init(jax.random.key(0), point[None], SIGMA)
        for one in (model(), model(noise_conditional=True))
    )
    assert pointwise.score_fn(model(), params, SIGMA)(point).shape == (3,)
    beside = {**params, "batch_stats": {"mean": jnp.zeros(3)}}
    assert pointwise.score_fn(model(), beside, SIGMA)(point).shape == (3,)
    for other, given, message in (
        (model(depth=2), params, "has no use for 4, score1/hidden2/bias say"),
        (model(), conditional, "has no use for"),
        (model(depth=4), params, "not the parameters of this model"),
        (model(networks="shared"), params, "has no use for"),
        (model(), params["params"], "not the parameters of this model"),
    ):
        with pytest.raises(ValueError, match=message):
            pointwise.score_fn(other, given, SIGMA)(point)


def test_what_is_no_model_and_a_level_in_another_place_are_told():
    model, _ = image_model()
    with pytest.raises(TypeError, match=r"got a str: hos_jax\.load_run loads one"):
        pointwise.posterior_fn("runs/demo")
    with pytest.raises(TypeError, match="a noise level is given as sigma="):
        pointwise.posterior_fn(model, 0.5)


class Certain(nn.Module):
    """A network that is sure of every value."""

    out_channels: int

    @nn.compact
    def __call__(self, images):
        return jnp.full((*images.shape[:-1], self.out_channels), -20.0)


@pytest.mark.parametrize("floor", [1e-6, 1e-4, 1e-2])
def test_a_posterior_keeps_the_floor_of_its_head(floor):
    """What the head allows is no violation; above the default floor it is the head's own doing."""
    model = ScoreModel(Certain, SecondOrderHead("diagonal", floor=floor))
    posterior = pointwise.posterior_fn(model, {}, SIGMA)(jnp.zeros(DIM))
    np.testing.assert_allclose(posterior.diagonal(), floor * SIGMA**2, rtol=1e-4)
    assert int(posterior.violations.count) == 0
