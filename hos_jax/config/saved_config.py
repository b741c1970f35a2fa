"""A config file like those of `experiments`, whose settings are those of a run on disk."""

import ml_collections

from hos_jax.config.run_file import load
from hos_jax.files import expanded


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config of the run in `workdir`; UserError if there is none, or it cannot be read."""
    return load(expanded(workdir))
