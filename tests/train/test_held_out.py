"""Numbers on held-out images: they do not depend on batches, and nothing is repaired silently."""

import logging

import jax
import numpy as np
import pytest

from hos_jax.evaluation import held_out
from hos_jax.training.problem import Problem


def test_numbers_do_not_depend_on_the_batch_size(small_config):
    # 180 images: three whole batches, or a last one of which 5 images are new.
    results = []
    for size in (60, 35):
        problem = Problem.from_config(small_config(sampling__batch_size=size))
        params = problem.init().params
        results.append(held_out.held_out_metrics(problem, params))
        results[-1]["directions"] = held_out.direction_scores(problem, params)
    first, second = results
    assert first["held_out_images"] == 180 and first["directions"]["images"] == 180
    for name in first["standard_error"]:
        assert first[name] == pytest.approx(second[name], rel=1e-4)
    for name in ("reliability", "recalibrated"):
        rows = [result[name] for result in results]
        if name == "recalibrated":
            np.testing.assert_allclose(rows[0]["multipliers"], rows[1]["multipliers"], rtol=1e-2)
            rows = [row["reliability"] for row in rows]
        for a, b in zip(*rows, strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-3)
    for name in ("model", "refined", "predicted", "pca", "random"):
        np.testing.assert_allclose(
            first["directions"][name], second["directions"][name], rtol=1e-3, atol=1e-4
        )
        assert np.all(np.diff(first["directions"][name]) >= 0)


@pytest.mark.parametrize("head", ["diagonal", "low_rank"])
def test_an_unconstrained_model_is_repaired_and_reported(small_config, caplog, head):
    config = small_config(
        model__head=head, model__positive_definite=False, loss__second_order="d2sm"
    )
    problem = Problem.from_config(config)
    # A large prediction: S = sigma^2 s2 well below -1 in half of the places.
    params = problem.init().params
    params = jax.tree.map(lambda leaf: 10 * leaf, params)
    with caplog.at_level(logging.WARNING, "hos_jax.evaluation.held_out"):
        result = held_out.held_out_metrics(problem, params)
    assert result["violations"]["count"] > 100 and result["violations"]["largest"] > 0
    assert "were not positive" in caplog.text and "positive_definite=True" in caplog.text
    assert all(np.isfinite(result[name]) for name in result["standard_error"])


def test_errors_of_another_size_than_predicted_are_named(small_config, caplog):
    problem = Problem.from_config(small_config(model__head="diagonal", model__floor=9.0))
    result = held_out.held_out_metrics(problem, problem.init().params)
    # Variances of at least 9 sigma^2, where the noise alone has sigma^2.
    assert result["predicted_mse"] > 9 * problem.config.noise**2
    assert 0 < result["standard_error"]["predicted_mse"] < result["predicted_mse"]
    assert f"the covariances make it {result['predicted_mse']:.3g}: maps" in caplog.text
    assert "a larger loss.marginal_weight than 0" in caplog.text
    caplog.clear()
    held_out._name_wrong_size(problem, 1.0, 1.9)
    held_out._name_wrong_size(problem, 1.9, 1.0)
    assert not caplog.text
    held_out._name_wrong_size(problem, 2.1, 1.0)
    assert "the mean squared error is 2.1 and" in caplog.text


def test_a_first_order_model_has_an_error_and_no_posterior(small_config):
    config = small_config(model__head="none", loss__second_order="none")
    problem = Problem.from_config(config)
    result = held_out.held_out_metrics(problem, problem.init().params)
    assert set(result["standard_error"]) == {"denoise_mse"}
    assert "reliability" not in result and "violations" not in result
    _, denoised = held_out.first_held_out(problem, problem.init().params, 2)
    assert denoised.posterior is None and denoised.standard_deviation is None


def test_values_for_the_widths_are_of_all_channels_and_columns():
    for least, shape in ((0, (4, 4, 1)), (3, (64, 64, 3)), (6, (64, 64, 3)), (7, (28, 28, 1))):
        size = np.prod(shape)
        stride = held_out._stride(least, size)
        seen = np.stack(np.unravel_index(np.arange(0, size * stride, stride) % size, shape))
        assert stride >= max(1, least) and len(np.unique(seen, axis=1).T) == size
        channels = np.unravel_index(np.arange(0, size, stride), shape)[2]
        assert (np.bincount(channels, minlength=shape[2]) > 0.3 * len(channels) / shape[2]).all()
