"""Small runs for tests: an MLP on 8 x 8 digits, a few steps."""

import os
import shutil
import tempfile

import command_line
import pytest
import quick_compilation

# Before JAX is imported and before workers start: what one process compiles, all of them use.
_CACHE = tempfile.mkdtemp(prefix="jax_cache_") if "PYTEST_XDIST_WORKER" not in os.environ else None
if _CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"
    os.environ["XLA_FLAGS"] = quick_compilation.added_to(os.environ)

import jax  # noqa: E402

from hos_jax.config import default_config  # noqa: E402

jax.config.update("jax_debug_key_reuse", True)

SMALL = command_line.SMALL | {"model.rank": 3, "optim.lr": 1e-3, "optim.ema": 0.9}


def pytest_unconfigure():
    if _CACHE:
        shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def small_config():
    def make(**overrides):
        config = default_config()
        config.update_from_flattened_dict(SMALL)
        config.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in overrides.items()}
        )
        return config

    return make
