"""A denoiser by the name that a config has for it: the user's own function, imported when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hos_jax import adapters
from hos_jax.data.image_data import UNIT_RANGE
from hos_jax.errors import UserError, did_you_mean, reason
from hos_jax.files import expanded

# The folder of each module that a denoiser's file has imported from beside itself.
_BESIDE: dict[str, str] = {}
# What is raised of such answers, and said of a denoiser after its name.
NOT_FINITE = "gives values that are not finite"
_LEVEL_NAMES = ("sigma", "std", "noise", "level", "noise_level", "noise_std")


def absolute_name(name: str) -> str:
    """The same name, with the full path of a file, so that it holds from any folder."""
    module, colon, attribute = name.rpartition(":")
    if colon and module.endswith(".py"):
        return f"{expanded(module).absolute()}:{attribute}"
    return name


def load_denoiser(
    name: str, value_range: tuple[float, float] = UNIT_RANGE
) -> adapters.AdaptedScore:
    """`score_fn(noisy, sigma)` of a denoiser, in data units.

    Args:
      name: "FILE.py:NAME" or "MODULE:NAME". What it names is an `adapters.AdaptedScore`, or a
        function of NumPy arrays: `denoise(noisy, sigma)` of images (N, H, W, C) and of the
        deviation of their noise, (N,); or of the images alone.
      value_range: data units that both know as 0 and 1.

    A file finds modules beside itself, its own also where another denoiser's are of the same name.
    That holds while it is imported: of such names, a function that imports one when it is called
    gets that of the denoiser that was loaded last.

    Raises:
      UserError: for what cannot be imported, or is neither of the two.
    """
    found = _find(name)
    if isinstance(found, adapters.AdaptedScore):
        # In the same units as a function: black 0 and white 1.
        low, high = value_range
        unit = high - low
        mean = low + unit * np.asarray(found.mean)
        return dataclasses.replace(found, mean=mean, std=unit * found.std)
    if not callable(found) or inspect.isclass(found):
        what = "a class" if inspect.isclass(found) else type(found).__name__
        raise UserError(f"model.denoiser={name} is {what}, which is no function")
    if isinstance(found, adapters.BlackBox) or hasattr(found, "state_dict"):
        remedy = "give what hos_jax.adapters.score_fn makes of adapters.from_torch(module)"
        raise UserError(f"model.denoiser={name} does not say what it predicts: {remedy}")
    wanted = _arguments_of(found)
    if wanted not in (1, 2):
        raise UserError(
            f"model.denoiser={name} must take (noisy, sigma), or noisy alone; it takes {wanted}"
        )

    def denoise(noisy: np.ndarray, *sigma: np.ndarray) -> Any:
        finite = bool(np.isfinite(noisy).all())
        answer = found(noisy, *sigma)
        if answer is None or isinstance(answer, (str, tuple, dict)):
            return answer  # which is refused with the words of `BlackBox`
        answer = np.asarray(answer)
        floating = np.issubdtype(answer.dtype, np.floating)
        if finite and floating and not np.isfinite(answer).all():
            # Or training would take it for a step that was too long.
            raise FloatingPointError(NOT_FINITE)
        return answer

    normal = adapters.normalization(value_range, UNIT_RANGE)
    return adapters.score_fn(
        adapters.from_numpy(denoise),
        "clean",
        level="argument" if wanted == 2 else "none",
        mean=normal["mean"],
        std=normal["std"],
    )


def _arguments_of(function: Any) -> int:
    """How many arguments it has to be given by place; 2 where that cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return 2
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    placed = [one for one in parameters if one.kind in places]
    needed = sum(one.default is one.empty for one in placed)
    # A level with a default is still to be told.
    return 2 if needed == 1 and len(placed) > 1 and placed[1].name in _LEVEL_NAMES else needed


def _find(name: str) -> Any:
    """What the name stands for."""
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"model.denoiser={name!r} must be FILE.py:NAME or MODULE:NAME")
    try:
        with _same_folder():
            module = _import(module_name)
    except UserError:
        raise
    # The user's own code, whatever it raises.
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {reason(error)}"
        raise UserError(f"model.denoiser={name}: cannot import {module_name} ({what})") from error
    if not hasattr(module, attribute):
        near = did_you_mean(attribute, vars(module))
        raise UserError(f"model.denoiser: {module_name} has no {attribute!r}: {near}".rstrip(": "))
    return getattr(module, attribute)


def _import(name: str) -> Any:
    if not name.endswith(".py"):
        with _first_on_the_path(Path.cwd()):
            return importlib.import_module(name)
    path = expanded(name)
    if not path.is_file():
        raise UserError(f"model.denoiser: there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"hos_jax_denoiser_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # What looks up its own module, as dataclasses do, finds it there.
    sys.modules[spec.name] = module
    with _own_modules(path.absolute().parent):
        spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def _same_folder() -> Iterator[None]:
    """Come back from where a script goes, a folder of its own say, which is not where runs are."""
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it is gone, so that nothing is looked for in it
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.chdir(here)


@contextlib.contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """Find modules of a folder, while one is imported, and none of another denoiser's folder."""
    others = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if _BESIDE.get(name.partition(".")[0], str(folder)) != str(folder)
    }
    known = set(sys.modules)
    try:
        with _first_on_the_path(folder):
            yield
    finally:
        new = [name for name in set(sys.modules) - known if "." not in name]
        # Functions may import the same names once more when they are called.
        for name, module in others.items():
            if name.partition(".")[0] not in new:
                sys.modules[name] = module
        _BESIDE.update({name: str(folder) for name in new if _lies_in(sys.modules[name], folder)})


def _lies_in(module: Any, folder: Path) -> bool:
    places = getattr(module, "__path__", None) or [getattr(module, "__file__", None)]
    return any(os.path.dirname(str(place)) == str(folder) for place in places)


@contextlib.contextmanager
def _first_on_the_path(folder: Path) -> Iterator[None]:
    """Find modules of a folder, while one is imported."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
