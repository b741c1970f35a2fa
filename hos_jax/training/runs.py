"""A run read back from its folder: the model, its parameters, and what it was trained on."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from hos_jax import config as run_config
from hos_jax.data.image_data import ImageData
from hos_jax.errors import UserError
from hos_jax.files import expanded
from hos_jax.models.hessian_model import FixedScoreModel
from hos_jax.models.score_model import ScoreModel
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.problem import Problem, denoiser_answer


@dataclasses.dataclass(frozen=True, repr=False)
class LoadedRun:
    """A run read back from its folder; `hos_jax.pointwise` evaluates it at one point.

    Attributes:
      problem: what the config describes: the data, the model, the losses.
      params: the parameters, their average where one was kept.
      step: training steps behind the parameters.
      training_seconds: what they took.
    """

    problem: Problem
    params: Any
    step: int
    training_seconds: float

    def __repr__(self) -> str:
        low, high = self.sigma_range
        sigma = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        return f"LoadedRun(sigma={sigma}, image_shape={self.image_shape}, step={self.step})"

    @property
    def model(self) -> ScoreModel | FixedScoreModel:
        """The model that `params` belong to."""
        return self.problem.model

    @property
    def sigma(self) -> float:
        """The noise level of the run, data units; of one of a range, that at which it is tested."""
        return self.problem.config.noise

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The smallest and the largest noise level that it was trained at, data units; the same for
        a run of one."""
        config = self.problem.config
        low, high = config.model.smallest_noise, config.model.largest_noise
        return (config.noise, config.noise) if low is None else (low, high)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.problem.data.image_shape


def load_run(workdir: Path | str, *, images: bool = True) -> LoadedRun:
    """Read a run back from its folder: its newest checkpoint that can be read.

    Args:
      workdir: the folder.
      images: whether to load what it was trained on and held out, too. Without them, where the run
        knows their shape, `problem.data` has one black image in either part; it need not be where
        they are.

    Raises:
      UserError: if there is no run, nothing of it can be read, or the images are others.
    """
    workdir = expanded(workdir)
    config = run_config.load(workdir)
    form = None if images else run_config.image_form(workdir)
    if form is None:
        return load_run_as(config, workdir)
    try:
        blank = ImageData.without_images(config.data.name, form)
    except (ValueError, KeyError, TypeError) as error:
        what = f"{workdir}: what {run_config.CONFIG_FILE} says of the images cannot be read"
        raise UserError(f"{what} ({error})") from error
    return _restored(Problem.from_config(config, blank), workdir)


def load_run_as(config: ml_collections.ConfigDict, workdir: Path) -> LoadedRun:
    """`load_run` with other settings of training and sampling than those in the folder.

    Raises:
      UserError: if there is no run, or it was made with other settings than `config`, or of other
        images.
    """
    run_config.check_same_run(run_config.load(workdir), config)
    problem = Problem.from_config(config)
    run_config.check_same_images(workdir, problem.identity(), problem.data.form)
    return _restored(problem, workdir)


def _restored(problem: Problem, workdir: Path) -> LoadedRun:
    saved_answer = run_config.saved_denoiser_answer(workdir)
    run_config.check_same_denoiser(workdir, saved_answer, denoiser_answer(problem))
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train it first")
    keep = problem.config.training.keep_checkpoints
    with contextlib.closing(Checkpoints(workdir / "checkpoints", keep)) as saved:
        step, state, details = saved.restore(problem.abstract_state())
    return LoadedRun(problem, state.best_params, step, details["seconds"])
