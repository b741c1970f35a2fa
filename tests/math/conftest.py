"""Mathematics is tested in float64, where a wrong formula cannot hide behind rounding."""

import os

import quick_compilation

os.environ["XLA_FLAGS"] = quick_compilation.added_to(os.environ)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The check that no key is used twice goes over every program, a fifth of the time. These draw
# nothing that other tests do not draw.
DRAW_NOTHING_NEW = {"test_linops", "test_local", "test_losses"}


@pytest.fixture(autouse=True, scope="module")
def keys_are_used_once(request):
    jax.config.update("jax_debug_key_reuse", request.module.__name__ not in DRAW_NOTHING_NEW)
