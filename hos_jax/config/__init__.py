"""The config of a run: its defaults, its checks, its file in the run folder, and its networks."""

from hos_jax.config.checks import SAMPLERS, validate
from hos_jax.config.defaults import default_config
from hos_jax.config.run_file import (
    CONFIG_FILE,
    IDENTITY,
    check_same_images,
    check_same_run,
    differences,
    from_plain,
    load,
    save,
    to_plain,
    versions,
)
from hos_jax.config.runners import RUNNERS, apply_runner

__all__ = [
    "CONFIG_FILE",
    "IDENTITY",
    "RUNNERS",
    "SAMPLERS",
    "apply_runner",
    "check_same_images",
    "check_same_run",
    "default_config",
    "differences",
    "from_plain",
    "load",
    "save",
    "to_plain",
    "validate",
    "versions",
]
