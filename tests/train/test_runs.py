"""What a run remembers, says and keeps, whatever its length and its settings."""

import errno
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hos_jax import config as run_config
from hos_jax.errors import NonFiniteError, OtherRunError, UserError
from hos_jax.evaluation import held_out
from hos_jax.evaluation.evaluate import evaluate_run
from hos_jax.evaluation.generate import course_curves, draw_samples
from hos_jax.training import loop, parallel
from hos_jax.training.logs import HISTORY_FILE, read_history
from hos_jax.training.problem import Problem
from hos_jax.training.state import ema_decay


def test_the_average_of_a_short_run_forgets_its_start():
    decay = jax.vmap(lambda step: ema_decay(0.9999, step))(jnp.arange(200_000))
    weight_of_start = np.cumprod(np.asarray(decay, float))
    assert weight_of_start[100] < 1e-6 and np.all(np.diff(decay) >= 0)
    np.testing.assert_allclose(decay[-1], 0.9999, rtol=1e-7)
    # From any step on it reaches back over a part of the steps before, and never more than asked.
    assert np.all(1 / (1 - decay[:10_000]) < 3 + np.arange(10_000) / 10)
    assert ema_decay(0.3, jnp.int32(0)) == np.float32(0.3)


def test_metrics_take_no_more_memory_for_more_steps():
    averages = loop._Averages()
    for step in range(100):
        averages.add(parallel.replicate({"loss": np.float32(step)}))
        assert len(averages._recent) <= 16
    assert averages.values() == {"loss": 49.5} and averages.steps == 100
    several = loop._Averages()
    several.add(parallel.replicate({"loss": np.arange(4.0)}))
    assert several.values() == {"loss": 1.5} and several.steps == 4


def test_a_long_history_is_read_in_part(tmp_path):
    rows = [{"step": step, "group": "train", "loss": 1.0} for step in range(1000)]
    (tmp_path / HISTORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = [row["step"] for row in read_history(tmp_path, at_most=100)]
    assert len(steps) <= 100 and steps == sorted(set(steps)) and steps[-50:] == [*range(950, 1000)]
    assert read_history(tmp_path) == rows


def test_a_long_history_keeps_rows_of_each_group(tmp_path):
    groups = "train", "held_out"
    rows = [{"step": step, "group": group} for step in range(500) for group in groups]
    (tmp_path / HISTORY_FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_history(tmp_path, at_most=100)
    early = [
        [r["step"] for r in read if r["group"] == group and r["step"] < 450] for group in groups
    ]
    assert early[0] == early[1] and len(early[0]) > 3 and early[0][0] == 0


@pytest.mark.parametrize("steps_per_dispatch", [1, 2])
def test_debugging_names_the_operation_that_gives_nan(small_config, tmp_path, steps_per_dispatch):
    config = small_config(
        optim__lr=1e20,
        optim__clip=0.0,
        training__steps_per_dispatch=steps_per_dispatch,
        training__evaluate_every=2,
    )
    with jax.debug_nans(True), pytest.raises(NonFiniteError, match=r"encountered in \w+ in \w+.py"):
        loop.train_and_evaluate(config, tmp_path / "run")


def test_every_setting_that_differs_is_said(small_config, caplog):
    saved, asked = small_config(), small_config(optim__lr=0.5, training__steps=9)
    with caplog.at_level(logging.WARNING):
        run_config.check_same_run(saved, saved)
        assert not caplog.records
        run_config.check_same_run(saved, asked)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "optim.lr: 0.001 -> 0.5",
        "training.steps: 6 -> 9",
    ]
    with pytest.raises(OtherRunError, match=r"optim.ema: 0.9 -> 0.0\)"):
        run_config.check_same_run(saved, small_config(optim__ema=0.0))


@pytest.mark.parametrize(
    ("step_size", "sampler", "fraction"),
    [(0.05, "langevin", 0.2), (0.01, "ozaki", 1.0), (0.01, "annealed_ozaki", 0.2)],
)
def test_steps_of_old_runs_are_in_units_of_sigma_squared(
    small_config, step_size, sampler, fraction
):
    content = run_config.to_plain(small_config(noise=0.1, sampling__sampler=sampler))
    content["sampling"]["step_size"] = step_size
    read = run_config.from_plain(content)
    assert read.sampling.step_fraction == pytest.approx(fraction)


def test_numbers_are_kept_where_no_chain_stays_finite(small_config, tmp_path, caplog, monkeypatch):
    config = small_config()
    loop.train_and_evaluate(config, tmp_path)
    # On devices that its batch does not divide over, and with more images in a batch than there.
    config.training.batch_size = 10_007
    config.sampling.step_fraction = 1e30
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "samples.png").write_bytes(b"of another test")
    with caplog.at_level(logging.WARNING):
        found = evaluate_run(config, tmp_path)
    assert found["sampling"]["finite"] == 0 and "Langevin is stable below 2" in caplog.text
    assert json.loads((tmp_path / "metrics.json").read_text())["denoise_mse"] > 0
    assert "Samples, each denoised once" not in (tmp_path / "report.html").read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hos_jax.evaluation.evaluate.write_atomically", full)
    with pytest.raises(OSError, match="No space"), caplog.at_level(logging.WARNING):
        evaluate_run(config, tmp_path)
    assert f"{found['denoise_mse']:.4f}" in caplog.text.split("cannot be saved")[1]
    monkeypatch.undo()
    (tmp_path / "report.html").write_text("of another test")
    monkeypatch.setattr("hos_jax.evaluation.figures.save", full)
    with pytest.raises(UserError, match=r"html are not whole \(No space .* metrics\.json is"):
        evaluate_run(config, tmp_path)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match=r"cannot write to .*config\.json \(File exists\)"):
        evaluate_run(config, tmp_path, "config.json")


def test_the_network_of_samples_is_compiled_once(small_config, caplog):
    problem = Problem.from_config(small_config())
    params = problem.init().params
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        course_curves(problem, params, draw_samples(problem, params))
    assert caplog.text.count("Compiling jit(denoise) ") == 1


def test_directions_that_did_not_converge_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        held_out._warn_of_unconverged(np.ones((2, 3), bool))
        assert not caplog.records
        held_out._warn_of_unconverged(np.array([[True, False], [False, True]]))
    assert "2 of 4 leading directions" in caplog.text
