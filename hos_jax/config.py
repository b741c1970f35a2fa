"""The config of a run: its defaults, its checks, and its file in the run folder."""

from __future__ import annotations

import importlib.metadata
import json
import math
import platform
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from hos_jax.config_keys import check_keys_and_types
from hos_jax.data import NAMES as DATA_NAMES
from hos_jax.errors import UserError
from hos_jax.files import write_atomically
from hos_jax.linops import KRYLOV_VECTORS

CONFIG_FILE = "config.json"
SAMPLERS = ("langevin", "ozaki", "annealed_langevin", "annealed_ozaki")
# What a resumed or tested run must have in common with the run on disk.
IDENTITY = ("runner", "noise", "seed", "data", "model", "loss")
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def default_config() -> ml_collections.ConfigDict:
    """Every key that a run has, with the project's defaults.

    Values that may be left out are `None` and typed, so that an override is still checked.
    """
    none = config_dict.placeholder
    config = ml_collections.ConfigDict()
    config.runner = ""
    config.comment = ""
    config.noise = 0.5
    config.seed = 1234

    config.data = ml_collections.ConfigDict()
    config.data.name = "mnist"
    config.data.root = none(str)
    config.data.image_size = none(int)
    config.data.crop = none(int)
    config.data.random_flip = False
    # Of an image folder: leave out files that are no readable images, instead of refusing them.
    config.data.skip_unreadable = False

    config.model = ml_collections.ConfigDict()
    config.model.name = "unet"
    config.model.ngf = 16
    config.model.multipliers = (1, 2, 4)
    config.model.blocks = 1
    config.model.patch_size = 1
    config.model.attention_size = 8
    config.model.depth = 3
    config.model.head = "low_rank"
    config.model.rank = 16
    config.model.positive_definite = True
    config.model.third_order = "none"
    config.model.networks = "per_order"
    config.model.data_std = 0.5
    config.model.output_units = "dimensionless"
    # One model for the noise levels in between; without them for `noise` alone.
    config.model.smallest_noise = none(float)
    config.model.largest_noise = none(float)
    config.model.dtype = "float32"
    config.model.remat = False

    config.loss = ml_collections.ConfigDict()
    config.loss.first_order = "dsm"
    config.loss.second_order = "residual_nll"
    # What the runner says, or else 1.
    config.loss.first_order_weight = none(float)
    config.loss.stop_gradient_score1 = True
    config.loss.third_order = "none"
    config.loss.third_order_weight = 1.0

    config.optim = ml_collections.ConfigDict()
    config.optim.lr = 2e-4
    config.optim.schedule = "constant"
    config.optim.final_lr = 0.0
    config.optim.warmup = 0
    config.optim.beta1 = 0.9
    config.optim.beta2 = 0.999
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.0
    config.optim.clip = 1.0
    config.optim.ema = 0.0

    config.training = ml_collections.ConfigDict()
    config.training.steps = 200_000
    config.training.batch_size = 100
    # Steps that run without the host in between; worth it where a step takes milliseconds. Not on
    # CPU, where XLA runs convolutions in a loop less well (the demo: 4 times slower).
    config.training.steps_per_dispatch = 1
    config.training.log_every = 100
    config.training.evaluate_every = 2_500
    config.training.checkpoint_every = 2_500
    config.training.keep_checkpoints = 2

    config.sampling = ml_collections.ConfigDict()
    config.sampling.batch_size = 100
    config.sampling.images = 8
    config.sampling.chains = 36
    config.sampling.steps = 500
    config.sampling.step_size = 0.05
    config.sampling.sampler = "langevin"
    config.sampling.krylov_vectors = KRYLOV_VECTORS
    # Annealing: noise levels, and at each of them steps of a fraction of sigma^2.
    config.sampling.levels = 30
    config.sampling.steps_per_level = 5
    config.sampling.step_fraction = 0.2
    return config


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), **found}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def validate(config: ml_collections.ConfigDict) -> None:
    """Refuse a config that cannot work, before any work is done.

    Raises:
      UserError: one line that names the key, its value and what is allowed.
    """
    from hos_jax.models.registry import HEADS, THIRD_ORDER_HEADS
    from hos_jax.models.registry import NAMES as MODEL_NAMES
    from hos_jax.objective import FIRST_ORDER, SECOND_ORDER, THIRD_ORDER

    check_keys_and_types(config, default_config())
    choices = {
        "data.name": DATA_NAMES,
        "model.name": MODEL_NAMES,
        "model.head": HEADS,
        "model.third_order": THIRD_ORDER_HEADS,
        "model.networks": ("shared", "per_order", "per_output"),
        "model.output_units": ("dimensionless", "score"),
        "model.dtype": ("float32", "bfloat16"),
        "loss.first_order": tuple(FIRST_ORDER),
        "loss.second_order": tuple(SECOND_ORDER),
        "loss.third_order": tuple(THIRD_ORDER),
        "optim.schedule": ("constant", "cosine"),
        "sampling.sampler": SAMPLERS,
    }
    for path, allowed in choices.items():
        value = _get(config, path)
        _require(value in allowed, f"{path} is {value!r}; choose one of {', '.join(allowed)}")

    positive = ["noise", "optim.lr", "optim.eps", "sampling.step_size"]
    positive += ["model.ngf", "model.rank", "model.blocks", "model.depth", "model.patch_size"]
    positive += [
        "training.steps",
        "training.batch_size",
        "training.log_every",
        "training.evaluate_every",
    ]
    positive += ["training.checkpoint_every", "training.keep_checkpoints", "sampling.batch_size"]
    positive += ["training.steps_per_dispatch"]
    positive += ["sampling.images", "sampling.chains", "sampling.steps", "sampling.levels"]
    positive += ["sampling.steps_per_level", "sampling.step_fraction"]
    for path in positive:
        value = _get(config, path)
        _require(value > 0 and math.isfinite(value), f"{path} must be positive, got {value}")
    not_negative = [
        "seed",
        "optim.warmup",
        "optim.final_lr",
        "optim.weight_decay",
        "optim.clip",
        "model.data_std",
        "model.attention_size",
        "loss.first_order_weight",
        "loss.third_order_weight",
    ]
    for path in not_negative:
        value = _get(config, path)
        fits = value is None or (value >= 0 and math.isfinite(value))
        _require(fits, f"{path} must be zero or positive, got {value}")
    for path in ("optim.ema", "optim.beta1", "optim.beta2"):
        value = _get(config, path)
        _require(0 <= value < 1, f"{path} must be in [0, 1), got {value}")
    multipliers = config.model.multipliers
    _require(len(multipliers) > 0, "model.multipliers must name at least one level")
    _require(min(multipliers) > 0, f"model.multipliers must be positive, got {multipliers}")
    stride = config.training.steps_per_dispatch
    for name in ("log_every", "evaluate_every", "checkpoint_every"):
        value = config.training[name]
        _require(
            value % stride == 0,
            f"training.{name}={value} must be a multiple of training.steps_per_dispatch={stride}",
        )
    _validate_limits(config)
    _validate_combination(config)


def _validate_limits(config: ml_collections.ConfigDict) -> None:
    """What the number formats hold: float32 for the squares of sigma, 32 bits for the others.

    And what compiles: layers are compiled one by one.
    """
    for path in ("noise", "model.smallest_noise", "model.largest_noise"):
        value = _get(config, path)
        fits = value is None or value <= 0 or 1e-6 <= value <= 1e6
        _require(fits, f"{path} must be between 1e-6 and 1e6, got {value}: the data is within 1")
    _require(config.seed < 2**32, f"seed must be below 2^32, got {config.seed}")
    steps = config.training.steps
    _require(steps < 2**31 - 1, f"training.steps must be below 2^31 - 1, got {steps}")
    for path, largest in (("model.depth", 1000), ("model.blocks", 100)):
        value = _get(config, path)
        _require(value <= largest, f"{path} must be at most {largest}, got {value}")
    for path, lowest in (("data.image_size", 1), ("data.crop", 0)):
        value = _get(config, path)
        _require(value is None or value >= lowest, f"{path} must be at least {lowest}, got {value}")
    optim = config.optim
    _require(
        optim.schedule == "constant" or optim.final_lr <= optim.lr,
        f"optim.final_lr={optim.final_lr} exceeds optim.lr={optim.lr}: the schedule decays to it",
    )


def _validate_combination(config: ml_collections.ConfigDict) -> None:
    model, second_order = config.model, config.loss.second_order
    has_head = model.head != "none"
    _require(
        has_head == (second_order != "none"),
        f"model.head={model.head} and loss.second_order={second_order} do not fit: both or neither "
        "must be none",
    )
    third_head, third_loss = model.third_order, config.loss.third_order
    _require(
        (third_head != "none") == (third_loss != "none"),
        f"model.third_order={third_head} and loss.third_order={third_loss} do not fit: both or "
        "neither must be none",
    )
    _require(
        second_order != "residual_nll" or model.positive_definite,
        "loss.second_order=residual_nll needs model.positive_definite=True: the likelihood of an "
        "indefinite covariance does not exist",
    )
    _validate_noise_range(config)
    sampler = config.sampling.sampler
    _require(
        has_head or "ozaki" not in sampler,
        f"sampling.sampler={sampler} needs a second-order model: choose another model.head",
    )
    _require(
        model.smallest_noise is not None or "annealed" not in sampler,
        f"sampling.sampler={sampler} needs a model of many noise levels: set model.smallest_noise "
        "and model.largest_noise",
    )
    _require(
        config.sampling.krylov_vectors >= 2,
        f"sampling.krylov_vectors must be at least 2, got {config.sampling.krylov_vectors}",
    )
    _require(
        model.output_units != "score" or not (has_head and model.positive_definite),
        "model.output_units=score needs model.positive_definite=False",
    )
    _require(
        model.output_units != "score" or not model.data_std,
        "model.output_units=score needs model.data_std=0: such a network gives the score itself",
    )


def _validate_noise_range(config: ml_collections.ConfigDict) -> None:
    model = config.model
    smallest, largest = model.smallest_noise, model.largest_noise
    if smallest is None and largest is None:
        return
    _require(
        smallest is not None and largest is not None,
        "model.smallest_noise and model.largest_noise go together: set both or neither",
    )
    _require(
        0 < smallest <= config.noise <= largest,
        "need 0 < model.smallest_noise <= noise <= model.largest_noise, "
        f"got {smallest}, {config.noise}, {largest}",
    )
    _require(model.name == "unet", f"model.name={model.name} takes no noise level; choose unet")
    _require(bool(model.data_std), "a range of noise levels needs model.data_std > 0")


def _get(config: ml_collections.ConfigDict, path: str) -> Any:
    value = config
    for name in path.split("."):
        value = value[name]
    return value


def differences(saved: dict, asked: dict, prefix: str = "") -> list[str]:
    """The keys in which two configs differ, as `key: saved -> asked` lines."""
    lines = []
    for key in sorted(set(saved) | set(asked)):
        old, new = saved.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} -> {new}")
    return lines


def to_plain(config: ml_collections.ConfigDict) -> dict:
    """The config as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def save(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write everything that makes the run to `config.json`: all keys, and the versions."""
    content = {**to_plain(config), "versions": versions()}
    write_atomically(workdir / CONFIG_FILE, json.dumps(content, indent=2) + "\n")


def load(workdir: Path) -> ml_collections.ConfigDict:
    """Read the config of the run in `workdir`.

    Raises:
      UserError: if there is no run, or its config cannot be read.
    """
    path = workdir / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"no run in {workdir}: {CONFIG_FILE} is missing; check --run and --doc")
    try:
        return from_plain(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} cannot be read ({error}): restore it or start anew") from error


def from_plain(content: dict) -> ml_collections.ConfigDict:
    """The config that `save` wrote, from its JSON types.

    Raises:
      ValueError, KeyError, TypeError or AttributeError: for anything else.
    """
    saved = {key: value for key, value in content.items() if key != "versions"}
    multipliers = tuple(saved["model"]["multipliers"])
    config = default_config()
    config.update({**saved, "model": {**saved["model"], "multipliers": multipliers}})
    return config


def check_same_run(saved: ml_collections.ConfigDict, asked: ml_collections.ConfigDict) -> None:
    """Refuse to go on with a run under another model, noise, seed, data or loss.

    Raises:
      UserError: with the differences.
    """
    old, new = to_plain(saved), to_plain(asked)
    changed = differences({key: old[key] for key in IDENTITY}, {key: new[key] for key in IDENTITY})
    # Where the images lie may change between machines; what they are may not.
    changed = [line for line in changed if not line.startswith("data.root:")]
    if bool(saved.optim.ema) != bool(asked.optim.ema):
        changed.append(f"optim.ema: {saved.optim.ema} -> {asked.optim.ema}")
    if changed:
        raise UserError(
            f"this run was made with other settings ({'; '.join(changed)}): give those of the run "
            "or another --doc"
        )
