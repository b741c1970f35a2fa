"""From the `model` group of a config to a Flax module."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from ml_collections import ConfigDict

from hos_jax.errors import UserError
from hos_jax.models.heads import STRUCTURES, SecondOrderHead
from hos_jax.models.hessian_model import HessianModel
from hos_jax.models.mlp import MLP
from hos_jax.models.refinenet import RefineNet
from hos_jax.models.score_model import ScoreModel
from hos_jax.models.unet import UNet

NAMES = ("unet", "refinenet", "mlp")
HEADS = ("none", *STRUCTURES)
THIRD_ORDER_HEADS = ("none", "diagonal")


def _network(model: ConfigDict) -> Callable:
    images = {"features": model.ngf, "dtype": jnp.dtype(model.dtype), "remat": model.remat}
    if model.name == "unet":
        return functools.partial(
            UNet,
            multipliers=tuple(model.multipliers),
            blocks=model.blocks,
            patch_size=model.patch_size,
            attention_size=model.attention_size,
            classes=model.classes or 0,
            local=model.local,
            **images,
        )
    if model.name == "refinenet":
        return functools.partial(RefineNet, **images)
    if model.name == "mlp":
        return functools.partial(MLP, features=model.ngf, depth=model.depth)
    raise UserError(f"unknown model.name {model.name!r}; choose one of {', '.join(NAMES)}")


def _head(model: ConfigDict) -> SecondOrderHead | None:
    if model.head == "none":
        return None
    return SecondOrderHead(
        model.head,
        model.rank,
        model.positive_definite,
        floor=model.floor,
        reach=model.reach,
        tails=model.tails,
    )


def make_model(model: ConfigDict) -> ScoreModel:
    """What a config's `model` describes, without a denoiser from outside; UserError for an unknown
    network, head or combination."""
    try:
        return ScoreModel(
            _network(model),
            _head(model),
            networks=model.networks,
            data_std=model.data_std or None,
            output_units=model.output_units,
            third_order=model.third_order == "diagonal",
            noise_conditional=model.smallest_noise is not None,
            classes=model.classes or 0,
            precondition_covariance=model.precondition_covariance,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def make_hessian_model(model: ConfigDict) -> HessianModel:
    """The model of s2 that a config describes, beside a score from outside; raises alike."""
    try:
        head = _head(model)
        assert head is not None
        return HessianModel(
            _network(model),
            head,
            data_std=model.data_std,
            noise_conditional=model.smallest_noise is not None,
            precondition_covariance=model.precondition_covariance,
        )
    except ValueError as error:
        raise UserError(str(error)) from error
