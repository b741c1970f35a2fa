"""Bits per dimension of held-out images: what `--test` says of a run of many noise levels."""

import json
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import config as run_config
from hos_jax.data import ImageData, bin_width
from hos_jax.evaluation import likelihood
from hos_jax.evaluation.evaluate import evaluate_run, table
from hos_jax.training import loop
from hos_jax.training.problem import Problem

RANGE = {
    "model__name": "unet",
    "model__ngf": 8,
    "model__multipliers": (1,),
    "model__networks": "shared",
    "model__attention_size": 0,
    "model__smallest_noise": 0.05,
    "model__largest_noise": 5.0,
}


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    monkeypatch.setattr(likelihood, "IMAGES", 3)


def test_a_test_of_a_run_shows_both_numbers(small_config, tmp_path):
    config = small_config(**RANGE, model__head="local_low_rank")
    loop.train_and_evaluate(config, tmp_path)
    result = evaluate_run(run_config.load(tmp_path), tmp_path)
    found = result["likelihood"]
    assert found["images"] == 3 and found["evaluations"] > 10
    # An untrained model knows the brightness of the digits, and pays less than 8 bits and a few.
    assert 2 < found["bits_per_dim"] < 12
    # Both bound the same likelihood, by the same first step.
    assert found["bound_20_steps"] == pytest.approx(found["bits_per_dim"], abs=2)
    assert found["bound_20_steps"] == found["bounds"]["full"]
    assert set(found["bounds"]) == {"small", "large", "scalar", "diagonal", "full"}
    shown = {line.split()[0]: line.split()[1:] for line in table(result).splitlines()}
    for name in ("bits_per_dim", "bound_20_steps"):
        error = found["standard_error"][name]
        assert shown[name] == [f"{found[name]:.4f}", f"{error:.4f}"] and error > 0
    assert json.loads((tmp_path / "metrics.json").read_text())["likelihood"] == found
    assert "by the flow ODE" in (tmp_path / "report.html").read_text()


def test_a_first_order_model_has_probes_and_no_covariance(small_config, caplog):
    config = small_config(**RANGE, model__head="none", loss__second_order="none")
    problem = Problem.from_config(config)
    params = problem.init().params
    found = likelihood.likelihood_scores(problem, params)
    assert set(found["bounds"]) == {"small", "large"}
    assert found["bound_20_steps"] == found["bounds"]["large"]
    assert np.isfinite(found["bits_per_dim"]) and not caplog.records
    with caplog.at_level(logging.WARNING):
        broken = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
        found = likelihood.likelihood_scores(problem, broken)
    assert "likelihood of 3 of 3 images is left out" in caplog.text
    assert found["bits_per_dim"] is None and found["images"] == 0
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_bytes_get_noise_and_numbers_do_not(dtype):
    images = np.arange(40, dtype=dtype).reshape(10, 2, 2, 1)
    data = ImageData("x", images, images, None, None, (-1.0, 1.0))
    model = types.SimpleNamespace(smallest_noise=0.05)
    config = types.SimpleNamespace(seed=0, model=model)
    problem = types.SimpleNamespace(data=data, config=config)
    points, width = likelihood.dequantized(problem, 2)
    assert points.shape == (2, 4) and points.dtype == np.float32
    clean = data.to_float(images)[[0, 9]].reshape(2, 4)
    if dtype == np.float32:
        np.testing.assert_array_equal(points, clean)
        assert width == 1.0 and likelihood.smallest_variance(problem, width) == 1e-4
        return
    assert width == bin_width((-1.0, 1.0)) == pytest.approx(2 / 255)
    assert 0 < np.abs(points - clean).max() <= 0.501 * width
    floor = likelihood.smallest_variance(problem, width)
    assert floor == pytest.approx(width**2 / 12 / 0.05**2)
