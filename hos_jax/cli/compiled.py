"""Compiled programs are kept between starts, in the user's cache folder."""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

from hos_jax.errors import UserError

# Programs that were not used for the longest time make room for others.
LARGEST = 2 * 2**30


def cache_folder() -> Path | None:
    """The folder for this kind of machine: a program for one processor may end on another. None for
    a user who has no home."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():
        try:
            base = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
        except RuntimeError:
            return None
    return base / "hos_jax" / f"compiled-{platform.machine()}-{_processor()}"


def _processor() -> str:
    """A short name of what the processor can do."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    said = [line for line in lines if line.startswith(("model name", "flags", "Features"))]
    text = "\n".join(sorted(set(said))) or platform.processor()
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def keep_compiled(folder: str | None) -> None:
    """Let JAX read and write compiled programs in a folder.

    Args:
      folder: None for the user's cache folder, of at most `LARGEST` bytes, unless JAX was told
        another one already or it cannot be written; empty to keep nothing.

    Raises:
      UserError: for a folder that was asked for and cannot be made.
    """
    import jax

    # Its attributes are made when it runs.
    settings: Any = jax.config
    if folder == "":
        settings.update("jax_enable_compilation_cache", False)
        return
    if folder is None and settings.jax_compilation_cache_dir is not None:
        return
    path = Path(folder).absolute() if folder else cache_folder()
    if path is None:
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if folder is None:
            return
        raise UserError(f"--compilation_cache={folder} cannot be made: {error.strerror}") from error
    if folder is None:
        if not os.access(path, os.W_OK):
            return
        _remove_unfinished(path)
        if settings.jax_compilation_cache_max_size == -1:
            settings.update("jax_compilation_cache_max_size", LARGEST)
    settings.update("jax_compilation_cache_dir", str(path))


def _remove_unfinished(folder: Path) -> None:
    """Remove programs whose writing a kill or a full disk ended: JAX writes when one was last used
    after it, and would warn of an unfinished one at every start and never replace it."""
    for path in folder.glob("*-cache"):
        used = path.with_name(f"{path.name.removesuffix('-cache')}-atime")
        if not used.is_file() or not used.stat().st_size:
            with contextlib.suppress(OSError):
                path.unlink()
