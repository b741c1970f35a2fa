"""The published commands, letter for letter, on packaged data at a small width."""

import json

import pytest
from command_line import as_flags

from hos_jax.config import validate
from hos_jax.errors import UserError

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


def published_commands(name, network=None):
    """The arguments that train, resume and test a published experiment, offline and small."""
    text, data, _ = PUBLISHED[name]
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
    again = [word for word in text.split() if word != "--ni"]
    return {
        "train": [*text.split(), *small],
        "resume": [*again, "--resume_training", *small, "--config.training.steps=3"],
        "test": [*again, "--test", *small],
    }


# They are several RefineNets, minutes of compiling on a CPU; test_published_defects.py runs the
# same commands with a small network in their place.
@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_command_runs_resumes_and_tests_offline(command, tmp_path, name):
    for arguments in published_commands(name).values():
        done = command(*arguments, small=False)
        assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path, name)["step"] == 3


def metrics_of(folder, name):
    """What `--test` wrote for a published experiment run in `folder`."""
    words = PUBLISHED[name][0].split()
    return json.loads((folder / words[words.index("--doc") + 1] / "metrics.json").read_text())


# ml-collections 1.1 loads config files with a deprecated method of importlib.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_are_the_defaults(name):
    from hos_jax.cli.arguments import make_config, parse

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


@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("overrides", "classes"),
    [
        ((), 10),
        (("--config.model.classes=None",), None),
        (("--config.model.classes=3", "--config.model.classes=None"), None),
        (("--config.model.classes=None", "--config.model.classes=7"), 7),
        (("--config.model.classes", "3", "-config.model.classes=None"), None),
        (("--config.model.classes=None", "--config.model.classes", "7"), 7),
    ],
)
def test_none_takes_an_optional_setting_away_and_the_last_of_a_key_counts(overrides, classes):
    from hos_jax.cli.arguments import make_config, parse

    argv = ["main.py", "--runner", "LowRankHybridRunner", "--config", "diffusion_mnist5k"]
    assert make_config(parse([*argv, *overrides])).model.classes == classes


def test_the_second_order_of_a_denoiser_has_a_marginal_weight_where_there_is_one():
    from hos_jax.cli.commands import parse
    from hos_jax.cli.second_order import make_config as make_second_order

    words = ["second_order", "--denoiser=mine.py:blur", "--sigma=0.1", "--data=digits", "--doc=x"]
    for flags, weight in (
        ((), 0.3),
        (("--config.model.tails=student",), 0.0),
        (("--config.loss.second_order=d2sm_residual",), 0.0),
        (("--config.loss.marginal_weight=0.1",), 0.1),
    ):
        config = make_second_order(parse([*words, *flags])[0])
        assert config.loss.marginal_weight == weight
        validate(config)
    config = make_second_order(
        parse([*words, "--config.model.tails=student", "--config.loss.marginal_weight=0.1"])[0]
    )
    with pytest.raises(UserError, match=r"loss\.marginal_weight=0\.1 needs loss\.second_order"):
        validate(config)


def test_none_is_read_by_the_other_commands_too():
    from ml_collections import config_flags

    from hos_jax.cli.commands import parse

    words = "second_order --denoiser=mine.py:blur --sigma=0.1 --doc=x --config.data.root=None"
    values, _ = parse(words.split())
    assert config_flags.get_override_values(values["config"]) == {"data.root": None}
    with pytest.raises(UserError, match=r"unknown flag --config\.data\.root"):
        parse(["denoise", "one.png", "--doc=x", "--config.data.root=None"])
