"""What the command line lets be said, and what not."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any


def start_logging(verbose: str) -> None:
    """Log at that level; libraries no more than warnings, and orbax nothing that it raises too."""
    logging.basicConfig(
        level=verbose.upper(), format="%(levelname).1s %(name)s: %(message)s", force=True
    )
    for name in ("jax", "matplotlib", "PIL"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.root.level))
    # A save that fails is reported with a traceback, from its thread, before it is raised.
    level = logging.WARNING if verbose == "debug" else logging.CRITICAL
    for name in ("orbax", "absl"):
        logging.getLogger(name).setLevel(level)


def mend_streams() -> None:
    """Let any text be said in any encoding, and standard streams that are closed be there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # or the next file would take the place of a stream
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream: Any = getattr(sys, name) or open(os.devnull, mode)  # noqa: SIM115
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)


def ignore_late_reads(unraisable) -> None:
    """For `sys.unraisablehook`: say nothing of reads that end after the one that failed.

    Orbax closes its event loop when a read of a damaged checkpoint fails; the others of
    tensorstore then find it closed, and each would print a traceback.
    """
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)
