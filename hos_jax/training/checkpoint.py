"""Checkpoints with orbax: asynchronous, the last few and the best, checked when read."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from hos_jax.errors import StorageError, UserError, reason
from hos_jax.files import CONFIG_FILE, free_name
from hos_jax.training.parallel import process_index

logger = logging.getLogger(__name__)


class Restored(NamedTuple):
    """A checkpoint as read: its step, the state, and what was saved beside it."""

    step: int
    state: Any
    details: dict[str, Any]


def checksum(tree: Any) -> int:
    """CRC-32 over the bytes of all leaves in order."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), value)
    return value


class _LatestAndBest(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps the newest checkpoints and the one with the lowest held-out loss.

    The losses are read from the checkpoints, so that a resumed run knows those of the run before:
    orbax's own policy keeps for ever whatever it did not save itself.
    """

    def __init__(self, directory: Path, keep: int):
        self._directory, self._keep = directory, keep

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = set(sorted(steps)[-self._keep :])
        # Of equal losses the newest: those cut short by a signal have none, and count as infinite.
        kept.add(min(steps, key=lambda step: (self._loss(step), -step), default=None))
        return [step in kept for step in steps]

    def _loss(self, step: int) -> float:
        try:
            meta = json.loads((self._directory / str(step) / "meta" / "metadata").read_text())
            return math.inf if meta["held_out_loss"] is None else float(meta["held_out_loss"])
        except (OSError, ValueError, TypeError, KeyError):
            return math.inf


def _steps_in(directory: Path) -> list[int]:
    found = directory.iterdir() if directory.exists() else ()
    names = (path.name for path in found if path.is_dir())
    return sorted(int(name) for name in names if name.isdecimal())


def check_none_left(directory: Path) -> None:
    """Raise UserError where a run that begins would find the checkpoints of another."""
    if directory.is_dir() and _steps_in(directory):
        raise UserError(
            f"{directory} has the checkpoints of a run whose {CONFIG_FILE} is gone: put it back, "
            "or choose another folder; remove them if an import was broken off"
        )


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      directory: where they are; made if it is missing.
      keep: how many of the newest are kept, besides the one with the lowest held-out loss.
      discard_unfinished: remove what a save that was cut short has left; only for the one process
        that saves here.
    """

    def __init__(self, directory: Path, keep: int = 2, *, discard_unfinished: bool = False):
        self.directory = Path(directory).absolute()
        if not str(self.directory).isprintable():
            raise UserError(f"{self.directory} cannot hold checkpoints: its name is not UTF-8")
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_LatestAndBest(self.directory, keep),
            enable_async_checkpointing=True,
            # What orbax has noted beside each checkpoint is not read until the checkpoint is: one
            # whose notes are damaged must not keep the others from being found.
            lightweight_initialize=True,
            # The states are whole arrays on the host: no other process takes part.
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=process_index(),
                active_processes={process_index()},
                barrier_sync_key_prefix=f"process_{process_index()}",
            ),
            cleanup_tmp_directories=discard_unfinished,
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._failed = False

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint on disk, oldest first."""
        # Not the manager's list, which has a step from the moment that its saving starts.
        return _steps_in(self.directory)

    def save(self, step: int, state: Any, *, held_out_loss: float | None, details: dict) -> None:
        """Start to save host arrays in the background; returns once they are copied.

        Without a held-out loss it is never the best one. UserError if the save before failed, the
        folder is no longer there, or there is a checkpoint of this step or a later one.
        """
        meta = {**details, "checksum": checksum(state), "held_out_loss": held_out_loss}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        with self._named_failure():
            # The library would make the folder again, and the run be in two places.
            if not self.directory.exists():
                raise FileNotFoundError("it was moved or deleted meanwhile")
            if not self._manager.save(step, args=args):
                raise ValueError(f"there is one of step {step} or later")

    def check(self) -> None:
        """Raise UserError if saving in the background has failed."""
        with self._named_failure():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _named_failure(self) -> Iterator[None]:
        """Whatever goes wrong while saving, as one line that says what is left."""
        try:
            yield
        except Exception as error:
            self._failed = True
            raise StorageError(
                f"cannot save in {self.directory} ({reason(error)}): {self.kept()}"
            ) from error

    def kept(self) -> str:
        """What there is to go on from, in words for a message."""
        steps = self.steps()
        return f"the checkpoint of step {steps[-1]} is kept" if steps else "no checkpoint yet"

    def restore(self, template: Any, *, move_unreadable: bool = False) -> Restored:
        """The newest checkpoint that can be read, with a warning that names each that cannot.

        Args:
          template: a state of the same structure, shapes and dtypes (abstract arrays will do).
          move_unreadable: once one was read, rename newer ones into `corrupt_checkpoints` beside
            the folder, so that these steps can be saved again. Where none can be read, the fault
            may not be theirs.

        Raises:
          UserError: if none can be read.
        """
        unreadable: list[int] = []
        for step in reversed(self.steps()):
            try:
                restored = self._restore_step(step, template)
            except Exception as error:
                logger.warning(
                    "%s cannot be read (%s): trying the one before it",
                    self.directory / str(step),
                    reason(error),
                )
                unreadable.append(step)
                continue
            if move_unreadable and unreadable:
                folder = self.directory.parent / "corrupt_checkpoints"
                folder.mkdir(exist_ok=True)
                for name in map(str, unreadable):
                    (self.directory / name).rename(free_name(folder / name))
                self._manager.reload()
            return restored
        remedy = "check the path, or train from the start"
        if not unreadable:
            remedy = f"there is none yet: wait for it where the run is being trained; else {remedy}"
        raise UserError(f"no readable checkpoint in {self.directory}: {remedy}")

    def _restore_step(self, step: int, template: Any) -> Restored:
        host_template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), template)
        loaded = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(host_template), meta=ocp.args.JsonRestore()
            ),
        )
        details = dict(loaded.meta)
        if details.pop("checksum") != checksum(loaded.state):
            raise ValueError("its content does not match its checksum")
        for have, want in zip(
            jax.tree.leaves(loaded.state), jax.tree.leaves(host_template), strict=True
        ):
            if have.shape != want.shape or have.dtype != want.dtype:
                raise ValueError(f"an array has shape {have.shape} instead of {want.shape}")
        return Restored(step, loaded.state, details)

    def wait(self) -> None:
        """Return when everything given to `save` is on disk; raise UserError if saving failed."""
        with self._named_failure():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release the background threads; UserError for a failure not said before."""
        already_said = self._failed
        try:
            self.wait()
        except UserError:
            if not already_said:
                raise
        finally:
            with contextlib.suppress(Exception):
                self._manager.close()
