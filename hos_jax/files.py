"""Files that are there whole or not at all, and folders that one process at a time writes to."""

import contextlib
import datetime
import fcntl
import itertools
import os
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from hos_jax.errors import InUseError, UserError

LOCK_FILE = "lock"
CONFIG_FILE = "config.json"


def expanded(path: Path | str | os.PathLike) -> Path:
    """A path with its `~` replaced by the home folder; one of no known user stays as it is."""
    return Path(os.path.expanduser(path))


def write_atomically(path: Path, content: str | bytes | Iterable[str]) -> None:
    """Write a file, of text or its parts or of bytes, so that a kill leaves the old content or the
    new alone, and of several who write at once one of them all."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            parts = [content] if isinstance(content, str | bytes) else content
            file.writelines(part.encode() if isinstance(part, str) else part for part in parts)
            file.flush()
            # Or the new name could reach the disk before the content, and a power cut come between.
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def try_to_write(folder: Path) -> None:
    """Raise OSError where a file of 100 kB cannot be written in a folder; none is left there."""
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(100_000))


def check_run_path(folder: Path) -> None:
    """Raise UserError for a folder from which a checkpoint could not be read again: orbax takes
    some characters of the whole path for a pattern, finds none of its files and says nothing."""
    if found := [character for character in "[]*?\\" if character in str(folder.absolute())]:
        raise UserError(
            f"{folder.absolute()} cannot hold checkpoints, with {' '.join(found)} in its path: "
            "choose another folder or rename it"
        )


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, with its settings and its checkpoints."""
    return (folder / CONFIG_FILE).is_file() and (folder / "checkpoints").is_dir()


def free_name(path: Path) -> Path:
    """A name beside `path` that nothing has: `path` with a time stamp."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    endings = itertools.chain([""], (f"-{count}" for count in itertools.count(2)))
    names = (path.with_name(f"{path.name}.{stamp}{ending}") for ending in endings)
    return next(name for name in names if not name.exists())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an existing folder; it ends with the process, however that ends.

    Raises:
      InUseError, OSError: if another process holds it; if the lock file cannot be written.
    """
    path = folder / LOCK_FILE
    # Not truncated when it is opened: it says who holds it.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise _busy(folder, holder) from error
        # The folder may have been moved aside since it was opened, and another one made.
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
            raise _busy(folder, "unknown")
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _busy(folder: Path, holder: str) -> InUseError:
    return InUseError(f"{folder} is in use by another process (id {holder})")
