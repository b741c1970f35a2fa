"""Runs out of checkpoints of the published code, or out of exported parameters."""

import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from hos_jax import config as run_config
from hos_jax.config.networks import make_model
from hos_jax.config.runners import RUNNERS, apply_runner
from hos_jax.errors import StorageError, UserError, did_you_mean
from hos_jax.files import check_run_path, expanded, locked
from hos_jax.migrate import tensor_files
from hos_jax.migrate.parameters import check_fits, from_arrays, with_denoiser
from hos_jax.migrate.pretrained import NAMES, path_of
from hos_jax.migrate.published import PublishedModel, recognise
from hos_jax.models.score_model import outputs_of
from hos_jax.noise import stream_key
from hos_jax.training.checkpoint import Checkpoints, check_none_left
from hos_jax.training.problem import Problem, denoiser_answer
from hos_jax.training.state import init_state

logger = logging.getLogger(__name__)


def published_config(model: PublishedModel) -> ml_collections.ConfigDict:
    """The published settings for what a checkpoint holds: its sizes, units, data and losses.

    The published configs have `loss: dsm`, which to both runners of the second order means `dsm_vr`
    for s1 and `d2sm` for s2.
    """
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
            "loss.first_order": "dsm" if model.head == "none" else "dsm_vr",
            "loss.second_order": "d2sm",
            "loss.stop_gradient_score1": False,
            "optim.clip": 0.0,
            "optim.ema": 0.999 if model.averaged else 0.0,
            "training.batch_size": 100 if model.head == "none" else 40,
        }
    )
    apply_runner(config, next(name for name in RUNNERS if RUNNERS[name].head == model.head))
    return config


@dataclasses.dataclass(frozen=True)
class Imported:
    """What an import found and made: what the file holds in one line, the config of the new run,
    and the mean squared error of so many denoised held-out images, or None; that of the noise is
    sigma^2.
    """

    description: str
    config: ml_collections.ConfigDict
    denoise_mse: float | None
    checked_images: int


def import_checkpoint(
    source: Path | str,
    workdir: Path | str,
    overrides: Mapping[str, Any] | None = None,
    *,
    checked_images: int = 16,
    prepare: Callable[[], None] = lambda: None,
) -> Imported:
    """Make a run of a checkpoint of the published code, or of an exported file.

    Args:
      source: the published `checkpoint.pth`, the same state dictionaries as safetensors, or a file
        of `export_parameters`; or the name of weights that come with the package.
      workdir: the new run folder.
      overrides: config keys that the file does not tell, such as {"noise": 0.5}.
      checked_images: how many held-out images to denoise, to see that s1 removes noise and, where
        the file does not tell, which of two networks is s1; 0 for none.
      prepare: called once all is read and right, before the folder is written.

    Raises:
      UserError: for a file that cannot be imported, or a folder that holds a run.
    """
    source, workdir = expanded(source), expanded(workdir)
    if str(source) in NAMES and not source.is_file():
        source = path_of(str(source))
    if not source.is_file():
        raise UserError(f"no file {source}: {did_you_mean(str(source), NAMES)}check the path")
    content, metadata = tensor_files.read(source)
    found, answer, trained_on = None, None, None
    if "format" in metadata:
        exported = from_arrays(source, content, metadata)
        _check_overrides(exported.config, overrides or {})
        named = (overrides or {}).get("model.denoiser")
        config, step = with_denoiser(source, exported.config, named), exported.step
        answer, trained_on = exported.denoiser_answer, exported.images
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
    check_fits(source, config, problem.data.image_shape, params)
    run_config.check_same_denoiser(source, answer, denoiser_answer(problem))
    best = params if ema is None else ema
    mse = _denoise_mse(problem, best["score1"], checked_images) if found else None
    if trained_on is not None and trained_on != problem.identity():
        logger.warning(
            "the images here are not those that these parameters were trained on: of those that "
            "are held out here they may have seen some"
        )
        trained_on = None
    prepare()
    _write_run(problem, workdir, params, ema, step, answer, trained_on)
    return Imported(description, config, mse, min(checked_images, len(problem.data.held_out)))


def _check_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, Any]) -> None:
    """UserError for settings under which the parameters of an exported file were not trained."""
    for key, value in overrides.items():
        if (key != "noise" and not key.startswith("model.")) or key == "model.denoiser":
            continue
        saved = functools.reduce(getattr, key.split("."), config)
        if value != saved:
            raise UserError(f"{key}={value}, but the file is of {key}={saved}: leave it as it is")


def _in_order(problem: Problem, found: PublishedModel, images: int) -> PublishedModel:
    """The model, its two networks exchanged where only the one taken for s2 removes noise."""
    if not found.order_is_assumed or not images:
        return found
    names = "diagonal", "score1"
    first, second = (_denoise_mse(problem, found.params[name], images) for name in names)
    if first < problem.config.noise**2 <= second:
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
    noise = jax.random.normal(stream_key("imported networks", config.seed), clean.shape)
    noisy = clean + config.noise * noise
    outputs = outputs_of(network, {"params": {"score1": score1}}, noisy, config.noise)
    denoised = noisy + config.noise**2 * outputs.score1.reshape(noisy.shape)
    return float(jnp.mean(jnp.square(denoised - clean)))


def _write_run(
    problem: Problem,
    workdir: Path,
    params: Any,
    ema: Any,
    step: int,
    answer: list[float] | None = None,
    images: dict[str, Any] | None = None,
) -> None:
    """The run folder as training leaves it: config, and one checkpoint of an optimizer at rest."""
    check_run_path(workdir)
    state = init_state({"params": params}, problem.optimizer, problem.config.optim.ema, step)
    averages = None if ema is None else {"params": ema}
    state = dataclasses.replace(state, ema_params=averages)
    workdir.mkdir(parents=True, exist_ok=True)
    with locked(workdir):
        if (workdir / run_config.CONFIG_FILE).exists():
            raise UserError(f"{workdir} already holds a run: choose another folder")
        check_none_left(workdir / "checkpoints")
        keep = problem.config.training.keep_checkpoints
        try:
            with contextlib.closing(Checkpoints(workdir / "checkpoints", keep)) as checkpoints:
                # Not evaluated: every checkpoint that training saves after it counts as better.
                state, details = jax.device_get(state), {"seconds": 0.0}
                checkpoints.save(step, state, held_out_loss=float("inf"), details=details)
        except StorageError as error:
            # Of a run that training saves there would be something to go on from.
            raise UserError(str(error)) from error
        # Last: a folder without it is no run.
        form = None if images is None else problem.data.form
        run_config.save(problem.config, workdir, images, form, answer)
