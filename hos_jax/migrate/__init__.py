"""Between runs and files of others: checkpoints of the published code, exported parameters."""

from hos_jax.migrate.importing import Imported, import_checkpoint, published_config
from hos_jax.migrate.parameters import Parameters, export_parameters, read_parameters
from hos_jax.migrate.published import PublishedModel, recognise

__all__ = [
    "Imported",
    "Parameters",
    "PublishedModel",
    "export_parameters",
    "import_checkpoint",
    "published_config",
    "read_parameters",
    "recognise",
]
