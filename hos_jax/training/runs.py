"""A run read back from its folder: the model, its parameters, and what it was trained on."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from hos_jax import config as run_config
from hos_jax.errors import UserError
from hos_jax.models.hessian_model import FixedScoreModel
from hos_jax.models.score_model import ScoreModel
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.problem import Problem, denoiser_answer


@dataclasses.dataclass(frozen=True)
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

    @property
    def model(self) -> ScoreModel | FixedScoreModel:
        """The model that `params` belong to."""
        return self.problem.model

    @property
    def sigma(self) -> float:
        """The noise level of the run, data units."""
        return self.problem.config.noise

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C)."""
        return self.problem.data.image_shape


def load_run(workdir: Path | str) -> LoadedRun:
    """Read a run back from its folder: its newest checkpoint that can be read.

    Raises:
      UserError: if there is no run, or nothing of it can be read.
    """
    workdir = Path(workdir)
    return load_run_as(run_config.load(workdir), workdir)


def load_run_as(config: ml_collections.ConfigDict, workdir: Path) -> LoadedRun:
    """`load_run` with other settings of training and sampling than those in the folder.

    Raises:
      UserError: if there is no run, or it was made with other settings than `config`, or of other
        images.
    """
    run_config.check_same_run(run_config.load(workdir), config)
    problem = Problem.from_config(config)
    run_config.check_same_images(workdir, problem.identity())
    run_config.check_same_denoiser(workdir, denoiser_answer(problem))
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train it first")
    saved = Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints)
    with contextlib.closing(saved):
        step, state, details = saved.restore(problem.abstract_state())
    return LoadedRun(problem, state.best_params, step, details["seconds"])
