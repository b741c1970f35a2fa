"""The weights that come with the package are what they are said to be."""

from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hos_jax
from hos_jax.errors import UserError
from hos_jax.losses import residual
from hos_jax.migrate.pretrained import NAMES


def test_every_file_has_a_name_and_is_small():
    found = [path for path in files("hos_jax.migrate").iterdir() if "safetensors" in path.name]
    assert {path.name for path in found} == {f"{name}.safetensors" for name in NAMES}
    assert all(len(path.read_bytes()) < 3_000_000 for path in found)


@pytest.mark.parametrize(
    ("name", "steps", "sigma", "largest_error"),
    # Held out, of the whole, the demo has a squared error of 0.0088 (0.0001) and calibration
    # 0.96 (0.05); sixteen digits scatter.
    [
        ("demo", 1000, 0.5, 0.0105),
        ("diffusion", 5600, 0.5, 0.0105),
        ("diffusion", 5600, 0.1, 0.002),
    ],
)
def test_the_weights_give_posteriors_of_digits(
    name, steps, sigma, largest_error, tmp_path, monkeypatch
):
    """Nothing is looked for on disk but the file itself."""
    monkeypatch.chdir(tmp_path)
    run = hos_jax.load_pretrained(name)
    assert (run.sigma, run.step, run.image_shape) == (0.5, steps, (28, 28, 1))
    levels = "0.5" if name == "demo" else "0.05 to 5"
    assert repr(run) == f"LoadedRun(sigma={levels}, image_shape=(28, 28, 1), step={steps})"
    # On the device, not to be sent there at every call.
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(run.params))
    clean = run.problem.data.to_float(run.problem.data.held_out)
    assert len(clean) == 16
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    outputs = run.model.apply(run.params, clean + sigma * noise, sigma)
    flat = noise.reshape(16, -1)
    residuals = jax.vmap(residual, (0, 0, None))(outputs.score1, flat, sigma)
    assert float(jnp.mean(residuals**2)) * sigma**2 < largest_error
    of_each = jax.vmap(lambda matrix, r: matrix.inverse_quadratic_form_and_logdet(r)[0])
    calibration = of_each(outputs.covariance, residuals).mean() / flat.shape[1]
    assert 0.7 < float(calibration) < 1.4


def test_the_weights_become_a_run_with_all_images(tmp_path, monkeypatch):
    """Where a folder has their name too, as that of a run does."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    found = hos_jax.migrate.import_checkpoint("demo", tmp_path / "demo")
    assert "step 1000" in found.description
    run, here = hos_jax.load_run(tmp_path / "demo"), hos_jax.load_pretrained("demo")
    assert len(run.problem.data.train) == 4500 and run.step == 1000
    first = run.problem.data.held_out[:16]
    np.testing.assert_array_equal(first, here.problem.data.held_out)
    jax.tree.map(np.testing.assert_array_equal, run.params, here.params)
    (tmp_path / "demo" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json is gone"):
        hos_jax.migrate.import_checkpoint("demo", tmp_path / "demo")
    assert not (tmp_path / "demo" / "config.json").exists()


@pytest.mark.parametrize("key", ["noise", "model.data_std"])
def test_weights_are_not_taken_for_those_of_other_settings(key, tmp_path):
    with pytest.raises(UserError, match=f"{key}=0.7, but the file is of {key}=0.5: leave it"):
        hos_jax.migrate.import_checkpoint("demo", tmp_path / "demo", {key: 0.7})
    assert not (tmp_path / "demo").exists()


def test_an_unknown_name_is_one_line_with_the_known_ones():
    with pytest.raises(UserError, match="no pretrained run 'dmeo'; choose one of demo, diffusion"):
        hos_jax.load_pretrained("dmeo")
