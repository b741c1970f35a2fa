"""What a config must fulfil before any work is done."""

from __future__ import annotations

import math
from collections.abc import Collection
from operator import attrgetter

import ml_collections

from hos_jax.config.defaults import default_config
from hos_jax.config.keys import all_keys, check_keys_and_types
from hos_jax.config.runners import RUNNERS
from hos_jax.errors import UserError

# Of reverse diffusion.
EVALUATIONS_PER_STEP = {"ancestral": 1, "ddim": 1, "heun": 2, "second_order": 1}
SAMPLERS = ("langevin", "ozaki", "annealed_langevin", "annealed_ozaki", *EVALUATIONS_PER_STEP)
# Which networks have a setting. No config sets one for all of them, as `multipliers` and `depth`.
_NETWORKS_WITH = {
    "blocks": ("unet",),
    "patch_size": ("unet",),
    "attention_size": ("unet",),
    "dtype": ("unet", "refinenet"),
    "remat": ("unet", "refinenet"),
}
_POSITIVE = """
noise optim.lr optim.eps model.ngf model.rank model.reach model.floor model.blocks model.depth
model.patch_size training.steps training.batch_size training.log_every training.evaluate_every
training.checkpoint_every training.keep_checkpoints training.steps_per_dispatch sampling.batch_size
sampling.images sampling.chains sampling.steps sampling.levels sampling.steps_per_level
sampling.step_fraction training.level_std sampling.guidance
"""
_NOT_NEGATIVE = """
seed optim.warmup optim.final_lr optim.weight_decay optim.clip model.data_std model.attention_size
loss.first_order_weight loss.third_order_weight
"""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


def reverse_covariance(sampling: ml_collections.ConfigDict) -> str:
    """What stands for the posterior covariance in steps of reverse diffusion."""
    return sampling.covariance or ("full" if sampling.sampler == "ancestral" else "small")


def networks_per_evaluation(sampling: ml_collections.ConfigDict) -> int:
    """How often the network is evaluated for one score: with guidance also without the class."""
    return 1 if sampling.guidance == 1.0 else 2


def takes_marginal_weight(config: ml_collections.ConfigDict) -> bool:
    """Whether the loss of s2 is the likelihood that `loss.marginal_weight` is a part of."""
    return config.loss.second_order == "residual_nll" and config.model.tails == "gaussian"


def leave_out_marginal_weight(config: ml_collections.ConfigDict, overrides: Collection) -> None:
    """Set a weight of the config's own, which is not among the overrides, to 0 where there is no
    such part."""
    if not takes_marginal_weight(config) and "loss.marginal_weight" not in overrides:
        config.loss.marginal_weight = 0.0


def validate(config: ml_collections.ConfigDict) -> None:
    """Raise UserError for a config that cannot work: the key, its value and what is allowed."""
    from hos_jax.config.networks import HEADS, THIRD_ORDER_HEADS
    from hos_jax.config.networks import NAMES as MODEL_NAMES
    from hos_jax.data import NAMES as DATA_NAMES
    from hos_jax.losses.objective import (
        FIRST_ORDER,
        JACOBIAN_PROBES,
        SECOND_ORDER,
        THIRD_ORDER,
    )
    from hos_jax.models.score_model import NETWORKS
    from hos_jax.types import TAILS

    check_keys_and_types(config, default_config())
    choices = {
        "runner": ("", *RUNNERS),
        "data.name": DATA_NAMES,
        "model.name": MODEL_NAMES,
        "model.head": HEADS,
        "model.third_order": THIRD_ORDER_HEADS,
        "model.tails": TAILS,
        "model.networks": NETWORKS,
        "model.output_units": ("dimensionless", "score"),
        "model.dtype": ("float32", "bfloat16"),
        "loss.first_order": tuple(FIRST_ORDER),
        "loss.second_order": tuple(SECOND_ORDER),
        "loss.third_order": tuple(THIRD_ORDER),
        "loss.jacobian_probe": JACOBIAN_PROBES,
        "optim.schedule": ("constant", "cosine"),
        "sampling.sampler": SAMPLERS,
        "training.level_law": ("log_uniform", "log_normal"),
    }
    for path, names in choices.items():
        value = attrgetter(path)(config)
        _require(value in names, f"{path} is {value!r}; choose one of {', '.join(names)}")

    for path in _POSITIVE.split():
        value = attrgetter(path)(config)
        rule = "positive" if value != math.inf else "finite"
        _require(0 < value < math.inf, f"{path} must be {rule}, got {value}")
    for path in _NOT_NEGATIVE.split():
        value = attrgetter(path)(config)
        fits = value is None or 0 <= value < math.inf
        _require(fits, f"{path} must be zero or positive, got {value}")
    for path in ("optim.ema", "optim.beta1", "optim.beta2", "training.label_dropout"):
        value = attrgetter(path)(config)
        _require(0 <= value < 1, f"{path} must be in [0, 1), got {value}")
    multipliers = config.model.multipliers
    _require(len(multipliers) > 0, "model.multipliers must name at least one level")
    _require(min(multipliers) > 0, f"model.multipliers must be positive, got {multipliers}")
    stride = config.training.steps_per_dispatch
    for name in ("log_every", "evaluate_every", "checkpoint_every"):
        value = config.training[name]
        allowed = f"a multiple of training.steps_per_dispatch={stride}"
        _require(value % stride == 0, f"training.{name}={value} must be {allowed}")
    _validate_limits(config)
    _validate_combination(config)


def _validate_limits(config: ml_collections.ConfigDict) -> None:
    """What the number formats hold, and what compiles: layers are compiled one by one."""
    for path in ("noise", "model.smallest_noise", "model.largest_noise"):
        value = attrgetter(path)(config)
        fits = value is None or value <= 0 or 1e-6 <= value <= 1e6
        _require(fits, f"{path} must be between 1e-6 and 1e6, got {value}: the data is within 1")
    _require(config.seed < 2**32, f"seed must be below 2^32, got {config.seed}")
    steps = config.training.steps
    _require(steps < 2**31 - 1, f"training.steps must be below 2^31 - 1, got {steps}")
    for path, largest in (("model.depth", 1000), ("model.blocks", 100), ("model.ngf", 2**14)):
        value = attrgetter(path)(config)
        _require(value <= largest, f"{path} must be at most {largest}, got {value}")
    for path in all_keys(config):
        value = attrgetter(path)(config)
        fits = path == "seed" or not isinstance(value, int) or abs(value) < 2**31
        _require(fits, f"{path} must be below 2^31, got {value}")
    level_mean = config.training.level_mean
    _require(math.isfinite(level_mean), f"training.level_mean must be finite, got {level_mean}")
    for path, lowest in (("data.image_size", 1), ("data.image_width", 1), ("data.crop", 0)):
        value = attrgetter(path)(config)
        _require(value is None or value >= lowest, f"{path} must be at least {lowest}, got {value}")
    _require(
        config.data.image_width is None or config.data.image_size is not None,
        "data.image_width needs data.image_size, the height",
    )
    optim = config.optim
    _require(
        optim.schedule == "constant" or optim.final_lr <= optim.lr,
        f"optim.final_lr={optim.final_lr} exceeds optim.lr={optim.lr}: the schedule decays to it",
    )


def _validate_combination(config: ml_collections.ConfigDict) -> None:
    from hos_jax.losses.objective import RESIDUAL

    model, loss = config.model, config.loss
    has_head = model.head != "none"
    for head, order in (("head", "second_order"), ("third_order", "third_order")):
        _require(
            (model[head] == "none") == (loss[order] == "none"),
            f"model.{head}={model[head]} and loss.{order}={loss[order]} do not fit: both or "
            "neither must be none",
        )
    _require(
        loss.second_order != "residual_nll" or model.positive_definite,
        "loss.second_order=residual_nll needs model.positive_definite=True: the likelihood of an "
        "indefinite covariance does not exist",
    )
    _require(
        model.tails == "gaussian" or loss.second_order == "residual_nll",
        f"model.tails={model.tails} needs loss.second_order=residual_nll: the other losses fit the "
        "covariance alone",
    )
    _require(
        model.tails == "gaussian" or model.third_order == "none",
        f"model.tails={model.tails} are symmetric and model.third_order={model.third_order} is "
        "skewness: choose one",
    )
    weight = loss.jacobian_weight
    _require(0 <= weight < 1, f"loss.jacobian_weight must be in [0, 1), got {weight}")
    _require(
        not weight or loss.second_order in RESIDUAL,
        f"loss.jacobian_weight={weight} needs loss.second_order to be one of {', '.join(RESIDUAL)}",
    )
    weight = loss.marginal_weight
    _require(0 <= weight < 1, f"loss.marginal_weight must be in [0, 1), got {weight}")
    _require(
        not weight or takes_marginal_weight(config),
        f"loss.marginal_weight={weight} needs loss.second_order=residual_nll and "
        "model.tails=gaussian",
    )
    _validate_unused(config)
    _validate_noise_range(config)
    _validate_classes(config)
    _validate_denoiser(config)
    _validate_sampling(config)
    _require(
        not model.precondition_covariance or bool(model.positive_definite and model.data_std),
        "model.precondition_covariance needs model.positive_definite=True and model.data_std > 0",
    )
    _require(
        model.output_units != "score" or not (has_head and model.positive_definite),
        "model.output_units=score needs model.positive_definite=False",
    )
    _require(
        model.output_units != "score" or not model.data_std,
        "model.output_units=score needs model.data_std=0: such a network gives the score itself",
    )


def _validate_unused(config: ml_collections.ConfigDict) -> None:
    """Refuse settings that would have no effect."""
    name, default = config.model.name, default_config()
    for key, networks in _NETWORKS_WITH.items():
        value = config.model[key]
        _require(
            name in networks or value == default.model[key],
            f"model.{key}={value} needs model.name={' or '.join(networks)}, got {name}",
        )
    dropout = config.training.label_dropout
    _require(
        config.model.classes is not None or dropout == default.training.label_dropout,
        f"training.label_dropout={dropout} needs model.classes",
    )


def _validate_denoiser(config: ml_collections.ConfigDict) -> None:
    from hos_jax.losses.objective import RESIDUAL

    model, loss = config.model, config.loss
    _require(
        not model.local or model.name == "unet",
        f"model.local=True needs model.name=unet, got {model.name}",
    )
    if model.denoiser is None:
        _require(
            loss.first_order_weight != 0 or loss.second_order == "none",
            "loss.first_order_weight=0 leaves s1 untrained: it needs model.denoiser",
        )
        return
    what = f"model.denoiser={model.denoiser}"
    _require(
        loss.second_order in RESIDUAL,
        f"{what} needs loss.second_order to be one of {', '.join(RESIDUAL)}",
    )
    for key, needed in (("third_order", "none"), ("classes", None), ("networks", "per_order")):
        value = model[key]
        _require(value == needed, f"{what} needs model.{key}={needed}, got {value}")
    _require(
        model.positive_definite and bool(model.data_std) and model.output_units != "score",
        f"{what} needs model.positive_definite=True and model.data_std > 0",
    )


def _validate_sampling(config: ml_collections.ConfigDict) -> None:
    from hos_jax.samplers.diffusion import COVARIANCES, LARGEST_CHURN

    model, sampling = config.model, config.sampling
    sampler, covariance = sampling.sampler, reverse_covariance(sampling)
    _require(
        covariance in COVARIANCES,
        f"sampling.covariance is {covariance!r}; choose one of {', '.join(COVARIANCES)}",
    )
    _require(
        sampling.covariance is None or sampler in ("ancestral", "ddim"),
        f"sampling.covariance={covariance} needs sampling.sampler=ancestral or ddim",
    )
    below = sampling.covariance_below
    _require(
        below is None or (below > 0 and sampler in ("ancestral", "ddim") and covariance != "small"),
        f"sampling.covariance_below={below} must be positive, and needs sampling.sampler=ancestral "
        "or ddim and a sampling.covariance other than small",
    )
    has_head = model.head != "none"
    _require(
        has_head or not ("ozaki" in sampler or sampler == "second_order"),
        f"sampling.sampler={sampler} needs a second-order model: choose another model.head",
    )
    _require(
        has_head or sampler not in ("ancestral", "ddim") or covariance in ("small", "large"),
        f"sampling.sampler={sampler} needs a second-order model for sampling.covariance="
        f"{covariance}: set it to small or large",
    )
    _require(
        model.smallest_noise is not None or sampler in ("langevin", "ozaki"),
        f"sampling.sampler={sampler} needs a model of many noise levels: set model.smallest_noise "
        "and model.largest_noise",
    )
    vectors, evaluations = sampling.krylov_vectors, sampling.evaluations
    _require(vectors >= 2, f"sampling.krylov_vectors must be at least 2, got {vectors}")
    least = (1 + EVALUATIONS_PER_STEP.get(sampler, 0)) * networks_per_evaluation(sampling)
    _require(
        evaluations >= least,
        f"sampling.evaluations must be at least {least}, for a step and the denoising"
        f"{', twice each with sampling.guidance' if sampling.guidance != 1.0 else ''}, "
        f"got {evaluations}",
    )
    _require(
        0 <= sampling.churn <= LARGEST_CHURN,
        f"sampling.churn must be from 0 to {LARGEST_CHURN:.3f}, got {sampling.churn}",
    )
    _require(
        not sampling.churn or sampler == "heun",
        f"sampling.churn={sampling.churn} needs sampling.sampler=heun",
    )


def _validate_noise_range(config: ml_collections.ConfigDict) -> None:
    model = config.model
    smallest, largest = model.smallest_noise, model.largest_noise
    _require(
        (smallest is None) == (largest is None),
        "model.smallest_noise and model.largest_noise go together: set both or neither",
    )
    if smallest is None:
        return
    _require(
        0 < smallest <= config.noise <= largest,
        "need 0 < model.smallest_noise <= noise <= model.largest_noise, "
        f"got {smallest}, {config.noise}, {largest}",
    )
    _require(
        smallest < largest,
        f"model.smallest_noise and model.largest_noise are both {largest}: for one noise level "
        "leave both out and set noise",
    )
    _require(
        model.name in ("unet", "mlp"),
        f"model.name={model.name} takes no noise level; choose unet or mlp",
    )
    _require(bool(model.data_std), "a range of noise levels needs model.data_std > 0")
    training = config.training
    mean, std = training.level_mean, training.level_std
    low, high = ((math.log(end) - mean) / std for end in (smallest, largest))
    _require(
        training.level_law != "log_normal" or (low < 8 and high > -8),
        f"training.level_mean={mean} with training.level_std={std} is too far from the logarithms "
        f"of the noise levels, {math.log(smallest):.2f} to {math.log(largest):.2f}",
    )


def _validate_classes(config: ml_collections.ConfigDict) -> None:
    model, sampling = config.model, config.sampling
    label, classes = sampling.label, model.classes
    if classes is None:
        for key, unset in (("label", None), ("guidance", 1.0)):
            value = sampling[key]
            _require(value == unset, f"sampling.{key}={value} needs model.classes")
        return
    _require(classes >= 1, f"model.classes must be at least 1, got {classes}")
    _require(model.name == "unet", f"model.name={model.name} takes no class; choose unet")
    _require(
        model.smallest_noise is not None,
        f"model.classes={classes} needs a model of many noise levels: set model.smallest_noise and "
        "model.largest_noise",
    )
    _require(
        config.training.label_dropout > 0,
        "training.label_dropout must be positive: what --test measures is of images whose class "
        "the network is not told",
    )
    _require(
        label is None or 0 <= label < classes,
        f"sampling.label must be from 0 to {classes - 1}, got {label}",
    )
    told = sampling.sampler in EVALUATIONS_PER_STEP
    _require(
        told or (label is None and sampling.guidance == 1.0),
        "sampling.label and sampling.guidance need a sampler of reverse diffusion: "
        f"{', '.join(EVALUATIONS_PER_STEP)}",
    )
