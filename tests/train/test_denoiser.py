"""A denoiser of the user's own: how it is found, in which units it is asked, what is learned."""

import dataclasses
import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_parameters import drawn

from hos_jax import config as run_config
from hos_jax import models, pointwise
from hos_jax.cli import main as cli
from hos_jax.config import checks
from hos_jax.config.denoiser import absolute_name, load_denoiser
from hos_jax.errors import NotDifferentiableError, UserError
from hos_jax.evaluation.evaluate import evaluate_run
from hos_jax.models.unet import UNet
from hos_jax.training import load_run, loop
from hos_jax.training.problem import Problem, check_denoiser, denoiser_answer

FILE = """
import jax.numpy as jnp
import numpy as np
from hos_jax import adapters
from neighbour import nothing

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
by_jax = adapters.score_fn(lambda image, time: jnp.zeros_like(image) - time, "clean")

def known_level(noisy, sigma=0.1):
    return noisy + np.reshape(sigma, (-1, 1, 1, 1))

class Kind:
    pass

black_box = adapters.from_numpy(alone)
"""

NEIGHBOUR = """
from __future__ import annotations
import dataclasses

@dataclasses.dataclass
class Something:
    number: int

nothing = Something(0)
"""


@pytest.fixture
def written(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    (tmp_path / "neighbour.py").write_text(NEIGHBOUR)
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


@pytest.mark.parametrize("value_range", [(0.0, 1.0), (-1.0, 3.0)])
def test_what_adapters_make_works_between_black_0_and_white_1_too(written, value_range):
    score_fn = load_denoiser(f"{written}:by_jax", value_range)
    assert score_fn.differentiable
    low, high = value_range
    noisy, sigma = jnp.full((1, 2, 1), 0.5), 0.2
    # The network is told sigma in its units, and denoises to what is shifted by it.
    wanted = low + (high - low) * (-sigma / (high - low))
    np.testing.assert_allclose(noisy + sigma**2 * score_fn(noisy, sigma), wanted, atol=1e-6)


def test_a_level_with_a_default_is_told(written):
    score_fn = load_denoiser(f"{written}:known_level")
    noisy = jnp.zeros((1, 1, 1))
    np.testing.assert_allclose(score_fn(noisy, 0.5) * 0.25, 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("{file}:halv", "has no 'halv': did you mean half?"),
        ("{file}:number", "is int, which is no function"),
        ("{file}:Kind", "is a class, which is no function"),
        ("{file}:black_box", "does not say what it predicts"),
        ("{folder}/leaves.py:half", "SystemExit: 0"),
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
    (written.parent / "leaves.py").write_text("import sys; sys.exit(0)")
    full = name.format(file=written, folder=written.parent)
    with pytest.raises(UserError, match=re.escape(said)) as raised:
        load_denoiser(full)
    assert "\n" not in str(raised.value)


def test_each_denoiser_has_the_modules_beside_it(tmp_path):
    score_fns = []
    for folder, share in (("a", 0.25), ("b", 0.75), ("a", 0.25)):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "of_two.py").write_text(f"share = {share}")
        (tmp_path / folder / f"of_{folder}.py").write_text("alone = 1")
        lines = f"from of_two import share\nimport of_{folder}\ndef denoise(noisy):\n"
        # What only one folder has can be imported later, too.
        lines += f"    import of_{folder}\n    return of_{folder}.alone * share * noisy\n"
        (tmp_path / folder / "mine.py").write_text(lines)
        score_fns.append(load_denoiser(f"{tmp_path}/{folder}/mine.py:denoise"))
    noisy = jnp.ones((1, 1, 1))
    found = [float((noisy + score_fn(noisy, 1.0)).squeeze()) for score_fn in score_fns]
    assert found == [0.25, 0.75, 0.25]


def test_a_module_that_goes_elsewhere_takes_nobody_with_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("import os\nos.chdir('/')\ndef half(x): return 0.5 * x\n")
    load_denoiser("mine.py:half", (0.0, 1.0))
    assert Path.cwd() == tmp_path


def test_files_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_name("mine.py:half") == f"{tmp_path}/mine.py:half"
    assert absolute_name("package.module:half") == "package.module:half"
    config = run_config.default_config()
    config.model.denoiser = "mine.py:half"
    run_config.save(config, tmp_path)
    assert run_config.load(tmp_path).model.denoiser == f"{tmp_path}/mine.py:half"


def fixed_model(score_fn, **options):
    network = functools.partial(UNet, features=8, multipliers=(1, 2), local=True)
    hessian = models.HessianModel(network, models.SecondOrderHead("diagonal"), **options)
    return models.FixedScoreModel(hessian, score_fn)


def test_a_fixed_score_stands_beside_a_learned_hessian():
    model = fixed_model(lambda noisy, sigma: -noisy / (1.0 + sigma**2), noise_conditional=True)
    noisy = jax.random.normal(jax.random.key(0), (3, 5, 6, 2))
    sigma = jnp.array([0.1, 0.5, 2.0])
    params = drawn(model, noisy, sigma)
    outputs = jax.jit(model.apply)(params, noisy, sigma)
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
        outputs = jax.jit(model.apply)(drawn(model, noisy, sigma), noisy, sigma)
        variances.append(outputs.covariance.diagonal())
    ratio = np.broadcast_to(np.array([[0.5], [0.25 / 25.25]]), (2, 16))
    np.testing.assert_allclose(variances[1] / variances[0], ratio, rtol=1e-5)


def test_a_local_network_takes_any_size_and_looks_no_further_than_it_must():
    network = UNet(out_channels=3, features=8, multipliers=(1, 2), local=True)
    image = jax.random.normal(jax.random.key(0), (1, 96, 80, 2))
    params = drawn(network, image, std=0.1)
    apply = jax.jit(network.apply)
    whole = apply(params, image)
    assert apply(params, image[:, :37, :29]).shape == (1, 37, 29, 3)
    part = apply(params, image[:, 16:, 8:])
    # Five blocks, three of them at half resolution, and what is between them.
    np.testing.assert_allclose(part[:, 24:-24, 24:-24], whole[:, 40:-24, 32:-24], atol=2e-6)
    far = image.at[0, 0, 0].add(100.0)
    moved = np.abs(apply(params, far) - whole).max(axis=(0, 3))
    assert moved[:4, :4].max() > 1e-3 and moved[28:].max() == moved[:, 28:].max() == 0.0


GAUSSIAN = """
def denoise(noisy, sigma):
    # The posterior mean of pixels of mean 0.5 and deviation 0.1.
    share = (0.01 / (0.01 + sigma**2))[:, None, None, None]
    noisy -= 0.5
    return 0.5 + share * noisy
"""


@pytest.fixture(scope="module")
def gaussian_run(small_config, tmp_path_factory):
    """s2 beside an exact black box, of independent Gaussian pixels, whose C is known.

    What the function does to its argument stays there.
    """
    folder = tmp_path_factory.mktemp("gaussian")
    (folder / "exact.py").write_text(GAUSSIAN)
    pixels = np.random.default_rng(0).normal(0.5, 0.1, (400, 8, 8, 1)).astype(np.float32)
    # So that black and white, the least and the largest number of all, are 0 and 1.
    pixels[0, 0, 0], pixels[1, 0, 0] = 0.0, 1.0
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
        model__data_std=0.1,
        model__smallest_noise=0.05,
        model__largest_noise=0.2,
        loss__first_order_weight=0.0,
        optim__lr=1e-2,
        optim__schedule="cosine",
        training__steps=300,
        training__batch_size=32,
        training__log_every=50,
        training__evaluate_every=300,
        training__checkpoint_every=300,
        noise=0.1,
    )
    loop.train_and_evaluate(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("sigma", [0.05, 0.1, 0.2])
def test_the_covariance_of_a_black_box_is_learned(gaussian_run, sigma):
    run = load_run(gaussian_run)
    assert run.problem.data.value_range == (0.0, 1.0)
    noisy = 0.5 + jax.random.normal(jax.random.key(0), (8, 8, 1)) * (0.01 + sigma**2) ** 0.5
    posterior = pointwise.posterior_fn(run)(noisy, sigma)
    share = 0.01 / (0.01 + sigma**2)
    wanted = 0.5 + share * (noisy.reshape(-1) - 0.5)
    np.testing.assert_allclose(posterior.mean, wanted, rtol=1e-4, atol=1e-5)
    variance = 0.01 * sigma**2 / (0.01 + sigma**2)
    found = np.asarray(posterior.diagonal())
    assert found.mean() == pytest.approx(variance, rel=0.06)
    assert np.abs(found / variance - 1.0).max() < 0.35
    correlations = posterior.row(27) / found[27]
    assert np.abs(np.delete(correlations, 27)).max() < 0.15


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
        jax.jacfwd(pointwise.score_fn(run, sigma=run.sigma))(jnp.zeros((8, 8, 1)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"loss__second_order": "d2sm"}, "needs loss.second_order to be one of d2sm_residual"),
        ({"model__head": "none", "loss__second_order": "none"}, "needs loss.second_order"),
        ({"model__networks": "shared"}, "needs model.networks=per_order, got shared"),
        ({"model__data_std": 0.0}, "model.data_std > 0"),
        ({"model__denoiser": None, "model__local": True}, "model.local=True needs model.name=unet"),
        ({"model__denoiser": None, "loss__first_order_weight": 0.0}, "leaves s1 untrained"),
    ],
)
def test_combinations_that_cannot_work_are_refused(small_config, overrides, said):
    config = small_config(**{"model__denoiser": "a:b", **overrides})
    with pytest.raises(UserError, match=re.escape(said)):
        checks.validate(config)


def test_a_denoiser_may_lie_elsewhere_and_be_no_other(small_config):
    saved, moved, other = (
        small_config(model__denoiser=f"/{place}:denoise")
        for place in ("a/mine.py", "b/mine.py", "a/other.py")
    )
    run_config.check_same_run(saved, moved)
    with pytest.raises(UserError, match="other settings"):
        run_config.check_same_run(saved, other)


def test_a_denoiser_that_changed_since_training_is_named(small_config, tmp_path, caplog):
    file = tmp_path / "mine.py"
    file.write_text("def denoise(noisy, sigma):\n    return 0.8 * noisy\n")
    config = small_config(model__denoiser=f"{file}:denoise", training__steps=1)
    loop.train_and_evaluate(config, tmp_path / "run")
    file.write_text("# Other words.\ndef denoise(noisy, sigma):\n    return 0.8 * noisy\n")
    load_run(tmp_path / "run")
    assert "does not say what it said" not in caplog.text
    file.write_text("def denoise(noisy, sigma):\n    return 0.7 * noisy\n")
    load_run(tmp_path / "run")
    assert "the denoiser does not say what it said when this run was begun" in caplog.text
    # A resume tells it once more, and does not take the new answer for the old one.
    said = run_config.saved_denoiser_answer(tmp_path / "run")
    loop.train_and_evaluate(
        load_run(tmp_path / "run").problem.config, tmp_path / "run", resume=True
    )
    assert run_config.saved_denoiser_answer(tmp_path / "run") == said
    caplog.clear()
    load_run(tmp_path / "run")
    assert "does not say what it said" in caplog.text


def test_a_share_of_the_jacobian_needs_a_derivative(small_config, tmp_path):
    (tmp_path / "exact.py").write_text(GAUSSIAN)
    config = small_config(model__denoiser=f"{tmp_path}/exact.py:denoise", loss__jacobian_weight=0.3)
    with pytest.raises(NotDifferentiableError, match="has values and no derivative"):
        loop.train_and_evaluate(config, tmp_path / "run")


WRAPPED = """
import numpy as np
from hos_jax import adapters

network = adapters.from_numpy(lambda image, time: 0.0 * image)
inside = adapters.score_fn(lambda x, t: network(x, 1000 * t), "velocity", adapters.flow_matching())
steps = adapters.score_fn(network, "noise", adapters.ddpm(adapters.linear_betas()))

def shape(noisy, sigma):
    return noisy[:, :1]

def nothing(noisy, sigma):
    return np.full_like(noisy, np.nan)

def bytes_of(noisy, sigma):
    return (255 * noisy).astype(np.uint8)

def brighter(noisy, sigma):
    return noisy + 3.0

def whole_array(noisy, sigma):
    return 0.5 * noisy + 0.25 * (noisy[::-1] + np.roll(noisy, 1, 0))

def without_channel(noisy, sigma):
    return 0.5 * noisy[..., 0]

def whole_array_at_random(noisy, sigma):
    return whole_array(noisy, sigma) + 1e-3 * np.random.default_rng().normal(size=noisy.shape)

def at_random(noisy, sigma):
    return 0.5 * noisy + np.random.default_rng().normal(size=noisy.shape).astype(noisy.dtype)
"""


def test_a_black_box_within_a_network_has_no_derivative_either(small_config, tmp_path):
    (tmp_path / "mine.py").write_text(WRAPPED)
    config = small_config(model__denoiser=f"{tmp_path}/mine.py:inside")
    assert not Problem.from_config(config).model.differentiable


@pytest.mark.parametrize(
    ("name", "noise", "said"),
    [
        ("shape", 0.3, r"gives \(1, 1, 8, 1\) of images \(1, 8, 8, 1\)"),
        (
            "without_channel",
            0.3,
            r"gives \(1, 8, 8\) of .*: give the channel's axis back",
        ),
        ("nothing", 0.3, "gives values that are not finite at sigma 0.3"),
        ("bytes_of", 0.3, "gives uint8, not floating-point numbers"),
        ("whole_array", 0.3, r"another answer for an image among others .* each of the N images"),
        ("steps", 1e-3, r"sigma=0\.001 is not a level of this network: it knows 0\.01"),
    ],
)
def test_what_a_denoiser_does_wrong_is_found_before_anything_is_written(
    small_config, tmp_path, name, noise, said
):
    (tmp_path / "mine.py").write_text(WRAPPED)
    config = small_config(model__denoiser=f"{tmp_path}/mine.py:{name}", noise=noise)
    made = []
    with pytest.raises(UserError, match=said):
        loop.train_and_evaluate(config, tmp_path / "run", make_room=lambda: made.append(1))
    assert not made and not (tmp_path / "run").exists()


LATER = """
import numpy as np

calls = 0

def crashes(noisy, sigma):
    global calls
    calls += 1
    if calls > 1:
        raise OSError("the licence server is down\\nask again")
    return noisy

def divides(noisy, sigma):
    return (noisy / noisy).tolist()
"""


@pytest.mark.parametrize("jit", [False, True])
def test_what_a_denoiser_raises_later_is_one_line(tmp_path, monkeypatch, capsys, jit):
    path = tmp_path / "mine.py"
    path.write_text(LATER)
    wrapped = jax.jit if jit else lambda function: function
    with np.errstate(invalid="ignore"):
        crashes, divides = (
            wrapped(jax.vmap(load_denoiser(f"{path}:{name}"), (0, None)))
            for name in ("crashes", "divides")
        )
        images = jnp.ones((2, 4, 4, 1))
        crashes(images, 0.1).block_until_ready()
        for score, said in (
            (lambda: crashes(images, 0.1), "OSError: the licence server is down"),
            (
                lambda: divides(0 * images, 0.1),
                "FloatingPointError: gives values that are not finite",
            ),
        ):
            monkeypatch.setattr(cli, "parse", lambda *_, score=score: score().block_until_ready())
            assert cli.main(["hos-jax"]) == 2
            shown = capsys.readouterr().err
            assert shown.count("\n") == 1 and "error: the denoiser fails: " in shown
            assert said in shown and ("mine.py, line 10)" in shown) == ("OSError" in said)
        # Of points that are not finite a denoiser need not be either.
        assert np.isnan(divides(jnp.nan * images, 0.1)).all()


@pytest.mark.parametrize("count", [1, 3])
def test_images_are_held_apart_however_few_there_are(small_config, tmp_path, caplog, count):
    (tmp_path / "mine.py").write_text(WRAPPED)

    def check(name):
        problem = Problem.from_config(small_config(model__denoiser=f"{tmp_path}/mine.py:{name}"))
        data = problem.data
        few = {name: getattr(data, name)[:count] for name in ("held_out", "held_out_labels")}
        data = dataclasses.replace(data, **few)
        check_denoiser(dataclasses.replace(problem, data=data))

    for mixing in ("whole_array", "whole_array_at_random"):
        with pytest.raises(UserError, match="another answer for an image among others"):
            check(mixing)
    # With another answer at every call there is hardly anything to compare.
    caplog.clear()
    check("at_random")
    assert "gives another answer at every call, by " in caplog.text
    caplog.clear()
    check("brighter")
    assert "another answer" not in caplog.text


def test_of_a_denoiser_with_other_answers_at_every_call_none_is_compared(small_config, tmp_path):
    (tmp_path / "mine.py").write_text(WRAPPED)
    for name, kept in (("at_random", False), ("brighter", True)):
        problem = Problem.from_config(small_config(model__denoiser=f"{tmp_path}/mine.py:{name}"))
        assert (denoiser_answer(problem) is not None) == kept


def test_a_denoiser_that_takes_no_noise_away_is_named(small_config, tmp_path, caplog):
    (tmp_path / "mine.py").write_text(WRAPPED)
    problem = Problem.from_config(small_config(model__denoiser=f"{tmp_path}/mine.py:brighter"))
    # Of values from -1 to 1 half of sigma is what --sigma says.
    data = dataclasses.replace(problem.data, value_range=(-1.0, 1.0))
    check_denoiser(dataclasses.replace(problem, data=data))
    assert "takes no noise away at sigma 0.5, 0.25 of black to white: the" in caplog.text
