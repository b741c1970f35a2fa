"""Files of arrays: read without executing anything, written in the safetensors format.

A pickle is a program. The published `torch.load(path)` runs it; here only PyTorch's weights-only
reader, which knows arrays and plain containers and nothing else, ever sees one.
"""

import importlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hos_jax.errors import UserError, missing_package, reason
from hos_jax.files import write_atomically


def read(path: Path) -> tuple[Any, dict[str, str]]:
    """Read a PyTorch checkpoint or a safetensors file.

    Returns:
      The content as nested lists and mappings with NumPy arrays (a flat mapping for safetensors),
      and the metadata of a safetensors file, empty otherwise. Optimizer states are left out.

    Raises:
      UserError: for a file that is missing or unreadable, or that would execute code.
    """
    if not path.is_file():
        raise UserError(f"no file {path}: check the path")
    with path.open("rb") as file:
        # A length and a JSON object, as neither zip nor pickle begins.
        begin = file.read(9)
    if len(begin) < 9:
        raise UserError(f"{path} is empty or cut off")
    if begin[8:] == b"{":
        return _read_safetensors(path)
    if not _may_be_torch(path, begin):
        raise UserError(f"{path} is neither a PyTorch checkpoint nor a safetensors file")
    return _read_torch(path), {}


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays by name to a safetensors file that is there whole or not at all.

    Raises:
      UserError: if there is such a file already, or it cannot be written.
    """
    if path.exists():
        raise UserError(f"{path} exists: choose another name")
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # `save_file` makes files that nobody else may read.
        write_atomically(path, save(contiguous, dict(metadata)))
    except FileExistsError as error:
        raise UserError(f"{path} cannot be written: {path.parent} is no folder") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be written: {reason(error)}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safe_open(path, "numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(f"{path} cannot be read as safetensors: {reason(error)}") from error


def _may_be_torch(path: Path, begin: bytes) -> bool:
    """Whether a file is a pickle or a zip with one in it: others are not worth a package."""
    if begin[:2] != b"PK":
        return begin[:1] == b"\x80"
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("data.pkl") for name in archive.namelist())
    except Exception:  # whatever its damage drives the reader into: PyTorch will say what it is
        return True


def _read_torch(path: Path) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError as error:
        raise missing_package("reading a PyTorch checkpoint", "torch", "import") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # Its unpickler raises whatever a damaged or hostile file drives it into.
    except Exception as error:
        what = f"cannot be read as a PyTorch checkpoint: {reason(error)}"
        if refused := re.search(r"GLOBAL (\S+)", str(error)):
            what = f"is refused: besides arrays it holds {refused[1]}, which could execute code"
        raise UserError(f"{path} {what}") from error
    return _to_numpy(content, torch)


def _to_numpy(content: Any, torch: ModuleType) -> Any:
    if isinstance(content, torch.Tensor):
        return content.detach().to(torch.float32).numpy()
    if isinstance(content, Mapping):
        if "param_groups" in content:
            return {}
        return {name: _to_numpy(value, torch) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_to_numpy(value, torch) for value in content]
    return content
