"""A denoiser by the name that a config has for it: the user's own function, imported when asked."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

import numpy as np

from hos_jax import adapters
from hos_jax.data.image_data import UNIT_RANGE
from hos_jax.errors import UserError, did_you_mean, reason


def absolute_name(name: str) -> str:
    """The same name, with the full path of a file, so that it holds from any folder."""
    module, colon, attribute = name.rpartition(":")
    if colon and module.endswith(".py"):
        return f"{Path(module).expanduser().absolute()}:{attribute}"
    return name


def load_denoiser(
    name: str, value_range: tuple[float, float] = UNIT_RANGE
) -> adapters.AdaptedScore:
    """`score_fn(noisy, sigma)` of a denoiser, in data units.

    Args:
      name: "FILE.py:NAME" or "MODULE:NAME". What it names is an `adapters.AdaptedScore`, in data
        units, or a function of NumPy arrays: `denoise(noisy, sigma)` of images (N, H, W, C) between
        0 and 1 but for their noise, and of its deviation at each, (N,); or of the images alone.
      value_range: data units that such a function knows as 0 and 1.

    Raises:
      UserError: for what cannot be imported, or is neither of the two.
    """
    found = _find(name)
    if isinstance(found, adapters.AdaptedScore):
        return found
    if not callable(found):
        raise UserError(f"model.denoiser={name} is {type(found).__name__}, which is no function")
    wanted = _arguments_of(found)
    if wanted not in (1, 2):
        raise UserError(
            f"model.denoiser={name} must take (noisy, sigma), or noisy alone; it takes {wanted}"
        )

    def denoise(noisy: np.ndarray, *sigma: np.ndarray) -> Any:
        return found(noisy, *sigma)

    normal = adapters.normalization(value_range, UNIT_RANGE)
    return adapters.score_fn(
        adapters.from_numpy(denoise),
        "clean",
        level="argument" if wanted == 2 else "none",
        mean=normal["mean"],
        std=normal["std"],
    )


def _arguments_of(function: Any) -> int:
    """How many arguments without a default it takes by place; 2 where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in places and one.default is one.empty for one in parameters)


def _find(name: str) -> Any:
    """What the name stands for."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"model.denoiser={name!r} must be FILE.py:NAME or MODULE:NAME")
    try:
        module = _import(module_name)
    except UserError:
        raise
    # The user's own code, whatever it raises.
    except Exception as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"model.denoiser={name}: cannot import {module_name} ({what})") from error
    if not hasattr(module, attribute):
        near = did_you_mean(attribute, vars(module))
        raise UserError(f"model.denoiser: {module_name} has no {attribute!r}: {near}".rstrip(": "))
    return getattr(module, attribute)


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"model.denoiser: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"hos_jax_denoiser_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
