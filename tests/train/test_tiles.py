"""A picture examined in tiles: what is found is that of the whole, and draws have no seams."""

import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from hos_jax import pointwise
from hos_jax.errors import UserError
from hos_jax.evaluation import picture, tiles
from hos_jax.training.problem import Problem
from hos_jax.training.runs import LoadedRun

DENOISER = """
def denoise(noisy, sigma):
    return 0.5 + 0.7 * (noisy - 0.5)
"""


@pytest.fixture(scope="module", params=[1, 2], ids=["pixels", "patches"])
def run(request, small_config, tmp_path_factory):
    """A covariance of strong local and low-rank parts, not a trained one, for pictures of any
    size."""
    folder = tmp_path_factory.mktemp("tiles")
    (folder / "mine.py").write_text(DENOISER)
    pixels = np.random.default_rng(0).random((12, 16, 16, 1), np.float32)
    np.save(folder / "pixels.npy", pixels)
    config = small_config(
        data__name="arrays",
        data__root=f"{folder}/pixels.npy",
        data__image_size=None,
        model__name="unet",
        model__denoiser=f"{folder}/mine.py:denoise",
        model__local=True,
        model__multipliers=(1, 2),
        model__patch_size=request.param,
        model__ngf=8,
        model__networks="per_order",
        model__head="local_low_rank",
        model__rank=3,
        model__reach=2,
        loss__second_order="residual_nll",
        loss__first_order_weight=0.0,
        noise=0.1,
    )
    problem = Problem.from_config(config)
    strong = jax.tree.map(lambda leaf: 2.0 * leaf, problem.init().params)
    return LoadedRun(problem, strong, 0, 0.0)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    pixels = np.random.default_rng(1).integers(0, 256, (47, 58), dtype=np.uint8)
    path = tmp_path_factory.mktemp("picture") / "one.png"
    Image.fromarray(pixels).save(path)
    return path


def test_noise_that_a_change_of_channels_changes_is_named(run, tmp_path, caplog):
    pixels = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    # A grey picture, saved in colour.
    Image.fromarray(pixels[..., 0]).convert("RGB").save(tmp_path / "grey.png")
    for name, add_noise, warns in (
        ("colour", False, True),
        ("colour", True, False),
        ("grey", False, False),
    ):
        caplog.clear()
        options = {"samples": 1, "directions": 1, "add_noise": add_noise}
        picture.denoise_file(run, tmp_path / f"{name}.png", **options)
        assert ("has less noise than they" in caplog.text) == warns
    caplog.clear()
    for name, warns in (("colour", False), ("grey", True)):
        assert picture._read(tmp_path / f"{name}.png", grey=False, warn=True).shape == (20, 20, 3)
        assert ("three channels have the same noise" in caplog.text) == warns


@pytest.mark.parametrize("shape", [(5, 9), (64, 64), (70, 131), (200, 33)])
@pytest.mark.parametrize(
    ("size", "margin", "step"), [(16, 8, 2), (32, 24, 4), (50, 12, 1), (17, 8, 2), (51, 40, 4)]
)
def test_tiles_are_the_picture_and_windows_few_shapes(shape, size, margin, step):
    count, shapes = np.zeros(shape, int), set()
    for part, window in tiles.tiles(shape, size, margin, step):
        count[part[0] : part[1], part[2] : part[3]] += 1
        shapes.add((window[1] - window[0], window[3] - window[2]))
        assert window[0] % step == window[2] % step == 0
        for axis in (0, 1):
            (start, stop), (begin, end) = (each[2 * axis :][:2] for each in (part, window))
            assert begin <= max(0, start - margin) or begin == start == 0
            assert end >= min(shape[axis], stop + margin)
    assert (count == 1).all() and len(shapes) <= 4


@pytest.mark.parametrize("size", [pytest.param(16, marks=pytest.mark.slow), 17])
def test_tiles_say_what_the_whole_says(run, file, size):
    whole = picture.denoise_file(run, file, tile=0)
    parts = picture.denoise_file(run, file, tile=size)
    assert parts.directions.shape == (0, 47, 58, 1) and whole.directions.shape == (4, 47, 58, 1)
    assert whole.deviation.std() > 0.01 * whole.deviation.mean()
    for name in ("mean", "deviation", "lower", "upper"):
        found, wanted = getattr(parts, name), getattr(whole, name)
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6, err_msg=name)


# What the network is makes no difference to draws.
@pytest.mark.parametrize("run", [1], indirect=True, ids=["pixels"])
def test_draws_have_the_law_of_the_whole_and_no_seams(run, file):
    drawn = [picture.denoise_file(run, file, tile=size, samples=300) for size in (16, 32)]
    np.testing.assert_allclose(drawn[0].samples, drawn[1].samples, rtol=2e-5, atol=2e-6)
    posterior = pointwise.posterior_fn(run.model, run.params, run.sigma)(drawn[0].noisy)
    errors = (drawn[0].samples - drawn[0].mean).reshape(300, -1)
    variances = np.square(errors).mean(0) / np.asarray(posterior.diagonal())
    # The deviation of one is (2 / 300)^(1/2) = 0.082, that of the mean of all below a tenth of it.
    assert abs(variances.mean() - 1.0) < 0.03 and 0.07 < variances.std() < 0.095
    # Across a border of tiles, below row 15, values covary as the matrix says.
    first, second = 15 * 58 + 40, 16 * 58 + 40
    scale = np.sqrt(posterior.diagonal()[first] * posterior.diagonal()[second])
    wanted = posterior.row(first)[second] / scale
    found = np.mean(errors[:, first] * errors[:, second]) / scale
    assert abs(found - wanted) < 4 / np.sqrt(300)


def test_what_cannot_be_examined_in_tiles_is_refused(run, file):
    config = run.problem.config.copy_and_resolve_references()
    config.model.tails = "student"
    other = dataclasses.replace(run, problem=dataclasses.replace(run.problem, config=config))
    with pytest.raises(UserError, match="model's are student: take the picture whole"):
        tiles.examine(other, np.zeros((40, 40, 1), np.float32), 0.1, 16, 1, None)
    # Nothing would be looked at, and what was in memory given out.
    with pytest.raises(ValueError, match="tile >= 0, got -5"):
        picture.denoise_file(run, file, tile=-5)
    with pytest.raises(ValueError, match="size >= 1, got 0"):
        tiles.examine(run, np.zeros((40, 40, 1), np.float32), 0.1, 0, 1, None)


@pytest.mark.parametrize("run", [1], indirect=True, ids=["pixels"])
@pytest.mark.parametrize("tile", [0, 32])
def test_draws_may_be_left_out(run, file, tile):
    found = picture.denoise_file(run, file, tile=tile, samples=0)
    assert found.samples.shape == (0, 47, 58, 1) and np.all(found.deviation > 0)


def test_a_page_has_one_unit_and_one_scale(file):
    """Of a run in units of -1 to 1 all that is shown is from black 0 to white 1."""
    pixels = np.linspace(-1.0, 1.0, 30, dtype=np.float32).reshape(5, 6, 1)
    ones = np.ones_like(pixels)
    found = picture.DenoisedPicture(
        **{"path": file, "sigma": 0.2, "value_range": (-1.0, 1.0), "clean": pixels},
        **{"noisy": pixels, "mean": pixels + 0.6, "deviation": 0.2 * ones, "lower": pixels},
        **{"upper": pixels, "recalibrated": False, "samples": pixels[None]},
        **{"directions": ones[None], "deviations": np.array([0.5])},
    )
    figures = picture._figures(found)
    assert figures["directions.png"].axes[2].get_title() == "deviation 0.25"
    for name, value in (("deviation.png", 0.1), ("error.png", 0.3)):
        shade = figures[name].axes[0].images[0]
        np.testing.assert_allclose(shade.get_array(), value, rtol=1e-6)
        np.testing.assert_allclose(shade.get_clim(), (0.0, 0.3), rtol=1e-6)
    overview = figures["overview.png"].axes
    np.testing.assert_allclose(overview[3].images[0].get_array(), 0.1, rtol=1e-6)
    assert overview[1].get_title() == "noisy, sigma 0.1"
    assert picture._figures(found._replace(clean=None))["overview.png"] is None
