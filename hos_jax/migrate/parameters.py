"""The parameters of a run in one file, with the config that made them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import traverse_util

from hos_jax import config as run_config
from hos_jax.data import ImageData, value_range_of
from hos_jax.errors import UserError
from hos_jax.migrate import tensor_files
from hos_jax.training.problem import Problem
from hos_jax.training.runs import LoadedRun, load_run

EXPORT_FORMAT = "hos_jax parameters 1"


# Below it are images in a file, all else is parameters.
_IMAGES = "images"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters of a model with the config that made them: what an exported file holds.

    `make_model(config.model).apply({"params": params}, noisy, sigma)` gives the scores, at images
    of `image_shape`, (H, W, C). `step` is the number of training steps behind them.

    `data` stands for the images that the run was made of: of their shape and range, with those
    held-out images that are in the file, or one black one.
    """

    config: ml_collections.ConfigDict
    params: dict[str, Any]
    image_shape: tuple[int, int, int]
    step: int
    data: ImageData


def export_parameters(
    workdir: Path, output: Path, *, half: bool = False, examples: int = 0
) -> Parameters:
    """Write the parameters of a run (their averages where there are some) to a safetensors file.

    Arrays are named by their path, such as "score1/begin_conv/kernel"; the config, the form of the
    images and the step are metadata of the file.

    Args:
      workdir: the run.
      output: the file.
      half: whether numbers are kept in float16, in half the space.
      examples: how many of the held-out images go with them, "images/held_out".

    Raises:
      UserError: if there is no run, or the file exists.
    """
    config = run_config.load(workdir)
    run = load_run(workdir, images=examples > 0)
    shape, data = run.image_shape, run.problem.data
    metadata = {
        "format": EXPORT_FORMAT,
        "config": json.dumps({**run_config.to_plain(config), "versions": run_config.versions()}),
        "image_shape": json.dumps(list(shape)),
        "image_form": json.dumps(data.form),
        "step": str(run.step),
    }
    params = run.params["params"]
    arrays = {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}
    if half:
        arrays = {name: array.astype(np.float16) for name, array in arrays.items()}
    if examples:
        arrays[f"{_IMAGES}/held_out"] = data.held_out[:examples]
    tensor_files.write(output, arrays, metadata)
    return Parameters(config, params, shape, run.step, data)


def read_parameters(path: Path) -> Parameters:
    """Read back what `export_parameters` wrote, in float32.

    Raises:
      UserError: for another file, or arrays that are not those of the model in the config.
    """
    return from_arrays(path, *tensor_files.read(path))


def load_exported(path: Path | str) -> LoadedRun:
    """A run out of a file of `export_parameters`, to be used as `load_run` gives it; it needs
    neither the folder of the run nor its images.

    Raises:
      UserError: for another file, or arrays that are not those of the model in the config.
    """
    found = read_parameters(Path(path))
    problem = Problem.from_config(found.config, found.data)
    return LoadedRun(problem, {"params": found.params}, found.step, training_seconds=0.0)


def from_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Parameters:
    """`read_parameters`, from what `tensor_files.read` found in the file."""
    if metadata.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path} was not written by export_parameters")
    try:
        config = run_config.from_plain(json.loads(metadata["config"]))
        shape = tuple(json.loads(metadata["image_shape"]))
        step = int(metadata["step"])
        # Files of 0.1 say the shape alone.
        known = {"value_range": value_range_of(config.data.name) or (0.0, 1.0), "dtype": "uint8"}
        form = {"shape": shape, **known, **json.loads(metadata.get("image_form", "{}"))}
        data = ImageData.without_images(config.data.name, form)
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"the metadata of {path} cannot be read: {error}") from error
    run_config.validate(config)
    tree = traverse_util.unflatten_dict(dict(arrays), sep="/")
    examples = tree.pop(_IMAGES, {}).get("held_out")
    if examples is not None:
        if examples.shape[1:] != data.image_shape or examples.dtype != data.held_out.dtype:
            raise UserError(f"{path}: its images are not those that it describes")
        data = dataclasses.replace(data, held_out=examples)
    params = jax.tree.map(lambda array: np.asarray(array, np.float32), tree)
    check_fits(Problem.from_config(config, data), params)
    return Parameters(config, params, shape, step, data)


def check_fits(problem: Problem, params: Any) -> None:
    """Refuse parameters that are not those of the model that the config describes."""
    have = traverse_util.flatten_dict(params, sep="/")
    want = traverse_util.flatten_dict(problem.abstract_params()["params"], sep="/")
    for name in sorted(set(have) | set(want)):
        sizes = [tree[name].shape if name in tree else "nothing" for tree in (have, want)]
        if sizes[0] != sizes[1]:
            raise UserError(f"array {name} is {sizes[0]}, the model of the config has {sizes[1]}")
