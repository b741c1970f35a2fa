"""Tensorboard files, written as they are logged."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog


class EventLog:
    """Scalars and images for tensorboard.

    Not tensorboardX's `SummaryWriter`: it writes in a thread of its own, which a full disk ends
    with a traceback, and the next entries wait for it for ever. Here the caller gets the `OSError`.

    Args:
      folder: made if it is missing.
      first_step: tensorboard hides what earlier files hold from this step on.
    """

    def __init__(self, folder: Path, first_step: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=first_step, session_log=start))

    def scalar(self, step: int, name: str, value: float) -> None:
        """Log a number."""
        self._write(Event(step=step, summary=summary.scalar(name, value)))

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image, uint8 (H, W, 3)."""
        self._write(Event(step=step, summary=summary.image(name, image, dataformats="HWC")))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)

    def flush(self) -> None:
        """Hand over to the system what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()
