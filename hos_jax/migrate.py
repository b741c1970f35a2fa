"""Runs out of checkpoints of the published code, and parameters out of runs."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import traverse_util

from hos_jax import config as run_config
from hos_jax import tensor_files
from hos_jax.checkpoint import Checkpoints
from hos_jax.errors import UserError
from hos_jax.evaluate import load_run
from hos_jax.files import locked
from hos_jax.models.registry import make_model
from hos_jax.models.score_model import outputs_of
from hos_jax.noise import step_key
from hos_jax.problem import EVALUATION_STEP, Problem
from hos_jax.published import PublishedModel, recognise
from hos_jax.runners import RUNNERS, apply_runner
from hos_jax.train_state import init_state

logger = logging.getLogger(__name__)

EXPORT_FORMAT = "hos_jax parameters 1"


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Parameters of a model with the config that made them: what an exported file holds.

    `make_model(config.model).apply({"params": params}, noisy, sigma)` gives the scores.

    Attributes:
      config: everything that made the run.
      params: nested dictionary of arrays.
      image_shape: (H, W, C).
      step: training steps behind the parameters.
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
    run = load_run(config, workdir)
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
    return _exported(path, *tensor_files.read(path))


def _exported(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Parameters:
    if metadata.get("format") != EXPORT_FORMAT:
        raise UserError(f"{path} was not written by export_parameters")
    try:
        config = run_config.from_plain(json.loads(metadata["config"]))
        shape = tuple(json.loads(metadata["image_shape"]))
        step = int(metadata["step"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"the metadata of {path} cannot be read: {error}") from error
    run_config.validate(config)
    params = traverse_util.unflatten_dict(dict(arrays), sep="/")
    _check_fits(config, shape, params)
    return Parameters(config, params, shape, step)


def _check_fits(config: ml_collections.ConfigDict, shape: tuple[int, ...], params: Any) -> None:
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


def published_config(model: PublishedModel) -> ml_collections.ConfigDict:
    """The published settings for what a checkpoint holds: its sizes, units, data and losses."""
    config = run_config.default_config()
    colour = model.channels == 3
    config.update_from_flattened_dict(
        {
            "data.name": "cifar10" if colour else "mnist",
            "data.random_flip": colour,
            "model.name": "refinenet",
            "model.ngf": model.features,
            "model.rank": model.rank or config.model.rank,
            "model.networks": "per_output",
            "model.positive_definite": False,
            "model.output_units": "score",
            "model.data_std": 0.0,
            "loss.first_order": "dsm",
            "loss.second_order": "d2sm_vr",
            "loss.stop_gradient_score1": False,
            "optim.clip": 0.0,
            "optim.ema": 0.999 if model.averaged else 0.0,
            "training.batch_size": 100 if model.head == "none" else 40,
        }
    )
    runner = next(name for name, runner in RUNNERS.items() if runner.head == model.head)
    apply_runner(config, runner)
    return config


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import found and made.

    Attributes:
      description: one line that says what the file holds.
      config: of the new run.
      denoise_mse: mean squared error of the denoised held-out images that were looked at, or None;
        the noise itself has sigma^2.
    """

    description: str
    config: ml_collections.ConfigDict
    denoise_mse: float | None


def import_checkpoint(
    source: Path,
    workdir: Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    checked_images: int = 16,
    prepare: Callable[[], None] = lambda: None,
) -> Imported:
    """Make a run of a checkpoint of the published code, or of an exported file.

    Args:
      source: the published `checkpoint.pth`, the same state dictionaries as safetensors, or a file
        of `export_parameters`.
      workdir: the new run folder.
      overrides: config keys that the file does not tell, such as {"noise": 0.5}.
      checked_images: how many held-out images to denoise, to see that s1 removes noise and, where
        the file does not tell, which of two networks is s1; 0 for none.
      prepare: called once all is read and right, before the folder is written.

    Raises:
      UserError: for a file that cannot be imported, or a folder that holds a run.
    """
    content, metadata = tensor_files.read(source)
    found = None
    if "format" in metadata:
        exported = _exported(source, content, metadata)
        config, step = exported.config, exported.step
        params, ema = exported.params, exported.params if exported.config.optim.ema else None
        description = f"exported parameters of {config.runner or 'a run'}, step {step}"
    else:
        found = recognise(content)
        if "noise" not in (overrides or {}):
            raise UserError(f"{source} does not tell the noise level: give it with --noise")
        config, step = published_config(found), found.step
        description = found.description
    config.comment = f"imported from {source.name}: {description}"
    config.update_from_flattened_dict(dict(overrides or {}))
    problem = Problem.from_config(config)
    if found is not None:
        found = _in_order(problem, found, checked_images)
        params, ema = found.params, found.ema_params
    if bool(config.optim.ema) != (ema is not None):
        raise UserError(f"optim.ema={config.optim.ema} does not fit the file: leave it as it is")
    _check_fits(config, problem.data.image_shape, params)
    best = params if ema is None else ema
    mse = _denoise_mse(problem, best["score1"], checked_images) if found else None
    prepare()
    _write_run(problem, workdir, params, ema, step)
    return Imported(description, config, mse)


def _in_order(problem: Problem, found: PublishedModel, images: int) -> PublishedModel:
    """The model, its two networks exchanged where only the one taken for s2 removes noise."""
    if not found.order_is_assumed or not images:
        return found
    noise = problem.config.noise**2
    first, second = (
        _denoise_mse(problem, found.params[name], images) for name in ("diagonal", "score1")
    )
    if first < noise <= second:
        logger.info("the first network of the file removes noise, the second does not: it is s1")
        return found.swapped()
    return found


def _denoise_mse(problem: Problem, score1: Any, images: int) -> float | None:
    """Mean squared error of held-out images denoised by one network, data units squared."""
    if not images:
        return None
    config = problem.config
    network = make_model(config.model).clone(head=None, third_order=False)
    clean = problem.data.to_float(jnp.asarray(problem.data.held_out[:images]))
    noise = jax.random.normal(step_key(config.seed, EVALUATION_STEP), clean.shape)
    noisy = clean + config.noise * noise
    outputs = outputs_of(network, {"params": {"score1": score1}}, noisy, config.noise)
    denoised = noisy + config.noise**2 * outputs.score1.reshape(noisy.shape)
    return float(jnp.mean(jnp.square(denoised - clean)))


def _write_run(problem: Problem, workdir: Path, params: Any, ema: Any, step: int) -> None:
    """The run folder as training leaves it: config, and one checkpoint of an optimizer at rest."""
    if (workdir / run_config.CONFIG_FILE).exists():
        raise UserError(f"{workdir} already holds a run: choose another folder")
    state = init_state({"params": params}, problem.optimizer, problem.config.optim.ema)
    state = dataclasses.replace(
        state,
        step=jnp.asarray(step, jnp.int32),
        ema_params=None if ema is None else {"params": ema},
    )
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        checkpoints = Checkpoints(workdir / "checkpoints", problem.config.training.keep_checkpoints)
        try:
            # Not evaluated: every checkpoint that training saves after it counts as better.
            checkpoints.save(
                step, jax.device_get(state), held_out_loss=float("inf"), details={"seconds": 0.0}
            )
        finally:
            checkpoints.close()
        run_config.save(problem.config, workdir)
