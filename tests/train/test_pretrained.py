"""The weights that come with the package are what they are said to be."""

from importlib.resources import files

import jax
import jax.numpy as jnp
import pytest

import hos_jax
from hos_jax.errors import UserError
from hos_jax.losses import residual
from hos_jax.migrate.pretrained import NAMES


def test_every_file_has_a_name_and_is_small():
    found = [path for path in files("hos_jax.migrate").iterdir() if "safetensors" in path.name]
    assert {path.name for path in found} == {f"{name}.safetensors" for name in NAMES}
    assert all(len(path.read_bytes()) < 3_000_000 for path in found)


def test_the_demo_is_a_posterior_of_digits_at_once(tmp_path, monkeypatch):
    """Nothing is looked for on disk but the file itself."""
    monkeypatch.chdir(tmp_path)
    run = hos_jax.load_pretrained("demo")
    assert (run.sigma, run.step, run.image_shape) == (0.5, 1000, (28, 28, 1))
    clean = run.problem.data.to_float(run.problem.data.held_out)
    assert len(clean) == 16
    noise = jax.random.normal(jax.random.key(0), clean.shape)
    outputs = run.model.apply(run.params, clean + run.sigma * noise, run.sigma)
    flat = noise.reshape(16, -1)
    residuals = jax.vmap(residual, (0, 0, None))(outputs.score1, flat, run.sigma)
    # Held out, of the whole: squared error 0.0088 (0.0001), calibration 1.02 (0.07).
    assert float(jnp.mean(residuals**2)) * run.sigma**2 < 0.0105
    of_each = jax.vmap(lambda matrix, r: matrix.inverse_quadratic_form_and_logdet(r)[0])
    calibration = of_each(outputs.covariance, residuals).mean() / flat.shape[1]
    assert 0.7 < float(calibration) < 1.4


def test_an_unknown_name_is_one_line_with_the_known_ones():
    with pytest.raises(UserError, match="no pretrained run 'dmeo'; choose one of demo"):
        hos_jax.load_pretrained("dmeo")
