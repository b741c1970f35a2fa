"""The published commands, letter for letter, on packaged data at a small width."""

import json

import pytest
from conftest import as_flags

PUBLISHED = {
    "first_order": (
        "--runner UnetDSMRunner --config dsm_mnist.yml --doc dsm_mnist_0.5 --noise 0.5 --ni",
        "mnist5k",
        {"batch_size": 100, "ngf": 64, "lr": 2e-4, "ema": 0.0, "flip": False},
    ),
    "low_rank": (
        "--runner LowRankHybridRunner --config unet_mnist.yml --doc low_rank_mnist_0.5 "
        "--noise 0.5 --ni",
        "mnist5k",
        {"batch_size": 40, "ngf": 64, "lr": 2e-4, "ema": 0.0, "flip": False, "rank": 50},
    ),
    "diagonal": (
        "--runner DoubleDiagonalHybridRunner --config unet_cifar10.yml "
        "--doc diagonal_cifar10_0.5 --noise 0.5 --ni",
        "photos",
        {"batch_size": 40, "ngf": 128, "lr": 2e-4, "ema": 0.999, "flip": True},
    ),
}


# The low-rank and the diagonal model are several RefineNets, minutes of compiling on a CPU: as they
# are they run under `slow`, and always with a small network in their place.
CASES = [
    ("first_order", None),
    ("low_rank", "mlp"),
    ("diagonal", "mlp"),
    pytest.param("low_rank", None, marks=pytest.mark.slow),
    pytest.param("diagonal", None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "network"), CASES)
def test_published_command_runs_resumes_and_tests_offline(command, tmp_path, name, network):
    text, data, _ = PUBLISHED[name]
    doc = text.split()[text.split().index("--doc") + 1]
    small = as_flags(
        {
            "data.name": data,
            "model.ngf": 8,
            "training.steps": 2,
            "training.batch_size": 20,
            "training.checkpoint_every": 10,
            "sampling.batch_size": 100,
            "sampling.steps": 2,
            "sampling.chains": 2,
            "sampling.images": 2,
        }
    )
    if name == "low_rank":
        small.append("--rank=3")
    if network is not None:
        small.append(f"--config.model.name={network}")
    done = command(*text.split(), *small, small=False)
    assert done.returncode == 0, done.stderr
    again = [word for word in text.split() if word != "--ni"]
    done = command(*again, "--resume_training", *small, "--config.training.steps=3", small=False)
    assert done.returncode == 0, done.stderr
    done = command(*again, "--test", *small, small=False)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / doc / "metrics.json").read_text())
    assert metrics["step"] == 3 and metrics["data"] == data
    assert ("calibration" in metrics) == (name != "first_order")
    assert (tmp_path / doc / "figures" / "denoising.png").stat().st_size > 1000


# ml-collections 1.1 loads config files with a deprecated method of importlib.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_the_defaults(name):
    from hos_jax.cli import make_config, parse

    text, _, expected = PUBLISHED[name]
    argv = ["main.py", *text.split(), "--config.model.blocks=7"]
    config = make_config(parse(argv))
    assert config.noise == 0.5 and config.model.blocks == 7
    assert config.training.batch_size == expected["batch_size"]
    assert config.model.name == "refinenet" and config.model.ngf == expected["ngf"]
    assert config.optim.lr == expected["lr"] and config.optim.ema == expected["ema"]
    assert config.data.random_flip == expected["flip"]
    assert config.data.name == ("cifar10" if name == "diagonal" else "mnist")
    if "rank" in expected:
        assert config.model.rank == expected["rank"]
        assert config.loss.first_order_weight == 10.0
