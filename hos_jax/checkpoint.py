"""Checkpoints with orbax: asynchronous, the last few and the best, checked when read."""

from __future__ import annotations

import datetime
import logging
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from hos_jax.errors import UserError

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


def free_name(path: Path) -> Path:
    """A name beside `path` that nothing has: `path` with a time stamp."""
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    target = path.with_name(f"{path.name}.{stamp}")
    count = 1
    while target.exists():
        count += 1
        target = path.with_name(f"{path.name}.{stamp}-{count}")
    return target


class Checkpoints:
    """The checkpoints of one run, in one folder.

    Args:
      directory: where they are; made if it is missing.
      keep: how many of the newest are kept, besides the one with the lowest held-out loss.
    """

    def __init__(self, directory: Path, keep: int = 2):
        self.directory = Path(directory).absolute()
        policies = ocp.checkpoint_managers
        preservation = policies.AnyPreservationPolicy(
            [
                policies.LatestN(keep),
                policies.BestN(
                    get_metric_fn=lambda metrics: metrics["held_out_loss"], reverse=True, n=1
                ),
            ]
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation,
            enable_async_checkpointing=True,
            # The states are whole arrays on the host: no other process takes part.
            create=False,
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=jax.process_index(),
                active_processes={jax.process_index()},
                barrier_sync_key_prefix=f"process_{jax.process_index()}",
            ),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, *, held_out_loss: float, details: dict) -> None:
        """Start to save host arrays in the background; returns once they are copied."""
        meta = {**details, "checksum": checksum(state), "held_out_loss": held_out_loss}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
            metrics={"held_out_loss": held_out_loss},
        )

    def restore(self, template: Any, *, move_unreadable: bool = False) -> Restored:
        """The newest checkpoint that can be read, with a warning that names each that cannot.

        Args:
          template: a state of the same structure, shapes and dtypes (abstract arrays will do).
          move_unreadable: rename unreadable newer checkpoints into `corrupt_checkpoints` beside
            the folder, so that a run that goes on can save those steps again. Done only once an
            older one was read: when none can be, the fault may not be theirs.

        Raises:
          UserError: if none can be read.
        """
        unreadable: list[int] = []
        for step in reversed(self.steps()):
            try:
                restored = self._restore_step(step, template)
            except Exception as error:
                reason = (str(error).strip() or repr(error)).splitlines()[0]
                path = self.directory / str(step)
                logger.warning("%s cannot be read (%s): trying the one before it", path, reason)
                unreadable.append(step)
                continue
            if move_unreadable and unreadable:
                self._move_aside(unreadable)
            return restored
        raise UserError(
            f"no readable checkpoint in {self.directory}: check the path, or train from the start"
        )

    def _move_aside(self, steps: list[int]) -> None:
        folder = self.directory.parent / "corrupt_checkpoints"
        folder.mkdir(exist_ok=True)
        for step in steps:
            (self.directory / str(step)).rename(free_name(folder / str(step)))
        self._manager.reload()

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
        """Return when everything that was given to `save` is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait and release the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
