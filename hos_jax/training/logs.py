"""What a run says of itself while it trains: `history.jsonl`, tensorboard, and the log."""

from __future__ import annotations

import collections
import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hos_jax.files import write_atomically

logger = logging.getLogger(__name__)

HISTORY_FILE = "history.jsonl"


class RunLog:
    """Scalars and images of a run: `history.jsonl`, tensorboard, and the log.

    A resumed run drops the lines after the step it resumes from. A full disk is the caller's
    `OSError`: tensorboardX's `SummaryWriter` writes in a thread of its own, which would end with a
    traceback, and the next entries wait for it for ever.
    """

    def __init__(self, workdir: Path, first_step: int):
        self.path = workdir / HISTORY_FILE
        kept = (row for row in _rows(workdir) if row["step"] <= first_step)
        write_atomically(self.path, (json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"))
        # Tensorboard hides what earlier files hold from this step on.
        self._event(first_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _event(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))

    def scalars(self, step: int, values: dict[str, float], group: str) -> None:
        """Record named numbers of one group ("train" or "held_out") at a step."""
        self._file.write(json.dumps({"step": step, "group": group, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._event(step, summary=summary.scalar(f"{group}/{name}", value))
        self._events.flush()
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        logger.info("step %d  %s  %s", step, group, shown)

    def image(self, step: int, name: str, image: np.ndarray) -> None:
        """Record an image, uint8 (H, W, 3)."""
        self._event(step, summary=summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Write out what is buffered."""
        self._file.close()
        self._events.close()


def read_history(workdir: Path, at_most: int | None = None) -> list[dict]:
    """The rows of `history.jsonl` that can be read; `at_most` keeps the fewer the earlier, of each
    group."""
    rows: list[dict] = []
    for row in _rows(workdir):
        rows.append(row)
        if at_most is not None and len(rows) > at_most:
            rows[: at_most // 2] = _every_other(rows[: at_most // 2])
    return rows


def _every_other(rows: list[dict]) -> list[dict]:
    """Half of the rows, the earlier of two of the same group."""
    seen: collections.Counter[str] = collections.Counter()
    kept = []
    for row in rows:
        seen[row["group"]] += 1
        if seen[row["group"]] % 2:
            kept.append(row)
    return kept


def _rows(workdir: Path) -> Iterator[dict]:
    path = workdir / HISTORY_FILE
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                row = json.loads(line)
                if not isinstance(row["step"], int) or not isinstance(row["group"], str):
                    raise TypeError
                yield row
            except (ValueError, TypeError, KeyError):
                logger.warning("%s: skipped an unreadable line", path)


def shows_progress() -> bool:
    """Whether someone watches: standard error is there, and a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()
