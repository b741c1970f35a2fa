"""Configs by name: one small file each, with a function `get_config`."""

import runpy
from pathlib import Path

import ml_collections

from hos_jax.errors import UserError, did_you_mean

# In a wheel they lie in the package, in a checkout beside it. The user's own come first.
_IN_A_WHEEL = Path(__file__).parent / "experiments"
FOLDERS = (
    Path("configs"),
    _IN_A_WHEEL if _IN_A_WHEEL.is_dir() else Path(__file__).parents[2] / "configs",
)


def find_config(name: str) -> Path:
    """The file of a config by name, with or without .py or .yml, in `configs` or the package, or by
    path; see `named_config`."""
    given = Path(name)
    if given.suffix == ".py" and given.is_file():
        return given
    stem = given.stem if given.suffix in (".py", ".yml", ".yaml") else given.name
    if given.parent in (Path(), Path("configs")):
        for folder in FOLDERS:
            path = folder / f"{stem}.py"
            if path.is_file():
                return path
    # Not a script of that name in the folder where one is.
    beside = given.parent / f"{stem}.py"
    if (given.suffix or given.parent != Path()) and beside.is_file():
        return beside
    if given.is_file():
        raise UserError(
            f"the config {name!r}: a config file is of Python, and its name ends in .py"
        )
    known = sorted({path.stem for folder in FOLDERS for path in folder.glob("[!_]*.py")})
    raise UserError(f"no config {name!r}: {did_you_mean(stem, known)}known are {', '.join(known)}")


def named_config(name: str) -> ml_collections.ConfigDict:
    """The config of a name or a path, as `--config` takes it.

    Raises:
      UserError: if there is none; lists those that there are.
    """
    return runpy.run_path(str(find_config(name)))["get_config"]()
