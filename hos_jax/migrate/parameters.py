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
from hos_jax.config.networks import make_model
from hos_jax.errors import UserError
from hos_jax.migrate import tensor_files
from hos_jax.training.runs import load_run

EXPORT_FORMAT = "hos_jax parameters 1"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters of a model with the config that made them: what an exported file holds.

    `make_model(config.model).apply({"params": params}, noisy, sigma)` gives the scores, at images
    of `image_shape`, (H, W, C). `step` is the number of training steps behind them.
    """

    config: ml_collections.ConfigDict
    params: dict[str, Any]
    image_shape: tuple[int, int, int]
    step: int


def export_parameters(workdir: Path, output: Path) -> Parameters:
    """Write the parameters of a run (their averages where there are some) to a safetensors file.

    Arrays are named by their path, such as "score1/begin_conv/kernel"; the config, the image shape
    and the step are metadata of the file.

    Raises:
      UserError: if there is no run, or the file exists.
    """
    config = run_config.load(workdir)
    run = load_run(workdir)
    shape = run.problem.data.image_shape
    exported = Parameters(config, run.params["params"], shape, run.step)
    metadata = {
        "format": EXPORT_FORMAT,
        "config": json.dumps({**run_config.to_plain(config), "versions": run_config.versions()}),
        "image_shape": json.dumps(list(shape)),
        "step": str(run.step),
    }
    arrays = traverse_util.flatten_dict(exported.params, sep="/")
    tensor_files.write(output, {k: np.asarray(v) for k, v in arrays.items()}, metadata)
    return exported


def read_parameters(path: Path) -> Parameters:
    """Read back what `export_parameters` wrote.

    Raises:
      UserError: for another file, or arrays that are not those of the model in the config.
    """
    return from_arrays(path, *tensor_files.read(path))


def from_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Parameters:
    """`read_parameters`, from what `tensor_files.read` found in the file."""
    if metadata.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path} was not written by export_parameters")
    try:
        config = run_config.from_plain(json.loads(metadata["config"]))
        shape = tuple(json.loads(metadata["image_shape"]))
        step = int(metadata["step"])
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"the metadata of {path} cannot be read: {error}") from error
    run_config.validate(config)
    params = traverse_util.unflatten_dict(dict(arrays), sep="/")
    check_fits(config, shape, params)
    return Parameters(config, params, shape, step)


def check_fits(config: ml_collections.ConfigDict, shape: tuple[int, ...], params: Any) -> None:
    """Refuse parameters that are not those of the model that the config describes."""
    model = make_model(config.model)
    try:
        wanted = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), config.noise)
    except ValueError as error:
        raise UserError(str(error)) from error
    have = traverse_util.flatten_dict(params, sep="/")
    want = traverse_util.flatten_dict(wanted["params"], sep="/")
    for name in sorted(set(have) | set(want)):
        sizes = [tree[name].shape if name in tree else "nothing" for tree in (have, want)]
        if sizes[0] != sizes[1]:
            raise UserError(f"array {name} is {sizes[0]}, the model of the config has {sizes[1]}")
