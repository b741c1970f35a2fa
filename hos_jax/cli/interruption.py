"""Being told to stop: by Ctrl-C, or by SIGTERM as batch systems send it before they kill."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass
class Interruption:
    """Which signal has asked to stop, or None."""

    signal: signal.Signals | None = None


def _say(line: bytes) -> None:
    """Not by print: the signal may have come in the middle of one. Nobody need be there to read."""
    with contextlib.suppress(OSError):
        os.write(2, line)


def leave_on_ctrl_c() -> None:
    """Let Ctrl-C end the process at once, with status 130 and one line.

    For when there is nothing to save. `KeyboardInterrupt` would come up inside of whatever runs,
    and an import or a callback that it breaks off may print a traceback, or swallow it.
    """

    def leave(number: int, frame: object) -> None:
        _say(b"interrupted\n")
        os._exit(128 + number)

    # What was told to ignore it (by nohup, say) goes on ignoring it.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


@contextlib.contextmanager
def requested() -> Iterator[Interruption]:
    """Take note of SIGINT and SIGTERM instead of dying; a second one does what it always does.

    In the main thread only, as Python's signal handlers are.
    """
    interruption = Interruption()
    previous = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def take_note(number: int, frame: object) -> None:
        interruption.signal = signal.Signals(number)
        restore()
        _say(b"stopping after this step; once more to stop at once\n")

    for number, handler in previous.items():
        # What was told to ignore a signal (by nohup, say) goes on ignoring it.
        if handler is not signal.SIG_IGN:
            signal.signal(number, take_note)
    try:
        yield interruption
    finally:
        restore()
