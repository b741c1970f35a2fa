"""Optional packages, and what to say where one is missing."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

from hos_jax.errors import UserError


def import_optional(module: str, *, dataset: str, extra: str) -> ModuleType:
    """Import `module`, or say in one line which pip command provides it.

    Raises:
        UserError: the package, or one that it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise missing_package(error.name or module, dataset=dataset, extra=extra) from error


def package_folder(package: str, *, dataset: str, extra: str) -> Path:
    """The folder of an installed package, without importing it.

    Raises:
        UserError: the package is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing_package(package, dataset=dataset, extra=extra)
    return Path(next(iter(spec.submodule_search_locations)))


def missing_package(package: str, *, dataset: str, extra: str) -> UserError:
    """The error that names the missing package and the command that installs it."""
    return UserError(
        f'data set {dataset!r} needs the package {package!r}: pip install "hos_jax[{extra}]"'
    )
