"""Tests drive the command line as users do: as a subprocess, in a folder of their own."""

import os

import pytest
from small_runs import runner_in


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
