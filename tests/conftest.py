"""What all tests share: compiled programs."""

import os
import shutil
import sys
import tempfile

import pytest
import quick_compilation

# Before JAX is imported and before workers start: what one process compiles, all of them use, the
# commands that they start too. A small program takes 9 ms to compile, and 1 ms to read. In a folder
# that JAX_COMPILATION_CACHE_DIR names they are kept for the next run.
_CACHE = None
if "PYTEST_XDIST_WORKER" not in os.environ:
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        _CACHE = tempfile.mkdtemp(prefix="jax_cache_")
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _CACHE
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XLA_FLAGS"] = quick_compilation.added_to(os.environ)
    # No program need say where each of its operations was written.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")


def pytest_unconfigure():
    if _CACHE:
        shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def few_programs_at_once():
    """JAX keeps what it lowered a program from, and lowers the more slowly the more it keeps."""
    if "jax" in sys.modules:
        quick_compilation.share_context()
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
