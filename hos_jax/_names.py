"""Names that load what they stand for when they are first used: public ones, and those of 0.1."""

import functools
import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# Modules of 0.1 by the folder that they are in now.
_FOLDERS = {
    "cli": "arguments commands interruption",
    "config": "runners saved_config",
    "evaluation": "evaluate figures generate held_out report",
    "linops": "lanczos matrix_functions",
    "losses": "objective",
    "migrate": "published tensor_files",
    "samplers": "diagnostics",
    "training": "checkpoint parallel problem",
    "uncertainty": "calibration inverse metrics",
}
# Old name -> new name, below hos_jax: modules of 0.1, and members that left their module.
MOVED = {name: f"{folder}.{name}" for folder, names in _FOLDERS.items() for name in names.split()}
MOVED |= {
    "checkpoint.free_name": "files.free_name",
    "config_keys": "config.keys",
    "data.photos": "data.packaged",
    "evaluate.LoadedRun": "training.runs.LoadedRun",
    "evaluate.load_run": "training.runs.load_run_as",
    "event_log": "training.logs",
    "models.refinenet_weights": "migrate.refinenet_weights",
    "models.registry": "config.networks",
    "run_log": "training.logs",
    "train": "training.loop",
    "train_state": "training.state",
}


def lazily(package: str, **files: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package that loads its files when they are used (PEP 562).

    `files` are its public files and folders, each with the names that the package hands on from it.
    """
    places = {name: file for file, names in files.items() for name in names.split()}

    def find(name: str) -> Any:
        if name in places:
            return getattr(importlib.import_module(f"{package}.{places[name]}"), name)
        if name in files:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return find, lambda: sorted({*vars(sys.modules[package]), *files, *places})


class _OldModule(types.ModuleType):
    """A module name of 0.1: says on every use what is used instead, and gives that."""

    def __getattr__(self, name: str) -> Any:
        # Python and its tools ask every module for such names; that is no use of it.
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        old = f"{self.__name__.removeprefix('hos_jax.')}.{name}"
        new = MOVED.get(old) or f"{MOVED[old.rpartition('.')[0]]}.{name}"
        module, _, member = new.rpartition(".")
        found = getattr(importlib.import_module(f"hos_jax.{module}"), member)
        warn(old, new)
        return found


def warn(old: str, new: str) -> None:
    """Say to who uses an old name, two calls up, what the new one is."""
    message = f"hos_jax.{old} is now hos_jax.{new}; the next version drops the old name"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def install_old_names() -> None:
    """Let `import hos_jax.OLD` and `from hos_jax.OLD import ...` find the old modules' names."""
    members = {name for name in MOVED if name.rpartition(".")[0] in MOVED}
    for name in MOVED.keys() - members:
        sys.modules.setdefault(f"hos_jax.{name}", _OldModule(f"hos_jax.{name}"))


def key_first(function: Callable[P, T]) -> Callable[P, T]:
    """Let a JAX key that comes later, as in 0.1, come first, with a warning."""

    def is_key(argument: Any) -> bool:
        kind = str(getattr(argument, "dtype", ""))
        # A key without a type of its own is two words or four.
        raw = kind == "uint32" and argument.shape in ((2,), (4,))
        return raw or kind.startswith("key<")

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        place = next((i for i, argument in enumerate(arguments) if is_key(argument)), 0)
        if place:
            message = f"{function.__name__} takes its key first; the next version needs it there"
            warnings.warn(message, DeprecationWarning, stacklevel=2)
            arguments = (arguments[place], *arguments[:place], *arguments[place + 1 :])
        return function(*arguments, **options)

    return call
