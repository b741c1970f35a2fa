"""Trained weights that come with the package, small ones, to look at and to begin with."""

from pathlib import Path

from hos_jax.errors import UserError
from hos_jax.migrate.parameters import load_exported
from hos_jax.training.runs import LoadedRun

_FOLDER = Path(__file__).parent
# By name: what the weights are of. `export_parameters --half --examples=16` made the files.
NAMES = {
    "demo": "the run of `make demo`: MNIST digits, sigma 0.5, local + low rank, 1,000 steps",
}


def load_pretrained(name: str) -> LoadedRun:
    """A trained run that comes with the package, used as `load_run` gives it, by one of `NAMES`.

    Of its images a few held-out ones come with it, in `problem.data.held_out`; those that it was
    trained on do not. Parameters were kept in float16.

    Raises:
      UserError: for an unknown name.
    """
    if name not in NAMES:
        raise UserError(f"no pretrained run {name!r}; choose one of {', '.join(NAMES)}")
    return load_exported(_FOLDER / f"{name}.safetensors")
