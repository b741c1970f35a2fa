"""Between runs and files: checkpoints of the published code, exported and shipped parameters."""

from hos_jax.migrate.importing import Imported as Imported
from hos_jax.migrate.importing import import_checkpoint as import_checkpoint
from hos_jax.migrate.importing import published_config as published_config
from hos_jax.migrate.parameters import Parameters as Parameters
from hos_jax.migrate.parameters import export_parameters as export_parameters
from hos_jax.migrate.parameters import load_exported as load_exported
from hos_jax.migrate.parameters import read_parameters as read_parameters
from hos_jax.migrate.pretrained import load_pretrained as load_pretrained
from hos_jax.migrate.published import PublishedModel as PublishedModel
from hos_jax.migrate.published import recognise as recognise
