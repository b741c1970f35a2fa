"""What makes tests compile quickly, as what they compile runs for a few steps only.

On import, how seldom Python looks for garbage in this process; flags of XLA for others; and one
context of MLIR for a whole process.
"""

import functools
import gc
from importlib.metadata import version

# LLVM's optimizations take longer than they gain, and programs this small longer in parts than in
# one piece. So does building small loops by MLIR, a third of the time of the tests; newer compilers
# do not know that flag and would end the process.
FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) <= (0, 10):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"

# Tracing makes many objects, hardly any of them garbage that only the collector finds.
gc.set_threshold(100_000, 50, 100)


@functools.cache
def share_context() -> None:
    """Let all that JAX lowers here share one context.

    To make one takes 3.5 ms, where a small program takes 20 in all, and each is kept with what was
    lowered in it: tests of structures and posteriors used 2.5 GB, now 0.9. A JAX that has no such
    function makes one for each program.
    """
    from jax._src.interpreters import mlir

    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        return
    shared = functools.cache(make)

    def make_ir_context():
        # What is lowered within another program must not land in that.
        try:
            within = mlir.ir.Context.current is not None
        except ValueError:
            within = False
        return make() if within else shared()

    mlir.make_ir_context = make_ir_context


def added_to(environment) -> str:
    """The value of XLA_FLAGS in `environment` with these flags, once."""
    set_by_user = environment.get("XLA_FLAGS", "")
    return set_by_user if FLAGS in set_by_user else f"{set_by_user} {FLAGS}".strip()
