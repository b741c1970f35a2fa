"""The parameters of a run in one file, with the config that made them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from hos_jax import config as run_config
from hos_jax.config.networks import make_hessian_model, make_model
from hos_jax.data import ImageData, value_range_of
from hos_jax.errors import UserError, reason
from hos_jax.files import expanded
from hos_jax.migrate import tensor_files
from hos_jax.models.hessian_model import FixedScoreModel
from hos_jax.training.problem import Problem, denoiser_answer
from hos_jax.training.runs import LoadedRun, load_run
from hos_jax.types import check_counts

EXPORT_FORMAT = "hos_jax parameters 1"
# Below it are images in a file, all else is parameters.
_IMAGES = "images"
_LARGEST_HALF = float(np.finfo(np.float16).max)
# What damaged metadata drives JSON, NumPy and dictionaries into.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters of a model with the config that made them: what an exported file holds.

    `make_model(config.model).apply({"params": params}, noisy, sigma)` gives the scores, at images
    of `image_shape`, (H, W, C). `step` is the number of training steps behind them.

    `data` stands for the images that the run was made of: of their shape and range, with those
    held-out images that are in the file, or one black one. `denoiser_answer` is what a denoiser
    from outside said of one image when the run was begun, of a run that has one. `images` tells
    those that it was trained on from others, see `ImageData.identity`, of a run that says it.
    """

    config: ml_collections.ConfigDict
    params: dict[str, Any]
    image_shape: tuple[int, int, int]
    step: int
    data: ImageData
    denoiser_answer: list[float] | None = None
    images: dict[str, Any] | None = None


def export_parameters(
    workdir: Path | str, output: Path | str, *, half: bool = False, examples: int = 0
) -> Parameters:
    """Write the parameters of a run (their averages where there are some) to a safetensors file.

    Arrays are named by their path, such as "score1/begin_conv/kernel"; the config, the form of the
    images and the step are metadata of the file.

    Args:
      workdir: the run.
      output: the file.
      half: whether numbers are kept in float16, in half the space.
      examples: how many of the held-out images go with them, "images/held_out", or all that there
        are.

    Raises:
      UserError: if there is no run, the file exists, or a number is too large for float16.
      ValueError: for a negative number of examples.
    """
    check_counts(0, examples=examples)
    workdir, output = expanded(workdir), expanded(output)
    config = run_config.load(workdir)
    run = load_run(workdir, images=examples > 0)
    shape, data = run.image_shape, run.problem.data
    answer, images = run_config.saved_denoiser_answer(workdir), run_config.image_identity(workdir)
    metadata = {
        "format": EXPORT_FORMAT,
        "config": json.dumps({**run_config.to_plain(config), "versions": run_config.versions()}),
        "image_shape": json.dumps(list(shape)),
        "image_form": json.dumps(data.form),
        "images": json.dumps(images),
        "denoiser_answer": json.dumps(answer),
        "step": str(run.step),
    }
    params = run.params["params"]
    arrays = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    if half:
        for name, array in arrays.items():
            if np.abs(array).max(initial=0.0) > _LARGEST_HALF:
                raise UserError(f"{name} has numbers too large for float16: leave out --half")
        arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    if examples:
        data = dataclasses.replace(data, held_out=data.held_out[:examples], held_out_labels=None)
        arrays[f"{_IMAGES}/held_out"] = data.held_out
    tensor_files.write(output, arrays, metadata)
    return Parameters(config, params, shape, run.step, data, answer, images)


def read_parameters(path: Path | str) -> Parameters:
    """Read back what `export_parameters` wrote, in float32. Nothing is executed: a denoiser that
    the config names is not loaded.

    Raises:
      UserError: for another file, or arrays that are not those of the model in the config.
    """
    path = expanded(path)
    return from_arrays(path, *tensor_files.read(path))


def load_exported(path: Path | str, *, denoiser: str | None = None) -> LoadedRun:
    """A run out of a file of `export_parameters`, to be used as `load_run` gives it; it needs
    neither the folder of the run nor its images.

    Args:
      path: the file.
      denoiser: ``"FILE:FUNCTION"`` or ``"MODULE:FUNCTION"``, of a run beside a denoiser from
        outside. It is code, so the file's own word is not taken for it.

    Raises:
      UserError: for another file, arrays that are not those of the model in the config, or a
        denoiser that is needed and not given.
    """
    path = expanded(path)
    found = read_parameters(path)
    config = with_denoiser(path, found.config, denoiser)
    problem = Problem.from_config(config, found.data)
    run_config.check_same_denoiser(path, found.denoiser_answer, denoiser_answer(problem))
    # On the device once, and not at every call.
    params = {"params": jax.tree.map(jnp.asarray, found.params)}
    return LoadedRun(problem, params, found.step, training_seconds=0.0)


def with_denoiser(
    path: Path, config: ml_collections.ConfigDict, denoiser: str | None
) -> ml_collections.ConfigDict:
    """The config of a file with the denoiser that the user names, where it has one."""
    if config.model.denoiser is None:
        return config
    if denoiser is None:
        raise UserError(
            f"{path} is of a run beside the denoiser {config.model.denoiser}, which is code and "
            "not in the file: name it yourself, as denoiser= or --config.model.denoiser="
        )
    config = ml_collections.ConfigDict(config)
    config.model.denoiser = denoiser
    return config


def from_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Parameters:
    """`read_parameters`, from what `tensor_files.read` found in the file."""
    if metadata.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path} was not written by export_parameters")
    try:
        config = run_config.from_plain(json.loads(metadata["config"]))
        shape, step = tuple(json.loads(metadata["image_shape"])), int(metadata["step"])
        # Files of 0.1 say the shape alone.
        known = {"value_range": value_range_of(config.data.name) or (0.0, 1.0), "dtype": "uint8"}
        form = {"shape": shape, **known, **json.loads(metadata.get("image_form", "{}"))}
        low, high = map(float, form["value_range"])
        if tuple(form["shape"]) != shape or not 0 < high - low < np.inf or step < 0:
            raise ValueError(f"shape {shape} and {form}, step {step}")
        answer, images = (
            json.loads(metadata.get(key, "null")) for key in ("denoiser_answer", "images")
        )
        data = ImageData.without_images(config.data.name, form)
        tree = traverse_util.unflatten_dict(dict(arrays), sep="/")
        examples = tree.pop(_IMAGES, {}).get("held_out")
        if examples is not None:
            data = dataclasses.replace(data, held_out=examples)
    except _UNREADABLE as error:
        raise UserError(f"the metadata of {path} cannot be read: {reason(error)}") from error
    run_config.validate(config)
    for name, array in arrays.items():
        if not name.startswith(f"{_IMAGES}/") and not _is_finite(array):
            raise UserError(f"array {name} of {path} holds what is no finite number")
    params = jax.tree.map(lambda array: np.asarray(array, np.float32), tree)
    check_fits(path, config, shape, params)
    return Parameters(config, params, shape, step, data, answer, images)


def _is_finite(array: np.ndarray) -> bool:
    return np.issubdtype(array.dtype, np.floating) and bool(np.isfinite(array).all())


def check_fits(
    path: Path, config: ml_collections.ConfigDict, shape: tuple[int, ...], params: Any
) -> None:
    """Refuse the parameters of a file that are not those of the model that the config describes. A
    denoiser that it names is not loaded."""
    model: Any = None
    if config.model.denoiser is None:
        model = make_model(config.model)
    else:
        model = FixedScoreModel(make_hessian_model(config.model), lambda noisy, _: noisy)
    try:
        wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), config.noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    have = traverse_util.flatten_dict(params, sep="/")
    want = traverse_util.flatten_dict(wanted["params"], sep="/")
    for name in sorted(set(have) | set(want)):
        if name not in have:
            raise UserError(f"{path} lacks the array {name} of the model of the config")
        if name not in want:
            raise UserError(
                f"{path} has an array {name}, of which the model of the config has none"
            )
        if (is_of := have[name].shape) != (wants := want[name].shape):
            what = f"array {name} is {is_of}, the model of the config has {wants}"
            raise UserError(f"{path}: {what}")
