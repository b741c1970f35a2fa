"""Checkpoints of the published code, as plain mappings of arrays: told apart, and become runs."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from safetensors.numpy import save_file

from hos_jax import config as run_config
from hos_jax import migrate
from hos_jax.config.networks import make_model
from hos_jax.errors import UserError
from hos_jax.migrate import importing
from hos_jax.migrate.published import recognise
from hos_jax.training.problem import Problem
from hos_jax.training.runs import load_run

GOLDEN = Path(__file__).parents[1] / "golden"
OPTIMIZER = {"state": {}, "param_groups": [{"lr": 2e-4}]}
OFFLINE = {"noise": 0.5, "data.name": "mnist5k"}


def stored(name):
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = dict(file)
    return arrays, {
        key.removeprefix("state/"): value
        for key, value in arrays.items()
        if key.startswith("state/")
    }


@pytest.fixture(scope="module")
def mnist():
    return stored("refinenet_mnist_ngf16")


@pytest.fixture(scope="module")
def pair():
    return stored("lowranks2_mnist_ngf8_rank3")


def part(state, prefix):
    return {
        name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)
    }


def first_factor_column(state):
    """A network whose output is the first column of the stored factor."""
    network = part(state, "low_rank_model.")
    return {**network, **{n: network[n][:1] for n in ("end_conv.weight", "end_conv.bias")}}


def wrapped(state):
    return {f"module.{name}": array for name, array in state.items()}


def near(state):
    """What an average of this network could be."""
    return {name: 0.9 * array + np.float32(0.001) for name, array in state.items()}


def same(tree, other):
    jax.tree.map(np.testing.assert_array_equal, tree, other)


def apply(config, params, images):
    noisy = jnp.asarray(np.transpose(images, (0, 2, 3, 1)))
    return make_model(config.model).apply({"params": params}, noisy, config.noise)


def diagonals(matrices):
    return jax.vmap(lambda matrix: matrix.diagonal())(matrices)


def relative_error(value, reference):
    value, reference = np.asarray(value), np.asarray(reference)
    assert value.shape == reference.shape
    return np.abs(value - reference).max() / np.abs(reference).max()


def test_first_order_model_is_found_with_its_step(mnist):
    found = recognise([mnist[1], OPTIMIZER, 7, 12_000])
    assert (found.head, found.features, found.channels, found.step) == ("none", 16, 1, 12_000)
    assert set(found.params) == {"score1"} and found.ema_params is None
    same(found.params, recognise(wrapped(mnist[1])).params)
    same(found.params, recognise([wrapped(mnist[1]), OPTIMIZER, 7, 12_000]).params)


def test_low_rank_model_is_found_in_any_order(pair):
    score1 = part(pair[1], "diagonal.")
    for content in ([pair[1], score1, OPTIMIZER, 1, 9], [wrapped(score1), wrapped(pair[1]), 9]):
        found = recognise(content)
        assert (found.head, found.rank, found.features, found.step) == ("low_rank", 3, 8, 9)
        assert set(found.params) == {"score1", "factor", "diagonal"} and not found.order_is_assumed
        same(found.params["score1"], found.params["diagonal"])
        assert found.params["factor"]["end"]["conv"]["kernel"].shape == (3, 3, 8, 3)


def test_diagonal_model_is_s2_then_s1_unless_told(pair):
    score2, score1 = part(pair[1], "diagonal."), first_factor_column(pair[1])
    found = recognise([score2, score1, OPTIMIZER, 1, 9])
    assert found.head == "diagonal" and found.order_is_assumed
    bias = found.params["score1"]["end"]["conv"]["bias"]
    np.testing.assert_array_equal(bias, score1["end_conv.bias"])
    same(found.swapped().params["diagonal"], found.params["score1"])
    told = recognise({"s1": score2, "s2": score1})
    assert not told.order_is_assumed
    same(told.params, found.swapped().params)
    flat = {f"s1.{name}": array for name, array in score2.items()}
    flat |= {f"s2.{name}": array for name, array in score1.items()}
    same(recognise(flat).params, told.params)


def test_averages_are_those_of_the_network_they_resemble(pair):
    score2, score1 = part(pair[1], "diagonal."), first_factor_column(pair[1])
    content = [wrapped(score2), wrapped(score1), OPTIMIZER, 1, 9, near(score1), near(score2)]
    found = recognise(content)
    assert (found.head, found.averaged) == ("diagonal", ("s1", "s2"))
    same(found.ema_params, recognise([near(score2), near(score1)]).params)
    same(found.params, recognise([score2, score1]).params)
    alone = recognise([pair[1], score1, OPTIMIZER, 1, 9, near(pair[1])])
    assert (alone.head, alone.averaged) == ("low_rank", ("s2",))
    same(alone.ema_params["score1"], alone.params["score1"])
    assert np.any(alone.ema_params["factor"]["begin_conv"]["kernel"])
    assert "averages of s1 and s2" in found.description


def test_what_cannot_be_told_is_refused(mnist, pair):
    score1 = part(pair[1], "diagonal.")
    refused = {
        "no network": [OPTIMIZER, 3],
        "0 single networks and 1 pairs": [pair[1]],
        "3 single networks": [score1, first_factor_column(pair[1]), mnist[1]],
        "stored weights lack": [{k: v for k, v in mnist[1].items() if "res3" not in k}],
        "must agree": [pair[1], mnist[1]],
        "outputs that do not fit": [part(pair[1], "low_rank_model.")],
        "has no s2": {"s1": score1, "ema_s2": score1},
    }
    for message, content in refused.items():
        with pytest.raises(UserError, match=message):
            recognise(content)


def import_arrays(tmp_path, arrays, **options):
    path = tmp_path / "published.safetensors"
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    save_file(contiguous, path)
    return migrate.import_checkpoint(path, tmp_path / "run", OFFLINE, **options)


def labelled(**states):
    return {f"{label}.{name}": a for label, state in states.items() for name, a in state.items()}


@pytest.mark.slow
def test_imported_low_rank_run_gives_the_stored_outputs(pair, tmp_path):
    arrays, state = pair
    content = labelled(s1=part(state, "diagonal."), s2=state)
    imported = import_arrays(tmp_path, content, checked_images=0)
    assert imported.denoise_mse is None and "rank 3" in imported.description
    config = run_config.load(tmp_path / "run")
    assert config.runner == "LowRankHybridRunner" and config.model.output_units == "score"
    assert config.comment == f"imported from published.safetensors: {imported.description}"
    run = load_run(tmp_path / "run")
    outputs = apply(config, run.params["params"], arrays["x"])
    assert relative_error(outputs.score1, arrays["diag_f64"]) < 1e-5
    assert relative_error(outputs.score2.diag, arrays["diag_f64"]) < 1e-5
    assert relative_error(outputs.score2.factor, arrays["U_f64"]) < 1e-5
    assert relative_error(diagonals(outputs.score2), arrays["h_diagonal_f64"]) < 1e-5
    with pytest.raises(UserError, match="already holds a run"):
        import_arrays(tmp_path, content, checked_images=0)


@pytest.mark.slow
def test_imported_first_order_run_gives_the_stored_outputs(mnist, tmp_path):
    arrays, state = mnist
    content = labelled(s1=state, ema_s1=state)
    imported = import_arrays(tmp_path, content, checked_images=2)
    assert imported.denoise_mse > 0
    config = run_config.load(tmp_path / "run")
    assert config.runner == "UnetDSMRunner" and config.optim.ema == 0.999
    assert config.loss.first_order == "dsm"
    run = load_run(tmp_path / "run")
    outputs = apply(config, run.params["params"], arrays["x"])
    assert relative_error(outputs.score1, arrays["out_f64"]) < 1e-5


@pytest.mark.slow
def test_imported_diagonal_run_gives_the_stored_outputs(pair, tmp_path):
    arrays, state = pair
    content = labelled(s1=first_factor_column(state), s2=part(state, "diagonal."))
    import_arrays(tmp_path, content, checked_images=2)
    config = run_config.load(tmp_path / "run")
    assert config.runner == "DoubleDiagonalHybridRunner"
    assert (config.loss.first_order, config.loss.second_order) == ("dsm_vr", "d2sm")
    run = load_run(tmp_path / "run")
    outputs = apply(config, run.params["params"], arrays["x"])
    assert relative_error(outputs.score1, arrays["U_f64"][:, :, 0]) < 1e-5
    assert relative_error(diagonals(outputs.score2), arrays["diag_f64"]) < 1e-5


@pytest.mark.parametrize(
    ("errors", "swapped"),
    [((0.01, 0.5), True), ((0.5, 0.01), False), ((0.5, 0.6), False), ((0.02, 0.01), False)],
)
def test_the_network_that_removes_noise_is_s1(pair, monkeypatch, small_config, errors, swapped):
    found = recognise([part(pair[1], "diagonal."), first_factor_column(pair[1])])
    kernels = [found.params[name]["end"]["conv"]["kernel"] for name in ("diagonal", "score1")]

    def error_of(problem, params, images):
        kernel = params["end"]["conv"]["kernel"]
        return errors[0 if np.array_equal(kernel, kernels[0]) else 1]

    monkeypatch.setattr(importing, "_denoise_mse", error_of)
    problem = Problem.from_config(small_config(noise=0.5))
    ordered = importing._in_order(problem, found, 4)
    expected = found.swapped() if swapped else found
    same(ordered.params, expected.params)
    same(importing._in_order(problem, found, 0).params, found.params)


def test_an_import_needs_the_noise_level_and_a_network_that_fits(mnist, tmp_path):
    path = tmp_path / "s1.safetensors"
    save_file(mnist[1], path)
    refused = [
        ({"data.name": "mnist5k"}, "does not tell the noise level"),
        ({**OFFLINE, "optim.ema": 0.9}, "optim.ema=0.9 does not fit"),
        ({**OFFLINE, "model.ngf": 8}, "the model of the config has"),
    ]
    for overrides, message in refused:
        with pytest.raises(UserError, match=message):
            migrate.import_checkpoint(path, tmp_path / "run", overrides)
    assert not (tmp_path / "run").exists()


class StoredOutputs(nn.Module):
    """Stands for the published networks: gives what they gave, by name, (B, 28, 28, k)."""

    out_channels: int

    def __call__(self, images):
        arrays, _ = stored("lowranks2_mnist_ngf8_rank3")
        values = arrays["U_f64"] if self.name == "factor" else arrays["diag_f64"]
        assert values.reshape(2, 784, -1).shape[-1] == self.out_channels
        return jnp.asarray(values.reshape(2, 28, 28, -1), images.dtype)


def test_published_settings_read_outputs_as_scores(pair):
    arrays, state = pair
    found = recognise([part(state, "diagonal."), state])
    config = migrate.published_config(found)
    run_config.validate(config)
    model = make_model(config.model).clone(network=StoredOutputs)
    outputs = model.apply({}, jnp.asarray(arrays["x"]).reshape(2, 28, 28, 1), 0.3)
    np.testing.assert_allclose(outputs.score1, arrays["diag_f64"], rtol=1e-5)
    assert relative_error(outputs.score2.factor, arrays["U_f64"]) < 1e-6
    assert relative_error(diagonals(outputs.score2), arrays["h_diagonal_f64"]) < 1e-6
    dense = jax.vmap(lambda matrix: matrix.to_dense())(outputs.score2)
    assert relative_error(dense[:, :8], arrays["h_rows0to8_f64"]) < 1e-6
