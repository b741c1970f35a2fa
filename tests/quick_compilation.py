"""XLA flags with which tests compile quickly, as what they compile runs for a few steps only."""

from importlib.metadata import version

# LLVM's optimizations take longer than they gain. So does building small loops by MLIR, a third of
# the time of the tests; newer compilers do not know that flag and would end the process.
FLAGS = "--xla_backend_optimization_level=0"
if tuple(int(part) for part in version("jaxlib").split(".")[:2]) <= (0, 10):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"


def added_to(environment) -> str:
    """The value of XLA_FLAGS in `environment` with these flags, once."""
    set_by_user = environment.get("XLA_FLAGS", "")
    return set_by_user if FLAGS in set_by_user else f"{set_by_user} {FLAGS}".strip()
