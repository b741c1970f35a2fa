"""A denoiser of the user's own: how it is found, in which units it is asked, what is learned."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import models, pointwise
from hos_jax.config import checks
from hos_jax.config.denoiser import absolute_name, load_denoiser
from hos_jax.errors import NotDifferentiableError, UserError
from hos_jax.evaluation.evaluate import evaluate_run
from hos_jax.models.unet import UNet
from hos_jax.training import load_run, loop

FILE = """
import jax.numpy as jnp
from hos_jax import adapters

def half(noisy, sigma):
    return noisy - 0.5 * sigma[:, None, None, None]

def alone(noisy):
    return 0.25 * noisy

def with_a_default(noisy, strength=0.5):
    return strength * noisy

def any_number(*arguments):
    assert len(arguments) == 2
    return arguments[0]

def three(noisy, sigma, more):
    return noisy

number = 3
by_jax = adapters.score_fn(lambda image, time: jnp.zeros_like(image), "clean")
"""


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize(
    ("name", "denoised"),
    [
        ("half", lambda y, s: y - 0.5 * s),
        ("alone", lambda y, s: 0.25 * y),
        ("with_a_default", lambda y, s: 0.5 * y),
        ("any_number", lambda y, s: y),
    ],
)
@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 1.0)])
def test_a_function_works_between_black_0_and_white_1(written, name, denoised, value_range):
    low, high = value_range
    score_fn = load_denoiser(f"{written}:{name}", value_range)
    assert not score_fn.differentiable
    noisy, sigma = jnp.array([[[0.2], [0.6]]]), 0.3
    unit = high - low
    wanted = low + unit * denoised((noisy - low) / unit, sigma / unit)
    np.testing.assert_allclose(score_fn(noisy, sigma) * sigma**2 + noisy, wanted, atol=1e-6)


def test_what_adapters_make_is_taken_in_data_units(written):
    score_fn = load_denoiser(f"{written}:by_jax", (-1.0, 1.0))
    assert score_fn.differentiable
    noisy = jnp.ones((1, 2, 1))
    np.testing.assert_allclose(score_fn(noisy, 0.5), -noisy / 0.25)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{file}:halv", "has no 'halv': did you mean half?"),
        ("{file}:number", "is int, which is no function"),
        ("{file}:three", "must take (noisy, sigma), or noisy alone; it takes 3"),
        ("{folder}/other.py:half", "there is no file"),
        ("no_such_module_at_all:half", "cannot import no_such_module_at_all"),
        ("{folder}/broken.py:half", "ZeroDivisionError: division by zero"),
        ("half", "must be FILE.py:NAME or MODULE:NAME"),
        ("{file}:", "must be FILE.py:NAME or MODULE:NAME"),
    ],
)
def test_a_name_that_cannot_be_used_is_one_line(written, name, said):
    (written.parent / "broken.py").write_text("1 / 0")
    full = name.format(file=written, folder=written.parent)
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        load_denoiser(full)
    assert "\n" not in str(raised.value)


def test_files_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("mine.py:half") == f"{tmp_path}/mine.py:half"
    assert absolute_name("package.module:half") == "package.module:half"


def fixed_model(score_fn, **options):
    network = functools.partial(UNet, features=8, multipliers=(1, 2), local=True)
    hessian = models.HessianModel(network, models.SecondOrderHead("diagonal"), **options)
    return models.FixedScoreModel(hessian, score_fn)


def test_a_fixed_score_stands_beside_a_learned_hessian():
    model = fixed_model(lambda noisy, sigma: -noisy / (1.0 + sigma**2), noise_conditional=True)
    noisy = jax.random.normal(jax.random.key(0), (3, 5, 6, 2))
    sigma = jnp.array([0.1, 0.5, 2.0])
    params = model.init(jax.random.key(1), noisy, sigma)
    outputs = model.apply(params, noisy, sigma)
    wanted = (-noisy / (1.0 + sigma[:, None, None, None] ** 2)).reshape(3, -1)
    np.testing.assert_allclose(outputs.score1, wanted, rtol=1e-6)
    assert outputs.covariance.shape == (3, 60, 60)
    one = pointwise.posterior_fn(model, params)(noisy[1], sigma[1])
    np.testing.assert_allclose(one.mean, noisy[1].reshape(-1) + 0.25 * wanted[1], rtol=1e-5)
    np.testing.assert_allclose(one.diagonal() / 0.25, outputs.covariance.diagonal()[1], rtol=2e-4)


def test_the_covariance_is_preconditioned_as_in_a_score_model():
    noisy, sigma = jnp.zeros((2, 4, 4, 1)), jnp.array([0.5, 5.0])
    variances = []
    for precondition in (False, True):
        model = fixed_model(
            lambda noisy, sigma: -noisy, data_std=0.5, precondition_covariance=precondition
        )
        params = model.init(jax.random.key(0), noisy, sigma)
        variances.append(model.apply(params, noisy, sigma).covariance.diagonal())
    ratio = np.broadcast_to(np.array([[0.5], [0.25 / 25.25]]), (2, 16))
    np.testing.assert_allclose(variances[1] / variances[0], ratio, rtol=1e-5)


def test_a_local_network_takes_any_size_and_looks_no_further_than_it_must():
    network = UNet(out_channels=3, features=8, multipliers=(1, 2), local=True)
    image = jax.random.normal(jax.random.key(0), (1, 96, 80, 2))
    params = network.init(jax.random.key(1), image)
    whole = network.apply(params, image)
    odd = network.apply(params, image[:, :37, :29])
    assert odd.shape == (1, 37, 29, 3)
    part = network.apply(params, image[:, 16:, 8:])
    # Five blocks, three of them at half resolution, and what is between them.
    np.testing.assert_allclose(part[:, 24:-24, 24:-24], whole[:, 40:-24, 32:-24], atol=2e-6)
    far = image.at[0, 0, 0].add(100.0)
    moved = np.abs(network.apply(params, far) - whole).max(axis=(0, 3))
    assert moved[:4, :4].max() > 1e-3 and moved[28:].max() == moved[:, 28:].max() == 0.0


GAUSSIAN = """
def denoise(noisy, sigma):
    # The posterior mean of pixels of mean 0.5 and deviation 0.2.
    share = (0.04 / (0.04 + sigma**2))[:, None, None, None]
    return 0.5 + share * (noisy - 0.5)
"""


@pytest.fixture(scope="module")
def gaussian_run(small_config, tmp_path_factory):
    """s2 beside an exact black box, of independent Gaussian pixels, whose C is known."""
    folder = tmp_path_factory.mktemp("gaussian")
    (folder / "exact.py").write_text(GAUSSIAN)
    pixels = np.random.default_rng(0).normal(0.5, 0.2, (400, 8, 8, 1)).astype(np.float32)
    np.save(folder / "pixels.npy", pixels)
    config = small_config(
        data__name="arrays",
        data__root=str(folder / "pixels.npy"),
        model__name="unet",
        model__local=True,
        model__multipliers=(1,),
        model__ngf=8,
        model__head="local",
        model__reach=1,
        model__denoiser=f"{folder}/exact.py:denoise",
        model__data_std=0.2,
        model__smallest_noise=0.1,
        model__largest_noise=0.4,
        loss__first_order_weight=0.0,
        optim__lr=1e-2,
        optim__schedule="cosine",
        training__steps=300,
        training__batch_size=32,
        training__log_every=50,
        training__evaluate_every=300,
        training__checkpoint_every=300,
        noise=0.2,
    )
    loop.train_and_evaluate(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("sigma", [0.1, 0.2, 0.4])
def test_the_covariance_of_a_black_box_is_learned(gaussian_run, sigma):
    run = load_run(gaussian_run)
    low, high = run.problem.data.value_range
    noisy = 0.5 + jax.random.normal(jax.random.key(0), (8, 8, 1)) * (0.04 + sigma**2) ** 0.5
    posterior = pointwise.posterior_fn(run)(noisy, sigma)
    # Of numbers in an array the function is asked between what is black and what is white.
    level = sigma / (high - low)
    share = 0.04 / (0.04 + level**2)
    unit = (noisy.reshape(-1) - low) / (high - low)
    denoised = low + (high - low) * (0.5 + share * (unit - 0.5))
    np.testing.assert_allclose(posterior.mean, denoised, rtol=1e-4, atol=1e-4)
    assert np.isfinite(posterior.logdet())


def test_a_test_of_the_run_leaves_out_what_needs_the_denoisers_law(gaussian_run):
    run = load_run(gaussian_run)
    result = evaluate_run(run.problem.config, gaussian_run)
    assert 0.9 < result["calibration"] < 1.1
    assert 0.87 < result["coverage_90"] < 0.93
    assert "sampling" not in result and "refined" not in result["directions"]
    assert {"posterior_samples.png", "calibration.png"} <= {
        path.name for path in (gaussian_run / "figures").iterdir()
    }
    with pytest.raises(NotDifferentiableError):
        jax.jacfwd(pointwise.score_fn(run))(jnp.zeros((8, 8, 1)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"loss__second_order": "d2sm"}, "needs loss.second_order to be one of d2sm_residual"),
        ({"model__head": "none", "loss__second_order": "none"}, "needs loss.second_order"),
        ({"model__networks": "shared"}, "needs model.networks=per_order, got shared"),
        ({"model__data_std": 0.0}, "model.data_std > 0"),
        ({"model__denoiser": None, "model__local": True}, "model.local=True needs model.name=unet"),
    ],
)
def test_combinations_that_cannot_work_are_refused(small_config, overrides, said):
    config = small_config(**{"model__denoiser": "a:b", **overrides})
    with pytest.raises(UserError, match=re.escape(said)):
        checks.validate(config)


def test_a_share_of_the_jacobian_needs_a_derivative(small_config, tmp_path):
    (tmp_path / "exact.py").write_text(GAUSSIAN)
    config = small_config(model__denoiser=f"{tmp_path}/exact.py:denoise", loss__jacobian_weight=0.3)
    with pytest.raises(NotDifferentiableError, match="has values and no derivative"):
        loop.train_and_evaluate(config, tmp_path / "run")
