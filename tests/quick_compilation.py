"""How tests compile: quickly, as what they compile runs for a few steps only, and once for all
processes of one run of pytest."""

import os
import shutil
import tempfile
from importlib.metadata import version

# LLVM's optimizations take longer than they gain. So does building small loops by MLIR, a third of
# the time of the tests; newer compilers do not know that flag and would end the process.
FLAGS = "--xla_backend_optimization_level=0"
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) <= (0, 10):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

_first_process = "PYTEST_XDIST_WORKER" not in os.environ


def added_to(environment) -> str:
    """The value of XLA_FLAGS in `environment` with these flags, once."""
    set_by_user = environment.get("XLA_FLAGS", "")
    return set_by_user if FLAGS in set_by_user else f"{set_by_user} {FLAGS}".strip()


def share_programs() -> None:
    """To be called before JAX is imported: workers and commands that are started from here take
    from a folder what one of them has compiled. One small program needs 15 ms, and 2 ms from it."""
    if _first_process:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax_cache_")
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        os.environ["XLA_FLAGS"] = added_to(os.environ)


def remove_programs() -> None:
    if _first_process:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
