"""Tests drive the command line as users do: as a subprocess, in a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "data.name": "digits",
    "model.name": "mlp",
    "model.ngf": 16,
    "model.depth": 1,
    "model.data_std": 0.5,
    "training.steps": 6,
    "training.batch_size": 8,
    "training.log_every": 2,
    "training.evaluate_every": 3,
    "training.checkpoint_every": 2,
    "sampling.steps": 5,
    "sampling.chains": 4,
    "sampling.images": 2,
}


def as_flags(overrides):
    return [f"--config.{key}={value}" for key, value in overrides.items()]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """Compiled programs are shared between commands, and compiled quickly rather than well.

    The big networks are hundreds of fused loops, which XLA's CPU back end takes minutes to optimize
    and these tests run for a few steps.
    """
    shared = tmp_path_factory.getbasetemp().parent / "jax_cache"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
    return {
        **os.environ,
        "XLA_FLAGS": flags.strip(),
        "JAX_COMPILATION_CACHE_DIR": str(shared),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }


@pytest.fixture
def command(tmp_path, environment):
    """Run `python main.py ...` with runs in `tmp_path`; returns the finished process."""
    return runner_in(tmp_path, environment)


def runner_in(folder, environment):
    """A function that runs `python main.py ...` with its runs in `folder`."""

    def run(*arguments, stdin=None, small=True):
        overrides = as_flags(SMALL) if small else []
        full = [sys.executable, str(ROOT / "main.py"), "--run", str(folder), *arguments]
        return subprocess.run(
            full + [flag for flag in overrides if flag.partition("=")[0] not in str(arguments)],
            env=environment,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            cwd=ROOT,
        )

    return run
