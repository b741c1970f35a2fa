"""What all tests share: compiled programs."""

import os
import shutil
from pathlib import Path

import quick_compilation

# Before JAX is imported and before workers start: what one process compiles, all of them use, the
# commands that they start too, and the next run of the tests. A small program takes 9 ms to
# compile, and 1 ms to read.
_CACHE = Path(__file__).parent.parent / "build" / "compiled_tests"
_MOST_BYTES = 2**30
if "PYTEST_XDIST_WORKER" not in os.environ:
    if sum(path.stat().st_size for path in _CACHE.glob("*")) > _MOST_BYTES:
        shutil.rmtree(_CACHE, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(_CACHE)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["XLA_FLAGS"] = quick_compilation.added_to(os.environ)
