"""Trained weights that come with the package, small ones, to look at and to begin with."""

from pathlib import Path

from hos_jax.errors import UserError
from hos_jax.migrate.parameters import load_exported
from hos_jax.training.runs import LoadedRun

_FOLDER = Path(__file__).parent
# By name: what the weights are of. `export_parameters --half --examples=16` made the files. Of
# `diffusion_mnist5k` itself, with 48 features, the file would be larger than the 3 MB allowed here.
NAMES = {
    "demo": "`demo`: MNIST digits, sigma 0.5, local + low rank",
    "diffusion": "`diffusion_mnist5k` with model.ngf=40: MNIST digits by class, sigma 0.05 to 5",
}


def path_of(name: str) -> Path:
    """The file of the weights of this name; UserError for an unknown one."""
    if name not in NAMES:
        raise UserError(f"no pretrained run {name!r}; choose one of {', '.join(NAMES)}")
    return _FOLDER / f"{name}.safetensors"


def load_pretrained(name: str) -> LoadedRun:
    """A trained run that comes with the package, used as `load_run` gives it, by one of `NAMES`.

    Of its images a few held-out ones come with it, in `problem.data.held_out`; those that it was
    trained on do not, and one black image stands for them in `problem.data.train`:
    `hos_jax.migrate.import_checkpoint(name, folder)` makes a run with all of them. Parameters were
    kept in float16.

    Raises:
      UserError: for an unknown name.
    """
    return load_exported(path_of(name))
