"""Small runs for tests: an MLP on 8 x 8 digits, a few steps."""

import command_line
import jax
import pytest

from hos_jax.config import default_config

jax.config.update("jax_debug_key_reuse", True)

SMALL = command_line.SMALL | {"model.rank": 3, "optim.lr": 1e-3, "optim.ema": 0.9}


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
