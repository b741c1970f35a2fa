"""A run read back from its folder: the model, its parameters, and what it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_collections

from hos_jax import config as run_config
from hos_jax.errors import UserError
from hos_jax.training.checkpoint import Checkpoints
from hos_jax.training.problem import Problem


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run read back from its folder."""

    problem: Problem
    params: Any
    step: int
    training_seconds: float


def load_run(config: ml_collections.ConfigDict, workdir: Path) -> LoadedRun:
    """Read the newest readable checkpoint of a run.

    Raises:
      UserError: if there is no run, or it was made with other settings than `config`.
    """
    run_config.check_same_run(run_config.load(workdir), config)
    problem = Problem.from_config(config)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir} has no checkpoints yet: train it first")
    checkpoints = Checkpoints(workdir / "checkpoints", config.training.keep_checkpoints)
    try:
        restored = checkpoints.restore(problem.abstract_state())
    finally:
        checkpoints.close()
    state = restored.state
    return LoadedRun(problem, state.best_params, restored.step, restored.details["seconds"])
